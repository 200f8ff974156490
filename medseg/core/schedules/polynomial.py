"""nnU-Net's polynomial decay, for comparison.

    factor(t) = (1 - e/E)^p,    e = t // steps_per_epoch the epoch, E = total_steps/steps_per_epoch, p = 0.9

Source: Isensee et al., "nnU-Net: a self-configuring method for deep learning-based biomedical image segmentation"
(2021): rate 0.01, 1000 epochs of 250 iterations, changed once an epoch. As there, and unlike the other schedules here,
the first step runs at the peak and the 0 would come one step after the end.
"""

from __future__ import annotations

from torch.optim import Optimizer

from medseg.core.schedules.closed_form import ClosedFormLR, check_length


class PolyLR(ClosedFormLR):
    """Decay the rate as nnU-Net does: (1 - progress) to the power of 0.9.

    Args:
        optimizer: the optimizer whose groups' rates are scaled.
        total_steps: length of the training in optimizer steps, or in epochs where it is stepped once an epoch.
        power: exponent, above 0; 0.9 by default.
        steps_per_epoch: the rate changes once in so many steps; 250 with a `total_steps` of 250 000 is nnU-Net's own.
        last_epoch: steps taken already; -1 starts anew.

    Raises:
        ValueError: a length is below 1, or the power is not above 0.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.01)
        >>> schedule = PolyLR(optimizer, total_steps=250_000, steps_per_epoch=250)
        >>> schedule.factor(249), round(schedule.factor(125_000), 4)
        (1.0, 0.5359)
    """

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int,
        power: float = 0.9,
        steps_per_epoch: int = 1,
        last_epoch: int = -1,
    ) -> None:
        self.total_steps = check_length("total_steps", total_steps, 1)
        self.steps_per_epoch = check_length("steps_per_epoch", steps_per_epoch, 1)
        if not power > 0:
            raise ValueError(f"power must be above 0, got {power!r}; nnU-Net takes 0.9")
        self.power = float(power)
        super().__init__(optimizer, last_epoch)

    def factor(self, step: int) -> float:
        """Rate at a step over the initial rate; 0 from `total_steps` on."""
        at = step - step % self.steps_per_epoch
        return max(0.0, 1 - at / self.total_steps) ** self.power
