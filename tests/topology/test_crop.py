"""Cropping a shared background changes no bar, no match and no voxel."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg.topology import _pairing, betti_matching, betti_numbers, persistence_barcode
from medseg.topology._crop import Box, find_box
from tests.topology.images import image_pairs


def assert_same(first, second):
    for a, b in zip(first, second, strict=True):
        for x, y in zip(a[2:], b[2:], strict=True):
            np.testing.assert_array_equal(x, y)


@settings(deadline=None, max_examples=60)
@given(pair=image_pairs(), data=st.data())
def test_a_wide_background_leaves_every_voxel_as_it_is(pair, data):
    margins = [data.draw(st.tuples(st.integers(0, 3), st.integers(0, 3))) for _ in pair[0].shape]
    pred, target = (np.pad(image, margins) for image in pair)
    rule = data.draw(st.sampled_from(["all", "positive"]))
    cropped = betti_matching(pred, target, image_bars=rule), persistence_barcode(pred)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_pairing, "find_box", lambda images, shape: Box((0,) * len(shape), tuple(shape)))
        whole = betti_matching(pred, target, image_bars=rule), persistence_barcode(pred)
    assert_same(cropped[0], whole[0])
    assert_same(cropped[1], whole[1])


def test_one_voxel_of_background_stays_on_cropped_sides():
    u = np.ones((6, 7, 8), np.float32)
    u[2:4, 0, 3] = 0.5
    assert find_box([u.reshape(-1)], u.shape) == Box((1, 0, 2), (4, 2, 3))


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_constant_and_unsaturated_images_are_left_whole(value):
    assert find_box([np.full(12, value, np.float32)], (3, 4)) == Box((0, 0), (3, 4))
    ramp = np.arange(12, dtype=np.float32)
    assert find_box([ramp, ramp[::-1]], (3, 4)) == Box((0, 0), (3, 4))


def test_a_small_object_in_a_large_volume_is_counted():
    mask = np.zeros((60, 60, 60), bool)
    mask[20:25, 30:35, 40:45] = True
    mask[22, 32, 42] = False
    assert betti_numbers(mask) == (1, 0, 1)
