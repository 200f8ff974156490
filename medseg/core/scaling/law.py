"""What all scaling laws share: fit a loss that falls to a floor, predict beyond the data, say when that is guesswork.

Fit. Residuals are r = log y - log law(x); the objective is the SUM of Huber's loss (a mean with a loose tolerance stops
early: Besiroglu et al., "Chinchilla Scaling: A replication attempt", 2024), minimised from many starts. Where it turns
linear, `delta`, is 1.5 times the spread of replicates by default, at least 1e-3 (the value used for language models,
whose losses have next to no noise).

Interval. A residual bootstrap refits y* = law(x) exp(s e*), e* drawn from the residuals and scaled by sqrt(n/(n - p)).
The plain bootstrap takes this noise level for known and covers too little with few points, so each draw has a level of
its own, s^2 = (n - p)/chi^2(n - p), which is what Student's t does for a mean. Every fit is also tried on its own data:
without the largest x, it predicts the values there (`ScalingFit.backtest`).

Fit losses (1 - Dice, cross-entropy), not scores: a law that falls to a floor knows nothing of a ceiling.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from medseg.core.scaling._least_squares import huber, jacobian, minimise
from medseg.core.scaling.scaling_fit import Backtest, IdentifiabilityWarning, ScalingFit

_REFINED, _FOLLOWED = 24, 4  # of the starts, how many are improved, and how many of those are followed to the end


@dataclass(frozen=True)
class Parameter:
    """A parameter of a law.

    Attributes:
        name: its letter in the formula.
        role: `floor`, `amplitude` (fitted as its logarithm), `exponent` or `coefficient`.
        low: smallest value.
        high: largest value.
    """

    name: str
    role: str
    low: float = 0.0
    high: float = np.inf

    @property
    def log(self) -> bool:
        """Whether the logarithm is fitted."""
        return self.role == "amplitude"


def floor(name: str = "E") -> Parameter:
    """What remains however large x is; at least 0."""
    return Parameter(name, "floor")


def amplitude(name: str) -> Parameter:
    """A factor above 0."""
    return Parameter(name, "amplitude", low=1e-130, high=1e130)


def exponent(name: str) -> Parameter:
    """The steepness of a fall, in (0, 4]."""
    return Parameter(name, "exponent", low=1e-4, high=4.0)


class ScalingLaw:
    """Base of the laws; a subclass names its parameters and gives the curve and starts for its fit."""

    name: str = ""
    columns: tuple[str, ...] = ("x",)
    parameters: tuple[Parameter, ...] = ()

    def __init__(self) -> None:
        self._low, self._high = self._encode_bounds()

    def fit(
        self,
        x: ArrayLike,
        y: ArrayLike,
        *,
        weights: ArrayLike | None = None,
        delta: float | str = "auto",
        n_starts: int = 2000,
        bootstrap: int = 1000,
        seed: int = 0,
    ) -> ScalingFit:
        """Fit the law to measured losses.

        Args:
            x: what was varied, (n,) or (n, columns); positive. Repeated values are replicates.
            y: the loss that was measured, (n,); positive.
            weights: weight of each point, (n,); 1 by default.
            delta: where Huber's loss turns linear, in units of log y; `auto` is 1.5 times the spread of replicates.
            n_starts: most starts to try; the best 24 are improved, and the best 4 of those followed.
            bootstrap: number of draws for intervals; 0 gives none.
            seed: seed of the draws.

        Returns:
            The fit, which predicts. Rows with NaN are left out, with a warning.

        Raises:
            ValueError: shapes differ, values are not positive, or there are fewer points than parameters and one.
        """
        table, losses, weight = self._check(x, y, weights)
        random = np.random.default_rng(seed)
        target = np.log(losses)
        starts = self._pick_starts(table, losses, n_starts, random)
        width = self._find_delta(table, target, weight, starts) if delta == "auto" else _check_delta(delta)
        theta, objective = self._optimise(table, target, weight, starts, width)
        residuals = target - self.log_curve(theta[None], table)[0]
        draws = self._bootstrap(table, target, weight, theta, width, bootstrap, random)
        fit = ScalingFit(
            law=self,
            theta=theta,
            covariance=self._covariance(table, residuals, weight, theta),
            objective=objective,
            delta=width,
            residuals=residuals,
            draws=draws,
            x=table,
            y=losses,
            backtest=self._backtest(table, target, weight, starts, width, bootstrap, random),
            notes=(),
        )
        return _with_notes(fit, self._find_notes(fit, weight))

    def log_curve(self, theta: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Logarithm of the law.

        Args:
            theta: parameters as they are fitted (amplitudes as logarithms), (k, p).
            x: inputs, (n, columns).

        Returns:
            (k, n).
        """
        raise NotImplementedError

    def starts(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Parameters from which to start the fit, as they are fitted, (starts, p)."""
        raise NotImplementedError

    def held_out(self, x: np.ndarray) -> np.ndarray:
        """Points that the back-test predicts from the others: those with the largest value in the last column."""
        return x[:, -1] == x[:, -1].max()

    def inverse(self, theta: np.ndarray, y: float) -> np.ndarray:
        """Input at which the law reaches a loss, for each row of parameters; inf where it never does."""
        raise NotImplementedError(f"{self.name} has no single input to solve for; predict a grid of inputs instead")

    def encode(self, params: dict[str, float]) -> np.ndarray:
        """Parameters by name in the form in which they are fitted, (p,)."""
        values = [float(params[p.name]) for p in self.parameters]
        return np.array([np.log(v) if p.log else v for p, v in zip(self.parameters, values, strict=True)])

    def decode(self, theta: np.ndarray) -> dict[str, float]:
        """Fitted parameters by name."""
        return {p.name: float(np.exp(t) if p.log else t) for p, t in zip(self.parameters, theta, strict=True)}

    def settings(self) -> dict[str, Any]:
        """Arguments with which the law was built, for `ScalingFit.to_dict`."""
        return {}

    def as_table(self, x: ArrayLike) -> np.ndarray:
        """Inputs as (n, columns); ValueError when they do not fit or are not positive."""
        table = np.asarray(x, dtype=np.float64)
        table = table.reshape(-1, 1) if len(self.columns) == 1 and table.ndim < 2 else np.atleast_2d(table)
        if table.ndim != 2 or table.shape[1] != len(self.columns):
            raise ValueError(f"x must hold the columns {', '.join(self.columns)}, got an array of shape {np.shape(x)}")
        return table

    def _encode_bounds(self) -> tuple[np.ndarray, np.ndarray]:
        low = [np.log(p.low) if p.log else p.low for p in self.parameters]
        high = [np.log(p.high) if p.log else p.high for p in self.parameters]
        return np.array(low, dtype=np.float64), np.array(high, dtype=np.float64)

    def _check(
        self, x: ArrayLike, y: ArrayLike, weights: ArrayLike | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        table, losses = self.as_table(x), np.asarray(y, dtype=np.float64)
        weight = np.ones(len(table)) if weights is None else np.asarray(weights, dtype=np.float64)
        if losses.ndim != 1 or len(losses) != len(table) or weight.shape != losses.shape:
            shapes = f"{table.shape}, {losses.shape} and {weight.shape}"
            raise ValueError(f"x, y and weights must be as long as each other, got shapes {shapes}")
        whole = np.isfinite(table).all(1) & np.isfinite(losses)
        if not whole.all():
            warnings.warn(f"{(~whole).sum()} of {len(whole)} points are not finite and left out", stacklevel=3)
            table, losses, weight = table[whole], losses[whole], weight[whole]
        if (losses <= 0).any():
            raise ValueError(f"y must be above 0, got {losses.min():g}; fit a loss such as 1 - Dice, drop perfect runs")
        if (weight < 0).any() or not weight.any():
            raise ValueError("weights must not be negative, and not all 0")
        self._check_inputs(table)
        if len(losses) < len(self.parameters) + 1:
            needed = len(self.parameters) + 1
            raise ValueError(f"{self.name} needs at least {needed} points, one more than parameters, got {len(losses)}")
        if np.ptp(losses) == 0:
            raise ValueError("y is constant; there is nothing to extrapolate")
        return table, losses, weight

    def _check_inputs(self, table: np.ndarray) -> None:
        if (table <= 0).any():
            raise ValueError(f"x must be above 0, got {table.min():g}")

    def _pick_starts(self, x: np.ndarray, y: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
        starts = np.clip(self.starts(x, y), self._low, self._high)
        return starts if len(starts) <= count else starts[random.permutation(len(starts))[:count]]

    def _find_delta(self, x: np.ndarray, target: np.ndarray, weight: np.ndarray, starts: np.ndarray) -> float:
        """1.5 times the spread of replicates; without replicates, of the residuals of a first fit."""
        _, group, counts = np.unique(x, axis=0, return_inverse=True, return_counts=True)
        freedom = len(x) - len(counts)
        if freedom >= 2:
            group = group.reshape(-1)
            means = np.bincount(group, target) / counts
            spread = np.sqrt(((target - means[group]) ** 2).sum() / freedom)
        else:
            theta, _ = self._optimise(x, target, weight, starts, 1e3)
            rest = target - self.log_curve(theta[None], x)[0]
            spread = np.sqrt((rest**2).sum() / max(len(x) - len(theta), 1))
        return max(1e-3, 1.5 * float(spread))

    def _optimise(
        self, x: np.ndarray, target: np.ndarray, weight: np.ndarray, starts: np.ndarray, delta: float
    ) -> tuple[np.ndarray, float]:
        with np.errstate(all="ignore"):
            first = huber(target - self.log_curve(starts, x), weight, delta)
        best = starts[np.argsort(first, kind="stable")[:_REFINED]]
        theta, objective = self._minimise(x, target, weight, best, delta, steps=40, tolerance=1e-4)
        best = theta[np.argsort(objective, kind="stable")[:_FOLLOWED]]
        theta, objective = self._minimise(x, target, weight, best, delta, steps=400)
        at = int(np.argmin(objective))
        if not np.isfinite(objective[at]):
            raise ValueError(f"{self.name} gives no finite value at any start; are x and y in usual units?")
        return theta[at], float(objective[at])

    def _minimise(
        self, x: np.ndarray, target: np.ndarray, weight: np.ndarray, starts: np.ndarray, delta: float, **effort: Any
    ) -> tuple[np.ndarray, np.ndarray]:
        def curve(theta: np.ndarray) -> np.ndarray:
            return self.log_curve(theta, x)

        return minimise(curve, target, starts, self._low, self._high, weights=weight, delta=delta, **effort)

    def _bootstrap(
        self,
        x: np.ndarray,
        target: np.ndarray,
        weight: np.ndarray,
        theta: np.ndarray,
        delta: float,
        count: int,
        random: np.random.Generator,
    ) -> np.ndarray:
        """Parameters refitted to data with new noise, (count, p)."""
        freedom = len(target) - len(theta)
        if count == 0 or freedom < 1:
            return np.empty((0, len(theta)))
        curve = self.log_curve(theta[None], x)[0]
        residuals = (target - curve) * np.sqrt(len(target) / freedom)
        level = np.sqrt(freedom / random.chisquare(freedom, (count, 1)))
        noise = level * random.choice(residuals - residuals.mean(), (count, len(target)))
        starts = np.repeat(theta[None], count, 0)
        return self._minimise(x, curve + noise, weight, starts, delta, steps=150, tolerance=1e-7)[0]

    def _covariance(self, x: np.ndarray, residuals: np.ndarray, weight: np.ndarray, theta: np.ndarray) -> np.ndarray:
        """Gauss-Newton covariance of the parameters as they are fitted."""
        slopes = jacobian(lambda t: self.log_curve(t, x), theta[None], self._low, self._high)[0]
        slopes = slopes * np.sqrt(weight)[:, None]
        variance = (weight * residuals**2).sum() / max(len(residuals) - len(theta), 1)
        return np.linalg.pinv(slopes.T @ slopes, hermitian=True) * variance

    def _backtest(
        self,
        x: np.ndarray,
        target: np.ndarray,
        weight: np.ndarray,
        starts: np.ndarray,
        delta: float,
        bootstrap: int,
        random: np.random.Generator,
    ) -> Backtest | None:
        """Predict the last of the points held out from the others."""
        largest = self.held_out(x)
        kept = ~largest
        distinct = len(np.unique(x[kept], axis=0))
        if distinct < len(self.parameters) or kept.sum() < len(self.parameters) + 1:
            return None
        theta, _ = self._optimise(x[kept], target[kept], weight[kept], starts, delta)
        draws = self._bootstrap(x[kept], target[kept], weight[kept], theta, delta, min(bootstrap, 300), random)
        at = x[largest][-1:]
        observed = target[(x == at).all(1)].mean()
        spread = np.quantile(self.log_curve(draws, at)[:, 0], (0.05, 0.95)) if len(draws) else (np.nan, np.nan)
        return Backtest(
            x=tuple(at[0].tolist()),
            observed=float(np.exp(observed)),
            predicted=float(np.exp(self.log_curve(theta[None], at)[0, 0])),
            lower=float(np.exp(spread[0])),
            upper=float(np.exp(spread[1])),
        )

    def _find_notes(self, fit: ScalingFit, weight: np.ndarray) -> Sequence[str]:
        """Sentences on what the data do not say."""
        notes = self._find_confusion(fit, weight)
        if not len(fit.draws):
            return notes
        smallest = float(fit.y.min())
        for parameter, draws in zip(self.parameters, fit.draws.T, strict=True):
            low, high = np.quantile(draws, (0.05, 0.95))
            if parameter.log and high - low > np.log(10):
                notes.append(
                    f"{parameter.name} is not identified: 90 % interval {np.exp(low):.3g} to {np.exp(high):.3g}"
                )
            elif parameter.role == "exponent" and (high >= 3.99 or low <= 1e-3):
                notes.append(f"{parameter.name} is not identified: 90 % interval {low:.3g} to {high:.3g}")
            elif parameter.role == "floor" and low <= 0.02 * smallest and high >= 0.5 * smallest:
                notes.append(
                    f"{parameter.name} is not identified: 90 % interval {low:.3g} to {high:.3g}, from 0 up to near the "
                    f"smallest loss {smallest:.3g}; only the interval of a prediction says something"
                )
        return notes

    def _find_confusion(self, fit: ScalingFit, weight: np.ndarray) -> list[str]:
        """Whether a change of some parameters can be undone by others without a trace in the data."""
        slopes = jacobian(lambda t: self.log_curve(t, fit.x), fit.theta[None], self._low, self._high)[0]
        slopes = slopes * np.sqrt(weight)[:, None]
        sizes = np.linalg.norm(slopes, axis=0)
        silent = [p.name for p, size in zip(self.parameters, sizes, strict=True) if size < 1e-9]
        notes = [f"{name} leaves no trace in the data" for name in silent]
        _, values, axes = np.linalg.svd(slopes[:, sizes >= 1e-9] / sizes[sizes >= 1e-9], full_matrices=False)
        if len(values) and values[-1] < 1e-5 * values[0]:
            heard = [p.name for p in self.parameters if p.name not in silent]
            mixed = [name for name, share in zip(heard, np.abs(axes[-1]), strict=True) if share > 0.1]
            notes.append(f"{', '.join(mixed)} cannot be told apart by these points; vary the inputs independently")
        return notes


def _check_delta(delta: float | str) -> float:
    if isinstance(delta, str) or not delta > 0:
        raise ValueError(f"delta must be 'auto' or above 0, got {delta!r}")
    return float(delta)


def _with_notes(fit: ScalingFit, notes: Sequence[str]) -> ScalingFit:
    if notes:
        warnings.warn(f"{fit.law.name}: {'; '.join(notes)}", IdentifiabilityWarning, stacklevel=3)
    return fit.with_notes(tuple(notes))
