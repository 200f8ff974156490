"""How to split a budget by a fitted law: between model and data, or between encoder and decoder.

    C = k N D:  N* = G (C/k)^(b/(a + b)),  D* = (C/k)^(a/(a + b))/G,  G = (a A/(b B))^(1/(a + b))      (Chinchilla)
    costs ce, cd a parameter:  ce Ne*/(cd Nd*) = pe/pd                                                  (bivariate)

Sources as in `model_size.py`. A parameter at full resolution costs far more operations than one at the bottleneck, so
give measured costs for a U-Net, and measured operations in place of 6 N D for a convolutional network.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medseg.core.scaling.model_size import BivariateLaw, ChinchillaLaw
from medseg.core.scaling.scaling_fit import ScalingFit

Interval = tuple[float, float]


@dataclass(frozen=True)
class ComputeOptimum:
    """The best model and data for a compute budget, with intervals (nan without draws)."""

    model: float
    data: float
    model_interval: Interval
    data_interval: Interval


@dataclass(frozen=True)
class EncoderShare:
    """The encoder's best share of the parameters.

    Attributes:
        share: the best share.
        interval: interval of the best share; nan without draws.
        good: smallest and largest share whose loss lies within 1 % of the best.
    """

    share: float
    interval: Interval
    good: Interval


def compute_optimum(fit: ScalingFit, compute: float, *, factor: float = 6.0, interval: float = 0.9) -> ComputeOptimum:
    """Best model size and amount of data for a compute budget C = factor x N x D.

    Args:
        fit: a fitted `ChinchillaLaw`.
        compute: the budget C, above 0, such as floating-point operations.
        factor: operations for each parameter and item; 6 for training a dense network on tokens.
        interval: probability of the intervals.

    Raises:
        ValueError: the fit is of another law, or a number is not above 0.
    """
    if not isinstance(fit.law, ChinchillaLaw):
        raise ValueError(f"fit must be of a ChinchillaLaw, got {fit.law.name}")
    if not (compute > 0 and factor > 0):
        raise ValueError(f"compute and factor must be above 0, got {compute!r} and {factor!r}")

    def solve(theta: np.ndarray) -> np.ndarray:
        _, log_a, log_b, a, b = theta.T
        log_g = (np.log(a / b) + log_a - log_b) / (a + b)
        budget = np.log(compute / factor)
        return np.exp(np.stack([log_g + budget * b / (a + b), budget * a / (a + b) - log_g]))

    model, data = solve(fit.theta[None])[:, 0].tolist()
    ends = [_ends(values, interval) for values in solve(fit.draws)]
    return ComputeOptimum(model, data, ends[0], ends[1])


def best_encoder_share(
    fit: ScalingFit,
    total: float,
    *,
    encoder_cost: float = 1.0,
    decoder_cost: float = 1.0,
    interval: float = 0.9,
) -> EncoderShare:
    """Best share of the encoder in the parameters of an encoder-decoder network.

    Args:
        fit: a fitted `BivariateLaw`.
        total: budget, `encoder_cost` Ne + `decoder_cost` Nd, above 0; it moves the range of good shares alone.
        encoder_cost: cost of a parameter of the encoder, above 0.
        decoder_cost: cost of a parameter of the decoder, above 0.
        interval: probability of the interval.

    Raises:
        ValueError: the fit is of another law, or a number is not above 0.
    """
    if not isinstance(fit.law, BivariateLaw):
        raise ValueError(f"fit must be of a BivariateLaw, got {fit.law.name}")
    if not min(total, encoder_cost, decoder_cost) > 0:
        raise ValueError("total, encoder_cost and decoder_cost must be above 0")

    def solve(theta: np.ndarray) -> np.ndarray:
        encoder, decoder = theta[:, 2] / encoder_cost, theta[:, 3] / decoder_cost
        return encoder / (encoder + decoder)

    share = np.arange(1, 1000) / 1000
    size = total / (share * encoder_cost + (1 - share) * decoder_cost)
    losses = fit.law.log_curve(fit.theta[None], np.stack([share * size, (1 - share) * size], 1))[0]
    good = share[losses <= losses.min() + np.log(1.01)]
    best = float(solve(fit.theta[None])[0])
    return EncoderShare(best, _ends(solve(fit.draws), interval), (float(good[0]), float(good[-1])))


def _ends(values: np.ndarray, interval: float) -> Interval:
    if not len(values):
        return np.nan, np.nan
    low, high = np.quantile(values, [(1 - interval) / 2, (1 + interval) / 2])
    return float(low), float(high)
