"""What holds for every matching: laws, frames, infinite bars, degenerate images, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg.topology import betti_matching, persistence_barcode
from tests.topology.images import distinct_image, image_pairs

FIELDS = ("matched", "unmatched_pred", "unmatched_target")


def assert_same(first, second):
    for a, b in zip(first, second, strict=True):
        assert a[:2] == b[:2]
        for x, y in zip(a[2:], b[2:], strict=True):
            np.testing.assert_array_equal(x, y)


def sort_rows(rows):
    return sorted(map(tuple, rows.reshape(len(rows), int(np.prod(rows.shape[1:]))).tolist()))


@settings(deadline=None, max_examples=25)
@given(pair=image_pairs(max_side=7, max_voxels=343))
def test_every_bar_is_matched_or_unmatched_and_swapping_swaps(pair):
    pred, target = pair
    swapped = betti_matching(target, pred)
    for result, other, bars in zip(betti_matching(pred, target), swapped, persistence_barcode(pred), strict=True):
        rows = np.concatenate((result.matched[:, :2], result.unmatched_pred))
        assert sort_rows(rows) == sort_rows(bars.bars)
        assert sort_rows(other.matched[:, [2, 3, 0, 1]]) == sort_rows(result.matched)
        np.testing.assert_array_equal(other.unmatched_target, result.unmatched_pred)


@settings(deadline=None, max_examples=25)
@given(pair=image_pairs(max_side=7, max_voxels=343))
def test_a_strictly_increasing_map_of_both_images_changes_nothing(pair):
    assert_same(
        betti_matching(*pair, filtration="sublevel"),
        betti_matching(*(8 * image**2 - 3 for image in pair), filtration="sublevel"),
    )


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10**6), data=st.data())
def test_bars_move_along_when_axes_are_swapped_or_flipped(seed, data):
    rng = np.random.default_rng(seed)
    image = distinct_image(rng, data.draw(st.sampled_from([(6, 7), (4, 5, 3), (1, 5, 6)])))
    order = data.draw(st.permutations(range(image.ndim)))
    flipped = data.draw(st.integers(0, image.ndim - 1))
    moved = np.flip(image.transpose(order), flipped)
    for here, there in zip(persistence_barcode(image), persistence_barcode(moved), strict=True):
        bars = here.bars[..., list(order)]
        bars[..., flipped] = moved.shape[flipped] - 1 - bars[..., flipped]
        assert sort_rows(bars) == sort_rows(there.bars)


@pytest.mark.parametrize("shape", [(7, 9), (5, 6, 4), (1, 1), (1, 8), (3, 1, 4), (1, 1, 1), (2, 2, 2)])
def test_identical_images_match_completely(shape):
    image = distinct_image(np.random.default_rng(0), shape)
    for result in betti_matching(image, image, filtration="bothlevels"):
        np.testing.assert_array_equal(result.matched[:, :2], result.matched[:, 2:])
        assert len(result.unmatched_pred) == len(result.unmatched_target) == 0


@pytest.mark.parametrize("shape", [(5, 6), (4, 5, 3)])
def test_constant_images_have_no_bars(shape):
    for result in betti_matching(np.zeros(shape), np.ones(shape)):
        assert [getattr(result, field).shape for field in FIELDS] == [
            (0, 4, len(shape)),
            (0, 2, len(shape)),
            (0, 2, len(shape)),
        ]


def test_a_saturated_prediction_of_two_blobs_matches_them_and_leaves_the_third_alone():
    target = np.zeros((9, 9))
    target[1:3, 1:3] = target[6:8, 6:8] = 1
    pred = 0.75 * target
    pred[1, 7] = 0.5
    components, loops = betti_matching(pred, target)
    assert len(components.matched) == 1
    assert components.unmatched_pred[:, 0].tolist() == [[1, 7]]
    assert [len(getattr(loops, field)) for field in FIELDS] == [0, 0, 0]


def test_both_directions_are_the_two_directions_one_after_the_other():
    rng = np.random.default_rng(5)
    pair = rng.random((6, 6)), rng.random((6, 6))
    one_by_one = [*betti_matching(*pair, filtration="superlevel"), *betti_matching(*pair, filtration="sublevel")]
    assert_same(betti_matching(*pair, filtration="bothlevels"), one_by_one)


@pytest.mark.parametrize(("boundary", "value"), [("background", 0), ("foreground", 1)])
@pytest.mark.parametrize("shape", [(6, 7), (3, 4, 5)])
def test_a_frame_is_the_same_as_padding_with_its_constant(shape, boundary, value):
    rng = np.random.default_rng(2)
    pair = rng.random(shape), (rng.random(shape) > 0.5).astype(float)
    padded = betti_matching(*(np.pad(image, 1, constant_values=value) for image in pair))
    for framed, plain in zip(betti_matching(*pair, boundary=boundary), padded, strict=True):
        for field in FIELDS:
            np.testing.assert_array_equal(getattr(framed, field) + 1, getattr(plain, field))


def test_a_line_across_the_patch_is_a_loop_only_with_a_foreground_frame():
    line = np.zeros((5, 5))
    line[2] = 1
    assert [len(b.bars) for b in persistence_barcode(line)] == [0, 0]
    assert [len(b.bars) for b in persistence_barcode(line, boundary="foreground")] == [0, 2]


def test_the_infinite_bars_begin_at_the_first_brightest_voxels():
    pred, target = np.zeros((4, 4)), np.zeros((4, 4))
    pred[1, 2] = pred[3, 3] = 0.5
    target[2, 1] = 1
    components, loops = betti_matching(pred, target, include_essential=True)
    assert components.essential.tolist() == [[[1, 2], [2, 1]]]
    assert loops.essential.shape == (0, 2, 2)
    assert persistence_barcode(pred, include_essential=True)[0].essential.tolist() == [[1, 2]]
    assert betti_matching(pred, target)[0].essential.shape == (0, 2, 2)


def test_an_empty_image_bar_matches_only_by_the_published_rule():
    pred, target = np.array([[0.9, 1.0, 0.0]]), np.array([[0.1, 0.5, 0.0]])
    matched = {
        rule: len(betti_matching(pred, target, filtration="sublevel", image_bars=rule)[0].matched)
        for rule in ("all", "positive")
    }
    assert matched == {"all": 1, "positive": 0}


def test_half_precision_and_booleans_are_taken():
    mask = np.eye(5) > 0
    assert_same(betti_matching(mask, mask), betti_matching(mask.astype(np.float16), mask.astype(np.int64)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.zeros((2, 2, 2, 2)), np.zeros((2, 2, 2, 2))), r"pred has shape \(2, 2, 2, 2\); expected \(H, W\)"),
        ((np.zeros(4), np.zeros(4)), r"pred has shape \(4,\)"),
        ((np.zeros((3, 3)), np.zeros((3, 4))), r"pred has shape \(3, 3\) but target has \(3, 4\)"),
        ((np.full((3, 3), np.nan), np.zeros((3, 3))), "pred contains NaN or infinite"),
        ((np.zeros((3, 3)), np.full((3, 3), np.inf)), "target contains NaN or infinite"),
        ((np.zeros((0, 3)), np.zeros((0, 3))), "at least one voxel"),
        ((np.zeros((3, 3), complex), np.zeros((3, 3))), "dtype complex128"),
        ((np.broadcast_to(0.0, (2**14 + 1, 2**14)),) * 2, "more than 268435456 voxels"),
    ],
)
def test_images_that_cannot_be_matched_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        betti_matching(*arguments)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"filtration": "upper"}, "filtration is 'upper'; expected one of 'superlevel', 'sublevel', 'bothlevels'"),
        ({"boundary": "mirror"}, "boundary is 'mirror'"),
        ({"image_bars": "strict"}, "image_bars is 'strict'"),
        ({"dims": (2,)}, r"dims is \(2,\); expected one or more of \(0, 1\)"),
        ({"dims": ()}, r"dims is \(\)"),
    ],
)
def test_unknown_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        betti_matching(np.zeros((3, 3)), np.zeros((3, 3)), **options)
