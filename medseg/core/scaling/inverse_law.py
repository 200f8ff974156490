"""Laws that fall as 1/x: ensembles of K members, and steps at batch size B.

    ensemble          L_K = E + A/K              E: what an endless ensemble would reach
    critical batch    S(B) = Smin + Emin/B       which is (S/Smin - 1)(B S/Emin - 1) = 1; Bcrit = Emin/Smin

At B = Bcrit a training takes twice the least steps and twice the least samples. If an endless ensemble of small models
stays below the asymptote of a larger one, train members rather than a larger model.

Sources: Kim et al., "Pre-training under infinite compute" (2025), for comparing asymptotes; McCandlish et al., "An
Empirical Model of Large-Batch Training" (2018) and Su et al., "Unraveling the Mystery of Scaling Laws: Part I" (2024).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from medseg.core.scaling.law import ScalingLaw, amplitude, floor
from medseg.core.scaling.scaling_fit import ScalingFit, Solution


class _InverseLaw(ScalingLaw):
    """A floor and a term in 1/x."""

    def log_curve(self, theta: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Logarithm of the law at inputs (n, 1) for parameters (k, p)."""
        return np.log(theta[:, :1] + np.exp(theta[:, 1:] - np.log(x[:, 0])))

    def starts(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Floors on a grid, amplitudes to suit them."""
        levels = np.array([0.0, 0.2, 0.4, 0.6, 0.8, 0.9, 0.97]) * y.min()
        return np.array([(level, np.median(np.log((y - level) * x[:, 0]))) for level in levels])

    def inverse(self, theta: np.ndarray, y: float) -> np.ndarray:
        """Input at which the law reaches a value, for each row of parameters; inf where the floor is not below it."""
        with np.errstate(all="ignore"):
            at = np.exp(theta[:, 1]) / (y - theta[:, 0])
        return np.where(theta[:, 0] < y, at, np.inf)


class EnsembleLaw(_InverseLaw):
    """Loss over the number of members: `E + A/K`.

    Take the mean over all subsets of K members, see `ensemble_losses`.

    Example:
        >>> fit = EnsembleLaw().fit([1, 2, 3, 4, 5], [0.14, 0.12, 0.34 / 3, 0.11, 0.108], bootstrap=0)
        >>> round(fit.params["E"], 4), round(fit.params["A"], 4)
        (0.1, 0.04)
    """

    name = "ensemble law"
    columns = ("K",)
    parameters = (floor("E"), amplitude("A"))


class CriticalBatchLaw(_InverseLaw):
    """Steps to a given loss over the batch size: `Smin + Emin/B`.

    Count cases for B where the patches of one case are correlated.

    Example:
        >>> fit = CriticalBatchLaw().fit([2, 4, 8, 16], [1100, 600, 350, 225], bootstrap=0)
        >>> round(critical_batch_size(fit).x, 3)
        20.0
    """

    name = "critical batch law"
    columns = ("B",)
    parameters = (floor("Smin"), amplitude("Emin"))


def critical_batch_size(fit: ScalingFit, interval: float = 0.9) -> Solution:
    """Batch size at which steps and samples both are twice their least.

    Args:
        fit: a fitted `CriticalBatchLaw`.
        interval: probability of the interval.

    Returns:
        Emin/Smin with its interval; inf where the least number of steps is not told apart from 0.

    Raises:
        ValueError: the fit is of another law.
    """
    if not isinstance(fit.law, CriticalBatchLaw):
        raise ValueError(f"fit must be of a CriticalBatchLaw, got {fit.law.name}")
    with np.errstate(divide="ignore"):
        best, draws = (np.exp(theta[:, 1]) / theta[:, 0] for theta in (fit.theta[None], fit.draws))
    if not len(draws):
        return Solution(float(best[0]), np.nan, np.nan, float(np.isfinite(best[0])))
    low, high = np.quantile(draws, [(1 - interval) / 2, (1 + interval) / 2], method="inverted_cdf")
    return Solution(float(best[0]), float(low), float(high), float(np.isfinite(draws).mean()))


def ensemble_losses(members: ArrayLike, loss: Callable[[np.ndarray], float]) -> np.ndarray:
    """Mean loss of all ensembles of 1, 2, ... members, from stored probabilities.

    Args:
        members: probabilities of each member for the same voxels, (members, ...); at most 12 members.
        loss: function of averaged probabilities (...) that gives the loss of that ensemble.

    Returns:
        (members,): entry K - 1 is the mean over all subsets of K members.

    Raises:
        ValueError: there are more than 12 members, whose 4095 subsets are the limit.

    Example:
        >>> members = np.array([[0.5, 1.0], [1.0, 0.5]])
        >>> ensemble_losses(members, lambda p: float(((1 - p) ** 2).mean())).tolist()
        [0.125, 0.0625]
    """
    table = np.asarray(members, dtype=np.float64)
    if not 1 <= len(table) <= 12:
        raise ValueError(f"members must be 1 to 12, got {len(table)}")
    means = []
    for size in range(1, len(table) + 1):
        subsets = itertools.combinations(range(len(table)), size)
        means.append(np.mean([loss(table[list(subset)].mean(0)) for subset in subsets]))
    return np.array(means)
