"""A batch gives what its items give one by one, on any number of threads."""

from __future__ import annotations

import numpy as np
import pytest

from medseg.topology import betti_matching, betti_matching_batch

FIELDS = ("matched", "unmatched_pred", "unmatched_target", "essential")


def make_batch(shape, items=5, seed=0):
    rng = np.random.default_rng(seed)
    return rng.random((items, *shape)), (rng.random((items, *shape)) > 0.6).astype(np.float32)


@pytest.mark.parametrize("boundary", ["none", "foreground"])
@pytest.mark.parametrize("shape", [(9, 8), (5, 4, 6)])
def test_a_batch_holds_the_items_bars_as_flat_indices(shape, boundary):
    preds, targets = make_batch(shape)
    options = {"filtration": "bothlevels", "boundary": boundary, "include_essential": True}
    found = betti_matching_batch(preds, targets, **options, num_threads=1)
    shift = boundary != "none"
    assert found.shape == tuple(n + 2 * shift for n in shape)
    for item in range(len(preds)):
        for result in betti_matching(preds[item], targets[item], **options):
            for field in FIELDS:
                table = getattr(found, field)
                rows = (table.item == item) & (table.dim == result.dim)
                rows &= table.sublevel == (result.filtration == "sublevel")
                index = np.unravel_index(table.voxels[rows], (len(preds), *found.shape))
                assert (index[0] == item).all()
                np.testing.assert_array_equal(np.stack(index[1:], -1) - shift, getattr(result, field))


@pytest.mark.parametrize("threads", [2, 3, 8, None])
def test_threads_change_nothing(threads):
    preds, targets = make_batch((8, 7, 6), items=6, seed=1)
    expected = betti_matching_batch(preds, targets, num_threads=1)
    found = betti_matching_batch(preds, targets, num_threads=threads)
    for field in FIELDS:
        for a, b in zip(getattr(found, field), getattr(expected, field), strict=True):
            np.testing.assert_array_equal(a, b)


def test_an_empty_batch_has_no_bars():
    found = betti_matching_batch(np.zeros((0, 4, 4)), np.zeros((0, 4, 4)))
    assert found.matched.voxels.shape == (0, 4)
    assert found.unmatched_pred.voxels.shape == (0, 2)


def test_a_batch_refuses_what_a_pair_refuses():
    with pytest.raises(ValueError, match=r"preds has shape \(3, 3\); expected \(N, H, W\)"):
        betti_matching_batch(np.zeros((3, 3)), np.zeros((3, 3)))
    with pytest.raises(ValueError, match="num_threads is 0"):
        betti_matching_batch(np.zeros((1, 3, 3)), np.zeros((1, 3, 3)), num_threads=0)
