"""Instance or group normalisation, residual and activation in two reads of the input and one write; backward alike.

Over the voxels and the channels of a group, n values for each item,

    mean = (1/n) sum x           var = (1/n) sum (x - mean)^2           (uncentred, RMS: mean = 0)
    h = (x - mean) / sqrt(var + eps)              y = act(weight h + bias + residual)

One group a channel is instance normalisation. With g' = dL/dy act'(...), S1 = sum g' and S2 = sum g' h per channel,

    dL/dx = (weight g' - a - h b) / sqrt(var + eps),     a = (1/n) sum of weight S1,  b = (1/n) sum of weight S2
    dL/dweight = S2,   dL/dbias = S1,   dL/dresidual = g'             (uncentred: without a)

The kernels know channels alone: moments of each channel, a multiply-add, two sums. Groups are formulas on (B, C).
Moments are taken about values of the channel itself, tile by tile, and joined in float64 (Chan, Golub, LeVeque,
"Algorithms for Computing the Sample Variance", 1983); the mean travels as two float32, so that an offset of 10 000
standard deviations costs no digit. Kept for the backward are the input and two numbers a channel, not the activation's
input. Memory layouts stay what they are: channels_last_3d goes through without a copy.

Sources: Ulyanov, Vedaldi, Lempitsky, "Instance Normalization", 2016; Wu, He, "Group Normalization", 2018; Zhang,
Sennrich, "Root Mean Square Layer Normalization", 2019, here over a group's channels and voxels.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from medseg.core.kernels.dispatch import check_backend, choose_backend, wants_torch

SUPPORTED = (torch.float32, torch.float16, torch.bfloat16)
ACTIVATIONS = ("none", "relu", "leaky_relu", "silu")


class Affine(NamedTuple):
    """What the kernels need of each item and channel, (B, C): y = act(((x - high) - low) scale + shift + residual)."""

    high: Tensor
    low: Tensor
    scale: Tensor
    shift: Tensor


def norm_act(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    groups: int | None = None,
    centered: bool = True,
    act: str = "none",
    negative_slope: float = 0.01,
    eps: float = 1e-5,
    backend: str = "auto",
) -> Tensor:
    """Normalise each item, add a residual, and apply an activation.

    Differentiable once; arithmetic is in float32 (float64 stays).

    Args:
        x: (B, C, spatial...), any float type, contiguous or channels last.
        weight: (C,); None is 1.
        bias: (C,); None is 0.
        residual: of the shape of `x`, added before the activation; None adds nothing.
        groups: groups of channels, a divisor of C; None is one a channel, instance normalisation.
        centered: subtract the mean; False divides by the root mean square alone.
        act: "none", "relu", "leaky_relu" or "silu".
        negative_slope: slope of "leaky_relu" below 0.
        eps: added to the variance, above 0.
        backend: "auto", "torch" or "triton", see `medseg.core.kernels.choose_backend`.

    Returns:
        y, in shape, type and memory format of `x`.

    Raises:
        ValueError: wrong shapes, groups, activation, eps or backend; or one value a group, whose variance is 0.
        ImportError: `backend="triton"`, and triton is not installed.

    Example:
        >>> norm_act(torch.tensor([[[1.0, 3.0]]]), act="relu")
        tensor([[[0.0000, 1.0000]]])
    """
    _check(x, weight, bias, residual, groups, act, eps)
    check_backend(backend)
    slope = {"relu": 0.0, "leaky_relu": float(negative_slope)}.get(act, 1.0)
    how = (groups or x.shape[1], centered, act == "silu", slope, float(eps), backend)
    return _norm(x, weight, bias, residual, *how)[0]


@torch.library.custom_op("medseg::norm_act", mutates_args=())
def _norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    groups: int,
    centered: bool,
    silu: bool,
    slope: float,
    eps: float,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    loops = _choose_loops(x, backend)
    mean, spread = loops.moments(x)
    voxels = x[0, 0].numel() if len(x) else 1
    center, rstd = _join(mean, spread, voxels, groups, centered, eps)
    y = loops.apply(x, residual, _affine(x, center, rstd, weight, bias), silu, slope)
    return y, center, rstd


@_norm.register_fake
def _(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    groups: int,
    centered: bool,
    silu: bool,
    slope: float,
    eps: float,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    stat = x.new_empty(x.shape[:2], dtype=torch.float64)
    return torch.empty_like(x), stat, torch.empty_like(stat)


@torch.library.custom_op("medseg::norm_act_backward", mutates_args=())
def _backward(
    gradient: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    center: Tensor,
    rstd: Tensor,
    groups: int,
    centered: bool,
    silu: bool,
    slope: float,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    loops = _choose_loops(x, backend)
    affine = _affine(x, center, rstd, weight, bias)
    first, second = loops.gradient_sums(gradient, x, residual, affine, silu, slope)
    second = second * rstd
    w = torch.ones_like(rstd) if weight is None else weight.double().expand_as(rstd)
    count = max(x[0, 0].numel() if len(x) else 1, 1) * (x.shape[1] // groups)
    a, b = (_per_group(w * sums, groups, "sum") / count for sums in (first, second))
    factors = (w * rstd, -rstd.square() * b, -rstd * a if centered else torch.zeros_like(rstd))
    dx, of_residual = loops.spread(gradient, x, residual, affine, silu, slope, tuple(_full(f, x) for f in factors))
    return dx, second.sum(0), first.sum(0), of_residual


@_backward.register_fake
def _(
    gradient: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    center: Tensor,
    rstd: Tensor,
    groups: int,
    centered: bool,
    silu: bool,
    slope: float,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    channel = x.new_empty((x.shape[1],), dtype=torch.float64)
    of_residual = x.new_empty(0) if residual is None else torch.empty_like(x)
    return torch.empty_like(x), channel, torch.empty_like(channel), of_residual


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, bias, residual, ctx.groups, ctx.centered, ctx.silu, ctx.slope, _, ctx.backend = inputs
    ctx.save_for_backward(x, weight, bias, residual, *output[1:])


def _differentiate(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    x, weight, bias, residual, center, rstd = ctx.saved_tensors
    how = (ctx.groups, ctx.centered, ctx.silu, ctx.slope, ctx.backend)
    dx, dw, db, of_residual = _backward(gradient, x, weight, bias, residual, center, rstd, *how)
    dw, db = (None if p is None else d.to(p.dtype) for p, d in ((weight, dw), (bias, db)))
    return (dx, dw, db, None if residual is None else of_residual, *(None,) * 6)


_norm.register_autograd(_differentiate, setup_context=_save)


def _join(mean: Tensor, spread: Tensor, voxels: int, groups: int, centered: bool, eps: float) -> tuple[Tensor, Tensor]:
    """Centre and 1 / sqrt(var + eps) of each channel's group, (B, C) float64, from the moments of the channels."""
    center = _per_group(mean, groups, "mean") if centered else torch.zeros_like(mean)
    variance = _per_group(spread / max(voxels, 1) + (mean - center).square(), groups, "mean")
    return center, (variance + eps).rsqrt()


