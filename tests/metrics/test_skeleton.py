"""`medseg.metrics.skeleton`: lines inside the mask, none lost, and lengths in mm."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from medseg.metrics.skeleton import centreline_lengths, skeletonize_mask


def box(*sizes: int) -> np.ndarray:
    return np.pad(np.ones(sizes, bool), 2)


@pytest.mark.parametrize("width", [1, 2, 3, 4, 5, 6])
def test_a_square_tube_of_every_width_keeps_a_line_along_it(width):
    skeleton = skeletonize_mask(box(width, width, 30))
    assert 30 - 2 * width <= skeleton.sum() <= 30
    assert np.ptp(np.argwhere(skeleton)[:, :2], axis=0).max() == 0


@pytest.mark.parametrize("width", [2, 3, 4, 5])
def test_a_flat_bar_of_every_width_keeps_a_line_along_it(width):
    bar = np.pad(np.ones((width, 30), bool), 2)[..., None]
    assert 30 - 2 * width <= skeletonize_mask(bar).sum() <= 30


@given(mask=hnp.arrays(bool, st.sampled_from([(6, 7), (4, 5, 6)])))
@settings(deadline=None, max_examples=25)
def test_every_component_keeps_one_component_of_line_inside_it(mask):
    skeleton = skeletonize_mask(mask)
    assert not (skeleton & ~mask).any()
    corners = np.ones((3,) * mask.ndim)
    numbers, count = ndimage.label(mask, corners)
    assert set(numbers[skeleton]) == set(range(1, count + 1))
    assert ndimage.label(skeleton, corners)[1] == count


def test_the_length_of_a_straight_line_is_the_distance_of_its_ends():
    for step, expected in [((0, 0, 1), 0.7), ((0, 1, 0), 2.0), ((1, 0, 1), (3.0**2 + 0.7**2) ** 0.5)]:
        line = np.zeros((9, 9, 9), bool)
        for k in range(9):
            line[tuple(k * np.array(step))] = True
        assert centreline_lengths(line, (3.0, 2.0, 0.7))[1].sum() == pytest.approx(8 * expected)


def test_a_corner_is_as_long_as_its_legs_and_a_ring_as_its_steps():
    corner = np.zeros((5, 5), bool)
    corner[0, :] = corner[:, 4] = True
    assert centreline_lengths(corner, (1.0, 2.0))[1].sum() == pytest.approx(4 * 1.0 + 4 * 2.0)
    ring = np.array([[0, 1, 1, 0], [1, 0, 0, 1], [0, 1, 1, 0]], bool)
    assert centreline_lengths(ring, (1.0, 1.0))[1].sum() == pytest.approx(2 + 4 * 2**0.5)


def test_a_branching_counts_all_its_arms():
    line = np.zeros((7, 7, 7), bool)
    line[3, 3, :4] = True
    for k in range(1, 4):
        line[3, 3 + k, 3 + k] = line[3, 3 - k, 3 + k] = True
    assert centreline_lengths(line, (1.0, 1.0, 1.0))[1].sum() == pytest.approx(3 + 6 * 2**0.5)


def test_a_lone_voxel_counts_the_smallest_edge():
    voxels, lengths = centreline_lengths(np.pad(np.ones((1, 1), bool), 3), (0.4, 0.9))
    assert voxels.tolist() == [[3, 3]]
    assert lengths.tolist() == [0.4]
