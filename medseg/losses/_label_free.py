"""What losses without labels share: class probabilities in one shape, and means over the voxels that count.

With a softmax the C channels of a voxel are one distribution over K = C classes. With a sigmoid every channel is a
problem of its own with K = 2 classes, "is not" and "is". Both become log-probabilities (B, G, K, N): G distributions a
voxel, N voxels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch.nn import functional
from torch.nn.modules.loss import _Loss

from medseg.core.kernels import entropy_sums
from medseg.losses._inputs import check_activation, check_reduction, check_scores, in_full_precision


class LabelFreeLoss(_Loss):
    """Flags and probabilities of a loss that needs no labels.

    Args:
        include_background: whether channel 0 counts; a single channel always does.
        softmax: apply a softmax over the channels.
        sigmoid: apply a sigmoid to each channel, which is then a problem of its own.
        other_act: apply this function instead; its channels must sum to 1, or be one.
        reduction: "mean" or "sum" over the images, or "none" for one value an image.
    """

    def __init__(
        self,
        *,
        include_background: bool,
        softmax: bool,
        sigmoid: bool,
        other_act: Callable[[torch.Tensor], torch.Tensor] | None,
        reduction: str,
    ) -> None:
        super().__init__(reduction=reduction)
        check_activation(sigmoid=sigmoid, softmax=softmax, other_act=other_act)
        check_reduction(reduction)
        self.include_background = include_background
        self.softmax, self.sigmoid, self.other_act = softmax, sigmoid, other_act

    def log_probabilities(self, input: torch.Tensor) -> torch.Tensor:
        """Log-probabilities (B, G, K, N), float32 or float64, of a network's answer (B, C, spatial...)."""
        check_scores(input, softmax=self.softmax)
        if input.ndim not in (4, 5):
            raise ValueError(f"input must have shape (B, C, H, W) or (B, C, H, W, D), got {tuple(input.shape)}")
        values = in_full_precision(input)
        if self.other_act is not None:
            values = self.other_act(values)
        values = values.flatten(2)
        if self.softmax:
            return functional.log_softmax(values, dim=1)[:, None]
        if self.sigmoid:
            return torch.stack((functional.logsigmoid(-values), functional.logsigmoid(values)), dim=2)
        if values.shape[1] == 1:
            return torch.stack((_safe_log(1 - values), _safe_log(values)), dim=2)
        return _safe_log(values)[:, None]

    def means(self, input: torch.Tensor, mask: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Means over the voxels of -p log p and of p, (B, G, K) each; the first may have K = 1, the sum.

        With a softmax or a sigmoid no probabilities of the input's size are held.
        """
        check_scores(input, softmax=self.softmax)
        if not (self.softmax or self.sigmoid) or input.ndim not in (4, 5):
            log_p, weight = self.log_probabilities(input), read_mask(mask, input)
            return -mean_over_voxels(log_p.exp() * log_p, weight), mean_over_voxels(log_p.exp(), weight)
        read_mask(mask, input)  # the shape is to be checked
        weight = None if mask is None else mask.detach().as_subclass(torch.Tensor).to(input.device)
        found = entropy_sums(
            input.as_subclass(torch.Tensor), weight, activation="softmax" if self.softmax else "sigmoid"
        )
        if weight is None:
            count = found.size.new_tensor(float(input[0, 0].numel()))
        else:
            count = weight.to(found.size).flatten(1).sum(1, keepdim=True)
        entropy, ratio = (sums / count.clamp(min=1e-6) for sums in found)
        if self.softmax:
            return entropy[:, None], ratio[:, None]
        rest = (count - found.size) / count.clamp(min=1e-6)
        return entropy[:, :, None], torch.stack((rest, ratio), dim=2)

    def is_channelwise(self, channels: int) -> bool:
        """Whether every channel is a problem of its own."""
        return self.sigmoid or channels == 1

    def per_channel(self, values: torch.Tensor, channels: int) -> torch.Tensor:
        """From (B, G, K, ...) to (B, C, ...): what belongs to each channel."""
        return values[:, :, 1] if self.is_channelwise(channels) else values[:, 0]

    def channel_weights(self, weight: Sequence[float] | None, input: torch.Tensor) -> torch.Tensor:
        """Weights of the channels that broadcast over (B, G, K); 0 for a background that does not count."""
        channels = input.shape[1]
        if weight is not None and len(weight) != channels:
            raise ValueError(f"weight must hold one number for each of {channels} channels, got {len(weight)}")
        values = torch.ones(channels) if weight is None else torch.tensor(weight, dtype=torch.float64)
        if not self.include_background and channels > 1:
            values[0] = 0
        values = values.to(input.device, torch.promote_types(input.dtype, torch.float32))
        return values[:, None] if self.is_channelwise(channels) else values[None]


def read_mask(mask: torch.Tensor | None, input: torch.Tensor) -> torch.Tensor | None:
    """Weights (B, 1, 1, N) of the voxels, from a mask (B, 1, spatial...)."""
    if mask is None:
        return None
    expected = (input.shape[0], 1, *input.shape[2:])
    if tuple(mask.shape) != expected:
        raise ValueError(f"mask must have shape {expected} for this input, got {tuple(mask.shape)}")
    return mask.detach().as_subclass(torch.Tensor).to(input.device).flatten(2)[:, None]


def mean_over_voxels(values: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Mean over the last axis, of the voxels in the mask alone; 0 where the mask is empty."""
    if mask is None:
        return values.mean(-1)
    mask = mask.to(values)
    return (values * mask).sum(-1) / mask.sum(-1).clamp(min=1e-6)


def check_at_least_zero(**numbers: float) -> None:
    """Refuse what is negative or not finite."""
    for name, value in numbers.items():
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name} must be a finite number, at least 0, got {value}")


def _safe_log(p: torch.Tensor) -> torch.Tensor:
    """Logarithm of probabilities with a finite value and gradient at 0."""
    return p.clamp(min=torch.finfo(p.dtype).tiny).log()
