"""Contour distance: golden values of the prostate literature, connectivity, empty masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg.metrics import (
    ContourDistanceMetric,
    compute_average_surface_distance,
    compute_contour_distance,
    compute_dice,
    surface_distances,
)

_SHARED = Path(__file__).parents[2].parent / "shared" / "golden" / "pirads_dual_path"
GOLDEN = _SHARED if _SHARED.is_dir() else Path(__file__).parents[1] / "golden" / "pirads_dual_path"


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("metric_*.npz")), ids=lambda p: p.stem)
def test_golden_values_are_met(path):
    golden = np.load(path)
    pred, ref = (torch.from_numpy(golden[key])[None, None] for key in ("pred", "gt"))
    spacing = golden["spacing_xyz"][::-1].tolist()
    assert compute_contour_distance(pred, ref, spacing=spacing).item() == pytest.approx(float(golden["mad"]), abs=5e-4)
    assert compute_dice(pred, ref).item() == pytest.approx(float(golden["dice"]), abs=1e-6)
    distances = surface_distances(golden["pred"] > 0, golden["gt"] > 0, spacing, connectivity=3)
    assert distances.hausdorff(95) == pytest.approx(float(golden["hd95"]), abs=5e-4)


def test_corners_change_the_value_on_thick_slices():
    golden = np.load(GOLDEN / "metric_a.npz")
    pred, ref = (torch.from_numpy(golden[key])[None, None] for key in ("pred", "gt"))
    spacing = golden["spacing_xyz"][::-1].tolist()
    faces = compute_contour_distance(pred, ref, connectivity=1, spacing=spacing)
    assert faces.item() == pytest.approx(0.4425, abs=5e-4)
    torch.testing.assert_close(faces, compute_average_surface_distance(pred, ref, spacing=spacing))


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 1000), connectivity=st.integers(1, 3), symmetric=st.sampled_from(["concat", "mean"]))
def test_it_is_symmetric_and_zero_for_equal_masks_only(seed, connectivity, symmetric):
    a, b = torch.rand(2, 1, 1, 4, 5, 6, generator=torch.Generator().manual_seed(seed)) > 0.6
    options = {"connectivity": connectivity, "symmetric": symmetric, "spacing": (3.0, 0.5, 0.5)}
    forth, back = compute_contour_distance(a, b, **options), compute_contour_distance(b, a, **options)
    torch.testing.assert_close(forth, back)
    assert compute_contour_distance(a, a, **options) == 0
    assert forth > 0


def test_directed_means_can_count_alike():
    pred, ref = torch.zeros(2, 1, 1, 1, 20)
    pred[..., 0], ref[..., 0], ref[..., 8] = 1, 1, 1
    assert compute_contour_distance(pred, ref).item() == pytest.approx(8 / 3)
    assert compute_contour_distance(pred, ref, symmetric="mean").item() == pytest.approx(8 / 4)


def test_a_missed_zone_is_not_perfect():
    ref = torch.zeros(1, 1, 4, 4)
    ref[..., 1:3, 1:3] = 1
    metric = ContourDistanceMetric(empty={"missed": "nan"})
    assert torch.isnan(metric(torch.zeros_like(ref), ref)).all()
    assert metric.empty_counts()["missed"].tolist() == [1]
    assert compute_contour_distance(0 * ref, ref, empty={"missed": 25.0}).item() == 25


def test_unknown_options_are_refused():
    with pytest.raises(ValueError, match="connectivity must be 1, 2 or 3, got 26"):
        ContourDistanceMetric(connectivity=26)
    with pytest.raises(ValueError, match="symmetric must be one of concat, mean, got 'max'"):
        compute_contour_distance(torch.ones(1, 1, 4, 4), torch.ones(1, 1, 4, 4), symmetric="max")
