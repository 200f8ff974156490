"""A fitted scaling law: its parameters, predictions with intervals, and the x at which a loss is reached."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

if TYPE_CHECKING:
    from medseg.core.scaling.law import ScalingLaw

MAX_EXTRAPOLATION = 8.0


class IdentifiabilityWarning(UserWarning):
    """The data do not say what a parameter is."""


class ExtrapolationWarning(UserWarning):
    """A prediction lies further from the data than laws are known to hold."""


@dataclass(frozen=True)
class Prediction:
    """Losses that a fitted law predicts.

    Attributes:
        mean: the fitted law at each x, (n,).
        lower: lower end of the interval, (n,); nan without draws.
        upper: upper end of the interval, (n,).
        interval: the probability that the interval is meant to hold.
    """

    mean: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    interval: float


@dataclass(frozen=True)
class Solution:
    """Where a fitted law reaches a loss.

    Attributes:
        x: the fitted law's answer, inf when its floor is not below the loss.
        lower: lower end of the interval.
        upper: upper end; inf when the draws do not exclude that the loss is never reached.
        reachable: share of the draws that reach the loss at all, 0 to 1.
    """

    x: float
    lower: float
    upper: float
    reachable: float


@dataclass(frozen=True)
class Backtest:
    """What the law, fitted without the largest x, says of it.

    Attributes:
        x: the x that was left out.
        observed: geometric mean of the losses there.
        predicted: the loss predicted from the other points.
        lower: lower end of the 90 % interval of the law there.
        upper: upper end.
    """

    x: tuple[float, ...]
    observed: float
    predicted: float
    lower: float
    upper: float


@dataclass(frozen=True, eq=False)
class ScalingFit:
    """A fitted law.

    Attributes:
        law: the law.
        theta: parameters as they are fitted, amplitudes as logarithms, (p,).
        covariance: Gauss-Newton covariance of `theta`, (p, p).
        objective: sum of Huber's losses at the optimum.
        delta: where Huber's loss turned linear.
        residuals: log y - log law, (n,).
        draws: `theta` of the bootstrap, (draws, p).
        x: inputs of the fit, (n, columns).
        y: losses of the fit, (n,).
        backtest: prediction of the largest x from the others; None when too few points are left for it.
        notes: what the data do not say, in sentences.
    """

    law: ScalingLaw
    theta: np.ndarray
    covariance: np.ndarray
    objective: float
    delta: float
    residuals: np.ndarray
    draws: np.ndarray
    x: np.ndarray
    y: np.ndarray
    backtest: Backtest | None
    notes: tuple[str, ...]

    @property
    def params(self) -> dict[str, float]:
        """Parameters by their letters in the formula."""
        return self.law.decode(self.theta)

    @property
    def residual_sd(self) -> float:
        """Standard deviation of log y around the law, with the parameters' degrees of freedom taken off."""
        return float(np.sqrt((self.residuals**2).sum() / max(len(self.residuals) - len(self.theta), 1)))

    def predict(self, x: ArrayLike, interval: float = 0.9, *, new_run: bool = False) -> Prediction:
        """Predict losses.

        Args:
            x: inputs, (n,) or (n, columns), or one number.
            interval: probability of the interval, in (0, 1).
            new_run: whether the interval is for what one more run would measure; by default it is for the law itself,
                the mean of many runs.

        Returns:
            The fitted law and its interval; more than 8 times beyond the data an `ExtrapolationWarning` is given.

        Raises:
            ValueError: inputs do not fit the law, or the interval is out of range.
        """
        if not 0 < interval < 1:
            raise ValueError(f"interval must lie between 0 and 1, got {interval!r}; 0.9 is usual")
        table = self.law.as_table(x)
        self._warn_if_far(table)
        mean = np.exp(self.law.log_curve(self.theta[None], table)[0])
        if (mean < 1e-290).any():
            warnings.warn("the law falls below 0 there and is cut off", ExtrapolationWarning, stacklevel=2)
        if not len(self.draws):
            nothing = np.full(len(mean), np.nan)
            return Prediction(mean, nothing, nothing, interval)
        logs = self.law.log_curve(self.draws, table)
        if new_run:
            # Each draw with equally likely deviations of one run, in place of a random one: no noise of its own.
            freedom = max(len(self.residuals) - len(self.theta), 1)
            deviations = self.residual_sd * stats.t.ppf((np.arange(21) + 0.5) / 21, freedom)
            logs = (logs[:, None] + deviations[:, None]).reshape(-1, logs.shape[-1])
        lower, upper = np.quantile(np.exp(logs), [(1 - interval) / 2, (1 + interval) / 2], axis=0)
        return Prediction(mean, lower, upper, interval)

    def solve(self, y: float, interval: float = 0.9) -> Solution:
        """Find where the law reaches a loss; for laws that can be inverted.

        Args:
            y: the loss, above 0.
            interval: probability of the interval, in (0, 1).

        Returns:
            The input, with its interval; inf where the floor lies above the loss.

        Raises:
            ValueError: the loss is not above 0.
            NotImplementedError: the law has more than one input.
        """
        if not y > 0:
            raise ValueError(f"y must be above 0, got {y!r}; give a loss, such as 1 - Dice")
        at = float(self.law.inverse(self.theta[None], y)[0])
        if not len(self.draws):
            return Solution(at, np.nan, np.nan, float(np.isfinite(at)))
        all_at = self.law.inverse(self.draws, y)
        # Taken from the sorted draws, not between two of them: half of infinity says nothing.
        ends = np.quantile(all_at, [(1 - interval) / 2, (1 + interval) / 2], method="inverted_cdf")
        return Solution(at, float(ends[0]), float(ends[1]), float(np.isfinite(all_at).mean()))

    def with_notes(self, notes: tuple[str, ...]) -> ScalingFit:
        """The same fit with sentences on what the data do not say."""
        return replace(self, notes=notes)

    def to_dict(self) -> dict[str, Any]:
        """The fit as plain lists and numbers, for JSON."""
        arrays = {key: getattr(self, key).tolist() for key in _ARRAYS}
        backtest = None if self.backtest is None else vars(self.backtest) | {"x": list(self.backtest.x)}
        return {
            "law": type(self.law).__name__,
            "settings": self.law.settings(),
            "params": self.params,
            "objective": self.objective,
            "delta": self.delta,
            "backtest": backtest,
            "notes": list(self.notes),
            **arrays,
        }

    @staticmethod
    def from_dict(content: Mapping[str, Any]) -> ScalingFit:
        """The fit that `to_dict` wrote.

        Raises:
            ValueError: the law is unknown.
        """
        import medseg.core.scaling as laws  # not at the top: that package imports this file

        name = content["law"]
        if not (name.endswith("Law") or name == "PowerLawOffset") or not hasattr(laws, name):
            raise ValueError(f"law must be a law of medseg.core.scaling, got {name!r}")
        law = getattr(laws, name)(**content["settings"])
        backtest = content["backtest"]
        size = len(law.parameters)
        arrays = {key: np.array(content[key], dtype=np.float64) for key in _ARRAYS}
        return ScalingFit(
            law=law,
            objective=content["objective"],
            delta=content["delta"],
            backtest=None if backtest is None else Backtest(**{**backtest, "x": tuple(backtest["x"])}),
            notes=tuple(content["notes"]),
            **{**arrays, "draws": arrays["draws"].reshape(-1, size)},
        )

    def _warn_if_far(self, table: np.ndarray) -> None:
        with np.errstate(all="ignore"):
            times = np.nanmax(table / self.x.max(0), axis=0)
        for name, factor in zip(self.law.columns, times, strict=True):
            if factor > MAX_EXTRAPOLATION:
                warnings.warn(
                    f"{name} is {factor:.3g} times the largest measured one; beyond {MAX_EXTRAPOLATION:g} times a "
                    "law is a guess, and the interval knows nothing of that",
                    ExtrapolationWarning,
                    stacklevel=3,
                )


_ARRAYS = ("theta", "covariance", "residuals", "draws", "x", "y")
