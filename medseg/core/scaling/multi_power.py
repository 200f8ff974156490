"""The multi-power law: a loss curve from its schedule, finer than the annealing law.

    L(t) = L0 + A (S1(t) + SW)^-alpha - B sum over k <= t of (lr_(k-1) - lr_k) G(lr_k^-gamma S_k(t))
    G(x) = 1 - (1 + C x)^-beta,    S1(t) = sum over i <= t of lr_i,    S_k(t) = sum over k <= i <= t of lr_i
    SW: sum of the rates of the warm-up, which the schedule leaves out

Only steps at which the rate changes enter the sum, so piecewise constant schedules are cheap.

Source: Luo et al., "A Multi-Power Law for Loss Curve Prediction Across Learning Rate Schedules" (2025). Only the law is
here: seven parameters ask for more curves than a segmentation project has; `AnnealingLaw` has four and is fitted.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

_NAMES = ("L0", "A", "alpha", "B", "C", "beta", "gamma")


def multi_power_loss(
    lr: ArrayLike, params: Mapping[str, float], steps: ArrayLike | None = None, *, warmup_sum: float = 0.0
) -> np.ndarray:
    """Losses that the multi-power law predicts for a schedule.

    Args:
        lr: learning rate of every step after the warm-up, above 0 where it changes, (T,).
        params: L0, A, alpha, B, C, beta and gamma.
        steps: indices at which the loss is wanted, in 0..T - 1; all by default.
        warmup_sum: sum of the rates of the warm-up.

    Returns:
        Losses, as many as steps.

    Raises:
        ValueError: a parameter is missing, or rates or steps are out of range.

    Example:
        >>> params = {"L0": 2.0, "A": 0.5, "alpha": 0.5, "B": 400.0, "C": 2.0, "beta": 0.6, "gamma": 0.6}
        >>> multi_power_loss([1.0, 1.0, 1.0, 1.0], params, [0, 3]).tolist()
        [2.5, 2.25]
    """
    rates = np.asarray(lr, dtype=np.float64)
    at = np.arange(len(rates)) if steps is None else np.asarray(steps, dtype=int)
    missing = [name for name in _NAMES if name not in params]
    if missing:
        raise ValueError(f"params must hold {', '.join(_NAMES)}; missing: {', '.join(missing)}")
    if rates.ndim != 1 or not len(rates) or (rates <= 0).any():
        raise ValueError("lr must hold the rate of every step, all above 0, in one dimension")
    if (at < 0).any() or (at >= len(rates)).any():
        raise ValueError(f"steps must lie in 0 to {len(rates) - 1}, got {at.min()} to {at.max()}")
    level, size, alpha, gain, scale, beta, gamma = (float(params[name]) for name in _NAMES)
    way = np.cumsum(rates)
    changes = np.flatnonzero(np.diff(rates)) + 1
    drops = rates[changes - 1] - rates[changes]
    # Sum from the change to the step, both included; changes still to come add nothing.
    since = np.maximum(way[at][:, None] - way[changes - 1], 0.0)
    share = 1 - (1 + scale * rates[changes] ** -gamma * since) ** -beta
    annealed = (np.where(changes <= at[:, None], share, 0.0) * drops).sum(1)
    return level + size * (way[at] + warmup_sum) ** -alpha - gain * annealed
