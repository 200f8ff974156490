"""Betti numbers of shapes one knows, and the Euler characteristic of any mask."""

from __future__ import annotations

import cc3d
import numpy as np
import pytest
from hypothesis import given, settings

from medseg.topology import betti_numbers
from tests.topology.images import image_pairs


def euler_characteristic(mask):
    """Alternating sum of the cells whose corners are all in the foreground."""
    total = 0
    for code in range(2**mask.ndim):
        cells, sign = mask, 1
        for axis in range(mask.ndim):
            if code >> axis & 1:
                n = cells.shape[axis]
                cells = np.take(cells, range(n - 1), axis) & np.take(cells, range(1, n), axis)
                sign = -sign
        total += sign * int(cells.sum())
    return total


@settings(deadline=None, max_examples=25)
@given(pair=image_pairs(max_side=7, max_voxels=343))
def test_the_alternating_sum_is_the_euler_characteristic(pair):
    mask = pair[0] > 0.5
    numbers = betti_numbers(mask)
    assert sum((-1) ** dim * number for dim, number in enumerate(numbers)) == euler_characteristic(mask)
    connectivity = 4 if mask.ndim == 2 else 6
    assert numbers[0] == cc3d.connected_components(mask, connectivity=connectivity).max()
    background = np.pad(~mask, 1, constant_values=True)
    holes = cc3d.connected_components(background, connectivity=8 if mask.ndim == 2 else 26).max() - 1
    assert numbers[-1] == holes


def test_known_shapes_have_their_numbers():
    shell = np.ones((5, 5, 5))
    shell[2, 2, 2] = 0
    assert betti_numbers(shell) == (1, 0, 1)
    torus = np.ones((3, 5, 5), bool)
    torus[:, 2, 2] = False
    assert betti_numbers(torus) == (1, 1, 0)
    two = np.zeros((3, 7))
    two[1, [1, 5]] = 1
    assert betti_numbers(two) == (2, 0)


@pytest.mark.parametrize("shape", [(3, 4), (3, 4, 2), (1, 1)])
def test_an_empty_mask_has_no_features_and_a_full_one_has_one(shape):
    assert betti_numbers(np.zeros(shape)) == (0,) * len(shape)
    assert betti_numbers(np.ones(shape)) == (1,) + (0,) * (len(shape) - 1)


def test_probabilities_are_refused():
    with pytest.raises(ValueError, match="values other than 0 and 1"):
        betti_numbers(np.full((3, 3), 0.4))
