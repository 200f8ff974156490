"""Ghost batch normalisation: a large batch is normalised in small parts.

A batch of B items is cut into ghost batches of `ghost_size`; each is normalised by its own mean and (biased) variance,
and the remembered statistics move once for each ghost batch, in order, so by (1 - momentum)^L of the old values for L
of them. Evaluation is that of batch normalisation.

Hoffer, Hubara, Soudry, "Train longer, generalize better: closing the generalization gap in large batch training of
neural networks" (NeurIPS 2017). A last, smaller ghost batch is merged with the one before. With `ghost_size=1` this is
instance normalisation that remembers statistics; under distributed training a local batch already is a ghost batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from medseg.core.norm.feature_norm import (
    RunningNorm,
    batch_axes,
    check_rate,
    count_values,
    per_channel,
    to_full_precision,
)


class GhostBatchNorm(RunningNorm):
    """Batch normalisation in parts of a batch.

    Args:
        num_features: channels C.
        ghost_size: items of a ghost batch, at least 1.
        eps: added to the variance.
        momentum: share of the new statistics in the remembered ones, 0 to 1.
        affine: learn a scale and a shift for each channel.
        allow_single_value: in training, accept one value per channel instead of raising.

    Raises:
        ValueError: an argument out of range, or an input of another shape.

    Example:
        >>> x = torch.randn(4, 3, 5, 5, 5)
        >>> y = GhostBatchNorm(3, ghost_size=2)(x)
        >>> torch.allclose(y[:2], torch.nn.BatchNorm3d(3)(x[:2]), atol=1e-5)
        True
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(
        self,
        num_features: int,
        ghost_size: int = 1,
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = True,
        allow_single_value: bool = False,
    ) -> None:
        super().__init__(num_features, eps=eps, affine=affine, allow_single_value=allow_single_value)
        check_rate(momentum, "momentum")
        if ghost_size < 1:
            raise ValueError(f"ghost_size must be at least 1, got {ghost_size}")
        self.ghost_size = ghost_size
        self.momentum = momentum
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, C, spatial...)."""
        self.check_input(x)
        full = to_full_precision(x)
        if not self.learns_statistics:
            return self.apply_affine(normalise(full, self.running_mean, self.running_var, self.eps)).to(x.dtype)
        ghosts = max(1, x.shape[0] // self.ghost_size)
        sizes = [self.ghost_size] * (ghosts - 1)
        sizes.append(x.shape[0] - sum(sizes))
        self.check_count(min(sizes) * (count_values(x) // x.shape[0]), "a ghost batch and its voxels")
        moments = [torch.var_mean(part, batch_axes(x), correction=0) for part in full.split(sizes)]
        for (variance, mean), size in zip(moments, sizes, strict=True):
            self._move(mean.detach(), variance.detach(), size * (count_values(x) // x.shape[0]))
        per_item = torch.tensor(sizes, device=x.device)
        variance, mean = (torch.stack(values).repeat_interleave(per_item, 0) for values in zip(*moments, strict=True))
        return self.apply_affine(normalise(full, mean, variance, self.eps)).to(x.dtype)

    def inference_affine(self) -> tuple[Tensor, Tensor]:
        """Give scale and shift per channel that evaluation amounts to."""
        return fixed_affine(self.running_mean, self.running_var, self.eps, self.weight, self.bias)

    def _move(self, mean: Tensor, variance: Tensor, count: int) -> None:
        unbiased = variance * (count / max(count - 1, 1))
        self.remember("running_mean", (1 - self.momentum) * self.running_mean + self.momentum * mean)
        self.remember("running_var", (1 - self.momentum) * self.running_var + self.momentum * unbiased)


def normalise(x: Tensor, mean: Tensor, variance: Tensor, eps: float) -> Tensor:
    """Centre and scale (B, C, spatial...) by moments (C,) or (B, C)."""
    return (x - per_channel(mean, x)) * per_channel(torch.rsqrt(variance + eps), x)


def fixed_affine(
    mean: Tensor, variance: Tensor, eps: float, weight: Tensor | None, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Write normalisation by fixed moments, with its affine step, as one scale and shift per channel."""
    scale = torch.rsqrt(variance + eps)
    if weight is not None:
        scale = scale * weight
    return scale, (0 if bias is None else bias) - mean * scale
