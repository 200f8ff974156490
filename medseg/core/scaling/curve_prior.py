"""A prior over learning curves that rise from a first to a last validation, in [0, 1].

    y(x) = w1 pow3(x) + w2 ilog2(x) + w3 janoschek(x),    x = 1..100 the share of the run in percent
    w_k ~ U(0, 1) each on its own: they need not sum to 1
    pow3        c ~ U(0, 1.25), a ~ U(-0.6, 0.6), alpha ~ LogN(0, 2)
    ilog2       c ~ U(0, 1), a ~ U(-0.5, 0.5)
    janoschek   a ~ U(0, 1), beta ~ U(0, 2), k ~ LogN(-2, 1), delta ~ LogN(0, 0.5)
    noise       normal, sd ~ LogN(-4, 1)
    a curve that does not end above its start, or leaves [0, 1], is drawn anew

LogN(m, s) has s as the standard deviation of the logarithm. Each curve is a point z of 13 independent standard normal
numbers (uniform ones through the normal distribution function), so that a sampler can walk in z.

Source: Adriaensen, Rakotoarison, Müller, Hutter, "Efficient Bayesian Learning Curve Extrapolation using Prior-Data
Fitted Networks" (2023); the constants are those of its code, which the paper states otherwise for the noise.
"""

from __future__ import annotations

import numpy as np
from scipy import special

DIMENSIONS = 13
GRID = np.arange(1.0, 101.0)
_CHECKED = np.unique(np.r_[1:12, np.geomspace(12, 100, 14).round()])


def curves(z: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Values of curves z (k, 13) at x (n,) in (0, 100]; shape (k, n)."""
    u, log = special.ndtr(z).T[..., None], z.T[..., None]
    w = u[:3]
    # As in `curve_families.py`, with powers of x by its logarithm: most of the time of an extrapolation is spent here.
    at = np.log(x)
    with np.errstate(over="ignore", under="ignore"):
        one = 1.25 * u[3] - (1.2 * u[4] - 0.6) * np.exp(-np.exp(2 * log[5]) * at)
        two = u[6] - (u[7] - 0.5) / np.log1p(x)
        three = u[8] - (u[8] - 2 * u[9]) * np.exp(-np.exp(log[10] - 2 + np.exp(0.5 * log[11]) * at))
    return w[0] * one + w[1] * two + w[2] * three


def noise_sd(z: np.ndarray) -> np.ndarray:
    """Standard deviation of the noise of each curve, (k,)."""
    return np.exp(z[:, 12] - 4)


def allowed(z: np.ndarray) -> np.ndarray:
    """Whether each curve ends above its start and stays in [0, 1], (k,); looked at in 25 places."""
    values = curves(z, _CHECKED)
    inside = (values >= 0).all(1) & (values <= 1).all(1)
    return inside & (values[:, -1] > values[:, 0])


def draw(count: int, random: np.random.Generator) -> np.ndarray:
    """Curves of the prior as z, (count, 13)."""
    found: list[np.ndarray] = []
    while sum(map(len, found)) < count:
        z = random.standard_normal((4 * count, DIMENSIONS))
        found.append(z[allowed(z)])
    return np.concatenate(found)[:count]