def _per_group(values: Tensor, groups: int, reduction: str) -> Tensor:
    parts = values.unflatten(1, (groups, -1))
    joined = parts.mean(2, keepdim=True) if reduction == "mean" else parts.sum(2, keepdim=True)
    return joined.expand_as(parts).flatten(1)


def _affine(x: Tensor, center: Tensor, rstd: Tensor, weight: Tensor | None, bias: Tensor | None) -> Affine:
    high = _full(center, x)
    scale = rstd if weight is None else rstd * weight.double()
    shift = torch.zeros_like(rstd) if bias is None else bias.double().expand_as(rstd)
    return Affine(high, _full(center - high, x), _full(scale, x), _full(shift, x))


def _full(values: Tensor, x: Tensor) -> Tensor:
    return values.to(torch.promote_types(x.dtype, torch.float32)).contiguous()


def _choose_loops(x: Tensor, backend: str) -> Any:
    """What has moments, apply, gradient_sums and spread: Triton kernels, compiled loops, or plain PyTorch."""
    if choose_backend(backend, x, SUPPORTED) == "triton":
        from medseg.core.kernels import norm_act_triton

        return norm_act_triton
    if x.device.type == "cpu" and x.dtype in SUPPORTED and not wants_torch(backend):
        from medseg.core.kernels import norm_act_processor

        return norm_act_processor
    from medseg.core.kernels import norm_act_torch

    return norm_act_torch


def _check(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    groups: int | None,
    act: str,
    eps: float,
) -> None:
    if x.ndim < 3 or not x.is_floating_point():
        raise ValueError(f"x must be (B, C, spatial...) of a float type, got {x.dtype} {tuple(x.shape)}")
    channels = x.shape[1]
    for name, tensor, shape in (
        ("weight", weight, (channels,)),
        ("bias", bias, (channels,)),
        ("residual", residual, x.shape),
    ):
        if tensor is not None and tuple(tensor.shape) != tuple(shape):
            raise ValueError(f"{name} must have shape {tuple(shape)}, got {tuple(tensor.shape)}")
    if groups is not None and (groups < 1 or channels % groups):
        raise ValueError(f"groups is {groups}; expected a divisor of the {channels} channels")
    if act not in ACTIVATIONS:
        raise ValueError(f"act is {act!r}; choose one of {', '.join(ACTIVATIONS)}")
    if not 0 < eps < float("inf"):
        raise ValueError(f"eps is {eps}; expected a number above 0")
    if x.shape[1:].numel() // (groups or channels) == 1:
        raise ValueError(f"x has one value a group, shape {tuple(x.shape)}: its variance is 0; use larger inputs")
