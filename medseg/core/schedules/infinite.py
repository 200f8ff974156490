"""A schedule without an end, for data that keep coming: warm-up, cool-down, a constant rate, and annealing on demand.

    warm-up     (t + 1)/w
    cool-down   from 1 to c = const_ratio over n steps:  cosine, linear, or inverse_sqrt: 1 + (c - 1) h(tau)/h(1) with
                h(x) = 1/sqrt(1 + alpha x) - 1
    constant    c, over any number of tasks, without a new warm-up
    annealing   c (r/c)^tau, before each release

A new task restarts from the checkpoint at the end of the constant phase, not from the annealed one.

Sources: Singh, Janson et al., "Beyond Cosine Decay: On the Effectiveness of Infinite Learning Rate Schedule for
Continual Pre-training" (2025); Ibrahim et al., "Simple and Scalable Strategies to Continually Pre-train Large Language
Models" (2024). The published function takes positions on the axis of the task and divides by zero without a
warm-up; here all arguments are lengths, and tau counts from 1/n, so that each phase ends on its last step.
"""

from __future__ import annotations

import math

from torch.optim import Optimizer

from medseg.core.schedules.closed_form import ClosedFormLR, check_length, check_ratio, warm_up

COOLDOWN_SHAPES = ("cosine", "inverse_sqrt", "linear")


class InfiniteLR(ClosedFormLR):
    """Warm up, cool down to a constant rate, and anneal from it when a model is wanted.

    Args:
        optimizer: the optimizer whose groups' rates are scaled.
        warmup_steps: length of the warm-up in optimizer steps, at least 0.
        cooldown_steps: length of the way from the peak to the constant rate, at least 0.
        const_ratio: the constant rate over the peak, in (0, 1); 0.1 to 0.5 are usual.
        cooldown_shape: `cosine`, `inverse_sqrt` or `linear`.
        timescale: alpha of `inverse_sqrt`, above 0.
        constant_steps: length of the constant phase where it is known; None leaves it to `begin_anneal`.
        anneal_steps: length of the annealing that follows `constant_steps`, and the default of `begin_anneal`.
        min_lr_ratio: factor at the end of the annealing, above 0 and below `const_ratio` where there is any.
        last_epoch: steps taken already; -1 starts anew.

    Raises:
        ValueError: a length is negative, a ratio is out of range, the shape is unknown, or annealing lacks its length
            or minimum.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        >>> schedule = InfiniteLR(optimizer, warmup_steps=2, cooldown_steps=4, const_ratio=0.2, cooldown_shape="linear")
        >>> [round(schedule.factor(step), 2) for step in (0, 1, 2, 5, 10_000)]
        [0.5, 1.0, 0.8, 0.2, 0.2]
    """

    def __init__(
        self,
        optimizer: Optimizer,
        warmup_steps: int,
        cooldown_steps: int,
        const_ratio: float = 0.25,
        cooldown_shape: str = "cosine",
        timescale: float = 10.0,
        constant_steps: int | None = None,
        anneal_steps: int | None = None,
        min_lr_ratio: float = 0.0,
        last_epoch: int = -1,
    ) -> None:
        self.warmup_steps = check_length("warmup_steps", warmup_steps)
        self.cooldown_steps = check_length("cooldown_steps", cooldown_steps)
        self.const_ratio = check_ratio("const_ratio", const_ratio)
        self.min_lr_ratio = check_ratio("min_lr_ratio", min_lr_ratio)
        if not self.const_ratio > self.min_lr_ratio:
            raise ValueError(f"const_ratio must exceed min_lr_ratio, got {const_ratio!r} and {min_lr_ratio!r}")
        if cooldown_shape not in COOLDOWN_SHAPES:
            raise ValueError(f"cooldown_shape must be one of {', '.join(COOLDOWN_SHAPES)}, got {cooldown_shape!r}")
        if not timescale > 0:
            raise ValueError(f"timescale must be above 0, got {timescale!r}; 10 is the published one")
        self.cooldown_shape, self.timescale = cooldown_shape, float(timescale)
        self.anneal_steps = None if anneal_steps is None else check_length("anneal_steps", anneal_steps, 1)
        self.anneal_start: int | None = None
        self.anneal_length = 0
        if constant_steps is not None:
            end = self.warmup_steps + self.cooldown_steps + check_length("constant_steps", constant_steps)
            self._plan_anneal(end, self.anneal_steps)
        super().__init__(optimizer, last_epoch)

    def factor(self, step: int) -> float:
        """Rate at a step over the initial rate."""
        if self.anneal_start is not None and step >= self.anneal_start:
            start = self._untouched(self.anneal_start)
            tau = min(1.0, (step - self.anneal_start + 1) / self.anneal_length)
            return start * (self.min_lr_ratio / start) ** tau
        return self._untouched(step)

    def begin_anneal(self, n_steps: int | None = None) -> None:
        """Anneal from the step that comes next on; save a checkpoint first, to go on from when new data arrive.

        Args:
            n_steps: length of the annealing; by default the `anneal_steps` of the constructor.

        Raises:
            ValueError: no length or no `min_lr_ratio` above 0 was given.
        """
        self._plan_anneal(self.last_epoch, self.anneal_steps if n_steps is None else n_steps)
        self._apply()

    def _untouched(self, step: int) -> float:
        done = step - self.warmup_steps + 1
        if done <= 0:
            return warm_up(step, self.warmup_steps)
        if done >= self.cooldown_steps:
            return self.const_ratio
        return 1 + (self.const_ratio - 1) * self._cooled(done / self.cooldown_steps)

    def _cooled(self, tau: float) -> float:
        """Share of the way from the peak to the constant rate."""
        if self.cooldown_shape == "cosine":
            return (1 - math.cos(math.pi * tau)) / 2
        if self.cooldown_shape == "linear":
            return tau
        alpha = self.timescale
        return (1 / math.sqrt(1 + alpha * tau) - 1) / (1 / math.sqrt(1 + alpha) - 1)

    def _plan_anneal(self, start: int, length: int | None) -> None:
        if length is None:
            raise ValueError("anneal_steps is missing; give the length of the annealing in steps")
        if self.min_lr_ratio == 0:
            raise ValueError("annealing is exponential and never reaches 0; give a min_lr_ratio above 0, such as 0.01")
        self.anneal_start, self.anneal_length = start, check_length("anneal_steps", length, 1)
