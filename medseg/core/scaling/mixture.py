"""How large a share of a new site a training may take before the old site suffers.

    L_old(R) = a + b R^s       rises with the share R of the new site, in (0, 1]
    L_new(R) = c + d R^-u      falls: a `PowerLawOffset`

Runs at about 5 shares in geometric steps, all with the same number of updates; then the critical share solves
L_old(R) = start + tolerance. Act on the lower end of the interval, not on the value.

Source: Gu et al., "CMR Scaling Law: Predicting Critical Mixture Ratios for Continual Pre-training of Language Models"
(2024). The paper's law is in R and in the amount of training; this one is at a fixed amount.
"""

from __future__ import annotations

import itertools

import numpy as np

from medseg.core.scaling.law import ScalingLaw, amplitude, exponent, floor
from medseg.core.scaling.scaling_fit import ScalingFit, Solution


class MixtureLaw(ScalingLaw):
    """Loss of the old site over the share of the new one: `a + b R^s`.

    Example:
        >>> share = np.array([0.05, 0.1, 0.2, 0.4, 0.8])
        >>> fit = MixtureLaw().fit(share, 0.1 + 0.05 * share**1.5, bootstrap=0)
        >>> round(critical_mixture_ratio(fit, start=0.1, tolerance=0.005).x, 3)
        0.215
    """

    name = "mixture law"
    columns = ("R",)
    parameters = (floor("a"), amplitude("b"), exponent("s"))

    def log_curve(self, theta: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Logarithm of the law at shares (n, 1) for parameters (k, p)."""
        level, size, slope = (theta[:, i, None] for i in range(3))
        return np.log(level + np.exp(size + slope * np.log(x[:, 0])))

    def starts(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Floors and exponents on a grid, amplitudes to suit them."""
        found = []
        for share, slope in itertools.product((0.0, 0.5, 0.8, 0.95, 0.99), (0.25, 0.5, 1.0, 1.5, 2.5)):
            level = share * y.min()
            found.append((level, np.median(np.log(y - level) - slope * np.log(x[:, 0])), slope))
        return np.array(found)

    def inverse(self, theta: np.ndarray, y: float) -> np.ndarray:
        """Largest share at which the loss stays below a value: 0 where no share does, at most 1."""
        with np.errstate(all="ignore"):
            at = np.exp((np.log(y - theta[:, 0]) - theta[:, 1]) / theta[:, 2])
        return np.where(theta[:, 0] < y, np.minimum(at, 1.0), 0.0)

    def _check_inputs(self, table: np.ndarray) -> None:
        if (table <= 0).any() or (table > 1).any():
            raise ValueError(f"x must be shares in (0, 1], got {table.min():g} to {table.max():g}")


def critical_mixture_ratio(fit: ScalingFit, start: float, tolerance: float, interval: float = 0.9) -> Solution:
    """Largest share of the new site at which the old site's loss stays within a tolerance.

    Args:
        fit: a fitted `MixtureLaw` of the old site's losses.
        start: loss of the old site before the new one is added.
        tolerance: by how much it may rise, such as 0.005 for half a point of Dice.
        interval: probability of the interval; act on its lower end.

    Returns:
        The share, 0 where none keeps to the tolerance, at most 1.

    Raises:
        ValueError: the fit is of another law, or the tolerance is negative.
    """
    if not isinstance(fit.law, MixtureLaw):
        raise ValueError(f"fit must be of a MixtureLaw, got {fit.law.name}")
    if not tolerance >= 0:
        raise ValueError(f"tolerance must not be negative, got {tolerance!r}")
    return fit.solve(start + tolerance, interval)
