"""Tests of `medseg.losses.shape_moment`."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medseg.losses import ShapeMomentLoss, compute_shape_moments
from tests.losses.sfda_golden import Golden
from tests.losses.test_class_ratio_kl import noise


@pytest.mark.parametrize(
    ("name", "moment"), [("g_tta_centroid.npz", "centroid"), ("g_tta_dist.npz", "distance_to_centroid")]
)
def test_moments_are_the_golden_ones(name, moment):
    golden = Golden(name, torch.float32)
    found = compute_shape_moments(golden.logits.detach().softmax(1), moment)
    np.testing.assert_allclose(found, golden["moment"], rtol=1e-5)


def test_the_penalty_without_a_margin_is_the_golden_one():
    golden = Golden("g_tta_centroid.npz", torch.float32)
    target = torch.from_numpy(golden["target_moment"]).T  # stored by axis, then class
    value = float(golden["lamb_moment"]) * ShapeMomentLoss()(golden.logits, target)
    golden.check(value, "loss_moment", "grad_moment", 2e-5)


@pytest.mark.parametrize("moment", ["centroid", "distance_to_centroid"])
def test_the_gradient_is_exact_and_finite_even_without_spread(moment):
    loss = ShapeMomentLoss(moment, spacing=[1.0, 2.0, 0.5], min_voxels=0, margin=0.05)
    target = torch.full((3, 3), 1.3)
    assert torch.autograd.gradcheck(lambda x: loss(x, target), (noise(1, 3, 2, 3, 2).requires_grad_(),))
    point = torch.zeros(1, 1, 5, 5)
    point[..., 2, 2] = 1
    point.requires_grad_()
    (gradient,) = torch.autograd.grad(
        ShapeMomentLoss(moment, softmax=False, min_voxels=0)(point, target[:1, :2]), point
    )
    assert torch.isfinite(gradient).all()


def test_moments_are_in_mm_and_do_not_depend_on_the_grid():
    coarse = torch.zeros(1, 1, 6, 8)
    coarse[..., 2:4, 2:6] = 1
    fine = coarse.repeat_interleave(2, dim=3)
    widths = [compute_shape_moments(m, "distance_to_centroid", s) for m, s in ((coarse, [1.0, 2.0]), (fine, 1.0))]
    torch.testing.assert_close(widths[0], widths[1], rtol=0.05, atol=0)
    assert compute_shape_moments(coarse, spacing=[1.0, 2.0]).flatten().tolist() == pytest.approx([2.5, 7.0])


def test_the_margin_is_a_band_without_a_penalty():
    logits = noise(1, 2, 8, 8)
    found = compute_shape_moments(logits.softmax(1))
    loss = ShapeMomentLoss(margin=0.1)
    assert loss(logits, found) == 0
    assert loss(logits, found / 1.09) == 0
    outside = loss(logits, found / 1.2)
    expected = ((found[0, 1] - found[0, 1] / 1.2 * 1.1) ** 2).sum()
    torch.testing.assert_close(outside, expected)


def test_a_class_counts_where_it_is_tagged_and_large_enough():
    logits = noise(2, 2, 8, 8)
    target = compute_shape_moments(logits.softmax(1)) + 1
    each = ShapeMomentLoss(reduction="none")(logits, target)
    torch.testing.assert_close(each, torch.full((2,), 2.0, dtype=torch.float64))
    tags = torch.tensor([[True, True], [True, False]])
    assert ShapeMomentLoss(reduction="none")(logits, target, tags).tolist() == pytest.approx([2.0, 0.0])
    assert ShapeMomentLoss(min_voxels=63)(logits, target) == 0
    assert ShapeMomentLoss(include_background=True)(logits, target).item() == pytest.approx(4.0)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"moment": "area"}, "moment must be centroid or distance_to_centroid, got 'area'"),
        ({"spacing": 0.0}, "spacing must be mm above 0"),
        ({"margin": 1.0}, r"margin must be in \[0, 1\), got 1"),
        ({"min_voxels": -1}, "min_voxels must be at least 0"),
    ],
)
def test_bad_options_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        ShapeMomentLoss(**options)


def test_bad_shapes_are_refused():
    logits = noise(2, 2, 8, 8)
    with pytest.raises(ValueError, match=r"target_moment must have shape \(2, 2\) or \(2, 2, 2\), got \(2, 3\)"):
        ShapeMomentLoss()(logits, torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"tags must have shape \(2,\) or \(2, 2\)"):
        ShapeMomentLoss()(logits, torch.zeros(2, 2), torch.ones(3))
    with pytest.raises(ValueError, match="spacing must be one number, or one for each of 2 axes"):
        ShapeMomentLoss(spacing=[1.0, 1.0, 1.0])(logits, torch.zeros(2, 2))
