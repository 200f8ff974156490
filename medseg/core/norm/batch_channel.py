"""Batch-channel normalisation: batch normalisation, then normalisation over groups of channels of each item.

    z = (x - mean_batch) / sqrt(var_batch + eps) * w + b                     per channel
    y = (z - mean_group) / sqrt(var_group + eps) * w' + b'                   per group of channels of one item

Qiao, Wang, Liu, Shen, Yuille, "Micro-Batch Training with Batch-Channel Normalization and Weight Standardization"
(2019), to be used with weight standardisation (`standardize_weights`). As in the published code the second scale and
shift are one a group, not one a channel. For micro-batches (`mode="estimate"`) the remembered statistics move first, by
`speed`, the second moment around the mean before the step, and then serve in training as well, without a gradient
through them. The authors leave the schedule of `speed` to the user; here it is constant.
"""

from __future__ import annotations

import warnings
from typing import Literal

import torch
from torch import Tensor, nn

from medseg.core.norm.evonorm import largest_divisor
from medseg.core.norm.feature_norm import (
    RunningNorm,
    batch_axes,
    check_rate,
    count_values,
    grouped_statistics,
    per_channel,
    to_full_precision,
)
from medseg.core.norm.ghost_batch import normalise


class BatchChannelNorm(RunningNorm):
    """Batch normalisation followed by group normalisation.

    Args:
        num_features: channels C.
        num_groups: groups of channels; where it does not divide C, the largest divisor below it is taken, with a
            warning unless C is smaller.
        mode: "batch" uses the statistics of the batch in training, "estimate" remembered ones, for one or two items.
        eps: added to the variances.
        momentum: share of the new statistics in the remembered ones with "batch", 0 to 1.
        speed: the same with "estimate".
        allow_single_value: in training, accept one value per statistic instead of raising.

    Raises:
        ValueError: an argument out of range, or an input of another shape.

    Example:
        >>> tuple(BatchChannelNorm(8, num_groups=2, mode="estimate")(torch.randn(1, 8, 5, 5, 5)).shape)
        (1, 8, 5, 5, 5)
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(
        self,
        num_features: int,
        num_groups: int = 32,
        mode: Literal["batch", "estimate"] = "batch",
        eps: float = 1e-5,
        momentum: float = 0.1,
        speed: float = 0.1,
        allow_single_value: bool = False,
    ) -> None:
        super().__init__(num_features, eps=eps, allow_single_value=allow_single_value)
        check_rate(momentum, "momentum")
        check_rate(speed, "speed")
        if mode not in ("batch", "estimate"):
            raise ValueError(f"mode must be batch or estimate, got {mode!r}")
        if num_groups < 1:
            raise ValueError(f"num_groups must be at least 1, got {num_groups}")
        self.num_groups = largest_divisor(num_features, num_groups)
        if self.num_groups < min(num_groups, num_features):
            warnings.warn(
                f"num_groups {num_groups} does not divide {num_features} channels: {self.num_groups} groups are taken",
                stacklevel=2,
            )
        self.mode = mode
        self.momentum = momentum
        self.speed = speed
        self.group_weight = nn.Parameter(torch.ones(self.num_groups))
        self.group_bias = nn.Parameter(torch.zeros(self.num_groups))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, C, spatial...)."""
        self.check_input(x)
        size = self.num_features // self.num_groups
        self.check_count(count_values(x) // x.shape[0] * size, "a group of one item")
        full = to_full_precision(x)
        mean, variance = self.running_mean, self.running_var
        if self.learns_statistics and self.mode == "batch":
            variance, mean = torch.var_mean(full, batch_axes(x), correction=0)
            count = count_values(x)
            self._move(mean, variance * (count / max(count - 1, 1)), self.momentum)
        elif self.learns_statistics:
            mean, variance = self._estimate(full.detach())
        z = self.apply_affine(normalise(full, mean, variance, self.eps))
        z = normalise(z, *grouped_statistics(z, self.num_groups), self.eps)
        weight, bias = (v.repeat_interleave(size) for v in (self.group_weight, self.group_bias))
        return (z * per_channel(weight, z) + per_channel(bias, z)).to(x.dtype)

    @torch.no_grad()
    def _estimate(self, x: Tensor) -> tuple[Tensor, Tensor]:
        second = (x - per_channel(self.running_mean, x)).square().mean(batch_axes(x))
        self.remember("running_mean", (1 - self.speed) * self.running_mean + self.speed * x.mean(batch_axes(x)))
        self.remember("running_var", (1 - self.speed) * self.running_var + self.speed * second)
        # Copies: the next forward pass may come before this one's backward pass.
        return self.running_mean.clone(), self.running_var.clone()

    @torch.no_grad()
    def _move(self, mean: Tensor, variance: Tensor, rate: float) -> None:
        self.remember("running_mean", (1 - rate) * self.running_mean + rate * mean)
        self.remember("running_var", (1 - rate) * self.running_var + rate * variance)
