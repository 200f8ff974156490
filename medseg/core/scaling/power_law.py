"""The power law with an offset: what a loss does as labelled cases, voxels or parameters grow.

    L(x) = E + B x^-beta

Take 4 to 6 nested subset sizes and 2 or 3 runs each, over at least a 16-fold range, at a constant number of iterations
and on a fixed test set. With four sizes over an 8-fold range the interval covers too little, whatever the recipe.
"""

from __future__ import annotations

import itertools

import numpy as np

from medseg.core.scaling.law import ScalingLaw, amplitude, exponent, floor


class PowerLawOffset(ScalingLaw):
    """Loss over one quantity: `E + B x^-beta`.

    Example:
        >>> cases = np.array([10.0, 20, 40, 80, 160, 320])
        >>> fit = PowerLawOffset().fit(cases, 0.08 + 0.9 * cases**-0.5, bootstrap=0)
        >>> {name: round(value, 4) for name, value in fit.params.items()}
        {'E': 0.08, 'B': 0.9, 'beta': 0.5}
        >>> fit.predict(1280).mean.round(4), round(fit.solve(0.11).x)
        (array([0.1052]), 900)
    """

    name = "power law with offset"
    parameters = (floor("E"), amplitude("B"), exponent("beta"))

    def log_curve(self, theta: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Logarithm of the law at inputs (n, 1) for parameters (k, p)."""
        level, size, slope = (theta[:, i, None] for i in range(3))
        return np.log(level + np.exp(size - slope * np.log(x[:, 0])))

    def starts(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Floors and exponents on a grid, each with the amplitude that suits them."""
        found = []
        for share, slope in itertools.product((0.0, 0.3, 0.6, 0.8, 0.9, 0.97), (0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.5)):
            level = share * y.min()
            found.append((level, np.median(np.log(y - level) + slope * np.log(x[:, 0])), slope))
        return np.array(found)

    def inverse(self, theta: np.ndarray, y: float) -> np.ndarray:
        """Input at which the law reaches a loss, for each row of parameters; inf where the floor is not below it."""
        with np.errstate(all="ignore"):
            at = np.exp((theta[:, 1] - np.log(y - theta[:, 0])) / theta[:, 2])
        return np.where(theta[:, 0] < y, at, np.inf)
