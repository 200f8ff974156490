"""Warm-up alone: the rate rises linearly over the first steps and stays.

factor(t) = (t + 1)/w for t < w, then 1
"""

from __future__ import annotations

from torch.optim import Optimizer

from medseg.core.schedules.closed_form import ClosedFormLR, check_length, warm_up


class WarmUpLR(ClosedFormLR):
    """Raise the rate linearly over the first steps, then keep it.

    Args:
        optimizer: the optimizer whose groups' rates are scaled.
        warmup_steps: length of the warm-up in optimizer steps, at least 0; 0 gives a constant rate.
        last_epoch: steps taken already; -1 starts anew.

    Raises:
        ValueError: a length is negative or no whole number.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        >>> WarmUpLR(optimizer, warmup_steps=4).get_last_lr()
        [0.25]
    """

    def __init__(self, optimizer: Optimizer, warmup_steps: int, last_epoch: int = -1) -> None:
        self.warmup_steps = check_length("warmup_steps", warmup_steps)
        super().__init__(optimizer, last_epoch)

    def factor(self, step: int) -> float:
        """Rate at a step over the initial rate."""
        return warm_up(step, self.warmup_steps)
