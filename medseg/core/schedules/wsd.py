"""WSD: warm-up, a stable rate, a short decay. The length of the training need not be known before the decay.

    factor(t) = (t + 1)/w for t < w, 1 for `stable_steps` steps, then a decay of `decay_steps` steps to the minimum

To go on when new cases arrive, load the checkpoint from before the decay (WSD) or go on from the decayed weights
(WSD-S, `wsd_s.py`). Decays of a tenth of the steps are usual; a fifth where data are few and the stable rate is high.

Sources: Hu et al., "MiniCPM: Unveiling the Potential of Small Language Models with Scalable Training Strategies"
(2024); Hägele et al., "Scaling Laws and Compute-Optimal Training Beyond Fixed Training Durations" (2024). A published
implementation forgets the minimum in all shapes but the cosine, and then jumps up to it after the end; here every shape
ends at the minimum.
"""

from __future__ import annotations

from torch.optim import Optimizer

from medseg.core.schedules.closed_form import ClosedFormLR, check_length, check_ratio, check_shape, decay, warm_up


class WSDLR(ClosedFormLR):
    """Warm up, stay at the peak, decay.

    Args:
        optimizer: the optimizer whose groups' rates are scaled.
        warmup_steps: length of the warm-up in optimizer steps, at least 0.
        stable_steps: length of the constant phase after it, at least 0.
        decay_steps: length of the decay, at least 0; the minimum holds afterwards.
        decay_shape: `linear`, `cosine`, `1-sqrt`, `inverse_linear` or `exponential`; the last two need a minimum.
        min_lr_ratio: factor at the end, in [0, 1).
        last_epoch: steps taken already; -1 starts anew.

    Raises:
        ValueError: a length is negative, the ratio is out of range, or the shape is unknown or needs a minimum.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        >>> schedule = WSDLR(optimizer, warmup_steps=2, stable_steps=2, decay_steps=2, decay_shape="linear")
        >>> [schedule.factor(step) for step in range(7)]
        [0.5, 1.0, 1.0, 1.0, 0.5, 0.0, 0.0]
    """

    def __init__(
        self,
        optimizer: Optimizer,
        warmup_steps: int,
        stable_steps: int,
        decay_steps: int,
        decay_shape: str = "1-sqrt",
        min_lr_ratio: float = 0.0,
        last_epoch: int = -1,
    ) -> None:
        self.warmup_steps = check_length("warmup_steps", warmup_steps)
        self.stable_steps = check_length("stable_steps", stable_steps)
        self.decay_steps = check_length("decay_steps", decay_steps)
        self.min_lr_ratio = check_ratio("min_lr_ratio", min_lr_ratio)
        self.decay_shape = check_shape(decay_shape, self.min_lr_ratio)
        super().__init__(optimizer, last_epoch)

    def factor(self, step: int) -> float:
        """Rate at a step over the initial rate."""
        start = self.warmup_steps + self.stable_steps
        return warm_up(step, self.warmup_steps) * decay(
            self.decay_shape, step, start, self.decay_steps, self.min_lr_ratio
        )
