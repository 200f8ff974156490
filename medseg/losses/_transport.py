"""Optimal transport between two small weighted sets of points, from the matrix of their costs.

    OT_e(a, b) = min over plans P with margins a, b of  sum P_ij C_ij + e KL(P | a b^T),       C_ij = |x_i - y_j|^2 / 2

The exact value (e = 0) takes its plan from an assignment or, where the sets differ in size or weight, from a linear
programme; it is piecewise linear in C, so that the plan itself is the gradient. The debiased divergence

    S_e = OT_e(a, b) - OT_e(a, a) / 2 - OT_e(b, b) / 2

comes from Sinkhorn's iteration in the logarithmic domain with falling temperatures e.

Source of the schedule: Feydy et al., "Interpolating between Optimal Transport and MMD using Sinkhorn Divergences"
(2019), as in the library geomloss, whose values it reproduces.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment, linprog
from scipy.sparse import eye_array, kron, vstack


def exact_cost(cost: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Smallest cost of moving weights `a` (B, N) to `b` (B, M) at `cost` (B, N, M), shape (B,)."""
    matrices, *weights = (x.detach().double().cpu().numpy() for x in (cost, a, b))
    plans = [find_plan(*item) for item in zip(matrices, *weights, strict=True)]
    return (torch.from_numpy(np.stack(plans)).to(cost) * cost).sum((1, 2))


def find_plan(cost: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cheapest plan (N, M) with margins `a` and `b`, which both sum to 1; points without weight take no part."""
    plan = np.zeros_like(cost)
    rows, columns = np.flatnonzero(a), np.flatnonzero(b)
    inner = np.ix_(rows, columns)
    if not np.isfinite(cost[inner]).all():
        plan[inner] = np.outer(a[rows], b[columns])  # any plan: the NaN has to reach the loss
    elif len(rows) == len(columns) and np.ptp(np.concatenate([a[rows], b[columns]])) < 1e-6 / len(rows):
        i, j = linear_sum_assignment(cost[inner])
        plan[rows[i], columns[j]] = 1 / len(rows)
    else:
        plan[inner] = _solve(cost[inner], a[rows], b[columns])
    return plan


def _solve(cost: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    n, m = cost.shape
    sums = vstack([kron(eye_array(n), np.ones((1, m))), kron(np.ones((1, n)), eye_array(m))]).tocsr()
    scale = max(float(np.abs(cost).max()), 1e-300)
    # The last condition follows from the others; rounding in the weights could make it contradict them.
    result = linprog(cost.ravel() / scale, A_eq=sums[:-1], b_eq=np.concatenate([a, b])[:-1], method="highs")
    if result.x is None:
        raise RuntimeError(f"the linear programme of optimal transport failed: {result.message}")
    return result.x.reshape(n, m)


def schedule(diameter: float, blur: float, scaling: float) -> list[float]:
    """Temperatures from the squared diameter down to the squared blur, as geomloss takes them."""
    if not math.isfinite(diameter):
        return [blur**2]  # the costs hold NaN, and so will the value
    diameter = max(diameter, 1e-6)  # all points are one
    start, stop, step = 2 * math.log(diameter), 2 * math.log(blur), 2 * math.log(scaling)
    return [diameter**2, *np.exp(np.arange(start, stop, step)).tolist(), blur**2]


def sinkhorn_divergence(
    costs: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    a: torch.Tensor,
    b: torch.Tensor,
    temperatures: list[float],
) -> torch.Tensor:
    """Debiased Sinkhorn divergence, shape (B,).

    Args:
        costs: between the sets (B, N, M), within the first (B, N, N), within the second (B, M, M); those within a set
            must be differentiable by their rows alone.
        a: weights of the first set, (B, N); they sum to 1.
        b: weights of the second set, (B, M).
        temperatures: one averaged update for each; the last is that of the divergence.
    """
    xy, xx, yy = costs
    yx = xy.transpose(1, 2)
    log_a, log_b = a.log(), b.log()
    pairs = {"ab": (xy, log_b), "ba": (yx, log_a), "aa": (xx, log_a), "bb": (yy, log_b)}
    other = {"ab": "ba", "ba": "ab", "aa": "aa", "bb": "bb"}
    with torch.no_grad():
        f = {k: _softmin(temperatures[0], *pair) for k, pair in pairs.items()}
        for e in temperatures:
            f = {k: (f[k] + _softmin(e, c, h + f[other[k]] / e)) / 2 for k, (c, h) in pairs.items()}
    # The potentials are optimal, so the gradient by them is 0: only this update is differentiated.
    e = temperatures[-1]
    pairs["ba"] = (yx.detach(), log_a)
    f = {k: _softmin(e, c, h + f[other[k]] / e) for k, (c, h) in pairs.items()}
    return (a * (f["ab"] - f["aa"])).sum(1) + (b * (f["ba"] - f["bb"])).sum(1)


def _softmin(e: float, cost: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
    return -e * torch.logsumexp(h[:, None] - cost / e, dim=2)
