"""What labelled cases buy: how many are needed for a score, what one more is worth, and two methods compared by them.

cases for a loss L        D(L) of the fitted law
marginal gain a case      -dL/dD
data efficiency           D_baseline(L)/D_method(L): how many times fewer cases a method needs for the same loss
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medseg.core.scaling.scaling_fit import ScalingFit, Solution


@dataclass(frozen=True)
class AnnotationBudget:
    """What more labelled cases would buy.

    Attributes:
        cases: total number of cases for the target, with interval; inf where it is out of reach.
        additional: cases beyond the present ones, rounded up: value, lower and upper end.
        gain_per_case: fall of the loss with one more case, at the present number.
        cost: cost of the additional cases: value, lower and upper end; None without a price.
    """

    cases: Solution
    additional: tuple[float, float, float]
    gain_per_case: float
    cost: tuple[float, float, float] | None


def annotation_budget(
    fit: ScalingFit,
    target: float,
    *,
    current: float | None = None,
    cost_per_case: float | None = None,
    interval: float = 0.9,
) -> AnnotationBudget:
    """How many more labelled cases bring the loss down to a target.

    Args:
        fit: a law fitted to losses over the number of cases, such as `PowerLawOffset`.
        target: the loss wanted, above 0; for a Dice of 0.9 give 0.1.
        current: number of labelled cases at hand; by default the largest of the fit.
        cost_per_case: price of one more case; None gives no cost.
        interval: probability of the interval.

    Raises:
        ValueError: the target or the price is not above 0.
    """
    if cost_per_case is not None and not cost_per_case >= 0:
        raise ValueError(f"cost_per_case must not be negative, got {cost_per_case!r}")
    cases = fit.solve(target, interval)
    have = float(fit.x.max()) if current is None else float(current)
    low, value, high = (float(np.ceil(max(0.0, n - have) - 1e-9)) for n in (cases.lower, cases.x, cases.upper))
    at = fit.law.as_table([have, have + 1])
    before, after = np.exp(fit.law.log_curve(fit.theta[None], at)[0])
    cost = None if cost_per_case is None else (value * cost_per_case, low * cost_per_case, high * cost_per_case)
    return AnnotationBudget(cases, (value, low, high), float(before - after), cost)


def data_efficiency(baseline: ScalingFit, method: ScalingFit, loss: float, interval: float = 0.9) -> Solution:
    """How many times the data the baseline needs for a loss that the method reaches.

    Args:
        baseline: fit of the baseline's losses.
        method: fit of the method's losses over the same quantity.
        loss: the loss at which they are compared; take one that both have measured.
        interval: probability of the interval, from independent draws of both fits.

    Returns:
        The ratio with its interval; inf where only the method gets there, nan where neither does.
    """
    with np.errstate(invalid="ignore"):
        best = baseline.law.inverse(baseline.theta[None], loss) / method.law.inverse(method.theta[None], loss)
        count = min(len(baseline.draws), len(method.draws))
        order = np.random.default_rng(0).permutation(count)
        draws = baseline.law.inverse(baseline.draws[:count], loss) / method.law.inverse(method.draws[order], loss)
    draws = draws[~np.isnan(draws)]
    if not len(draws):
        return Solution(float(best[0]), np.nan, np.nan, float(np.isfinite(best[0])))
    low, high = np.quantile(draws, [(1 - interval) / 2, (1 + interval) / 2], method="inverted_cdf")
    return Solution(float(best[0]), float(low), float(high), float(np.isfinite(draws).mean()))
