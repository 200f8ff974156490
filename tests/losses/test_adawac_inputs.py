"""What `AdaptiveWeightedConsistencyLoss` takes and refuses: targets, types, ids, options, and saved tables."""

from __future__ import annotations

import io
import json

import pytest
import torch
from monai.bundle import ConfigParser
from torch.nn import functional

from medseg.losses import AdaptiveWeightedConsistencyLoss as Loss
from tests.losses.test_adawac import make_batch


def test_autocast_and_half_precision_are_computed_in_float32():
    logits, target, features, ids = make_batch()
    features = features * 300  # squared, these overflow in half precision
    expected = Loss(3)(logits.half().float(), target, features.half().float(), ids)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = Loss(3)(logits.half(), target, features.half(), ids)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)
    assert torch.isfinite(found)


def test_losses_that_are_not_finite_are_counted_and_poison_no_weight():
    logits, target, features, ids = make_batch()
    expected = Loss(3)
    expected(logits, target, features, ids)
    loss = Loss(3)
    logits[1], features[2] = torch.nan, torch.inf
    assert torch.isnan(loss(logits, target, features, ids))
    assert loss.nonfinite_updates == 2
    assert loss.visits.tolist() == [1, 0, 0]
    assert loss.weight_logits[1:].tolist() == [0, 0]
    assert loss.weight_logits[0] == expected.weight_logits[0]


def test_voxels_of_the_ignored_class_do_not_count_and_a_sample_of_nothing_else_keeps_its_entry():
    logits, target, features, ids = make_batch()
    target[0::3, :, :4] = 255
    target[1::3] = 255
    loss = Loss(3, ignore_index=255)
    value = loss(logits, target, features, ids)
    assert torch.isfinite(value)
    half = functional.cross_entropy(logits[0::3, :, 4:], target[0::3, 0, 4:])
    torch.testing.assert_close(loss.last["ce"][0], half)
    assert loss.last["ce"][1] == 0
    assert loss.visits.tolist() == [1, 0, 1]
    assert loss.weight_logits[1] == 0
    changed = logits.clone()
    changed[0::3, :, :4] += 3
    changed[1::3] += torch.randn(2, 3, 8, 6)
    assert torch.equal(Loss(3, ignore_index=255)(changed, target, features, ids), value)


def test_masks_and_class_ids_mean_the_same_and_one_channel_is_binary():
    logits, target, features, ids = make_batch()
    masks = functional.one_hot(target[:, 0], 3).movedim(-1, 1)
    torch.testing.assert_close(Loss(3)(logits, masks, features, ids), Loss(3)(logits, target, features, ids))
    logits, target, features, ids = make_batch(channels=1)
    loss = Loss(3)
    loss(logits, target, features, ids)
    voxels = functional.binary_cross_entropy_with_logits(logits, target.float(), reduction="none")
    torch.testing.assert_close(loss.last["ce"], voxels.view(2, 3, -1).mean((0, 2)))


def test_losses_of_ones_own_replace_the_default_ones():
    logits, target, features, ids = make_batch()
    smooth = torch.nn.CrossEntropyLoss(label_smoothing=0.1, reduction="none")
    loss = Loss(3, supervised_loss=smooth, dice_loss=lambda z, y: z.mean() * 0 + 7.0)
    value = loss(logits, target, features, ids)
    ce = smooth(logits, target[:, 0]).flatten(1).mean(1).view(2, 3).mean(0)
    torch.testing.assert_close(loss.last["ce"], ce)
    each = (loss.last["weights"] * torch.stack((ce, loss.last["consistency"]), 1)).sum(1)
    torch.testing.assert_close(value, 0.5 * 7 + 0.5 * each.mean())
    with pytest.raises(ValueError, match=r"supervised_loss must give a value for each of the 6 items"):
        Loss(3, supervised_loss=torch.nn.CrossEntropyLoss())(logits, target, features, ids)


def test_the_table_is_saved_and_loaded_with_the_loss():
    batch = make_batch()
    loss = Loss(3, step_size=2.0)
    loss(*batch)
    assert set(loss.state_dict()) == {"weight_logits", "visits"}
    file = io.BytesIO()
    torch.save(loss.state_dict(), file)
    file.seek(0)
    other = Loss(3, step_size=2.0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other(*batch), loss(*batch))
    assert torch.equal(other.weight_logits, loss.weight_logits)
    assert torch.equal(other.visits, loss.visits)
    assert loss.to("meta").weight_logits.is_meta


