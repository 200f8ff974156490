"""What `norm_act.py` needs of every channel, in plain PyTorch: the definition that kernels have to agree with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean, and sum of squared distances to it, of every item and channel, (B, C) float64."""
    values = x.flatten(2).double()
    mean = values.mean(2)
    return mean, (values - mean[..., None]).square().sum(2)


def apply(x: Tensor, residual: Tensor | None, affine: Any, silu: bool, slope: float) -> Tensor:
    """Normalise, add, activate."""
    return _activate(_before(x, residual, affine), silu, slope).to(x.dtype)


def gradient_sums(
    gradient: Tensor, x: Tensor, residual: Tensor | None, affine: Any, silu: bool, slope: float
) -> tuple[Tensor, Tensor]:
    """Sums of g' and of g' (x - mean) over the voxels, (B, C) float64."""
    g = gradient * _slope(_before(x, residual, affine), silu, slope)
    d = _distance(x, affine)
    return g.flatten(2).sum(2, dtype=torch.float64), (g * d).flatten(2).sum(2, dtype=torch.float64)


def spread(
    gradient: Tensor,
    x: Tensor,
    residual: Tensor | None,
    affine: Any,
    silu: bool,
    slope: float,
    factors: tuple[Tensor, ...],
) -> tuple[Tensor, Tensor]:
    """Gradients of the input and, where there is one, of the residual."""
    g = gradient * _slope(_before(x, residual, affine), silu, slope)
    first, second, third = (_wide(factor, x) for factor in factors)
    dx = first * g + second * _distance(x, affine) + third
    return torch.empty_like(x).copy_(dx), x.new_empty(0) if residual is None else torch.empty_like(x).copy_(g)


def _wide(values: Tensor, x: Tensor) -> Tensor:
    return values.view(*values.shape, *(1,) * (x.ndim - 2))


def _distance(x: Tensor, affine: Any) -> Tensor:
    return (x - _wide(affine.high, x)) - _wide(affine.low, x)


def _before(x: Tensor, residual: Tensor | None, affine: Any) -> Tensor:
    before = _distance(x, affine) * _wide(affine.scale, x) + _wide(affine.shift, x)
    return before if residual is None else before + residual


def _activate(before: Tensor, silu: bool, slope: float) -> Tensor:
    if silu:
        return before * torch.sigmoid(before)
    return before if slope == 1 else torch.where(before > 0, before, slope * before + 0.0)  # no -0.0


def _slope(before: Tensor, silu: bool, slope: float) -> Tensor:
    if silu:
        p = torch.sigmoid(before)
        return p * (1 + before * (1 - p))
    return torch.where(before > 0, 1.0, slope).to(before)
