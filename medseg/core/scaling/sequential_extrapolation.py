"""Extrapolate a curve that grows point by point with one power law, and notice when the answer has settled.

    y(x) = c - a x^-b,    a >= 0, 0.05 <= b <= 4,    fitted by least squares to all points so far

With few points the asymptote c is anything; it comes down and calms as points arrive. The forecast at the horizon is

    trusted     from the first point on after which no asymptote rises by more than `threshold` or leaves the bounds
    settled     where it is trusted and moved by less than `threshold` with each of the last `patience` points

Cheap (milliseconds a point) and without an interval: `CurveExtrapolator` gives chances for a running training,
`PowerLawOffset` intervals for runs of several sizes.

Source: Vilares Ferro, Darriba Bilbao, Ribadas Pena, "Modeling of learning curves with applications to part-of-speech
tagging" (2017). Differs in that a rise of the asymptotes within the threshold is no rise, because curves have noise;
for given b the fit is a straight line in x^-b, so that b alone is searched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize

_LEAST_POINTS = 4
_EXPONENTS = np.geomspace(0.05, 4, 40)


@dataclass(frozen=True)
class CurveForecast:
    """What the points so far say of the horizon.

    Attributes:
        points: number of points behind it.
        value: the curve at the horizon; nan before the fourth point.
        asymptote: the curve at infinity.
        change: how far the value moved with the last point, without sign.
        trusted: whether the asymptotes have come down and stay within the bounds.
        settled: whether the forecast is trusted and has stopped moving.
    """

    points: int
    value: float
    asymptote: float
    change: float
    trusted: bool
    settled: bool


class SequentialExtrapolator:
    """Forecast a growing curve at a horizon.

    Args:
        horizon: where the forecast is wanted, in the unit of x: the end of the training, or a number of cases.
        threshold: change of forecast and asymptote that does not matter, in the unit of y.
        patience: so many points in a row must change the forecast by less, at least 1.
        bounds: smallest and largest value of the metric, (0, 1) for Dice.
        increasing: whether the curve rises; False for a loss.

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> x = np.arange(1, 21) * 10.0
        >>> forecasts = SequentialExtrapolator(horizon=1000).extend(x, 0.9 - 0.8 * x**-0.5)
        >>> forecasts[-1].settled, round(forecasts[-1].value, 3), round(forecasts[-1].asymptote, 3)
        (True, 0.875, 0.9)
    """

    def __init__(
        self,
        horizon: float,
        threshold: float = 0.005,
        patience: int = 3,
        bounds: Sequence[float] = (0.0, 1.0),
        increasing: bool = True,
    ) -> None:
        if not (np.isfinite(horizon) and horizon > 0 and threshold > 0):
            raise ValueError(f"horizon and threshold must be above 0, got {horizon} and {threshold}")
        if patience < 1:
            raise ValueError(f"patience must be at least 1, got {patience}")
        if len(bounds) != 2 or not bounds[0] < bounds[1]:
            raise ValueError(f"bounds must be a smaller and a larger number, got {bounds!r}")
        self.horizon, self.threshold, self.patience = float(horizon), float(threshold), int(patience)
        self.bounds, self.increasing = (float(bounds[0]), float(bounds[1])), increasing
        self.x: list[float] = []
        self.y: list[float] = []
        self.forecasts: list[CurveForecast] = []

    @property
    def trusted_from(self) -> int | None:
        """Number of points from which on the forecasts are trusted; None where they are not yet."""
        if not self.forecasts or not self.forecasts[-1].trusted:
            return None
        untrusted = [forecast.points for forecast in self.forecasts if not forecast.trusted]
        return (untrusted[-1] if untrusted else 0) + 1

    def update(self, x: float, y: float) -> CurveForecast:
        """Add a point.

        Args:
            x: where, above 0, above all before and not beyond the horizon.
            y: the metric, within the bounds.

        Returns:
            The forecast from all points so far.

        Raises:
            ValueError: the point is out of range.
        """
        last = self.x[-1] if self.x else 0.0
        if not last < x <= self.horizon:
            raise ValueError(f"x must lie above {last:g} and not beyond the horizon, {self.horizon:g}, got {x}")
        if not self.bounds[0] <= y <= self.bounds[1]:
            raise ValueError(f"y must lie within bounds {self.bounds}, got {y}")
        self.x.append(float(x))
        self.y.append(float(y))
        self.forecasts.append(self._forecast())
        return self.forecasts[-1]

    def extend(self, x: ArrayLike, y: ArrayLike) -> list[CurveForecast]:
        """Add several points, and give the forecast after each."""
        pairs = zip(np.asarray(x, float).tolist(), np.asarray(y, float).tolist(), strict=True)
        return [self.update(at, value) for at, value in pairs]

    def _forecast(self) -> CurveForecast:
        points, nan = len(self.x), float("nan")
        if points < _LEAST_POINTS:
            return CurveForecast(points, nan, nan, nan, trusted=False, settled=False)
        sign = 1.0 if self.increasing else -1.0
        level, value = (sign * v for v in _fit(np.array(self.x), sign * np.array(self.y), self.horizon))
        before = self.forecasts[-1]
        inside = self.bounds[0] <= level <= self.bounds[1]
        # False for the first asymptote, which has none before it.
        trusted = inside and sign * (level - before.asymptote) <= self.threshold
        recent = [abs(value - before.value), *(f.change for f in self.forecasts[: -self.patience : -1])]
        calm = len(recent) == self.patience and all(change < self.threshold for change in recent)
        steady = all(f.trusted for f in self.forecasts[: -self.patience : -1])
        return CurveForecast(points, value, level, recent[0], trusted, trusted and calm and steady)


def _fit(x: np.ndarray, y: np.ndarray, horizon: float) -> tuple[float, float]:
    """Asymptote of the rising curve of least squares, and its value at the horizon."""
    unit = x / x[0]

    def lines(exponents: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Sums of squares, slopes -a and asymptotes c for exponents."""
        z = unit ** -exponents[:, None]
        centred = z - z.mean(1, keepdims=True)
        slopes = np.minimum(0.0, centred @ y / (centred**2).sum(1))
        levels = y.mean() - slopes * z.mean(1)
        return ((y - levels[:, None] - slopes[:, None] * z) ** 2).sum(1), slopes, levels

    best = int(np.argmin(lines(_EXPONENTS)[0]))
    ends = _EXPONENTS[max(best - 1, 0)], _EXPONENTS[min(best + 1, len(_EXPONENTS) - 1)]
    options = {"xatol": 1e-8}
    found = optimize.minimize_scalar(
        lambda e: lines(np.array([e]))[0][0], bounds=ends, method="bounded", options=options
    )
    exponent = float(found.x)  # pyright: ignore[reportAttributeAccessIssue]
    _, (slope,), (level,) = lines(np.array([exponent]))
    return float(level), float(level + slope * (horizon / x[0]) ** -exponent)
