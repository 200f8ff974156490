"""Normalised logistic regression: golden values, huge steps, and independence of the number of points."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medseg.core.optim import normalized_logistic_regression
from tests.core.optim.golden import find_golden, load_golden


@pytest.mark.parametrize("path", find_golden("normalized_logreg_*.npz"), ids=lambda path: path.stem)
@pytest.mark.parametrize("gamma", [1, 1000])
def test_every_step_is_the_golden_one(path, gamma):
    golden = load_golden(path)
    features, labels = torch.from_numpy(golden["A"]), torch.from_numpy(golden["y"])
    for step in (1, 2, 10, 30):
        fit = normalized_logistic_regression(features, labels, gamma, step, False, False)
        np.testing.assert_allclose(fit.weights, golden[f"norm_g{gamma}"][step - 1], rtol=1e-9)
        assert fit.iterations == step


def separable(count, margin=0.2, seed=0):
    features = torch.randn(4 * count, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    features = features[features[:, 0].abs() > margin][:count]
    return features, features[:, 0] > 0


@pytest.mark.parametrize("gamma", [0.1, 1.0, 1e6])
def test_separable_points_are_separated_also_by_huge_steps(gamma):
    features, labels = separable(60)
    fit = normalized_logistic_regression(features, labels.int(), gamma)
    assert fit.errors == 0
    assert fit.iterations < 1000
    assert torch.isfinite(fit.weights).all()
    assert torch.equal(features @ fit.weights + fit.intercept > 0, labels)


def test_copies_of_one_side_cost_no_more_steps():
    """Plain gradient descent takes longer in proportion; the normalised one hardly does."""
    features, labels = separable(40)
    copies = torch.cat([features, features[labels].repeat(20, 1)])
    labels_too = torch.cat([labels, torch.ones(len(copies) - len(features), dtype=torch.bool)])
    plain = normalized_logistic_regression(features, labels, 100.0)
    more = normalized_logistic_regression(copies, labels_too, 100.0)
    assert more.errors == 0
    assert more.iterations <= 3 * plain.iterations + 5


def test_it_goes_on_after_separation_without_nan_when_told():
    fit = normalized_logistic_regression(*separable(20), 1e4, 200, stop_without_errors=False)
    assert torch.isfinite(fit.weights).all()
    assert fit.iterations == 200


def test_odd_arguments_are_named():
    with pytest.raises(ValueError, match="labels must be -1 and 1, or 0 and 1, got"):
        normalized_logistic_regression(torch.ones(2, 1), torch.tensor([1, 2]))
    with pytest.raises(ValueError, match="features must be float"):
        normalized_logistic_regression(torch.ones(2, 1), torch.tensor([1]))
    with pytest.raises(ValueError, match="gamma must be above 0, got 0"):
        normalized_logistic_regression(torch.ones(2, 1), torch.tensor([0, 1]), gamma=0)
