"""clDice and centreline gap: values by hand on straight lines, tubes and branchings."""

from __future__ import annotations

import pytest
import torch

from medseg.data import make_vessel_phantom
from medseg.metrics import (
    CentrelineGapMetric,
    ClDiceMetric,
    compute_betti_number_error,
    compute_centreline_gap,
    compute_cldice,
)


def line(*, without: range = range(0), size: int = 20) -> torch.Tensor:
    """A straight line of voxels along the last axis, (1, 1, 5, 6, size), with a gap."""
    mask = torch.zeros(1, 1, 5, 6, size)
    mask[..., 2, 3, :] = 1
    mask[..., list(without)] = 0
    return mask


def tube(*, without: range = range(0)) -> torch.Tensor:
    """A tube 3 x 3 voxels thick along the last axis, (1, 1, 7, 7, 24), with a gap."""
    mask = torch.zeros(1, 1, 7, 7, 24)
    mask[..., 2:5, 2:5, :] = 1
    mask[..., list(without)] = 0
    return mask


def test_a_gap_of_two_voxels_is_two_voxel_edges_long_and_one_component_more():
    broken, whole = line(without=range(8, 10)), line()
    assert compute_centreline_gap(broken, whole, spacing=(1.0, 1.0, 0.6)).item() == pytest.approx(1.2)
    assert compute_centreline_gap(broken, whole, normalize=True).item() == pytest.approx(2 / 19)
    assert compute_cldice(broken, whole).item() == pytest.approx(2 * 1 * 0.9 / 1.9)
    assert compute_betti_number_error(broken, whole, dims=[0]).item() == 1


def test_a_missing_end_counts_half_a_voxel_less_as_the_line_ends_in_its_centre():
    assert compute_centreline_gap(line(without=range(3)), line()).item() == pytest.approx(2.5)
    assert compute_centreline_gap(line(), line(without=range(3))).item() == 0


def test_a_tolerance_forgives_what_lies_that_near():
    broken, whole = line(without=range(8, 12)), line()
    found = [compute_centreline_gap(broken, whole, spacing=0.5, tolerance=t).item() for t in (0.0, 0.4, 0.5, 1.0)]
    assert found == [2.0, 2.0, 1.0, 0.0]


def test_a_line_beside_the_reference_is_missed_but_for_the_tolerance():
    shifted = line().roll(1, dims=3)
    assert compute_centreline_gap(shifted, line(), normalize=True).item() == 1
    assert compute_centreline_gap(shifted, line(), tolerance=1).item() == 0
    assert compute_cldice(shifted, line()).item() == 0


def test_width_costs_neither_but_a_gap_does():
    thin = torch.zeros_like(tube())
    thin[..., 3, 3, :] = 1
    assert compute_cldice(thin, tube()).item() == 1
    assert compute_centreline_gap(thin, tube()).item() == 0
    gap = tube(without=range(10, 13))
    assert 0.85 < compute_cldice(gap, tube()).item() < 0.97
    assert compute_centreline_gap(gap, tube(), spacing=2.0).item() == pytest.approx(6.0)


def test_cldice_is_the_harmonic_mean_of_both_shares():
    ref = torch.zeros(1, 1, 5, 10)
    ref[..., 2, :8] = 1
    pred = torch.zeros_like(ref)
    pred[..., 2, 4:] = 1  # 4 of 6 voxels lie on the reference, and 4 of its 8 are found
    precision, sensitivity = 4 / 6, 4 / 8
    expected = 2 * precision * sensitivity / (precision + sensitivity)
    assert compute_cldice(pred, ref).item() == pytest.approx(expected)
    assert compute_cldice(ref, pred).item() == pytest.approx(expected)


def test_a_tube_of_even_width_is_not_overlooked():
    even = torch.zeros(1, 1, 8, 8, 20)
    even[..., 2:6, 2:6, :] = 1
    half = even.clone()
    half[..., 10:] = 0
    assert compute_cldice(even, even).item() == 1
    assert compute_centreline_gap(half, even, normalize=True).item() == pytest.approx(0.5, abs=0.1)


def test_empty_masks_follow_the_policy():
    full, none = line(), torch.zeros_like(line())
    assert compute_centreline_gap(none, full, spacing=0.5).item() == pytest.approx(9.5)
    assert compute_centreline_gap(full, none, spacing=0.5).item() == pytest.approx(9.5)
    assert compute_centreline_gap(none, full, normalize=True).item() == 1
    assert compute_centreline_gap(none, full, empty={"missed": 3.0}).item() == 3
    assert torch.isnan(compute_centreline_gap(none, none)).all()
    assert compute_centreline_gap(none, none, normalize=True, empty="both=best").item() == 0
    assert [compute_cldice(*pair).item() for pair in ((none, full), (full, none))] == [0, 0]
    assert compute_cldice(none, none, empty="both=best").item() == 1


def test_a_known_centreline_takes_the_place_of_the_skeleton():
    phantom = make_vessel_phantom((40, 40, 40), seed=2)
    label, known = (torch.from_numpy(mask)[None, None] for mask in (phantom.label, phantom.centreline))
    assert compute_centreline_gap(known, label, centreline=known).item() == 0
    assert compute_centreline_gap(label, label, centreline=known).item() == 0
    eroded = label.clone()
    eroded[..., 20:24] = 0
    exact, skeleton = compute_centreline_gap(eroded, label, centreline=known), compute_centreline_gap(eroded, label)
    assert exact.item() == pytest.approx(skeleton.item(), rel=0.2)
    with pytest.raises(ValueError, match="centreline is empty where y is not"):
        compute_centreline_gap(label, label, centreline=torch.zeros_like(label))


def test_collected_values_average_over_samples_with_their_own_spacing():
    pred, ref = torch.cat([line(without=range(8, 10)), line()]), torch.cat([line(), line()])
    metric = CentrelineGapMetric()
    assert metric(pred, ref, spacing=[[1, 1, 2], [1, 1, 1]]).tolist() == [[4.0], [0.0]]
    assert metric.aggregate().item() == 2
    overlap = ClDiceMetric(reduction="none")
    overlap(pred, ref)
    assert overlap.aggregate()[1].item() == 1


def test_a_negative_tolerance_is_refused():
    with pytest.raises(ValueError, match="tolerance must be a finite number of mm, at least 0, got -1"):
        compute_centreline_gap(line(), line(), tolerance=-1)
    with pytest.raises(ValueError, match="tolerance must be"):
        CentrelineGapMetric(tolerance=float("nan"))
