"""Surface distances in mm against values computed by hand, SciPy and laws."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from medseg.metrics.surface import bounding_box, diagonal_mm, flat_axis, surface_distances, surface_voxels


@st.composite
def mask_pairs(draw):
    """Two masks of one shape, 2D or 3D, that hold at least one voxel each."""
    shape = draw(st.sampled_from([(7, 9), (5, 6, 7)]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    masks = rng.random((2, *shape)) < draw(st.sampled_from([0.05, 0.3, 0.8]))
    masks[(slice(None), *(n // 2 for n in shape))] |= ~masks.any(axis=tuple(range(1, masks.ndim)))
    return masks[0], masks[1]


def spacing_for(mask, sizes=(0.7, 1.3, 2.9)):
    return sizes[: mask.ndim]


def test_two_voxels_lie_apart_by_spacing_times_steps():
    pred, ref = np.zeros((2, 6, 6, 6), bool)
    pred[1, 1, 1] = ref[3, 1, 4] = True
    distances = surface_distances(pred, ref, (0.5, 1.0, 4.0))
    assert distances.hausdorff(95) == pytest.approx(np.hypot(2 * 0.5, 3 * 4.0), rel=1e-6)
    assert distances.mean() == pytest.approx(np.hypot(1.0, 12.0), rel=1e-6)


def test_a_plate_moved_along_one_axis_is_as_far_as_the_step():
    pred, ref = np.zeros((2, 10, 10, 8), bool)
    pred[2:8, 2:8, 2], ref[2:8, 2:8, 5] = True, True
    distances = surface_distances(pred, ref, (1.0, 1.0, 2.5))
    assert distances.hausdorff(100) == pytest.approx(7.5)
    assert distances.mean() == pytest.approx(7.5)
    assert distances.surface_dice(7.5) == 1.0
    assert distances.surface_dice(7.4) == 0.0


def test_a_distance_equal_to_the_tolerance_is_close_in_spite_of_rounding():
    pred, ref = np.zeros((2, 1, 9), bool)
    pred[0, 1], ref[0, 8] = True, True
    assert surface_distances(pred, ref, (1.0, 0.1)).surface_dice(0.7) == 1.0


def test_percentile_and_mean_by_hand():
    pred, ref = np.zeros((2, 1, 12), bool)
    pred[0, 0:5], ref[0, 0:1] = True, True  # single row: all voxels are surface; distances 0..4 and 0
    distances = surface_distances(pred, ref, (1.0, 2.0))
    assert sorted(distances.pred_to_ref) == [0, 2, 4, 6, 8]
    assert distances.hausdorff(95) == pytest.approx(7.6)  # linear interpolation between 6 and 8
    assert distances.mean() == pytest.approx(20 / 6)
    assert distances.surface_dice(2.0) == pytest.approx(3 / 6)


def test_the_surface_is_the_outer_layer_also_at_the_image_border():
    assert surface_voxels(np.ones((4, 5), bool)).sum() == 2 * 4 + 2 * 3
    assert surface_voxels(np.ones((4, 4, 4), bool)).sum() == 64 - 8


@settings(deadline=None, max_examples=25)
@given(mask_pairs())
def test_distances_are_those_of_all_pairs_of_surface_voxels(masks):
    spacing = spacing_for(masks[0])
    points = [np.argwhere(surface_voxels(mask)) * spacing for mask in masks]
    table = cdist(*points)
    distances = surface_distances(*masks, spacing)
    np.testing.assert_allclose(np.sort(distances.pred_to_ref), np.sort(table.min(axis=1)), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(np.sort(distances.ref_to_pred), np.sort(table.min(axis=0)), rtol=1e-5, atol=1e-6)


@settings(deadline=None, max_examples=25)
@given(mask_pairs(), st.floats(0.1, 10))
def test_distances_scale_with_the_spacing(masks, factor):
    spacing = np.array(spacing_for(masks[0]))
    one, scaled = surface_distances(*masks, spacing), surface_distances(*masks, spacing * factor)
    assert scaled.hausdorff(95) == pytest.approx(one.hausdorff(95) * factor, rel=1e-5)
    assert scaled.mean() == pytest.approx(one.mean() * factor, rel=1e-5)


@settings(deadline=None, max_examples=25)
@given(mask_pairs(), st.integers(0, 3), st.integers(0, 3))
def test_moving_both_masks_changes_nothing(masks, before, after):
    spacing = spacing_for(masks[0])
    moved = [np.pad(mask, [(before, after)] * mask.ndim) for mask in masks]
    one, two = surface_distances(*masks, spacing), surface_distances(*moved, spacing)
    np.testing.assert_array_equal(one.pred_to_ref, two.pred_to_ref)
    np.testing.assert_array_equal(one.ref_to_pred, two.ref_to_pred)


@settings(deadline=None, max_examples=25)
@given(mask_pairs())
def test_swapping_the_masks_changes_no_measure(masks):
    spacing = spacing_for(masks[0])
    one, two = surface_distances(*masks, spacing), surface_distances(*masks[::-1], spacing)
    assert one.hausdorff(95) == two.hausdorff(95)
    assert one.mean() == pytest.approx(two.mean())
    assert one.surface_dice(1.0) == two.surface_dice(1.0)


def test_wrong_arguments_are_named():
    mask = np.ones((3, 3), bool)
    with pytest.raises(ValueError, match="pred has shape"):
        surface_distances(mask, mask[:2], (1, 1))
    with pytest.raises(ValueError, match="EmptyPolicy"):
        surface_distances(mask, np.zeros_like(mask), (1, 1))
    for spacing in ((1,), (1, 0), (1, float("nan"))):
        with pytest.raises(ValueError, match="spacing must be 2 positive"):
            surface_distances(mask, mask, spacing)


def test_boxes_diagonals_and_flat_axes():
    mask = np.zeros((5, 6, 7), bool)
    mask[1:3, 2, 4:7] = True
    assert bounding_box(mask) == (slice(1, 3), slice(2, 3), slice(4, 7))
    assert diagonal_mm((2, 3, 6), (1, 1, 1)) == 7.0
    assert flat_axis((1, 4, 4)) == 0
    assert flat_axis((1, 4)) is None
