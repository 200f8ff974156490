"""Tests of `medseg.losses.adawac`: golden values, the laws of its weights, and odd inputs."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.bundle import ConfigParser
from torch.nn import functional

from medseg.losses import AdaptiveWeightedConsistencyLoss as Loss

LOCAL = Path(__file__).parents[1] / "golden" / "adawac"
SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "golden" / "adawac"
FILES = {path.stem: path for folder in (SHARED, LOCAL) for path in sorted(folder.glob("*.npz"))}
# Baselines with weights that stand still: (supervision, agreement) of a slice with a label, and without.
FIXED = {
    "d_pair": ((1.0, 0.0), (1.0, 0.0)),
    "i_dac_only": ((0.5, 0.5), (0.5, 0.5)),
    "e_pseudo": ((1.0, 0.0), (0.0, 1.0)),
}
LEARNED = ["a_adawac_lrw2", "b_adawac_lrw8_unet"]


def load(name):
    if name not in FILES:
        pytest.skip(f"no golden file {name} here")
    with np.load(FILES[name]) as file:
        return dict(file)


def make_golden_loss(golden, **more):
    options = {
        "num_samples": int(golden["cfg_num_samples"]),
        "step_size": float(golden["cfg_lr_w"]),
        "consistency_weight": float(golden["cfg_dac_encoder"]),
        "dice_weight": float(golden["cfg_dice_ratio"]),
        "max_logit": None,
    }
    return Loss(**options, **more)


def run_golden_step(loss, golden, step, joined):
    """Loss and gradients of a step, with both views in one tensor or as a pair."""
    logits, latents = (torch.from_numpy(golden[k][step]).requires_grad_() for k in ("logits", "latents"))
    labels, ids = (torch.from_numpy(golden[k][step]) for k in ("labels", "idx"))
    if joined:
        value = loss(logits.flatten(0, 1), labels.flatten(0, 1)[:, None], latents.flatten(0, 1), ids)
    else:
        value = loss(tuple(logits), tuple(labels), tuple(latents), ids)
    return value, *torch.autograd.grad(value, (logits, latents))


def check_golden_step(loss, golden, step, found):
    for key, tensor in zip(("loss", "grad_logits", "grad_latents"), found, strict=True):
        np.testing.assert_allclose(tensor.detach(), golden[f"step{step}_{key}"], rtol=1e-5, atol=1e-7, err_msg=key)
    for key in ("ce", "consistency"):
        np.testing.assert_allclose(loss.last[key], golden[f"step{step}_{key}"], rtol=1e-5, err_msg=key)


@pytest.mark.parametrize("joined", [True, False], ids=["one tensor", "pairs"])
@pytest.mark.parametrize("name", LEARNED)
def test_state_losses_and_gradients_of_every_step_are_the_golden_ones(name, joined):
    golden = load(name)
    loss = make_golden_loss(golden)
    for step in range(len(golden["logits"])):
        check_golden_step(loss, golden, step, run_golden_step(loss, golden, step, joined))
        np.testing.assert_allclose(loss.last["weights"], golden[f"step{step}_weights"], rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(loss.sample_weights(), golden[f"step{step}_table"], rtol=1e-5, atol=1e-7)
    assert loss.visits.sum() == golden["idx"].size


@pytest.mark.parametrize("name", FIXED)
def test_baselines_are_this_loss_with_weights_that_stand_still(name):
    golden = load(name)
    loss = make_golden_loss(golden, learn_weights=False)
    if name == "d_pair":
        for step in range(len(golden["logits"])):  # the published run has no features, so none are compared
            golden[f"step{step}_consistency"] = (golden["latents"][step][0] - golden["latents"][step][1]) ** 2
            golden[f"step{step}_consistency"] = 2 * golden[f"step{step}_consistency"].mean((1, 2, 3))
    for step in range(len(golden["logits"])):
        labelled = torch.from_numpy(golden["labels"][step][0]).flatten(1).any(1)
        weights = torch.where(labelled[:, None], *(torch.tensor(w) for w in FIXED[name]))
        loss.weight_logits[torch.from_numpy(golden["idx"][step])] = weights[:, 0].logit()
        check_golden_step(loss, golden, step, run_golden_step(loss, golden, step, joined=True))


def test_plain_training_on_one_view_is_this_loss_with_the_view_given_twice():
    golden = load("c_base")
    loss = make_golden_loss(golden, learn_weights=False)
    loss.weight_logits.fill_(torch.inf)
    for step in range(len(golden["logits"])):
        logits, labels, latents = (torch.from_numpy(golden[k][step]) for k in ("logits", "labels", "latents"))
        ids = torch.from_numpy(golden["idx"][step])
        value = loss((logits[0],) * 2, (labels[0],) * 2, (latents[0],) * 2, ids)
        assert value.item() == pytest.approx(golden[f"step{step}_loss"].item(), rel=1e-5)


@pytest.mark.parametrize("name", ["l_weight_recursion", "m_weight_recursion_extreme"])
def test_the_recursion_of_the_weights_holds_also_for_extreme_losses(name):
    golden = load(name)
    supervised, consistency = (torch.from_numpy(golden[key]) for key in ("supervised", "consistency"))
    loss = Loss(supervised.shape[1], step_size=float(golden["eta"]), max_logit=None)
    for step, seen in enumerate(torch.from_numpy(golden["seen"])):
        ids = seen.nonzero()[:, 0]
        loss.update(ids, supervised[step, ids], consistency[step, ids])
        np.testing.assert_allclose(loss.sample_weights(), golden["weights"][step], rtol=1e-4, atol=1e-6)
    logs = torch.stack((loss.weight_logits, -loss.weight_logits), 1)
    np.testing.assert_allclose(functional.logsigmoid(logs), golden["log_weights_final"], rtol=1e-5, atol=1e-5)


def make_batch(batch=3, channels=3, dims=2, seed=0):
    """Logits, class ids, features and ids of two views."""
    random = torch.Generator().manual_seed(seed)
    grid, coarse = ((8, 6), (4, 3)) if dims == 2 else ((8, 6, 4), (4, 3, 2))
    logits = torch.randn(2 * batch, channels, *grid, generator=random)
    target = torch.randint(0, max(channels, 2), (2 * batch, 1, *grid), generator=random)
    features = torch.randn(2 * batch, 5, *coarse, generator=random)
    return logits, target, features, torch.arange(batch)


losses_of_steps = st.lists(
    st.lists(st.tuples(st.floats(0, 4), st.floats(0, 4)), min_size=4, max_size=4), min_size=1, max_size=6
)


@settings(deadline=None, max_examples=25)
@given(losses_of_steps, st.floats(0, 3), st.floats(0, 5))
def test_logits_are_step_size_times_the_summed_gap_in_any_order_and_shifts_change_nothing(steps, eta, shift):
    given_losses = torch.tensor(steps, dtype=torch.float64)
    loss, backwards, shifted = (Loss(4, step_size=eta, max_logit=None) for _ in range(3))
    ids = torch.arange(4)
    for supervised, consistency in given_losses.unbind(1)[0].new_tensor(steps).movedim(-1, 1):
        loss.update(ids, supervised, consistency)
        shifted.update(ids, supervised + shift, consistency + shift)
    for supervised, consistency in given_losses.flip(0).movedim(-1, 1):
        backwards.update(ids.flip(0), supervised.flip(0), consistency.flip(0))
    expected = eta * (given_losses[..., 0] - given_losses[..., 1]).sum(0)
    for other in (loss, backwards, shifted):
        torch.testing.assert_close(other.weight_logits.double(), expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(other.sample_weights().sum(1), torch.ones(4))


def test_equal_losses_leave_the_weights_as_they_are():
    loss = Loss(3, step_size=5.0)
    loss.update(torch.tensor([0, 1]), torch.tensor([2.0, 0.3]), torch.tensor([2.0, 0.3]))
    assert torch.equal(loss.sample_weights(), torch.full((3, 2), 0.5))


def test_samples_that_occur_twice_in_a_batch_count_twice():
    loss = Loss(5, step_size=2.0)
    loss.update(torch.tensor([3, 1, 3]), torch.tensor([1.0, 0.5, 2.0]), torch.tensor([0.5, 1.5, 0.0]))
    assert loss.weight_logits.tolist() == [0, -2, 0, 5, 0]
    assert loss.visits.tolist() == [0, 1, 0, 2, 0]


def test_a_clamped_sample_can_change_its_mind_at_once():
    loss, gap = Loss(1, step_size=8.0, max_logit=3.0), torch.tensor([100.0])
    loss.update(torch.tensor([0]), gap, torch.zeros(1))
    assert loss.weight_logits.item() == 3
    loss.update(torch.tensor([0]), torch.zeros(1), torch.ones(1))
    assert loss.weight_logits.item() == -3
    loss.update(torch.tensor([0, 0]), gap.expand(2), torch.tensor([0.0, 201.0]))
    assert loss.weight_logits.item() == -3, "the clamp must come after the sum"


def test_step_size_0_is_half_supervision_and_half_agreement():
    batch = make_batch()
    loss = Loss(3, step_size=0.0)
    assert loss(*batch) == Loss(3, learn_weights=False)(*batch)
    assert torch.equal(loss.sample_weights(), torch.full((3, 2), 0.5))
    assert loss.visits.tolist() == [1, 1, 1]


@pytest.mark.parametrize("align", ["none", "pool"])
@pytest.mark.parametrize("distance", ["mse", "cosine", "l2"])
@pytest.mark.parametrize(("dims", "channels"), [(2, 3), (3, 3), (2, 1)])
def test_gradients_are_exact_with_frozen_weights_and_none_reaches_the_table(dims, channels, distance, align):
    logits, target, features, ids = make_batch(2, channels, dims)
    loss = Loss(2, consistency_weight=1.5, learn_weights=False, distance=distance, align=align)
    loss.weight_logits += torch.tensor([0.7, -1.2])
    corner = (slice(None), slice(None, 3), *(slice(None, 2),) * dims)
    inputs = [x[corner].double().requires_grad_() for x in (logits, features)]
    target = target[corner]
    assert torch.autograd.gradcheck(lambda z, f: loss(z, target, f, ids), inputs)
    assert not loss.weight_logits.requires_grad
    assert list(loss.parameters()) == []


def test_gradients_are_exact_through_the_alignment():
    _, target, features, ids = make_batch(2)
    logits = torch.zeros(4, 3, 8, 6)
    affines = torch.stack([turn(a) for a in (0.3, -0.2, 0.9, 0.0)])
    loss = Loss(2, align="inverse", learn_weights=False)
    assert torch.autograd.gradcheck(
        lambda f: loss(logits.double(), target, f, ids, affines), [features.double().requires_grad_()]
    )


def test_evaluation_and_frozen_weights_read_the_table_and_never_write_it():
    batch = make_batch()
    for loss in (Loss(3).eval(), Loss(3, learn_weights=False)):
        loss.weight_logits.fill_(1.0)
        loss(*batch)
        assert torch.equal(loss.weight_logits, torch.ones(3))
        assert not loss.visits.any()
        torch.testing.assert_close(loss.last["weights"][:, 0], torch.ones(3).sigmoid())


def test_weights_of_the_same_step_are_used():
    logits, target, features, ids = make_batch()
    loss = Loss(3, step_size=2.0, dice_weight=0.0)
    value = loss(logits, target, features, ids)
    ce, consistency = loss.last["ce"], loss.last["consistency"]
    weight = torch.sigmoid(2 * (ce - consistency))
    torch.testing.assert_close(value, (weight * ce + (1 - weight) * consistency).mean())


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


def test_stateless_weights_come_from_the_losses_of_the_step_alone():
    logits, target, features, _ = make_batch()
    loss = Loss(1, step_size=3.0, stateless=True)
    first = loss(logits, target, features)
    assert torch.equal(loss(logits, target, features), first)
    expected = torch.sigmoid(3 * (loss.last["ce"] - loss.last["consistency"]))
    torch.testing.assert_close(loss.last["weights"][:, 0], expected)
    assert not loss.visits.any()


def turn(angle, flip=1.0):
    """Matrix for `affine_grid` that turns, and mirrors, a square image."""
    c, s = np.cos(angle), np.sin(angle)
    return torch.tensor([[c, -s, 0], [s * flip, c * flip, 0], [0, 0, 1]], dtype=torch.float32)


def view_of(image, affine):
    grid = functional.affine_grid(affine[None, :-1], list(image[None].shape), align_corners=False)
    return functional.grid_sample(image[None], grid, align_corners=False)[0]


def test_aligned_features_of_turned_views_agree_and_unaligned_ones_do_not():
    image = torch.rand(4, 6, 6, generator=torch.Generator().manual_seed(0))
    affines = [turn(np.pi / 2), turn(np.pi, flip=-1.0)]
    features = torch.stack([view_of(image, a) for a in affines])
    logits, target, ids = torch.zeros(2, 2, 8, 8), torch.zeros(2, 1, 8, 8), torch.tensor([0])
    found = {}
    for align in ("none", "inverse", "pool"):
        loss = Loss(1, align=align)
        loss(logits, target, features, ids, view_affines=torch.stack(affines))
        found[align] = loss.last["consistency"].item()
    assert found["none"] > 0.1
    assert found["inverse"] < 1e-10
    assert found["pool"] < 1e-10


def test_cells_that_a_view_does_not_show_do_not_count():
    shift = torch.eye(3)
    shift[0, 2] = 1.0  # half of the width
    first = torch.rand(1, 2, 4, 4, generator=torch.Generator().manual_seed(1))
    second = torch.full_like(first, 9.0)
    second[..., :2] = first[..., 2:]
    logits, target, ids = torch.zeros(2, 2, 8, 8), torch.zeros(2, 1, 8, 8), torch.tensor([0])
    loss = Loss(1, align="inverse", step_size=1.0)
    loss(logits, target, (first, second), ids, view_affines=(torch.eye(3)[None], shift[None]))
    assert loss.last["consistency"].item() < 1e-10
    shift[0, 2] = 2.5  # the views share nothing: there is no agreement to measure and nothing to learn
    before = loss.weight_logits.clone()
    value = loss(logits, target, (first, second), ids, view_affines=(torch.eye(3)[None], shift[None]))
    assert torch.isfinite(value)
    assert loss.last["consistency"].item() == 0
    assert torch.equal(loss.weight_logits, before)


def test_distances_are_over_the_channels_and_averaged_over_the_grid():
    _, target, features, ids = make_batch()
    first, second = features.chunk(2)
    expected = {
        "mse": (first - second).square().flatten(1).mean(1),
        "cosine": 1 - functional.cosine_similarity(first, second, dim=1).flatten(1).mean(1),
        "l2": (first - second).square().sum(1).sqrt().flatten(1).mean(1),
    }
    for distance, values in expected.items():
        loss = Loss(3, distance=distance, consistency_weight=0.7)
        loss(torch.zeros(6, 3, 8, 6), target, features, ids)
        torch.testing.assert_close(loss.last["consistency"], 0.7 * values)


def test_equal_features_have_a_finite_gradient_under_every_distance():
    logits, target, features, ids = make_batch()
    for distance in ("mse", "cosine", "l2"):
        same = features[:3].clone().requires_grad_()
        Loss(3, distance=distance)(logits, target, (same, same.detach()), ids).backward()
        assert torch.isfinite(same.grad).all()


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


def test_alignment_needs_matrices_that_fit():
    batch = make_batch()
    with pytest.raises(ValueError, match=r"needs view_affines.*PairedViewsd"):
        Loss(3, align="inverse")(*batch)
    with pytest.raises(ValueError, match="view_affines must have shape"):
        Loss(3, align="inverse")(*batch, view_affines=torch.zeros(6, 4, 4))


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


def test_dense_and_sparse_samples_part_in_training():
    """Two populations, structured labels and empty ones, and a network that must find the structure."""
    random = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    count = 24
    images = torch.randn(count, 1, 12, 12, generator=random)
    dense = torch.arange(count) % 2 == 0
    labels = (images.roll(1, -1) + images > 0.8) & dense[:, None, None, None]
    images = torch.cat((images, dense.float()[:, None, None, None].expand_as(images)), 1)
    encoder = torch.nn.Sequential(torch.nn.Conv2d(2, 8, 3, padding=1), torch.nn.GELU(), torch.nn.AvgPool2d(2))
    decoder = torch.nn.Sequential(torch.nn.Upsample(scale_factor=2), torch.nn.Conv2d(8, 2, 1))
    loss = Loss(count, step_size=1.0, consistency_weight=4.0)
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=0.02)
    for _ in range(60):
        ids = torch.randperm(count, generator=random)[:8]
        axes = [[[2], [3], [2, 3]][int(torch.randint(3, (), generator=random))] for _ in range(2)]
        views = torch.cat([images[ids].flip(a) for a in axes])
        target = torch.cat([labels[ids].flip(a) for a in axes]).long()
        features = encoder(views)
        value = loss(decoder(features), target, features, ids)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    weight = loss.weight_logits
    auc = (weight[dense][:, None] > weight[~dense]).float().mean()
    assert auc > 0.9
    assert weight[dense].mean() > weight[~dense].mean()
