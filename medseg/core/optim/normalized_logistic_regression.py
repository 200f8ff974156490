"""Logistic regression by normalised gradient descent, for linear probes on frozen features.

    s_i = sigmoid(-y_i a_i theta),   w_i = s_i / sum of s,   theta <- theta + gamma * sum of w_i y_i a_i

On separable data, plain gradient descent with large steps behaves as the batch perceptron and takes a number of steps
that grows with the number of points n; the normalised one does not: R^2 / mu^2 instead of n R^2 / mu^2, for points of
norm at most R and margin mu.

Source: Tyurin, "From Logistic Regression to the Perceptron Algorithm: Exploring Gradient Descent with Large Step Sizes"
(2024). The exact normaliser is ours: it gives the perceptron's limit. The weights are computed as a softmax of
log sigmoid, since the quotient is 0/0 once all points are far on their side. With large steps judge by the number of
errors and not by the loss, which rises and falls. Voxels are not separable: this is no loss for segmentation.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.nn import functional

from medseg.core.optim._checks import check_whole


class LogisticFit(NamedTuple):
    """A linear classifier.

    Attributes:
        weights: theta, (features,).
        intercept: 0 without one.
        errors: number of training points on the wrong side, or on the boundary.
        iterations: steps done.
    """

    weights: torch.Tensor
    intercept: torch.Tensor
    errors: int
    iterations: int


def normalized_logistic_regression(
    features: torch.Tensor,
    labels: torch.Tensor,
    gamma: float = 1.0,
    max_iter: int = 1000,
    fit_intercept: bool = True,
    stop_without_errors: bool = True,
) -> LogisticFit:
    """Fit a linear classifier to features of two classes.

    Args:
        features: (points, features), float.
        labels: (points,), -1 and 1, or 0 and 1.
        gamma: step size, above 0; its scale has no effect on the sides of the boundary when it is large.
        max_iter: most steps.
        fit_intercept: add a feature that is 1.
        stop_without_errors: stop once every training point lies on its side.

    Raises:
        ValueError: shapes, labels or options do not fit.

    Example:
        >>> fit = normalized_logistic_regression(torch.tensor([[1.0], [2.0], [4.0], [5.0]]), torch.tensor([0, 0, 1, 1]))
        >>> fit.errors, bool(torch.tensor([2.5]) @ fit.weights + fit.intercept < 0)
        (0, True)
    """
    _check(features, labels, gamma, max_iter)
    signs = torch.where(labels > 0, 1.0, -1.0).to(features)
    rows = functional.pad(features, (0, 1), value=1.0) if fit_intercept else features
    rows = rows * signs.unsqueeze(1)
    theta, count = rows.new_zeros(rows.shape[1]), 0
    while count < max_iter:
        margins = rows @ theta
        if stop_without_errors and bool((margins > 0).all()):
            break
        theta = theta + gamma * (torch.softmax(functional.logsigmoid(-margins), dim=0) @ rows)
        count += 1
    errors = int((rows @ theta <= 0).sum())
    split = features.shape[1]
    return LogisticFit(theta[:split], theta[split:].sum(), errors, count)


def _check(features: torch.Tensor, labels: torch.Tensor, gamma: float, max_iter: int) -> None:
    if features.ndim != 2 or not features.is_floating_point() or labels.shape != features.shape[:1]:
        got = f"{tuple(features.shape)} {features.dtype} and {tuple(labels.shape)}"
        raise ValueError(f"features must be float (points, features) and labels (points,), got {got}")
    found = set(labels.unique().tolist())
    if not (found <= {-1, 1} or found <= {0, 1}):
        raise ValueError(f"labels must be -1 and 1, or 0 and 1, got {sorted(found)[:5]}")
    if not gamma > 0:
        raise ValueError(f"gamma must be above 0, got {gamma}")
    check_whole("max_iter", max_iter, 0)
