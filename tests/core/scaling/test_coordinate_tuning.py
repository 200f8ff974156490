"""The search along one setting at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg.core.scaling import tune_by_coordinates

GRIDS = {"decay": [1, 3, 10, 30, 100], "rate": [1 / 3, 1, 3], "epochs": [0.5, 1, 2]}


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 9999), st.integers(1, 4))
def test_the_end_is_no_worse_than_any_neighbour_and_nothing_is_tried_twice(seed, axes):
    random = np.random.default_rng(seed)
    table = random.random([5] * axes)
    grids = {f"s{axis}": list(range(5)) for axis in range(axes)}
    result = tune_by_coordinates(lambda s: table[tuple(s[name] for name in grids)], grids)
    at = [result.best[name] for name in grids]
    assert result.finished
    assert result.loss == table[tuple(at)] == min(loss for _, loss in result.tried)
    for axis in range(axes):
        for step in (-1, 1):
            place = at.copy()
            place[axis] += step
            assert not 0 <= place[axis] < 5 or table[tuple(place)] >= result.loss
    assert len({tuple(s.values()) for s, _ in result.tried}) == len(result.tried)


def test_the_optimum_of_settings_that_depend_on_each_other_costs_a_part_of_the_grid():
    def loss(s):
        return (math.log(s["decay"] * s["rate"]) - math.log(10)) ** 2 + (math.log(s["epochs"])) ** 2

    result = tune_by_coordinates(loss, GRIDS, start={"decay": 1, "rate": 1, "epochs": 1})
    assert result.loss == pytest.approx(0, abs=0.1)
    assert len(result.tried) < 20
    assert result.tried[0][0] == {"decay": 1, "rate": 1, "epochs": 1}


def test_runs_that_diverge_are_the_worst_and_edges_are_told():
    result = tune_by_coordinates(lambda s: math.nan if s["rate"] > 1 else -s["decay"], GRIDS)
    assert result.best["decay"] == 100
    assert result.best["rate"] <= 1
    assert "decay" in result.at_edge
    assert result.at_edge != ("epochs",)
    assert math.inf in [loss for _, loss in result.tried]


def test_it_ends_when_the_evaluations_run_out():
    result = tune_by_coordinates(lambda s: -s["decay"], GRIDS, max_evaluations=2)
    assert not result.finished
    assert len(result.tried) == 2
    assert result.best["decay"] == 30


@pytest.mark.parametrize(
    ("grids", "options", "match"),
    [
        ({}, {}, "grids must hold ascending values"),
        ({"a": [2, 1]}, {}, "grids must hold ascending values"),
        ({"a": [1, 2]}, {"start": {"a": 3}}, "start must name a value of each grid"),
        ({"a": [1, 2]}, {"start": {}}, "start must name a value of each grid"),
        ({"a": [1, 2]}, {"max_evaluations": 0}, "max_evaluations must be at least 1"),
    ],
)
def test_odd_arguments_are_named(grids, options, match):
    with pytest.raises(ValueError, match=match):
        tune_by_coordinates(lambda s: 0.0, grids, **options)
