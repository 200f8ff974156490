"""The gradient noise scale: how large a batch may be before it no longer pays, from norms that a training has anyway.

    with the gradients of small batches b and of the large batch B that they make up:
    |G|^2   = (B |G_B|^2 - b |G_b|^2)/(B - b)
    S       = (|G_b|^2 - |G_B|^2)/(1/b - 1/B)
    B_noise = S/|G|^2,    from running averages of both, not the average of their ratios

Small batches are those of the ranks of a distributed training, or of the micro-batches of an accumulated gradient. The
patches of one volume are alike: count cases, not patches. About B_noise, twice the steps and twice the samples of the
least are needed.

Source: McCandlish, Kaplan, Amodei and the OpenAI Dota Team, "An Empirical Model of Large-Batch Training" (2018),
appendix A.
"""

from __future__ import annotations

from typing import Any

import numpy as np


class GradientNoiseScale:
    """Running estimate of the gradient noise scale.

    Args:
        small_batch: cases in a small batch, at least 1.
        large_batch: cases in a large batch, more than `small_batch`.
        decay: of the running averages, in [0, 1); 0.99 looks back about 100 steps.

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> scale = GradientNoiseScale(small_batch=1, large_batch=4)
        >>> scale.update(small_norms=[3.0, 1.0, 3.0, 1.0], large_norm=2.0)
        >>> round(scale.value, 3)
        0.364
    """

    def __init__(self, small_batch: int, large_batch: int, decay: float = 0.99) -> None:
        if not 1 <= small_batch < large_batch:
            raise ValueError(f"large_batch must exceed small_batch, at least 1; got {large_batch} and {small_batch}")
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be at least 0 and below 1, got {decay!r}; 0.99 is usual")
        self.small_batch, self.large_batch, self.decay = small_batch, large_batch, decay
        self.signal = self.noise = self.weight = 0.0

    def update(self, small_norms: list[float], large_norm: float) -> None:
        """Add a step.

        Args:
            small_norms: L2 norm of the mean gradient of each small batch, before clipping.
            large_norm: L2 norm of the mean gradient of the large batch, before clipping.

        Raises:
            ValueError: a norm is not finite.
        """
        small, large = float(np.mean(np.square(small_norms))), float(large_norm) ** 2
        if not np.isfinite([small, large]).all():
            raise ValueError("norms must be finite; leave out the steps that a gradient scaler skipped")
        b, big = self.small_batch, self.large_batch
        keep, add = self.decay, 1 - self.decay
        self.signal = keep * self.signal + add * (big * large - b * small) / (big - b)
        self.noise = keep * self.noise + add * (small - large) / (1 / b - 1 / big)
        self.weight = keep * self.weight + add

    @property
    def value(self) -> float:
        """The noise scale in cases; nan before the first step, inf while no signal stands out of the noise."""
        if self.weight == 0:
            return float("nan")
        return max(self.noise, 0.0) / self.signal if self.signal > 0 else float("inf")

    def state_dict(self) -> dict[str, Any]:
        """Running averages, for a checkpoint."""
        return {"signal": self.signal, "noise": self.noise, "weight": self.weight}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.signal, self.noise, self.weight = state["signal"], state["noise"], state["weight"]
