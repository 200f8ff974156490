"""Where a learning curve that is still under way will end, and whether to go on.

The posterior of the prior in `curve_prior.py` given the validations so far, by sequential Monte Carlo: particles drawn
from the prior are reweighted towards the data in steps, each chosen so that the effective number of particles halves,
resampled, and moved by Metropolis steps along differences of other particles (ter Braak, "A Markov Chain Monte Carlo
version of the genetic algorithm Differential Evolution", 2006). Being exact up to the number of
particles, its intervals hold what they promise for curves of the prior; real curves may differ.

    stop when P(last value > incumbent + margin) < threshold, looked at from the tenth validation on

The prior knows no annealing: under cosine, polynomial or WSD schedules the last part rises faster than the curve so far
says. Give the typical gain of that part as a (negative) `margin`, or predict with `AnnealingLaw`.

Source: Adriaensen, Rakotoarison, Müller, Hutter, "Efficient Bayesian Learning Curve Extrapolation using Prior-Data
Fitted Networks" (2023), for prior and stopping rule. They train a transformer on draws of the prior; a sampler needs
neither its weights nor old versions of libraries, and takes a few seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from medseg.core.scaling import curve_prior

_MOST_POINTS = 100
_LEAST_POINTS = 10


@dataclass(frozen=True)
class StopAdvice:
    """Whether a run is worth going on with.

    Attributes:
        stop: the advice.
        probability: of the run ending above the incumbent and margin.
        reason: a sentence.
    """

    stop: bool
    probability: float
    reason: str


class CurvePosterior:
    """What a curve may still do: draws from the posterior."""

    def __init__(self, z: np.ndarray, t_max: float, bounds: tuple[float, float], increasing: bool) -> None:
        self.z, self.t_max, self.bounds, self.increasing = z, t_max, bounds, increasing

    def draws(self, t: ArrayLike) -> np.ndarray:
        """Curves without noise, in the unit of the data, (draws, len(t))."""
        at = 100 * np.atleast_1d(np.asarray(t, dtype=np.float64)) / self.t_max
        if (at <= 0).any() or (at > 100 * (1 + 1e-9)).any():
            raise ValueError(f"t must lie above 0 and at most at the end, {self.t_max:g}")
        values = curve_prior.curves(self.z, at)
        low, high = self.bounds
        return low + (high - low) * values if self.increasing else high - (high - low) * values

    def quantile(self, q: float | Sequence[float], t: ArrayLike | None = None) -> np.ndarray:
        """Quantiles of the curve, without noise.

        Args:
            q: probabilities, one or several.
            t: where; the end of the run by default.

        Returns:
            (q, t), without the first axis for a single probability.
        """
        return np.quantile(self.draws(self.t_max if t is None else t), q, axis=0)

    def prob_exceeds(self, value: float, t: float | None = None) -> float:
        """Probability that the curve lies above a value, at the end of the run by default."""
        return float((self.draws(self.t_max if t is None else t) > value).mean())


class CurveExtrapolator:
    """Extrapolate a learning curve from its first validations.

    Args:
        n_particles: size of the sample; 600 by default.
        moves: Metropolis steps after each reweighting, at least 1; many validations with little noise need the 100 of
            the default, and a few seconds.
        seed: seed of the sampler.

    Raises:
        ValueError: there are fewer than 100 particles, or no moves.

    Example:
        >>> t = np.arange(1, 31)
        >>> posterior = CurveExtrapolator(n_particles=200, moves=20).fit(t, 0.9 - 0.5 * t**-0.7, t_max=100)
        >>> posterior.quantile(0.5).round(1), posterior.prob_exceeds(0.8)
        (array([0.9]), 1.0)
    """

    def __init__(self, n_particles: int = 600, moves: int = 100, seed: int = 0) -> None:
        if n_particles < 100:
            raise ValueError(f"n_particles must be at least 100, got {n_particles}; 600 is the default")
        if moves < 1:
            raise ValueError(f"moves must be at least 1, got {moves}; 100 is the default")
        self.n_particles, self.moves, self.seed = int(n_particles), int(moves), int(seed)

    def fit(
        self,
        t: ArrayLike,
        y: ArrayLike,
        t_max: float,
        *,
        bounds: tuple[float, float] = (0.0, 1.0),
        increasing: bool = True,
    ) -> CurvePosterior:
        """Condition the prior on validations.

        Args:
            t: epochs or steps of the validations, above 0 and at most `t_max`; beyond 100 of them neighbours are
                averaged.
            y: validation metric, within `bounds`.
            t_max: the end of the run, in the unit of `t`.
            bounds: smallest and largest value of the metric; (0, 1) for Dice.
            increasing: whether larger is better; False for a loss, with bounds that it stays within.

        Returns:
            The posterior.

        Raises:
            ValueError: lengths differ, there are fewer than 2 values, or values are out of range.
        """
        at, values = _check(t, y, t_max, bounds)
        scaled = (values - bounds[0]) / (bounds[1] - bounds[0])
        data = _thin(100 * at / t_max, scaled if increasing else 1 - scaled)
        random = np.random.default_rng(self.seed)
        z = curve_prior.draw(self.n_particles, random)
        return CurvePosterior(_sample(z, data, self.moves, random), float(t_max), bounds, increasing)


def stop_advice(
    posterior: CurvePosterior,
    incumbent: float,
    *,
    points: int,
    threshold: float = 0.05,
    margin: float = 0.0,
) -> StopAdvice:
    """Advise to stop a run that will hardly end better than the incumbent.

    Args:
        posterior: what `CurveExtrapolator.fit` gave.
        incumbent: the value to beat: the best of another run, or of this one so far.
        points: number of validations behind the posterior; below 10 the advice is to go on.
        threshold: stop below this probability of a better end.
        margin: how much better than the incumbent is worth it; a negative one leaves room for what a falling
            learning rate will still gain. In the unit of the metric, better being positive.

    Returns:
        The advice, its probability and a sentence.

    Raises:
        ValueError: the threshold is out of range.
    """
    if not 0 < threshold < 1:
        raise ValueError(f"threshold must lie between 0 and 1, got {threshold!r}; 0.05 is the published one")
    level = incumbent + margin if posterior.increasing else incumbent - margin
    above = posterior.prob_exceeds(level)
    chance = above if posterior.increasing else 1 - above
    end = f"a chance of {chance:.1%} to end {'above' if posterior.increasing else 'below'} {level:.4g}"
    if points < _LEAST_POINTS:
        return StopAdvice(False, chance, f"go on: {end}, but only {points} of at least {_LEAST_POINTS} validations")
    if chance < threshold:
        return StopAdvice(True, chance, f"stop: {end}")
    return StopAdvice(False, chance, f"go on: {end}")


def _check(t: ArrayLike, y: ArrayLike, t_max: float, bounds: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    at, values = np.asarray(t, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if at.ndim != 1 or at.shape != values.shape or len(at) < 2:
        raise ValueError(f"t and y must be as long as each other, at least 2, got shapes {at.shape} and {values.shape}")
    if not (np.isfinite(at).all() and np.isfinite(values).all()):
        raise ValueError("t and y must be finite; leave out validations that failed")
    if (at <= 0).any() or (at > t_max).any():
        raise ValueError(f"t must lie above 0 and at most at t_max, {t_max:g}; got {at.min():g} to {at.max():g}")
    if not bounds[0] < bounds[1] or (values < bounds[0]).any() or (values > bounds[1]).any():
        raise ValueError(f"y must lie within bounds {bounds}, got {values.min():g} to {values.max():g}")
    return at, values


@dataclass(frozen=True)
class _Data:
    """At most 100 points: the mean of neighbours, how many stand behind each, and their squares around the means."""

    x: np.ndarray
    y: np.ndarray
    counts: np.ndarray
    within: float


def _thin(x: np.ndarray, y: np.ndarray) -> _Data:
    groups = np.array_split(np.argsort(x, kind="stable"), min(len(x), _MOST_POINTS))
    means = [np.array([values[group].mean() for group in groups]) for values in (x, y)]
    within = sum(float(((y[group] - y[group].mean()) ** 2).sum()) for group in groups)
    return _Data(means[0], means[1], np.array([len(group) for group in groups], dtype=np.float64), within)


def _sample(z: np.ndarray, data: _Data, moves: int, random: np.random.Generator) -> np.ndarray:
    """Move particles of the prior to the posterior."""

    def log_likelihood(particles: np.ndarray) -> np.ndarray:
        sd = curve_prior.noise_sd(particles)
        squares = (data.counts * (data.y - curve_prior.curves(particles, data.x)) ** 2).sum(1) + data.within
        return -0.5 * squares / sd**2 - data.counts.sum() * np.log(sd)

    fit = log_likelihood(z)
    temper = 0.0
    while temper < 1:
        step = _next_step(fit, 1 - temper)
        weights = special.softmax(step * fit)
        temper = min(1.0, temper + step)
        chosen = _resample(weights, random)
        z, fit = z[chosen], fit[chosen]
        for _ in range(moves if temper < 1 else 2 * moves):
            z, fit = _move(z, fit, temper, log_likelihood, random)
    return z


def _next_step(fit: np.ndarray, most: float) -> float:
    """The step towards the data that halves the effective number of particles."""
    low, high = 0.0, most
    if _effective(high * fit) >= 0.5:
        return most
    for _ in range(40):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if _effective(middle * fit) >= 0.5 else (low, middle)
    return max(low, 1e-9)


def _effective(log_weights: np.ndarray) -> float:
    """Effective share of the particles."""
    weights = special.softmax(log_weights)
    return float(1 / (len(weights) * (weights**2).sum()))


def _resample(weights: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Systematic resampling."""
    count = len(weights)
    at = (np.arange(count) + random.random()) / count
    return np.minimum(np.searchsorted(np.cumsum(weights), at), count - 1)


def _move(
    z: np.ndarray,
    fit: np.ndarray,
    temper: float,
    log_likelihood: Callable[[np.ndarray], np.ndarray],
    random: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """One Metropolis step for every particle, along the difference of two others in some of the directions."""
    count, size = z.shape
    one, other = random.permutation(count), random.permutation(count)
    scale = 2.38 / np.sqrt(2 * size) * random.choice([0.1, 0.3, 1.0], (count, 1))
    some = random.random((count, size)) < random.choice([0.2, 0.5, 1.0], (count, 1))
    new = z + some * (scale * (z[one] - z[other]) + 1e-4 * random.standard_normal((count, size)))
    ok = np.flatnonzero(curve_prior.allowed(new))
    value = np.full(count, -np.inf)
    value[ok] = log_likelihood(new[ok])
    gain = temper * (value - fit) - 0.5 * (new**2 - z**2).sum(1)
    taken = np.log(random.random(count)) < gain
    return np.where(taken[:, None], new, z), np.where(taken, value, fit)
