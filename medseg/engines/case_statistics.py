"""Statistics over cases: averages that skip what does not count, bootstrap intervals, and paired comparisons."""

from __future__ import annotations

import warnings
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np


@dataclass(frozen=True)
class PairedComparison:
    """How two methods differ on the same cases.

    Attributes:
        n: cases where both have a value.
        mean_difference: mean of first minus second.
        ci95: 95 % bootstrap interval of that mean, resampling cases.
        p_wilcoxon: two-sided p of the Wilcoxon signed-rank test; 1 where all differences are zero, nan without cases.
        n_first_larger: cases where the first value is larger.
        n_second_larger: cases where the second value is larger.
    """

    n: int
    mean_difference: float
    ci95: tuple[float, float]
    p_wilcoxon: float
    n_first_larger: int
    n_second_larger: int

    def to_dict(self) -> dict[str, object]:
        """Give the fields as a mapping."""
        return asdict(self)


def nan_mean(values: np.ndarray, axis: int | None = None) -> np.ndarray:
    """Average what is not nan; nan where nothing is left, without a warning.

    Example:
        >>> nan_mean(np.array([[1.0, np.nan], [2.0, np.nan]]), axis=0)
        array([1.5, nan])
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.nanmean(values, axis=axis)


def describe(values: np.ndarray, *, resamples: int = 2000, seed: int = 0) -> dict[str, object]:
    """Summarise one metric of one label over cases.

    Args:
        values: one value for each case, nan where the case does not count.
        resamples: number of bootstrap resamples; 0 gives no interval.
        seed: seed of the resampling.

    Returns:
        `mean`, `median`, `sd` (n - 1; nan below two cases), `ci95` of the mean, and `n`, the cases that count.

    Example:
        >>> describe(np.array([1.0, 3.0, np.nan]), resamples=0)["mean"]
        2.0
    """
    counted = values[~np.isnan(values)]
    return {
        "mean": float(counted.mean()) if counted.size else np.nan,
        "median": float(np.median(counted)) if counted.size else np.nan,
        "sd": float(counted.std(ddof=1)) if counted.size > 1 else np.nan,
        "ci95": bootstrap_ci(values[:, None], resamples=resamples, seed=seed),
        "n": int(counted.size),
    }


def bootstrap_ci(values: np.ndarray, *, resamples: int = 2000, seed: int = 0) -> tuple[float, float]:
    """Percentile bootstrap of the mean over cases, for one label or for the mean over labels.

    Cases are drawn with replacement and all labels of a case stay together; each resample gives the mean over its
    cases for each label, then the mean over labels.

    Args:
        values: shape (cases, labels), nan where a value does not count.
        resamples: number of resamples.
        seed: seed of the draws.

    Returns:
        The 2.5th and the 97.5th percentile; nan with fewer than two cases that count.

    References:
        Efron, Tibshirani, An Introduction to the Bootstrap, 1993.

    Example:
        >>> bootstrap_ci(np.full((5, 1), 0.5))
        (0.5, 0.5)
    """
    if resamples < 1 or np.count_nonzero(~np.isnan(values).all(axis=1)) < 2:
        return np.nan, np.nan
    weights = _resampling_weights(len(values), resamples, seed)
    with np.errstate(invalid="ignore"):  # 0 / 0 where a resample holds no case that counts for a label
        by_label = (weights @ np.nan_to_num(values)) / (weights @ ~np.isnan(values))
    means = nan_mean(by_label, axis=1)
    low, high = np.nanpercentile(means, [2.5, 97.5])
    return float(low), float(high)


def compare_paired(first: np.ndarray, second: np.ndarray, *, resamples: int = 2000, seed: int = 0) -> PairedComparison:
    """Compare two methods case by case.

    Args:
        first: one value for each case, nan where it does not count.
        second: the values of the other method on the same cases.
        resamples: number of bootstrap resamples.
        seed: seed of the resampling.

    Returns:
        The comparison; cases where either value is nan are left out.

    References:
        Wilcoxon, Individual comparisons by ranking methods, Biometrics Bulletin, 1945.

    Example:
        >>> compare_paired(np.array([0.9, 0.8]), np.array([0.9, 0.8])).p_wilcoxon
        1.0
    """
    difference = first - second
    difference = difference[~np.isnan(difference)]
    scale = np.nanmax(np.abs(np.concatenate([first, second, [1e-300]])))
    difference[np.abs(difference) <= 1e-12 * scale] = 0.0  # rounding is no difference
    return PairedComparison(
        n=int(difference.size),
        mean_difference=float(difference.mean()) if difference.size else np.nan,
        ci95=bootstrap_ci(difference[:, None], resamples=resamples, seed=seed),
        p_wilcoxon=_wilcoxon_p(difference),
        n_first_larger=int(np.count_nonzero(difference > 0)),
        n_second_larger=int(np.count_nonzero(difference < 0)),
    )


@lru_cache(maxsize=1)
def _resampling_weights(cases: int, resamples: int, seed: int) -> np.ndarray:
    """How often each resample draws each case, shape (resamples, cases); shared by all labels and metrics."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(cases, np.full(cases, 1 / cases), size=resamples).astype(np.float64)


def _wilcoxon_p(difference: np.ndarray) -> float:
    if not difference.size:
        return np.nan
    if not difference.any():
        return 1.0
    from scipy.stats import wilcoxon

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # small samples and ties: the p stays valid, only coarse
        warnings.simplefilter("ignore", UserWarning)
        result: Any = wilcoxon(difference)
        return float(result.pvalue)
