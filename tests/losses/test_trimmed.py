"""Tests of `medseg.losses.trimmed`."""

from __future__ import annotations

import json

import pytest
import torch
from monai.bundle import ConfigParser

from medseg.losses import LabelTrimmedLoss, TrimmedLoss
from tests.losses.test_adawac import load

EACH = torch.nn.CrossEntropyLoss(reduction="none")
IDENTITY = torch.nn.L1Loss(reduction="none")


def side_by_side(golden, step):
    """Logits and class ids with the two views in one item, so that its mean is the mean over both."""
    logits, labels = (torch.from_numpy(golden[key][step]) for key in ("logits", "labels"))
    return torch.cat(tuple(logits), dim=2), torch.cat(tuple(labels), dim=1)


@pytest.mark.parametrize("name", ["f_trim_train", "h_trim_ratio"])
def test_what_is_kept_and_its_mean_are_the_golden_ones(name):
    golden = load(name)
    loss = LabelTrimmedLoss(EACH) if name == "f_trim_train" else TrimmedLoss(EACH, float(golden["cfg_trim_ratio"]))
    for step in range(len(golden["logits"])):
        value = loss(*side_by_side(golden, step)).item()
        kept, dice = golden[f"step{step}_batch_num"].item(), golden[f"step{step}_dice"][0].item()
        batch = golden["idx"].shape[1]
        # The published total multiplies Dice by the batch size over the number kept.
        published = 0.5 * dice * batch / kept + 0.5 * value
        assert published == pytest.approx(golden[f"step{step}_loss"].item(), rel=1e-5)


def test_trimming_goes_with_the_agreement_of_views_as_in_the_golden_run():
    golden = load("g_trim_train_acr")
    for step in range(len(golden["logits"])):
        agreement = torch.from_numpy(golden[f"step{step}_consistency"])
        loss = LabelTrimmedLoss(lambda z, y, ac=agreement: (EACH(z, y).flatten(1).mean(1) + ac) / 2)
        kept, dice = golden[f"step{step}_batch_num"].item(), golden[f"step{step}_dice"][0].item()
        published = 0.5 * dice * golden["idx"].shape[1] / kept + 0.5 * loss(*side_by_side(golden, step)).item()
        assert published == pytest.approx(golden[f"step{step}_loss"].item(), rel=1e-5)


def test_high_and_low_losses_are_kept_strictly_beyond_the_quantile():
    values, zeros = torch.arange(1.0, 6.0)[:, None], torch.zeros(5, 1)
    assert TrimmedLoss(IDENTITY, 0.5)(values, zeros) == 4.5
    assert TrimmedLoss(IDENTITY, 0.5, keep="low")(values, zeros) == 1.5
    assert TrimmedLoss(IDENTITY, 0.0)(values, zeros) == 3


@pytest.mark.parametrize("values", [[2.0, 2.0, 2.0], [2.0]], ids=["equal losses", "one sample"])
def test_where_nothing_lies_beyond_the_quantile_all_are_kept(values):
    assert TrimmedLoss(IDENTITY)(torch.tensor(values)[:, None], torch.zeros(len(values), 1)) == 2


def test_samples_that_are_left_out_get_no_gradient_even_where_their_loss_is_nan():
    logits = torch.zeros(3, 2, 4, 4, requires_grad=True)
    label = torch.zeros(3, 4, 4, dtype=torch.int64)
    label[1, 2, 2] = 1
    broken = logits + torch.tensor([torch.nan, 0.0, 0.0])[:, None, None, None]
    loss = LabelTrimmedLoss(EACH)(broken, label)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert torch.isfinite(loss)
    assert gradient.abs().flatten(1).sum(1).gt(0).tolist() == [False, True, False]


def test_a_batch_without_any_label_gives_0_and_no_gradient():
    logits = torch.zeros(2, 2, 4, 4, requires_grad=True)
    loss = LabelTrimmedLoss(EACH)(logits, torch.zeros(2, 4, 4, dtype=torch.int64))
    loss.backward()
    assert loss == 0
    assert not logits.grad.any()


def test_masks_and_the_ignored_class_tell_what_is_labelled():
    logits = torch.tensor([1.0, 2.0, 3.0])[:, None, None, None].expand(3, 2, 4, 4)
    masks = torch.zeros(3, 2, 4, 4)
    masks[:, 0] = 1
    masks[1, :, 0, 0] = torch.tensor([0.0, 1.0])
    absolute = torch.nn.L1Loss(reduction="none")
    assert LabelTrimmedLoss(lambda z, y: absolute(z, torch.zeros_like(z)))(logits, masks) == 2
    ids = torch.zeros(3, 1, 4, 4)
    ids[0, 0, 0, 0], ids[2, 0, 0, 0] = 255, 1
    loss = LabelTrimmedLoss(lambda z, y: absolute(z, torch.zeros_like(z)), ignore_index=255)
    assert loss(logits, ids) == 3


@pytest.mark.parametrize(("options", "match"), [({"ratio": 1.0}, "ratio"), ({"keep": "middle"}, "keep must be high")])
def test_odd_options_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        TrimmedLoss(IDENTITY, **options)


def test_a_base_that_reduces_by_itself_is_refused():
    for loss in (TrimmedLoss(torch.nn.L1Loss()), LabelTrimmedLoss(torch.nn.L1Loss())):
        with pytest.raises(ValueError, match='set its reduction to "none"'):
            loss(torch.ones(2, 1), torch.ones(2, 1))
    with pytest.raises(TypeError, match="must be a loss object, got str"):
        TrimmedLoss("ce")


def test_a_bundle_builds_them_with_their_base():
    base = {"_target_": "torch.nn.CrossEntropyLoss", "reduction": "none"}
    for name, more in (("TrimmedLoss", {"ratio": 0.3, "keep": "low"}), ("LabelTrimmedLoss", {})):
        config = json.loads(json.dumps({"loss": {"_target_": f"medseg.losses.{name}", "base": base, **more}}))
        loss = ConfigParser(config).get_parsed_content("loss")
        assert torch.isfinite(loss(torch.zeros(2, 2, 4, 4), torch.ones(2, 4, 4, dtype=torch.int64)))
