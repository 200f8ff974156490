"""Tests of `medseg.losses.weighted_entropy`."""

from __future__ import annotations

import math

import pytest
import torch

from medseg.losses import WeightedEntropyLoss
from tests.losses.sfda_golden import RATIO_CASES, REFERENCE_CASES, Golden
from tests.losses.test_class_ratio_kl import noise


@pytest.mark.parametrize("name", RATIO_CASES)
def test_value_and_gradient_are_the_golden_ones(name):
    golden = Golden(name, torch.float64)
    loss = WeightedEntropyLoss(golden["class_weights"].tolist())
    golden.check(loss(golden.logits), "f64_entropy_weighted", "f64_grad_entropy", 1e-9)


@pytest.mark.parametrize("name", REFERENCE_CASES)
def test_the_published_code_is_met_in_float32(name):
    golden = Golden(name, torch.float32)
    loss = WeightedEntropyLoss(golden["class_weights"].tolist())
    golden.check(loss(golden.logits), "ref_entropy", "ref_grad_entropy", 1e-5)


def test_some_classes_alone_have_the_golden_value():
    golden = Golden("f_2d_extras.npz", torch.float32)
    # For some classes the published code divides by their share, which is 1 for all classes together.
    share = golden.logits.softmax(1)[:, 1:].sum(1).mean()
    for loss in (
        WeightedEntropyLoss([0.0, 0.7, 0.3]),
        WeightedEntropyLoss([5.0, 0.7, 0.3], include_background=False),
    ):
        value = loss(golden.logits) / share
        golden.check(value, "self_entropy_idc12", None, 1e-5)
        (gradient,) = torch.autograd.grad(value, golden.logits, retain_graph=True)
        torch.testing.assert_close(gradient, torch.from_numpy(golden["grad_self_entropy"]), rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("shape", [(2, 2, 3, 2), (1, 3, 2, 2, 2)])
def test_the_gradient_is_exact(shape):
    loss = WeightedEntropyLoss([0.2, 0.5, 0.3][: shape[1]])
    assert torch.autograd.gradcheck(loss, (noise(*shape).requires_grad_(),))


def test_entropy_is_zero_for_decided_maps_and_log_c_for_undecided_ones():
    assert WeightedEntropyLoss()(noise(2, 3, 4, 5) * 1e3) < 1e-6
    assert WeightedEntropyLoss()(torch.zeros(1, 5, 3, 3)).item() == pytest.approx(math.log(5))
    assert WeightedEntropyLoss(softmax=False, sigmoid=True)(torch.zeros(1, 5, 3, 3)).item() == pytest.approx(
        5 * math.log(2)
    )


def test_the_order_of_classes_goes_with_their_weights():
    logits, order = noise(2, 3, 4, 5), [2, 0, 1]
    weight = [0.1, 0.3, 0.6]
    expected = WeightedEntropyLoss(weight)(logits)
    torch.testing.assert_close(WeightedEntropyLoss([weight[c] for c in order])(logits[:, order]), expected)
    torch.testing.assert_close(WeightedEntropyLoss(weight)(logits + 7), expected)


def test_voxels_outside_the_mask_do_not_count():
    logits = noise(2, 3, 4, 6)
    mask = torch.zeros(2, 1, 4, 6)
    mask[..., :2] = 1
    torch.testing.assert_close(WeightedEntropyLoss()(logits, mask), WeightedEntropyLoss()(logits[..., :2]))
    assert WeightedEntropyLoss()(logits, torch.zeros_like(mask)) == 0


def test_weights_must_fit():
    with pytest.raises(ValueError, match="weight must hold one number for each of 3 channels, got 2"):
        WeightedEntropyLoss([0.1, 0.9])(noise(1, 3, 4, 5))
    with pytest.raises(ValueError, match=r"weight\[1\] must be a finite number, at least 0, got -1"):
        WeightedEntropyLoss([1.0, -1.0])
