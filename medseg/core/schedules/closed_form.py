"""What all schedules share: a factor for each step, warm-up, the shapes of a decay, and checks of arguments.

    lr(t) = initial lr of the group x factor(t),    t = 0, 1, 2, ...: optimizer steps taken
    warm-up of w steps    (t + 1)/w for t < w: never exactly 0, so the first step is not wasted
    decay of n steps from step t0    progress tau = (t - t0 + 1)/n in (0, 1]: the last step runs at the minimum

With r the smallest factor, the shapes of a decay are

    linear            1 - (1 - r) tau
    cosine            r + (1 - r)(1 + cos(pi tau))/2
    1-sqrt            r + (1 - r)(1 - sqrt(tau))
    inverse_linear    1/(tau/r + 1 - tau)      the reciprocal of the rate goes linearly
    exponential       r^tau

Sources: Hägele et al., "Scaling Laws and Compute-Optimal Training Beyond Fixed Training Durations" (2024), for 1-sqrt;
Wen et al., "Understanding Warmup-Stable-Decay Learning Rates: A River Valley Loss Landscape Perspective" (2025), for
inverse_linear. Published implementations start the warm-up at exactly 0 and use tau = (t - t0)/n, which reaches the
minimum one step after the end; and the factor here depends on the step alone, not on the rate before, so that a
schedule is restored by its `last_epoch`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

DECAY_SHAPES: dict[str, Callable[[float, float], float]] = {
    "linear": lambda tau, r: 1 - (1 - r) * tau,
    "cosine": lambda tau, r: r + (1 - r) * (1 + math.cos(math.pi * tau)) / 2,
    "1-sqrt": lambda tau, r: r + (1 - r) * (1 - math.sqrt(tau)),
    "inverse_linear": lambda tau, r: 1 / (tau / r + 1 - tau),
    "exponential": lambda tau, r: r**tau,
}
_NEED_MINIMUM = ("inverse_linear", "exponential")


class ClosedFormLR(LRScheduler):
    """Base of the schedules: a subclass gives `factor(step)`."""

    def __init__(self, optimizer: Optimizer, last_epoch: int = -1) -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
        super().__init__(optimizer, last_epoch)

    def factor(self, step: int) -> float:
        """Rate at a step over the initial rate.

        Args:
            step: number of optimizer steps taken, from 0.
        """
        raise NotImplementedError

    def get_lr(self) -> list[float | torch.Tensor]:
        """Rate of every parameter group at the step that comes next."""
        factor = self.factor(self.last_epoch)
        return [base * factor for base in self.base_lrs]

    def _apply(self) -> None:
        """Put the factor of the present step into the optimizer, after the plan was changed in mid-run."""
        self._last_lr = self.get_lr()
        for group, rate in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate


def schedule_factors(schedule: ClosedFormLR, steps: int) -> np.ndarray:
    """Factors of the first steps of a schedule, to plot or to sum; the schedule itself does not move.

    Args:
        schedule: any schedule of this package.
        steps: how many, at least 1.

    Returns:
        Array (steps,), float64.

    Raises:
        ValueError: `steps` is below 1.

    Example:
        >>> from medseg.core.schedules import LinearDecayLR
        >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
        >>> schedule_factors(LinearDecayLR(optimizer, total_steps=4), 4).tolist()
        [0.75, 0.5, 0.25, 0.0]
    """
    check_length("steps", steps, 1)
    return np.array([schedule.factor(step) for step in range(steps)], dtype=np.float64)


def warm_up(step: int, warmup_steps: int) -> float:
    """Factor of a linear warm-up, 1 once it is over."""
    return (step + 1) / warmup_steps if step < warmup_steps else 1.0


def decay(shape: str, step: int, start: int, length: int, low: float) -> float:
    """Factor of a decay of `length` steps from step `start`: 1 before, `low` afterwards."""
    if step < start:
        return 1.0
    if step >= start + length:
        return low
    return DECAY_SHAPES[shape]((step - start + 1) / length, low)


def check_length(name: str, value: int, least: int = 0) -> int:
    """The number of steps; ValueError unless it is an integer of at least `least`."""
    if isinstance(value, bool) or int(value) != value or value < least:
        raise ValueError(f"{name} must be a whole number of steps, at least {least}, got {value!r}")
    return int(value)


def check_ratio(name: str, value: float) -> float:
    """The ratio; ValueError outside [0, 1)."""
    if not 0 <= value < 1:
        raise ValueError(f"{name} must be at least 0 and below 1 (a share of the peak, not a rate), got {value!r}")
    return float(value)


def check_shape(shape: str, low: float) -> str:
    """The name of a decay shape; ValueError when it is unknown or cannot reach `low`."""
    if shape not in DECAY_SHAPES:
        raise ValueError(f"decay_shape must be one of {', '.join(DECAY_SHAPES)}, got {shape!r}")
    if shape in _NEED_MINIMUM and low == 0:
        raise ValueError(f"decay_shape {shape!r} never reaches 0; give a min_lr_ratio above 0, such as 0.1")
    return shape
