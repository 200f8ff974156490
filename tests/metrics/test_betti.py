"""Tests of `medseg.metrics.betti`: counts by hand, empty masks, frames, and the published matching."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medseg.metrics import (
    BettiMatchingMetric,
    BettiNumberMetric,
    compute_betti_matching_error,
    compute_betti_number_error,
)
from medseg.topology import betti_matching


def squares(*corners: tuple[int, int], size: int = 12) -> torch.Tensor:
    """Mask (1, 1, size, size) of 3 x 3 squares."""
    mask = torch.zeros(1, 1, size, size)
    for row, column in corners:
        mask[..., row : row + 3, column : column + 3] = 1
    return mask


def shell() -> torch.Tensor:
    """A closed box with one cavity, (1, 1, 6, 6, 6)."""
    mask = torch.zeros(1, 1, 6, 6, 6)
    mask[..., 1:5, 1:5, 1:5] = 1
    mask[..., 2:4, 2:4, 2:4] = 0
    return mask


def test_features_at_other_places_count_in_the_matching_error_only():
    pred, ref = squares((1, 1), (1, 8)), squares((1, 1), (8, 1))
    assert compute_betti_number_error(pred, ref).item() == 0
    assert compute_betti_matching_error(pred, ref, per_dim=True).tolist() == [[[2, 0, 2]]]
    assert compute_betti_matching_error(ref, pred).item() == 2


def test_a_filled_hole_and_a_broken_ring_count_one_loop():
    ring = squares((4, 4))
    ring[..., 5, 5] = 0
    broken = ring.clone()
    broken[..., 4, 5] = 0
    for other in (squares((4, 4)), broken):
        assert compute_betti_matching_error(other, ring, per_dim=True).tolist() == [[[0, 1, 1]]]
        assert compute_betti_number_error(other, ring, per_dim=True).tolist() == [[[0, 1, 1]]]


def test_a_cavity_and_a_tunnel_count_in_their_dimensions():
    opened = shell()
    opened[..., 1, 2, 2] = 0
    through = opened.clone()
    through[..., 4, 2, 2] = 0
    assert compute_betti_number_error(opened, shell(), per_dim=True).tolist() == [[[0, 0, 1, 1]]]
    assert compute_betti_number_error(through, shell(), per_dim=True).tolist() == [[[0, 1, 1, 2]]]
    assert compute_betti_matching_error(through, shell(), per_dim=True).tolist() == [[[0, 1, 1, 2]]]
    assert compute_betti_matching_error(through, shell(), dims=[1]).item() == 1


def test_empty_masks_have_no_features():
    one, two, none = squares((1, 1)), squares((1, 1), (8, 8)), squares()
    for compute in (compute_betti_matching_error, compute_betti_number_error):
        assert compute(none, one).item() == 1
        assert compute(two, none).item() == 2
        assert torch.isnan(compute(none, none)).all()
        assert compute(none, none, empty="both=best").item() == 0
        assert compute(none, one, empty={"missed": 7}, per_dim=True)[0, 0].tolist() == [7, 7, 7]
    assert compute_betti_matching_error(none, one, include_essential=False).item() == 0
    assert compute_betti_matching_error(none, one, dims=[1]).item() == 0


def test_a_frame_of_foreground_makes_loops_of_lines_that_cross_the_image():
    line = torch.zeros(1, 1, 7, 7)
    line[..., 3, :] = 1
    half = line.clone()
    half[..., 3, 4:] = 0
    assert compute_betti_matching_error(half, line).item() == 0
    assert compute_betti_matching_error(half, line, boundary="foreground", per_dim=True).tolist() == [[[0, 1, 1]]]
    # The same frame around both: an empty prediction lacks the two loops' difference and no component.
    assert compute_betti_matching_error(line * 0, line, boundary="foreground").item() > 0


def test_the_normalised_error_is_a_share_of_the_references_features():
    ref = squares((1, 1), (1, 8), (8, 1), (8, 8))
    assert compute_betti_matching_error(squares((1, 1)), ref, normalize=True).item() == 0.75
    many = squares((0, 0), (0, 4), (0, 8), (4, 0), (4, 8), (8, 0), (8, 4))
    assert compute_betti_matching_error(many, squares((4, 4)), normalize=True).item() == 1
    assert compute_betti_matching_error(ref, squares(), normalize=True).item() == 1


@pytest.mark.parametrize("shape", [(13, 11), (5, 6, 7)])
@pytest.mark.parametrize("rule", ["all", "positive"])
def test_counts_are_those_of_the_matching_of_every_sample_and_channel(shape, rule):
    generator = torch.Generator().manual_seed(0)
    pred, ref = (torch.rand(2, 3, *shape, generator=generator) > 0.6 for _ in range(2))
    errors = compute_betti_matching_error(pred, ref, per_dim=True, image_bars=rule)
    for b, c in np.ndindex(2, 3):
        found = betti_matching(pred[b, c].numpy(), ref[b, c].numpy(), image_bars=rule)
        counts = [len(part.unmatched_pred) + len(part.unmatched_target) for part in found]
        assert errors[b, c].tolist() == [*counts, sum(counts)]


def test_metrics_average_over_samples():
    pred = torch.cat([squares((1, 1)), squares((1, 1), (8, 8))])
    ref = squares((1, 1)).repeat(2, 1, 1, 1)
    for cls in (BettiMatchingMetric, BettiNumberMetric):
        metric = cls()
        assert metric(pred, ref)[:, 0].tolist() == [0, 1]
        assert metric.aggregate().item() == 0.5
    assert BettiMatchingMetric(dims=[0], normalize=True)(pred, ref)[:, 0].tolist() == [0, 1]


@pytest.mark.parametrize("dims", [[2], [], [-1]])
def test_dimensions_that_do_not_exist_are_refused(dims):
    for compute in (compute_betti_matching_error, compute_betti_number_error):
        with pytest.raises(ValueError, match="dims"):
            compute(squares((1, 1)), squares((1, 1)), dims=dims)


def test_unknown_options_are_refused():
    with pytest.raises(ValueError, match="boundary"):
        BettiMatchingMetric(boundary="sphere")(squares((1, 1)), squares((1, 1)))
