"""Normalisation by the mean absolute deviation instead of the standard deviation.

    xhat = (x - mean) / (c mean|x - mean| + eps),   y = w xhat + b

over batch and voxels, over the voxels of one item, or over a group of its channels. No square and no root: nothing
overflows in half precision, and integers suffice. c = sqrt(pi / 2) makes it match the standard deviation where values
are normally distributed (`gaussian_correction`, the default; Wu, Li, Deng, Liu, Yuan, Xie, Shi, "L1-Norm Batch
Normalization for Efficient Training of Deep Neural Networks", 2018); c = 1 otherwise. As a part of integer-only
training: Guo et al., "Towards Accurate and Efficient Sub-8-Bit Integer Training" (2024), for which no code was
published.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from medseg.core.norm.feature_norm import (
    FeatureNorm,
    RunningNorm,
    batch_axes,
    check_groups,
    check_rate,
    count_values,
    per_channel,
    to_full_precision,
)

_GAUSSIAN = math.sqrt(math.pi / 2)


class L1BatchNorm(RunningNorm):
    """Batch normalisation by the mean absolute deviation.

    Args:
        num_features: channels C.
        eps: added to the deviation.
        momentum: share of the new statistics in the remembered ones, 0 to 1.
        affine: learn a scale and a shift for each channel.
        gaussian_correction: multiply the deviation by sqrt(pi / 2).
        allow_single_value: in training, accept one value per channel instead of raising.

    Raises:
        ValueError: an argument out of range, or an input of another shape.

    Example:
        >>> y = L1BatchNorm(2, gaussian_correction=False)(torch.randn(2, 2, 8))
        >>> torch.allclose(y.abs().mean((0, 2)), torch.ones(2), atol=1e-3)
        True
    """

    running_mean: Tensor
    running_deviation: Tensor

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = True,
        gaussian_correction: bool = True,
        allow_single_value: bool = False,
    ) -> None:
        super().__init__(num_features, eps=eps, affine=affine, allow_single_value=allow_single_value)
        check_rate(momentum, "momentum")
        self.momentum = momentum
        self.factor = _GAUSSIAN if gaussian_correction else 1.0
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_deviation", torch.ones(num_features))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, C, spatial...)."""
        self.check_input(x)
        full = to_full_precision(x)
        mean, deviation = self.running_mean, self.running_deviation
        if self.learns_statistics:
            self.check_count(count_values(x), "batch and voxels")
            mean = full.mean(batch_axes(x))
            deviation = self.factor * (full - per_channel(mean, full)).abs().mean(batch_axes(x))
            for name, value in (("running_mean", mean), ("running_deviation", deviation)):
                moved = (1 - self.momentum) * self.get_buffer(name) + self.momentum * value.detach()
                self.remember(name, moved)
        z = (full - per_channel(mean, full)) / per_channel(deviation + self.eps, full)
        return self.apply_affine(z).to(x.dtype)

    def inference_affine(self) -> tuple[Tensor, Tensor]:
        """Give scale and shift per channel that evaluation amounts to."""
        scale = 1 / (self.running_deviation + self.eps)
        if self.weight is not None:
            scale = scale * self.weight
        return scale, (0 if self.bias is None else self.bias) - self.running_mean * scale


class L1GroupNorm(FeatureNorm):
    """Normalise groups of channels of one item by their mean absolute deviation.

    Args:
        num_features: channels C.
        num_groups: a divisor of C.
        eps: added to the deviation.
        affine: learn a scale and a shift for each channel.
        gaussian_correction: multiply the deviation by sqrt(pi / 2).
        allow_single_value: in training, accept one value per group instead of raising.

    Raises:
        ValueError: the groups do not divide the channels, or the input has another shape.

    Example:
        >>> tuple(L1GroupNorm(4, num_groups=2)(torch.randn(1, 4, 5, 5, 5)).shape)
        (1, 4, 5, 5, 5)
    """

    def __init__(
        self,
        num_features: int,
        num_groups: int = 1,
        eps: float = 1e-5,
        affine: bool = True,
        gaussian_correction: bool = True,
        allow_single_value: bool = False,
    ) -> None:
        super().__init__(num_features, eps=eps, affine=affine, allow_single_value=allow_single_value)
        check_groups(num_groups, num_features)
        self.num_groups = num_groups
        self.factor = _GAUSSIAN if gaussian_correction else 1.0

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, C, spatial...)."""
        self.check_input(x)
        size = self.num_features // self.num_groups
        self.check_count(count_values(x) // x.shape[0] * size, "the voxels of one item" if size == 1 else "a group")
        full = to_full_precision(x)
        centred = full - self._spread(full, size)
        deviation = self.factor * self._spread(centred.abs(), size)
        return self.apply_affine(centred / (deviation + self.eps)).to(x.dtype)

    def _spread(self, x: Tensor, size: int) -> Tensor:
        """Mean of each group, as (B, C, 1...)."""
        split = x.reshape(x.shape[0], self.num_groups, size, *x.shape[2:])
        return per_channel(split.mean(list(range(2, split.ndim))).repeat_interleave(size, 1), x)


class L1InstanceNorm(L1GroupNorm):
    """Normalise each channel of one item by its mean absolute deviation.

    Args:
        num_features: channels C.
        eps: added to the deviation.
        affine: learn a scale and a shift for each channel.
        gaussian_correction: multiply the deviation by sqrt(pi / 2).
        allow_single_value: in training, accept one value per channel instead of raising.

    Raises:
        ValueError: the input has another shape.

    Example:
        >>> tuple(L1InstanceNorm(4)(torch.randn(1, 4, 5, 5, 5)).shape)
        (1, 4, 5, 5, 5)
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        affine: bool = True,
        gaussian_correction: bool = True,
        allow_single_value: bool = False,
    ) -> None:
        super().__init__(num_features, num_features, eps, affine, gaussian_correction, allow_single_value)
