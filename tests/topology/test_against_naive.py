"""The fast matching agrees with a plain reduction, ties and empty bars included; barcodes agree with gudhi."""

from __future__ import annotations

import gudhi
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg.topology import betti_matching, persistence_barcode
from tests.topology.images import KINDS, image_pairs, make_image
from tests.topology.naive import naive_matching

FIELDS = ("matched", "unmatched_pred", "unmatched_target")


@settings(deadline=None, max_examples=60)
@given(pair=image_pairs(), positive=st.booleans(), superlevel=st.booleans())
def test_the_matching_is_that_of_a_plain_reduction(pair, positive, superlevel):
    found = betti_matching(
        *pair,
        filtration="superlevel" if superlevel else "sublevel",
        image_bars="positive" if positive else "all",
    )
    u, t = (1 - image if superlevel else image for image in pair)
    for dim, result in enumerate(found):
        for field, rows in zip(FIELDS, naive_matching(u, t, dim, positive), strict=True):
            assert [tuple(map(tuple, row)) for row in getattr(result, field).tolist()] == rows, (dim, field)


@settings(deadline=None, max_examples=40)
@given(pair=image_pairs(max_side=9, max_voxels=729))
def test_the_values_of_bars_are_gudhis(pair):
    image = pair[0]
    reference = gudhi.CubicalComplex(vertices=image)  # type: ignore[attr-defined]
    reference.compute_persistence()
    for barcode in persistence_barcode(image, "sublevel"):
        intervals = np.asarray(reference.persistence_intervals_in_dimension(barcode.dim)).reshape(-1, 2)
        expected = sorted(map(tuple, intervals[np.isfinite(intervals[:, 1])].tolist()))
        values = image[tuple(np.moveaxis(barcode.bars, -1, 0))]
        assert sorted(map(tuple, values.tolist())) == expected


@settings(deadline=None, max_examples=25)
@given(pair=image_pairs(), subset=st.sampled_from([(0,), (1,), (0, 1)]))
def test_leaving_dimensions_out_changes_nothing_in_the_others(pair, subset):
    everything = {result.dim: result for result in betti_matching(*pair)}
    for result in betti_matching(*pair, dims=subset):
        for field in FIELDS:
            np.testing.assert_array_equal(getattr(result, field), getattr(everything[result.dim], field))


@pytest.mark.parametrize("shape", [(24, 24), (11, 12, 10)])
def test_larger_noise_agrees_as_well(shape):
    rng = np.random.default_rng(3)
    pred, target = rng.integers(0, 64, shape) / 64, (rng.random(shape) > 0.4).astype(float)
    for result in betti_matching(pred, target, filtration="sublevel", dims=(1,)):
        for field, rows in zip(FIELDS, naive_matching(pred, target, 1), strict=True):
            assert [tuple(map(tuple, row)) for row in getattr(result, field).tolist()] == rows


@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("target", KINDS)
@pytest.mark.parametrize("pred", KINDS)
def test_images_with_inner_regions_agree_as_well(pred, target, positive):
    rng = np.random.default_rng(KINDS.index(pred) * 10 + KINDS.index(target))
    u, t = make_image(rng, (11, 12), pred), make_image(rng, (11, 12), target)
    found = betti_matching(u, t, filtration="sublevel", image_bars="positive" if positive else "all")
    for dim, result in enumerate(found):
        for field, rows in zip(FIELDS, naive_matching(u, t, dim, positive), strict=True):
            assert [tuple(map(tuple, row)) for row in getattr(result, field).tolist()] == rows, (dim, field)
