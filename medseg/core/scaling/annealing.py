"""The loss curve of a training from its learning-rate schedule.

    L(s) = L0 + A S1(s)^-alpha - C S2(s)
    S1(s) = sum over i <= s of lr_i
    S2(s) = sum over i <= s of m_i,    m_0 = 0,    m_i = lam m_(i-1) + (lr_(i-1) - lr_i)

S1 is the way gone, S2 what annealing gains: 0 while the rate stays. Warm-up steps count in S1 as if at the peak, and
not in S2. A and C depend on the optimizer and the unit of the rate: predict for the same optimizer only. Validation
Dice flattens and can overfit; fit the training loss (smoothed) or the validation cross-entropy, and only up to its
minimum.

Source: Tissue, Wang, Wang, "Scaling Law with Learning Rate Annealing" (2024). Beyond the paper: `lam`, 0.999 there for
20 000 steps, is chosen by the objective (`fit_annealing`), because short runs forget faster.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import signal

from medseg.core.scaling.law import Parameter, ScalingLaw, amplitude, exponent, floor
from medseg.core.scaling.scaling_fit import IdentifiabilityWarning, ScalingFit
from medseg.core.schedules.closed_form import DECAY_SHAPES, decay

LAMS = (0.95, 0.99, 0.995, 0.999, 0.9995)


def annealing_sums(lr: ArrayLike, lam: float = 0.999, warmup_steps: int = 0) -> np.ndarray:
    """S1 and S2 at every step of a schedule.

    Args:
        lr: learning rate of every step, (steps,).
        lam: how slowly annealing is forgotten, in (0, 1).
        warmup_steps: so many first steps count as if at the rate that follows them.

    Returns:
        (steps, 2).

    Raises:
        ValueError: rates are negative or all 0, or lam is out of range.

    Example:
        >>> annealing_sums([1.0, 1.0, 0.5, 0.5], lam=0.5).tolist()
        [[1.0, 0.0], [2.0, 0.0], [2.5, 0.5], [3.0, 0.75]]
    """
    rates = np.array(lr, dtype=np.float64)
    if rates.ndim != 1 or not len(rates) or (rates < 0).any() or not rates.any():
        raise ValueError("lr must hold the rate of every step, none negative and not all 0, in one dimension")
    if not 0 < lam < 1:
        raise ValueError(f"lam must lie between 0 and 1, got {lam!r}; 0.999 is the published one")
    if not 0 <= warmup_steps < len(rates):
        raise ValueError(f"warmup_steps must be at least 0 and below the {len(rates)} steps of lr, got {warmup_steps}")
    rates[:warmup_steps] = rates[warmup_steps]
    momentum = signal.lfilter([1.0], [1.0, -lam], -np.diff(rates, prepend=rates[0]))
    return np.stack([np.cumsum(rates), np.cumsum(momentum)], 1)


class AnnealingLaw(ScalingLaw):
    """Loss over S1 and S2: `L0 + A S1^-alpha - C S2`. `points` gives the inputs from a schedule.

    Args:
        lam: how slowly annealing is forgotten, in (0, 1).
        warmup_steps: steps of warm-up that each schedule starts with.
    """

    name = "annealing law"
    columns = ("S1", "S2")
    parameters = (floor("L0"), amplitude("A"), Parameter("C", "coefficient"), exponent("alpha"))

    def __init__(self, lam: float = 0.999, warmup_steps: int = 0) -> None:
        if not 0 < lam < 1:
            raise ValueError(f"lam must lie between 0 and 1, got {lam!r}; 0.999 is the published one")
        self.lam, self.warmup_steps = float(lam), int(warmup_steps)
        super().__init__()

    def settings(self) -> dict[str, Any]:
        """Arguments with which the law was built."""
        return {"lam": self.lam, "warmup_steps": self.warmup_steps}

    def points(self, lr: ArrayLike, steps: ArrayLike | None = None) -> np.ndarray:
        """Inputs of the law at some steps of a schedule.

        Args:
            lr: learning rate of every step.
            steps: indices of the steps; all by default. Some hundred are enough for a fit.

        Returns:
            S1 and S2, (points, 2).
        """
        sums = annealing_sums(lr, self.lam, self.warmup_steps)
        return sums if steps is None else sums[np.asarray(steps, dtype=int)]

    def log_curve(self, theta: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Logarithm of the law at inputs (n, 2) for parameters (k, p); cut off where the law falls below 0."""
        level, size, gain, slope = (theta[:, i, None] for i in range(4))
        value = level + np.exp(size - slope * np.log(x[:, 0])) - gain * x[:, 1]
        return np.log(np.maximum(value, 1e-300))

    def starts(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Floors, exponents and gains on a grid, amplitudes to suit them."""
        found = []
        largest = np.abs(x[:, 1]).max()
        for share, slope, part in itertools.product((0.0, 0.4, 0.8, 0.95), (0.1, 0.3, 0.5, 0.8), (0.0, 0.05, 0.2)):
            level, gain = share * y.min(), part * y.min() / largest if largest > 0 else 0.0
            rest = np.maximum(y - level + gain * x[:, 1], 1e-3 * y)
            found.append((level, np.median(np.log(rest) + slope * np.log(x[:, 0])), gain, slope))
        return np.array(found)

    def held_out(self, x: np.ndarray) -> np.ndarray:
        """The last fifth of the way: points of a curve are no independent sizes."""
        return x[:, 0] > 0.8 * x[:, 0].max()

    def _check_inputs(self, table: np.ndarray) -> None:
        if (table[:, 0] <= 0).any():
            raise ValueError("x must hold S1 above 0 in its first column; AnnealingLaw.points gives both columns")


def fit_annealing(
    curves: Sequence[tuple[ArrayLike, ArrayLike, ArrayLike]],
    *,
    lams: Sequence[float] = LAMS,
    warmup_steps: int = 0,
    delta: float = 1e-3,
    bootstrap: int = 1000,
    seed: int = 0,
) -> ScalingFit:
    """Fit the annealing law to loss curves, with the `lam` that suits them best.

    Args:
        curves: for each run its learning rates (of every step), the steps at which the loss was measured, the losses.
        lams: values to try.
        warmup_steps: steps of warm-up that each run starts with.
        delta: where Huber's loss turns linear, in units of log loss; one for all, so that objectives compare.
        bootstrap: number of draws for intervals.
        seed: seed of the draws.

    Returns:
        The fit with the smallest objective; its `law.lam` says which.

    Raises:
        ValueError: there are no curves, or steps and losses differ in length.
    """
    if not len(curves) or any(np.shape(steps) != np.shape(losses) for _, steps, losses in curves):
        raise ValueError("curves must be at least one (lr, steps, losses), with as many losses as steps")
    losses = np.concatenate([np.asarray(c[2], dtype=np.float64) for c in curves])

    def points(law: AnnealingLaw) -> np.ndarray:
        return np.concatenate([law.points(lr, steps) for lr, steps, _ in curves])

    laws = [AnnealingLaw(lam, warmup_steps) for lam in lams]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", IdentifiabilityWarning)  # of values that are not taken
        objectives = [law.fit(points(law), losses, delta=delta, bootstrap=0).objective for law in laws]
    best = laws[int(np.argmin(objectives))]
    return best.fit(points(best), losses, delta=delta, bootstrap=bootstrap, seed=seed)


def best_decay_start(
    fit: ScalingFit,
    total_steps: int,
    peak: float,
    *,
    shape: str = "1-sqrt",
    min_lr_ratio: float = 0.0,
    grid: int = 40,
) -> tuple[int, float]:
    """When a warm-up-stable-decay run of a given length should begin to decay.

    Args:
        fit: a fitted `AnnealingLaw`.
        total_steps: length of the run.
        peak: the stable learning rate, in the unit of the fit.
        shape: shape of the decay, as in `medseg.core.schedules.WSDLR`.
        min_lr_ratio: factor at the end.
        grid: how many starts to try, evenly spaced.

    Returns:
        The step at which the decay starts and the loss that the law predicts for the end.

    Raises:
        ValueError: the fit is of another law, or the shape is unknown.
    """
    if not isinstance(fit.law, AnnealingLaw):
        raise ValueError(f"fit must be of an AnnealingLaw, got {fit.law.name}")
    if shape not in DECAY_SHAPES:
        raise ValueError(f"shape must be one of {', '.join(DECAY_SHAPES)}, got {shape!r}")
    starts = np.unique(np.linspace(fit.law.warmup_steps, total_steps - 1, grid).astype(int))
    ends = []
    for start in starts.tolist():
        rates = [peak * decay(shape, t, start, total_steps - start, min_lr_ratio) for t in range(total_steps)]
        ends.append(fit.law.points(rates, [total_steps - 1])[0])
    losses = np.exp(fit.law.log_curve(fit.theta[None], np.array(ends))[0])
    at = int(np.argmin(losses))
    return int(starts[at]), float(losses[at])
