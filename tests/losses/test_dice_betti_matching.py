"""Tests of `medseg.losses.dice_betti_matching`."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.losses import DiceLoss

from medseg.losses import BettiMatchingLoss, DiceBettiMatchingLoss, warm_up_factor
from tests.losses.test_betti_matching import FILES, MULTICLASS


def make_batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 3, 8, 7, generator=generator), torch.randint(0, 3, (2, 1, 8, 7), generator=generator)


@pytest.mark.skipif(not MULTICLASS, reason="no golden values here")
@pytest.mark.parametrize("name", MULTICLASS)
def test_values_and_gradients_are_those_of_the_published_code(name):
    golden = np.load(FILES[name])
    logits, target = torch.from_numpy(golden["logits"]).requires_grad_(), torch.from_numpy(golden["target"])
    loss = DiceBettiMatchingLoss(softmax=True)(logits, target)
    (gradient,) = torch.autograd.grad(loss, logits)
    (prefix,) = {key.rsplit("/", 1)[0] for key in golden.files if "dice_plus_half_bm" in key}
    np.testing.assert_allclose(loss.item(), golden[f"{prefix}/loss"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(gradient, golden[f"{prefix}/grad"], rtol=1e-4, atol=1e-5)


def test_it_is_the_sum_of_its_two_terms():
    logits, target = make_batch()
    flags = {"to_onehot_y": True, "softmax": True}
    betti = BettiMatchingLoss(**flags, boundary="foreground")(logits, target)
    for background in (True, False):
        found = DiceBettiMatchingLoss(0.25, **flags, boundary="foreground", dice_include_background=background)
        dice = DiceLoss(include_background=background, **flags)(logits, target)
        torch.testing.assert_close(found(logits, target), dice + 0.25 * betti)


def test_without_reduction_there_is_one_value_an_item():
    logits, target = make_batch()
    each = DiceBettiMatchingLoss(to_onehot_y=True, softmax=True, reduction="none")(logits, target)
    assert each.shape == (2,)
    alone = DiceBettiMatchingLoss(to_onehot_y=True, softmax=True)(logits[:1], target[:1])
    torch.testing.assert_close(each[0], alone)


def test_the_weight_grows_from_zero_with_the_training():
    logits, target = make_batch()
    loss = DiceBettiMatchingLoss(0.5, to_onehot_y=True, softmax=True)
    full = loss(logits, target)
    loss.set_progress(-0.5)
    dice = loss(logits, target)
    torch.testing.assert_close(dice, DiceLoss(to_onehot_y=True, softmax=True)(logits, target))
    loss.set_progress(0.1)
    expected = dice + (2 / (1 + np.exp(-1)) - 1) * (full - dice)
    torch.testing.assert_close(loss(logits, target), expected.float())
    loss.set_progress(None)
    torch.testing.assert_close(loss(logits, target), full)
    assert warm_up_factor(2.0) == pytest.approx(1)


def test_one_vs_max_leaves_the_softmax_to_dice():
    logits, target = make_batch()
    found = DiceBettiMatchingLoss(1.0, to_onehot_y=True, one_vs_max=True)(logits, target)
    dice = DiceLoss(to_onehot_y=True, softmax=True)(logits, target)
    torch.testing.assert_close(found, dice + BettiMatchingLoss(to_onehot_y=True, one_vs_max=True)(logits, target))


def test_labels_without_a_channel_are_refused_before_the_warm_up_as_well():
    logits, target = make_batch()
    target[0, 0, 0, 0] = 5
    loss = DiceBettiMatchingLoss(to_onehot_y=True, softmax=True)
    loss.set_progress(0)
    with pytest.raises(ValueError, match="target holds class id 5, but input has 3 channels"):
        loss(logits, target)


def test_wrong_options_are_named_at_once():
    with pytest.raises(ValueError, match="alpha must be a finite number"):
        DiceBettiMatchingLoss(alpha=-1)
    with pytest.raises(ValueError, match="reduction must be one of"):
        DiceBettiMatchingLoss(reduction="average")
    with pytest.raises(ValueError, match="sigmoid and softmax"):
        DiceBettiMatchingLoss(sigmoid=True, softmax=True)
