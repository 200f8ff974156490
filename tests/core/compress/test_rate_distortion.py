"""`medseg/core/compress/rate_distortion.py`: the best choice by trying all, budgets, curves of a network."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from medseg.core.compress import (
    allocate_pruning,
    kept_weights,
    layer_magnitude_masks,
    measure_distortions,
    prune_rate_distortion,
)
from tests.core.compress.golden import find_golden, load_golden


@pytest.mark.parametrize("path", find_golden("rd_allocation_*.npz"), ids=lambda path: path.stem)
def test_the_choice_is_the_golden_one(path):
    golden = load_golden(path)
    sizes = {str(n): int(size) for n, size in enumerate(golden["nweights"])}
    curves = {str(n): curve.tolist() for n, curve in enumerate(golden["dist"])}
    found = allocate_pruning(sizes, golden["phi"][0].tolist(), curves, int(golden["keep_budget"]))
    np.testing.assert_allclose(list(found.sparsities.values()), golden["optimal_phi"], atol=1e-12)
    assert found.distortion == pytest.approx(float(golden["optimal_distortion"]), rel=1e-12)
    assert found.kept <= golden["keep_budget"]


@settings(deadline=None, max_examples=25)
@given(
    sizes=st.lists(st.integers(1, 5000), min_size=1, max_size=4), budget=st.floats(0.05, 1), seed=st.integers(0, 999)
)
def test_no_choice_within_the_budget_is_better_and_few_cells_still_keep_it(sizes, budget, seed):
    random = np.random.default_rng(seed)
    fractions = [0.0, 0.25, 0.5, 0.8, 1.0]
    curves = {str(n): np.cumsum(random.random(5) ** 4).tolist() for n in range(len(sizes))}
    named = {str(n): size for n, size in enumerate(sizes)}
    most = int(budget * sum(sizes))
    best = min(
        sum(curves[str(n)][i] for n, i in enumerate(choice))
        for choice in itertools.product(range(5), repeat=len(sizes))
        if sum(kept_weights(size, fractions[i]) for size, i in zip(sizes, choice, strict=True)) <= most
    )
    found = allocate_pruning(named, fractions, curves, most)
    assert found.distortion == pytest.approx(best, rel=1e-12)
    assert sum(kept_weights(named[n], f) for n, f in found.sparsities.items()) == found.kept <= most
    coarse = allocate_pruning(named, fractions, curves, most, cells=3)
    assert coarse.kept <= most
    assert coarse.distortion >= best - 1e-12


def test_many_large_layers_fit_and_come_close_to_a_finer_search():
    random = np.random.default_rng(0)
    fractions = np.linspace(0, 1, 21).tolist()
    sizes = {str(n): int(random.integers(10_000, 4_000_000)) for n in range(12)}
    curves = {n: np.cumsum(random.random(21)).tolist() for n in sizes}
    budget = sum(sizes.values()) // 5
    found, finer = (allocate_pruning(sizes, fractions, curves, budget, cells=cells) for cells in (512, 8192))
    assert found.kept <= budget
    assert finer.distortion <= found.distortion <= 1.01 * finer.distortion


def test_a_dip_of_a_curve_is_taken_for_noise():
    curves = {"a": [0.0, 4.0, 0.0], "b": [0.0, 1.0, 1.5]}
    found = allocate_pruning({"a": 10, "b": 10}, [0.0, 0.5, 0.9], curves, keep_budget=11)
    assert found.sparsities == {"a": 0.0, "b": 0.9}
    assert found.distortion == pytest.approx(1.5)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"keep_budget": 1}, "keep_budget 1 is below the 2 weights"),
        ({"distortions": {"a": [0.0]}}, r"distortions\['a'\] must have a finite value for each of the 2 fractions"),
        ({"distortions": {}}, "got None"),
        ({"fractions": [0.8, 0.0]}, "fractions must ascend"),
        ({"fractions": [0.0, 1.5]}, r"fractions must be in \[0, 1\]"),
        ({"cells": 0}, "cells must be a whole number"),
    ],
)
def test_what_cannot_be_is_refused(change, match):
    options = {"sizes": {"a": 10}, "fractions": [0.0, 0.8], "distortions": {"a": [0.0, 1.0]}, "keep_budget": 5}
    with pytest.raises(ValueError, match=match):
        allocate_pruning(**(options | change))


def test_curves_are_what_pruning_one_layer_does_and_the_network_stays():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Conv2d(3, 2, 1))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    inputs = [torch.randn(1, 1, 6, 6), torch.randn(2, 1, 6, 6)]
    scores = {name: p.detach().abs() for name, p in model.named_parameters() if p.ndim > 1}
    found = measure_distortions(model, inputs, scores, [0.0, 0.5, 1.0])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [curve[0] for curve in found.values()] == [0, 0]
    mask = layer_magnitude_masks(scores, dict.fromkeys(scores, 0.5))["2.weight"]
    with torch.no_grad():
        hidden = [model[1](model[0](x)) for x in inputs]
        change = [torch.conv2d(h, model[2].weight * ~mask).square().mean() for h in hidden]
    assert found["2.weight"][1] == pytest.approx(float(sum(change) / 2), rel=1e-5)
    with pytest.raises(ValueError, match="at least one patch"):
        measure_distortions(model, [], scores, [0.5])


def test_a_network_is_pruned_where_it_moves_least():
    torch.manual_seed(0)
    model = nn.Sequential(
        *[nn.Sequential(nn.Conv2d(c, 8, 3, padding=1), nn.ReLU()) for c in (1, 8, 8, 8)], nn.Conv2d(8, 2, 1)
    )
    with torch.no_grad():
        model[2][0].weight *= 1e-3  # the bias alone decides here
        model[2][0].bias += 0.5
    inputs = [torch.randn(1, 1, 8, 8) for _ in range(2)]
    with torch.no_grad():
        dense = model(inputs[0])
        masks = prune_rate_distortion(model, 0.33, inputs, [0.0, 0.5, 1.0])
        moved = (model(inputs[0]) - dense).abs().max() / dense.abs().max()
    # What comes before that layer moves nothing either; only the layer behind it does.
    assert masks.kept["3.0.weight"] == 576
    assert sum(masks.kept.values()) == 1152
    assert moved < 0.01
    with pytest.raises(ValueError, match=r"keep_budget \d+ is below"):
        prune_rate_distortion(model, 0.9, inputs, [0.0, 0.5])
    with pytest.raises(ValueError, match="at least one patch"):
        prune_rate_distortion(model, 0.9, [])
