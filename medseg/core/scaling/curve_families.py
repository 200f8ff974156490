"""Eleven families of learning curves, three of which make the prior of `curve_prior.py`.

    pow3                      c - a x^-alpha
    ilog2                     c - a/ln(x + 1)
    janoschek                 a - (a - beta) exp(-k x^delta)
    log_power                 a/(1 + (x/e^b)^c)
    weibull                   alpha - (alpha - beta) exp(-(kappa x)^delta)
    mmf                       alpha - (alpha - beta)/(1 + (kappa x)^delta)
    vap                       exp(a + b/x + c ln x)
    loglog_linear             ln(a ln x + b)
    exp4                      c - exp(b - a x^alpha)
    pow4                      c - (a x + b)^-alpha
    dr_hill_zero_background   theta x^eta/(kappa^eta + x^eta)

Sources: Domhan, Springenberg, Hutter, "Speeding up Automatic Hyperparameter Optimization of Deep Neural Networks by
Extrapolation of Learning Curves" (2015); Adriaensen et al., "Efficient Bayesian Learning Curve Extrapolation using
Prior-Data Fitted Networks" (2023).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import ArrayLike

_Params = Mapping[str, np.ndarray]
CURVE_FAMILIES: dict[str, Callable[[np.ndarray, _Params], np.ndarray]] = {
    "pow3": lambda x, p: p["c"] - p["a"] * x ** -p["alpha"],
    "ilog2": lambda x, p: p["c"] - p["a"] / np.log1p(x),
    "janoschek": lambda x, p: p["a"] - (p["a"] - p["beta"]) * np.exp(-p["k"] * x ** p["delta"]),
    "log_power": lambda x, p: p["a"] / (1 + (x / np.exp(p["b"])) ** p["c"]),
    "weibull": lambda x, p: p["alpha"] - (p["alpha"] - p["beta"]) * np.exp(-((p["kappa"] * x) ** p["delta"])),
    "mmf": lambda x, p: p["alpha"] - (p["alpha"] - p["beta"]) / (1 + (p["kappa"] * x) ** p["delta"]),
    "vap": lambda x, p: np.exp(p["a"] + p["b"] / x + p["c"] * np.log(x)),
    "loglog_linear": lambda x, p: np.log(p["a"] * np.log(x) + p["b"]),
    "exp4": lambda x, p: p["c"] - np.exp(p["b"] - p["a"] * x ** p["alpha"]),
    "pow4": lambda x, p: p["c"] - (p["a"] * x + p["b"]) ** -p["alpha"],
    "dr_hill_zero_background": lambda x, p: p["theta"] * x ** p["eta"] / (p["kappa"] ** p["eta"] + x ** p["eta"]),
}


def curve_family(name: str, x: ArrayLike, params: Mapping[str, ArrayLike]) -> np.ndarray:
    """Values of a family of learning curves.

    Args:
        name: one of the families above.
        x: where, above 0, (n,).
        params: parameters by name, numbers, or arrays that broadcast against `x`.

    Returns:
        The values.

    Raises:
        ValueError: the family is unknown or a parameter is missing.

    Example:
        >>> curve_family("pow3", [1.0, 4.0], {"a": 0.5, "alpha": 0.5, "c": 0.9}).tolist()
        [0.4, 0.65]
    """
    if name not in CURVE_FAMILIES:
        raise ValueError(f"name must be one of {', '.join(CURVE_FAMILIES)}, got {name!r}")
    try:
        return CURVE_FAMILIES[name](np.asarray(x, float), {k: np.asarray(v, float) for k, v in params.items()})
    except KeyError as error:
        raise ValueError(f"params of {name} must hold {error.args[0]!r}, got {', '.join(params) or 'none'}") from None
