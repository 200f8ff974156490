"""Warm-up and linear decay: the first choice when the length of the training is known.

    factor(t) = (t + 1)/w for t < w, then 1 - (1 - r)(t - w + 1)/(T - w), with r = 0 by default

Source: Defazio, Cutkosky, Mehta, Mishchenko, "When, Why and How Much? Adaptive Learning Rate Scheduling by Refinement"
(2023): linear decay to 0 is optimal in the worst case for the last iterate of SGD.
"""

from __future__ import annotations

from torch.optim import Optimizer

from medseg.core.schedules.closed_form import ClosedFormLR, check_length, check_ratio, decay, warm_up


class LinearDecayLR(ClosedFormLR):
    """Decay the rate linearly to 0 (or to a minimum) at the last step, after an optional warm-up.

    Args:
        optimizer: the optimizer whose groups' rates are scaled.
        total_steps: length of the training in optimizer steps, more than `warmup_steps`.
        warmup_steps: length of the warm-up, part of the total; 0 by default.
        min_lr_ratio: factor at the last step and afterwards, in [0, 1); 0 by default.
        last_epoch: steps taken already; -1 starts anew.

    Raises:
        ValueError: a length is negative or the warm-up fills the training, or the ratio is out of range.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        >>> schedule = LinearDecayLR(optimizer, total_steps=6, warmup_steps=2)
        >>> [schedule.factor(step) for step in range(7)]
        [0.5, 1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
    """

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int,
        warmup_steps: int = 0,
        min_lr_ratio: float = 0.0,
        last_epoch: int = -1,
    ) -> None:
        self.warmup_steps = check_length("warmup_steps", warmup_steps)
        self.total_steps = check_length("total_steps", total_steps, 1)
        if self.warmup_steps >= self.total_steps:
            raise ValueError(
                f"total_steps includes the warm-up and must exceed it, got {total_steps}, warmup_steps {warmup_steps}"
            )
        self.min_lr_ratio = check_ratio("min_lr_ratio", min_lr_ratio)
        super().__init__(optimizer, last_epoch)

    def factor(self, step: int) -> float:
        """Rate at a step over the initial rate."""
        length = self.total_steps - self.warmup_steps
        return warm_up(step, self.warmup_steps) * decay("linear", step, self.warmup_steps, length, self.min_lr_ratio)
