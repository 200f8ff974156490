"""Tests of `medseg.losses.size_bound`."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medseg.losses import SizeBoundLoss
from tests.losses.sfda_golden import Golden
from tests.losses.test_class_ratio_kl import noise


def test_the_penalty_is_the_golden_one():
    golden = Golden("f_2d_extras.npz", torch.float32)
    low, high = (golden[f"bounds_{end}"] / golden.voxels for end in ("low", "high"))
    # The golden file has bounds for each image; one loss takes one set of bounds.
    losses = [
        SizeBoundLoss(lo.tolist(), hi.tolist(), include_background=False) for lo, hi in zip(low, high, strict=True)
    ]
    value = sum(loss(golden.logits[i : i + 1]) for i, loss in enumerate(losses))
    golden.check(value, "quadratic_size_penalty_idc12", "grad_penalty", 1e-5)


def test_only_what_lies_outside_the_bounds_costs_and_pulls():
    logits = torch.zeros(1, 2, 4, 4, requires_grad=True)
    inside = SizeBoundLoss([0.0, 0.4], [1.0, 0.6])(logits)
    (gradient,) = torch.autograd.grad(inside, logits)
    assert inside == 0
    assert gradient.abs().max() == 0
    assert SizeBoundLoss([0.0, 0.0], [1.0, 0.1])(logits).item() == pytest.approx(0.16)
    assert SizeBoundLoss([0.0, 0.9], [1.0, 1.0])(logits).item() == pytest.approx(0.16)
    assert SizeBoundLoss([0.9], [1.0], softmax=False, sigmoid=True)(logits[:, :1]).item() == pytest.approx(0.16)


def test_the_gradient_is_exact():
    loss = SizeBoundLoss([0.5, 0.0, 0.1], [1.0, 0.2, 0.2])
    assert torch.autograd.gradcheck(loss, (noise(2, 3, 2, 2, 2).requires_grad_(),))


def test_a_mask_counts_in_the_share():
    logits = noise(2, 2, 4, 6)
    mask = torch.zeros(2, 1, 4, 6)
    mask[..., :2] = 1
    loss = SizeBoundLoss([0.0, 0.0], [1.0, 0.1], reduction="none")
    np.testing.assert_allclose(loss(logits, mask), loss(logits[..., :2]))


@pytest.mark.parametrize(
    ("lower", "upper", "match"),
    [
        ([0.0], [1.0, 1.0], "must be equally long, got 1 and 2"),
        ([0.0, 0.3], [1.0, 0.2], "bounds of channel 1 must be shares with 0 <= lower <= upper <= 1, got 0.3 and 0.2"),
        ([0.0, 50], [1.0, 80], "divide voxel counts by the number of voxels"),
        ([0.0] * 3, [1.0] * 3, "hold 3 numbers, but input has 2 channels"),
    ],
)
def test_bad_bounds_are_refused(lower, upper, match):
    with pytest.raises(ValueError, match=match):
        SizeBoundLoss(lower, upper)(torch.zeros(1, 2, 4, 4))
