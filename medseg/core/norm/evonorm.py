"""EvoNorm: normalisation and activation in one layer, found by search.

    B0    y = x / max(sqrt(var_batch + eps), v x + sqrt(var_instance + eps)) * w + b
    S0    y = x sigmoid(v x) / sqrt(var_group + eps) * w + b

var_batch over batch and voxels per channel (remembered for evaluation), var_instance over the voxels of one item, also
in evaluation; var_group over the voxels and channels of a group of one item. All are biased; what B0 remembers is
unbiased.

Liu, Brock, Simonyan, Le, "Evolving Normalization-Activation Layers" (NeurIPS 2020); constants as in timm's port. Both
contain the nonlinearity: build the network with `act=""`. B0 wants a real batch; with one or two items take S0. The
published S0 has 32 groups, for many channels; the default here is a quarter of the channels, at most 32.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from medseg.core.norm.feature_norm import (
    FeatureNorm,
    RunningNorm,
    batch_axes,
    check_groups,
    check_rate,
    count_values,
    grouped_statistics,
    per_channel,
    spatial_axes,
    to_full_precision,
)


class EvoNormB0(RunningNorm):
    """EvoNorm B0: normalisation by batch and item with its own nonlinearity.

    Args:
        num_features: channels C.
        eps: added to the variances; 1e-3 as in timm, the paper has 1e-5.
        momentum: share of the new variance in the remembered one, 0 to 1.
        allow_single_value: in training, accept one value per channel instead of raising.

    Raises:
        ValueError: an argument out of range, or an input of another shape.

    Example:
        >>> tuple(EvoNormB0(4)(torch.randn(2, 4, 5, 5, 5)).shape)
        (2, 4, 5, 5, 5)
    """

    running_var: Tensor

    def __init__(
        self, num_features: int, eps: float = 1e-3, momentum: float = 0.1, allow_single_value: bool = False
    ) -> None:
        super().__init__(num_features, eps=eps, allow_single_value=allow_single_value)
        check_rate(momentum, "momentum")
        self.momentum = momentum
        self.v = nn.Parameter(torch.ones(num_features))
        self.register_buffer("running_var", torch.ones(num_features))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise and activate (B, C, spatial...)."""
        self.check_input(x)
        full = to_full_precision(x)
        variance = self._batch_variance(full) if self.learns_statistics else self.running_var
        instance = full.var(spatial_axes(full), keepdim=True, correction=0)
        floor = per_channel((variance + self.eps).sqrt(), full)
        z = full / torch.maximum(floor, per_channel(self.v, full) * full + (instance + self.eps).sqrt())
        return self.apply_affine(z).to(x.dtype)

    def _batch_variance(self, x: Tensor) -> Tensor:
        count = count_values(x)
        self.check_count(count, "batch and voxels")
        variance = x.var(batch_axes(x), correction=0)
        unbiased = variance.detach() * (count / max(count - 1, 1))
        self.remember("running_var", (1 - self.momentum) * self.running_var + self.momentum * unbiased)
        return variance


class EvoNormS0(FeatureNorm):
    """EvoNorm S0: normalisation by groups of channels of one item, with its own nonlinearity.

    Args:
        num_features: channels C.
        num_groups: a divisor of C; None takes the largest up to min(32, C / 4).
        eps: added to the variance.
        allow_single_value: in training, accept one value per group instead of raising.

    Raises:
        ValueError: the groups do not divide the channels, or the input has another shape.

    Example:
        >>> tuple(EvoNormS0(8)(torch.randn(1, 8, 5, 5, 5)).shape)
        (1, 8, 5, 5, 5)
    """

    def __init__(
        self, num_features: int, num_groups: int | None = None, eps: float = 1e-5, allow_single_value: bool = False
    ) -> None:
        super().__init__(num_features, eps=eps, allow_single_value=allow_single_value)
        if num_groups is None:
            num_groups = largest_divisor(num_features, min(32, max(1, num_features // 4)))
        check_groups(num_groups, num_features)
        self.num_groups = num_groups
        self.v = nn.Parameter(torch.ones(num_features))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise and activate (B, C, spatial...)."""
        self.check_input(x)
        self.check_count(count_values(x) // x.shape[0] * self.num_features // self.num_groups, "a group of one item")
        full = to_full_precision(x)
        _, variance = grouped_statistics(full, self.num_groups)
        z = full * torch.sigmoid(per_channel(self.v, full) * full)
        return self.apply_affine(z * per_channel(torch.rsqrt(variance + self.eps), full)).to(x.dtype)


def largest_divisor(number: int, limit: int) -> int:
    """Give the largest divisor of a number that is at most `limit`.

    Example:
        >>> largest_divisor(12, 8)
        6
    """
    return next(d for d in range(min(number, limit), 0, -1) if number % d == 0)
