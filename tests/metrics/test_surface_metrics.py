"""The surface metrics on tensors: empty masks, options and spacing."""

from __future__ import annotations

import math

import pytest
import torch

from medseg.metrics import (
    DiceMetric,
    HausdorffDistanceMetric,
    SurfaceDiceMetric,
    compute_average_surface_distance,
    compute_hausdorff_distance,
    compute_surface_dice,
)


def pair(kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """A reference square and a prediction, in which one may be empty; 30 x 40 pixels."""
    pred, ref = torch.zeros(2, 1, 1, 30, 40)
    if kind in ("present", "missed"):
        ref[..., 10:20, 10:20] = 1
    if kind in ("present", "hallucinated"):
        pred[..., 12:22, 10:20] = 1
    return pred, ref


@pytest.mark.parametrize("kind", ["missed", "hallucinated"])
def test_a_structure_in_one_mask_only_is_as_wrong_as_can_be(kind):
    pred, ref = pair(kind)
    assert compute_hausdorff_distance(pred, ref, spacing=2.0).item() == 100.0  # diagonal of 60 x 80 mm
    assert compute_average_surface_distance(pred, ref, spacing=2.0).item() == 100.0
    assert compute_surface_dice(pred, ref, spacing=2.0).item() == 0.0


def test_a_structure_in_no_mask_does_not_count_unless_asked_for():
    pred, ref = pair("both_empty")
    for compute, best in ((compute_hausdorff_distance, 0.0), (compute_surface_dice, 1.0)):
        assert math.isnan(compute(pred, ref).item())
        assert compute(pred, ref, empty={"both": "best"}).item() == best


def test_a_shift_is_measured_in_mm():
    pred, ref = pair("present")
    assert compute_hausdorff_distance(pred, ref, percentile=100, spacing=(1.5, 9.0)).item() == pytest.approx(3.0)
    assert compute_surface_dice(pred, ref, tolerance=3.0, spacing=(1.5, 9.0)).item() == 1.0


def test_a_single_slice_is_measured_in_2d_along_any_axis():
    pred, ref = pair("present")
    flat = compute_average_surface_distance(pred, ref, spacing=(1.5, 2.0))
    for axis in (2, 3, 4):
        size = [1.5, 2.0]
        size.insert(axis - 2, 7.0)
        solid = compute_average_surface_distance(pred.unsqueeze(axis), ref.unsqueeze(axis), spacing=size)
        torch.testing.assert_close(solid, flat)


def test_the_constructor_spacing_is_used_unless_a_call_gives_one():
    metric = HausdorffDistanceMetric(percentile=100, spacing=[1.5, 9.0])
    assert metric(*pair("present")).item() == pytest.approx(3.0)
    assert metric(*pair("present"), spacing=1.0).item() == pytest.approx(2.0)


def test_wrong_options_are_named():
    with pytest.raises(ValueError, match=r"percentile must be in \(0, 100\], got 0"):
        HausdorffDistanceMetric(percentile=0)
    with pytest.raises(ValueError, match="tolerance must be a finite number"):
        SurfaceDiceMetric(tolerance=-1)
    with pytest.raises(ValueError, match="spacing must be 2 positive voxel sizes"):
        compute_surface_dice(*pair("present"), spacing=(1.0, 1.0, 1.0))
    with pytest.raises(TypeError, match="got also thresholds"):
        DiceMetric()(*pair("present"), thresholds=1)
    with pytest.raises(ValueError, match="y must be a list of 2 tensors"):
        DiceMetric()([torch.ones(1, 2, 2)] * 2, [torch.ones(1, 2, 2)])
    with pytest.raises(ValueError, match="reference, is missing"):
        DiceMetric()(torch.ones(1, 1, 2, 2))
