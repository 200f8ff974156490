"""Optimistic mirror descent: golden values, the simplex, absent groups, and small regret where losses drift slowly."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg.core.optim import OptimisticSimplexWeights, project_to_simplex
from tests.core.optim.golden import find_golden, load_golden

MIRRORS = {"entropy": "w_entropy", "euclidean": "w_euclid"}


@pytest.mark.parametrize("path", find_golden("optimistic_omd_*.npz"), ids=lambda path: path.stem)
@pytest.mark.parametrize("mirror", MIRRORS)
def test_the_golden_weights_are_played(path, mirror):
    golden = load_golden(path)
    groups = OptimisticSimplexWeights(4, eta=float(golden["eta"]), mirror=mirror, maximize_loss=False)
    for expected, losses in zip(golden[MIRRORS[mirror]], golden["losses"], strict=True):
        np.testing.assert_allclose(groups.weights, expected, rtol=1e-9, atol=1e-12)
        groups.update(losses)


@settings(deadline=None, max_examples=25)
@given(
    losses=st.lists(st.lists(st.floats(-1e4, 1e4), min_size=3, max_size=3), min_size=1, max_size=6),
    mirror=st.sampled_from(list(MIRRORS)),
    eta=st.sampled_from(["adaptive", 0.5]),
    floor=st.sampled_from([0.0, 0.1]),
)
def test_weights_stay_on_the_simplex_above_the_floor(losses, mirror, eta, floor):
    groups = OptimisticSimplexWeights(3, eta=eta, mirror=mirror, floor=floor)
    for row in losses:
        weights = groups.update(row)
        assert weights.sum().item() == pytest.approx(1)
        assert weights.min() >= floor - 1e-12


@pytest.mark.parametrize("mirror", MIRRORS)
@pytest.mark.parametrize(("maximize", "best"), [(True, 2), (False, 0)])
def test_weight_goes_to_the_worst_group_or_to_the_best(mirror, maximize, best):
    groups = OptimisticSimplexWeights(3, mirror=mirror, maximize_loss=maximize)
    for _ in range(200):
        weights = groups.update([0.1, 0.5, 0.9])
    assert weights.argmax() == best
    assert weights[best] > 0.9


@pytest.mark.parametrize("mirror", MIRRORS)
def test_an_absent_group_keeps_its_share(mirror):
    groups = OptimisticSimplexWeights(3, eta=0.3, mirror=mirror)
    for _ in range(3):
        groups.update([0.1, 0.2, float("nan")])
    assert groups._base[2].item() == pytest.approx(1 / 3)
    assert torch.equal(groups.update([float("nan")] * 3), groups.weights)


def test_with_losses_that_do_not_change_the_regret_stops_growing():
    losses = torch.tensor([0.3, 0.2, 0.8], dtype=torch.float64)
    regrets = []
    for rounds in (200, 800):
        groups, paid = OptimisticSimplexWeights(3, maximize_loss=False), 0.0
        for _ in range(rounds):
            paid += float(groups.weights @ losses)
            groups.update(losses)
        regrets.append(paid - rounds * 0.2)
    assert regrets[1] < regrets[0] + 0.01


def test_a_saved_state_goes_on():
    first, second = OptimisticSimplexWeights(3), OptimisticSimplexWeights(3)
    first.update([1.0, 2.0, 4.0])
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.update([3.0, 1.0, 1.0]), second.update([3.0, 1.0, 1.0]))
    with pytest.raises(ValueError, match="of 2 groups, got 3"):
        OptimisticSimplexWeights(2).load_state_dict(first.state_dict())


@settings(deadline=None, max_examples=25)
@given(st.lists(st.floats(-5, 5), min_size=2, max_size=6))
def test_the_projection_is_nearer_than_any_corner_or_the_middle(values):
    point = torch.tensor(values, dtype=torch.float64)
    found = project_to_simplex(point)
    assert found.min() >= 0
    assert found.sum().item() == pytest.approx(1)
    for other in [*torch.eye(len(point), dtype=point.dtype), torch.full_like(point, 1 / len(point))]:
        assert (found - point).norm() <= (other - point).norm() + 1e-12


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 1}, "n must be a whole number of at least 2, got 1"),
        ({"n": 3, "eta": "fast"}, "eta must be above 0 or \"adaptive\", got 'fast'"),
        ({"n": 3, "mirror": "l1"}, "mirror must be one of"),
        ({"n": 4, "floor": 0.3}, "floor must be in .* below 0.25"),
    ],
)
def test_options_out_of_range_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        OptimisticSimplexWeights(**options)


def test_losses_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match="losses must be 3 finite numbers"):
        OptimisticSimplexWeights(3).update([1.0, 2.0])
    with pytest.raises(ValueError, match="losses must be 3 finite numbers"):
        OptimisticSimplexWeights(3).update([1.0, 2.0, float("inf")])