def test_a_table_of_another_list_of_samples_is_refused_or_found_by_name():
    old = Loss(3, sample_names=["a", "b", "c"])
    old.update(torch.tensor([0, 1, 2]), torch.tensor([1.0, 2.0, 3.0]), torch.zeros(3))
    new = Loss(4, sample_names=["c", "new", "a", "also new"])
    new.weight_logits.fill_(9.0)
    with pytest.raises(ValueError, match=r"2 of 4 samples are new \(such as 'new'\), 1 are gone.*strict=False"):
        new.load_state_dict(old.state_dict())
    assert torch.equal(new.weight_logits, torch.full((4,), 9.0)), "a refused table must not be taken over"
    new.load_state_dict(old.state_dict(), strict=False)
    assert new.weight_logits.tolist() == [3, 0, 1, 0]
    assert new.visits.tolist() == [1, 0, 1, 0]
    turned = Loss(3, sample_names=["b", "a", "c"])
    with pytest.raises(ValueError, match="stand in another order"):
        turned.load_state_dict(old.state_dict())
    same = Loss(3, sample_names=["a", "b", "c"])
    same.load_state_dict(old.state_dict())
    assert same.weight_logits.tolist() == [1, 2, 3]
    assert b"secret" not in str(Loss(1, sample_names=["secret"]).state_dict()).encode()


@pytest.mark.parametrize(
    ("ids", "error", "match"),
    [
        (torch.tensor([0, 3, 1]), IndexError, r"run from 0 to 3, but num_samples is 3 \(ids 0 to 2\)"),
        (torch.tensor([0, -1, 1]), IndexError, r"run from -1 to 1"),
        (torch.tensor([0.0, 1.0, 2.0]), ValueError, "whole numbers, got torch.float32"),
        (torch.tensor([True, False, True]), ValueError, "whole numbers, got torch.bool"),
        ([0, 1, 2], ValueError, "whole numbers, got list"),
        (torch.arange(6) % 3, ValueError, r"shape \(3,\), one for each sample \(not for each view\), got \(6,\)"),
        (None, ValueError, "sample_ids is None"),
    ],
)
def test_odd_sample_ids_are_refused_before_anything_changes(ids, error, match):
    logits, target, features, _ = make_batch()
    loss = Loss(3)
    with pytest.raises(error, match=match):
        loss(logits, target, features, ids)
    assert not loss.visits.any()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"logits": torch.zeros(5, 3, 8, 6)}, "an even number of items"),
        ({"logits": (torch.zeros(3, 3, 8, 6), torch.zeros(2, 3, 8, 6))}, "two of equal shape"),
        ({"logits": torch.zeros(6, 3, 8)}, r"\(2B, C, H, W\)"),
        ({"logits": torch.zeros(6, 3, 8, 6, dtype=torch.int64)}, "float type"),
        ({"target": torch.zeros(6, 2, 8, 6)}, r"class ids \(6, 1, 8, 6\) or masks \(6, 3, 8, 6\)"),
        ({"target": torch.full((6, 1, 8, 6), 4)}, "class id 4, but input has 3 channels"),
        ({"features": torch.zeros(4, 5, 4, 3)}, "features hold 2 samples in two views, logits 3"),
    ],
)
def test_odd_inputs_are_refused(change, match):
    arguments = dict(zip(("logits", "target", "features", "sample_ids"), make_batch(), strict=True))
    with pytest.raises(ValueError, match=match):
        Loss(3)(**{**arguments, **change})


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"num_samples": 0}, "at least 1, got 0"),
        ({"num_samples": 2.0}, "at least 1, got 2.0"),
        ({"step_size": -1.0}, "step_size"),
        ({"consistency_weight": float("nan")}, "consistency_weight"),
        ({"dice_weight": 1.1}, "dice_weight must be between 0 and 1, got 1.1"),
        ({"max_logit": 0.0}, "max_logit must be a finite number above 0, or None"),
        ({"distance": "l1"}, "distance must be one of mse, cosine, l2, got 'l1'"),
        ({"align": "affine"}, "align must be one of none, inverse, pool"),
        ({"sample_names": ["a", "a", "b"]}, "3 different names.*got 3 of which 2 differ"),
        ({"sample_names": ["a"]}, "3 different names.*got 1"),
    ],
)
def test_odd_options_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        Loss(**{"num_samples": 3, **options})


def test_consistency_weight_0_warns():
    with pytest.warns(UserWarning, match="plain supervision"):
        Loss(3, consistency_weight=0.0)


def test_a_bundle_builds_it_and_a_misspelt_option_is_refused():
    options = {"num_samples": 3, "step_size": 2.0, "sample_names": ["a", "b", "c"], "max_logit": None}
    config = {"loss": {"_target_": "medseg.losses.AdaptiveWeightedConsistencyLoss", **options}}
    assert isinstance(ConfigParser(json.loads(json.dumps(config))).get_parsed_content("loss"), Loss)
    with pytest.raises(TypeError, match="num_sample"):
        Loss(num_sample=3)
