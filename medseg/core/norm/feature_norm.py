"""What the layers of this package share: checks, precision, the affine step and remembered statistics.

Input is (B, C, spatial...) with one to three spatial axes. Statistics, remembered values and the affine step are
computed in float32 (float64 stays float64) and the output has the input's dtype and memory format. Everything after the
statistics is pointwise, which is what keeps `channels_last_3d` as it came.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn


class FeatureNorm(nn.Module):
    """A layer with one scale and one shift a channel; the base of the layers of this package.

    Args:
        num_features: channels C.
        eps: added before a root or a division; above 0.
        affine: learn a scale (starts at 1) and a shift (starts at 0) for each channel.
        allow_single_value: in training, accept a set of one value, whose normalised value is 0, instead of raising.
    """

    def __init__(
        self, num_features: int, *, eps: float = 1e-5, affine: bool = True, allow_single_value: bool = False
    ) -> None:
        super().__init__()
        if num_features < 1:
            raise ValueError(f"num_features must be at least 1, got {num_features}")
        if not eps > 0:
            raise ValueError(f"eps must be above 0, got {eps}")
        self.num_features = num_features
        self.eps = eps
        self.affine = affine
        self.allow_single_value = allow_single_value
        self.weight = nn.Parameter(torch.ones(num_features)) if affine else None
        self.bias = nn.Parameter(torch.zeros(num_features)) if affine else None

    def check_input(self, x: Tensor) -> None:
        """Refuse anything but (B, C, spatial...) with the layer's number of channels."""
        if not 3 <= x.ndim <= 5 or x.shape[1] != self.num_features:
            raise ValueError(
                f"{type(self).__name__} takes (B, {self.num_features}, spatial...) with one to three spatial axes, got "
                f"{tuple(x.shape)}; build it with num_features equal to the channels of its input"
            )

    def check_count(self, count: int, over: str) -> None:
        """Refuse to train on statistics of a single value."""
        if self.training and count < 2 and not self.allow_single_value:
            raise ValueError(
                f"{type(self).__name__} needs more than one value for each statistic in training, got {count} over "
                f"{over}; use larger patches, fewer downsamplings or allow_single_value=True"
            )

    def apply_affine(self, z: Tensor) -> Tensor:
        """Scale and shift each channel of (B, C, spatial...)."""
        if self.weight is None or self.bias is None:
            return z
        return z * per_channel(self.weight, z) + per_channel(self.bias, z)

    def extra_repr(self) -> str:
        """Name what was chosen."""
        return f"{self.num_features}, eps={self.eps}, affine={self.affine}"


class RunningNorm(FeatureNorm):
    """A layer that remembers statistics of training and uses them in evaluation.

    Statistics move once per forward pass in training. Gradient checkpointing runs a forward pass twice: freeze the
    statistics during one of them, or leave such layers outside.
    """

    skipped_updates: Tensor

    def __init__(
        self, num_features: int, *, eps: float = 1e-5, affine: bool = True, allow_single_value: bool = False
    ) -> None:
        super().__init__(num_features, eps=eps, affine=affine, allow_single_value=allow_single_value)
        self.frozen = False
        self.register_buffer("skipped_updates", torch.zeros((), dtype=torch.int64))

    @property
    def learns_statistics(self) -> bool:
        """Whether a forward pass uses and remembers the statistics of its batch."""
        return self.training and not self.frozen

    def freeze_stats(self, frozen: bool = True) -> None:
        """Use the remembered statistics in training as well, and leave them as they are."""
        self.frozen = frozen

    def reset_running_stats(self) -> None:
        """Forget what was remembered: means and other moments of first order 0, of second order 1, counts 0."""
        for name, buffer in self.named_buffers(recurse=False):
            buffer.fill_(1 if name.startswith("running") and "mean" not in name else 0)

    def inference_affine(self) -> tuple[Tensor, Tensor] | None:
        """Give scale and shift per channel that evaluation amounts to, or None where it reads its input."""
        return None

    @torch.no_grad()
    def remember(self, name: str, value: Tensor) -> None:
        """Store a statistic; channels that are not finite keep their old value and are counted once a call."""
        old = self.get_buffer(name)
        finite = torch.isfinite(value)
        self.skipped_updates += (~finite).any()
        old.copy_(torch.where(finite, value.to(old.dtype), old))


def per_channel(values: Tensor, like: Tensor) -> Tensor:
    """Reshape (C,) or (B, C) so that it broadcasts against (B, C, spatial...)."""
    lead = (1, *values.shape) if values.ndim == 1 else tuple(values.shape)
    return values.reshape(*lead, *[1] * (like.ndim - 2))


def to_full_precision(x: Tensor) -> Tensor:
    """Give float32 for half types; float32 and float64 stay as they are."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def count_values(x: Tensor) -> int:
    """Count the values per channel of (B, C, spatial...)."""
    return x.numel() // x.shape[1]


def spatial_axes(x: Tensor) -> list[int]:
    """List the axes after the channels."""
    return list(range(2, x.ndim))


def batch_axes(x: Tensor) -> list[int]:
    """List all axes but that of the channels."""
    return [0, *spatial_axes(x)]


def batch_mean(values: Tensor, sync: bool) -> Tensor:
    """Average (B, C, spatial...) per channel, over all ranks where asked: sums and counts travel, not means."""
    if not (sync and dist.is_available() and dist.is_initialized()):
        return values.mean(batch_axes(values))
    total = torch.cat([values.sum(batch_axes(values)), values.new_tensor([count_values(values)])])
    dist.all_reduce(total)
    return total[:-1] / total[-1]


def grouped_statistics(x: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Give mean and variance (B, groups, C / groups = 1 each, spatial 1...) of x (B, C, spatial...) as (B, C)."""
    split = x.reshape(x.shape[0], groups, x.shape[1] // groups, *x.shape[2:])
    variance, mean = torch.var_mean(split, dim=list(range(2, split.ndim)), correction=0)
    size = x.shape[1] // groups
    return mean.repeat_interleave(size, 1), variance.repeat_interleave(size, 1)


def check_groups(num_groups: int, num_features: int) -> None:
    """Refuse a number of groups that does not divide the channels."""
    if num_groups < 1 or num_features % num_groups:
        divisors = [d for d in range(1, num_features + 1) if num_features % d == 0]
        raise ValueError(
            f"num_groups must divide num_features {num_features}, got {num_groups}; choose from {divisors}"
        )


def check_rate(value: float, name: str) -> None:
    """Refuse a rate outside 0 to 1."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be from 0 to 1, got {value}")
