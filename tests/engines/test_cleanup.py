"""Components of label maps."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from medseg.engines import keep_largest_component, remove_small_components

LABELS = arrays(np.uint8, (4, 4, 4), elements=st.integers(0, 2))


def _two_balls_a_label() -> np.ndarray:
    labels = np.zeros((12, 6, 6), np.uint8)
    labels[0:3, 0:3, 0:3] = 1
    labels[6:8, 0:2, 0:2] = 1
    labels[0:2, 5:6, 5:6] = 2
    labels[9:12, 3:6, 3:6] = 2
    return labels


def test_the_largest_piece_of_each_label_stays():
    kept = keep_largest_component(_two_balls_a_label())
    assert np.bincount(kept.ravel())[1:].tolist() == [27, 27]
    assert kept[6, 0, 0] == 0
    assert kept.dtype == np.uint8


def test_small_is_measured_in_cubic_millimetres():
    labels = _two_balls_a_label()
    assert np.bincount(remove_small_components(labels, 8.0, 1.0).ravel())[1:].tolist() == [35, 27]
    assert np.bincount(remove_small_components(labels, 8.0, 0.5).ravel())[1:].tolist() == [27, 27]


def test_labels_that_touch_are_separate_components():
    labels = np.zeros((6, 3, 3), np.uint8)
    labels[:5], labels[5:] = 1, 2
    assert np.array_equal(keep_largest_component(labels), labels)


@settings(deadline=None, max_examples=25)
@given(LABELS)
def test_cleaning_only_removes_and_repeats_itself(labels):
    kept = keep_largest_component(labels)
    assert np.all((kept == labels) | (kept == 0))
    assert set(np.unique(kept)) == set(np.unique(labels)) | ({0} if (kept == 0).any() else set())
    assert np.array_equal(keep_largest_component(kept), kept)
    assert np.array_equal(remove_small_components(labels, 0.0, 1.0), labels)
    assert not remove_small_components(labels, 65.0, 1.0).any()


def test_an_empty_mask_stays_empty():
    empty = np.zeros((3, 3, 3), np.uint8)
    assert not keep_largest_component(empty).any()
    assert not remove_small_components(empty, 1.0, 1.0).any()
