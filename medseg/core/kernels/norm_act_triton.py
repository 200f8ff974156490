"""Triton kernels of `norm_act.py`: tiles of (BLOCK_V voxels, BLOCK_C channels) of one item in either memory layout.

Channels first, a tile has one channel and long rows; channels last, it has up to 64 channels side by side, so that both
read consecutive memory and neither needs a copy. Reductions write one row a program: mean and spread about the tile's
own mean, or two sums of the backward. They are joined in float64 in PyTorch in a fixed order: no atomics, and the same
bits every time for the same shape. Tile sizes follow from the shape alone.

No GPU time has been measured; `tests/core/kernels` interprets the kernels and compiles them for sm_90.
"""

# Triton's stubs know no index with None for what a reduction returns.
# pyright: reportArgumentType=false, reportCallIssue=false, reportOptionalSubscript=false
from __future__ import annotations

from typing import Any

import torch
import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]
from torch import Tensor

TILE = 2048


@triton.jit
def _locate(voxels, channels, tiles_v, tiles_c, BLOCK_V: tl.constexpr, BLOCK_C: tl.constexpr):
    """Item, tile of voxels, voxels, channels and what is inside."""
    # 64 bits before the first product: tensors above 2^31 elements exist.
    pid = tl.program_id(0).to(tl.int64)
    c = (pid % tiles_c) * BLOCK_C + tl.arange(0, BLOCK_C)
    part = (pid // tiles_c) % tiles_v
    v = part * BLOCK_V + tl.arange(0, BLOCK_V)
    return pid // tiles_c // tiles_v, part, v, c, (v < voxels)[:, None] & (c < channels)[None, :]


@triton.jit
def _load_channel(table, b, c, channels):
    return tl.load(table + b * channels + c, mask=c < channels, other=0.0)[None, :]


@triton.jit
def _before(x, residual, high, low, scale, shift, b, v, c, inside, channels, r_b, r_v, r_c, ADDED: tl.constexpr):
    """Distance to the mean, and what goes into the activation."""
    distance = (x - _load_channel(high, b, c, channels)) - _load_channel(low, b, c, channels)
    value = distance * _load_channel(scale, b, c, channels) + _load_channel(shift, b, c, channels)
    if ADDED:
        place = b * r_b + v[:, None] * r_v + c[None, :] * r_c
        value += tl.load(residual + place, mask=inside, other=0.0).to(tl.float32)
    return distance, value


@triton.jit
def _sigmoid(value):
    e = tl.exp(-tl.abs(value))
    return tl.where(value < 0.0, e, 1.0) / (1.0 + e)


@triton.jit
def _slope_at(value, slope, SILU: tl.constexpr):
    if SILU:
        p = _sigmoid(value)
        return p * (1.0 + value * (1.0 - p))
    return tl.where(value > 0.0, 1.0, slope)


@triton.jit
def find_moments(
    x, mean, spread, voxels, channels, tiles_v, tiles_c, x_b, x_v, x_c,
    BLOCK_V: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Write mean, less the tile's first value, and spread of a tile's channels to (B, tiles_v, channels) float32."""
    b, part, v, c, inside = _locate(voxels, channels, tiles_v, tiles_c, BLOCK_V, BLOCK_C)
    place = b * x_b + v[:, None] * x_v + c[None, :] * x_c
    values = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    first = b * x_b + part * BLOCK_V * x_v + c * x_c
    origin = tl.load(x + first, mask=c < channels, other=0.0).to(tl.float32)[None, :]
    count = tl.minimum(voxels - part * BLOCK_V, BLOCK_V).to(tl.float32)
    distance = tl.where(inside, values - origin, 0.0)
    middle = tl.sum(distance, axis=0) / count
    distance = tl.where(inside, distance - middle[None, :], 0.0)
    row = (b * tiles_v + part) * channels + c
    tl.store(mean + row, middle, mask=c < channels)
    tl.store(spread + row, tl.sum(distance * distance, axis=0), mask=c < channels)


@triton.jit
def apply_tile(
    x, residual, high, low, scale, shift, y, voxels, channels, tiles_v, tiles_c,
    x_b, x_v, x_c, r_b, r_v, r_c, y_b, y_v, y_c, slope,
    ADDED: tl.constexpr, SILU: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Write y."""
    b, _, v, c, inside = _locate(voxels, channels, tiles_v, tiles_c, BLOCK_V, BLOCK_C)
    values = tl.load(x + b * x_b + v[:, None] * x_v + c[None, :] * x_c, mask=inside, other=0.0).to(tl.float32)
    _, value = _before(values, residual, high, low, scale, shift, b, v, c, inside, channels, r_b, r_v, r_c, ADDED)
    if SILU:  # noqa: SIM108
        value = value * _sigmoid(value)
    else:
        value = tl.where(value > 0.0, value, slope * value + 0.0)
    place = b * y_b + v[:, None] * y_v + c[None, :] * y_c
    tl.store(y + place, value.to(y.dtype.element_ty), mask=inside)


@triton.jit
def sum_gradients(
    g, x, residual, high, low, scale, shift, sums, voxels, channels, tiles_v, tiles_c,
    g_b, g_v, g_c, x_b, x_v, x_c, r_b, r_v, r_c, slope,
    ADDED: tl.constexpr, SILU: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Write the sums of g' and of g' (x - mean) of a tile to (B, tiles_v, 2, channels) float32."""
    b, part, v, c, inside = _locate(voxels, channels, tiles_v, tiles_c, BLOCK_V, BLOCK_C)
    values = tl.load(x + b * x_b + v[:, None] * x_v + c[None, :] * x_c, mask=inside, other=0.0).to(tl.float32)
    distance, value = _before(
        values, residual, high, low, scale, shift, b, v, c, inside, channels, r_b, r_v, r_c, ADDED
    )
    gradient = tl.load(g + b * g_b + v[:, None] * g_v + c[None, :] * g_c, mask=inside, other=0.0).to(tl.float32)
    gradient = tl.where(inside, gradient * _slope_at(value, slope, SILU), 0.0)
    row = sums + (b * tiles_v + part) * 2 * channels + c
    tl.store(row, tl.sum(gradient, axis=0), mask=c < channels)
    tl.store(row + channels, tl.sum(tl.where(inside, gradient * distance, 0.0), axis=0), mask=c < channels)


@triton.jit
def spread_tile(
    g, x, residual, high, low, scale, shift, first, second, third, dx, dr, voxels, channels, tiles_v, tiles_c,
    g_b, g_v, g_c, x_b, x_v, x_c, r_b, r_v, r_c, d_b, d_v, d_c, slope,
    ADDED: tl.constexpr, SILU: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Write the gradients of x and of the residual, which have the same strides."""
    b, _, v, c, inside = _locate(voxels, channels, tiles_v, tiles_c, BLOCK_V, BLOCK_C)
    values = tl.load(x + b * x_b + v[:, None] * x_v + c[None, :] * x_c, mask=inside, other=0.0).to(tl.float32)
    distance, value = _before(
        values, residual, high, low, scale, shift, b, v, c, inside, channels, r_b, r_v, r_c, ADDED
    )
    gradient = tl.load(g + b * g_b + v[:, None] * g_v + c[None, :] * g_c, mask=inside, other=0.0).to(tl.float32)
    gradient = gradient * _slope_at(value, slope, SILU)
    result = gradient * _load_channel(first, b, c, channels) + distance * _load_channel(second, b, c, channels)
    result += _load_channel(third, b, c, channels)
    place = b * d_b + v[:, None] * d_v + c[None, :] * d_c
    tl.store(dx + place, result.to(dx.dtype.element_ty), mask=inside)
    if ADDED:
        tl.store(dr + place, gradient.to(dr.dtype.element_ty), mask=inside)


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """What `norm_act_torch.moments` gives."""
    flat = x.detach().flatten(2)
    sizes, blocks = _lay_out(flat)
    mean = torch.zeros((len(flat), sizes[2], flat.shape[1]), dtype=torch.float32, device=x.device)
    spread_ = torch.zeros(mean.shape, dtype=torch.float32, device=x.device)
    _launch(find_moments, flat, sizes, flat, mean, spread_, *sizes, *_strides(flat), *blocks)
    starts = flat[:, :, :: blocks[0]].double().transpose(1, 2)
    counts = torch.full((sizes[2], 1), float(blocks[0]), dtype=torch.float64, device=x.device)
    if sizes[2]:
        counts[-1] = sizes[0] - blocks[0] * (sizes[2] - 1)
    means = mean.double() + starts
    # About the first tile's mean, so that large offsets do not meet in a sum.
    middle = (counts * (means - means[:, :1])).sum(1) / max(sizes[0], 1) + means[:, 0]
    return middle, (spread_.double() + counts * (means - middle[:, None]).square()).sum(1)


def apply(x: Tensor, residual: Tensor | None, affine: Any, silu: bool, slope: float) -> Tensor:
    """What `norm_act_torch.apply` gives."""
    y = torch.empty_like(x)
    flat, more, out = _flatten(x), _flatten(x if residual is None else residual), _flatten(y)
    sizes, blocks = _lay_out(flat)
    strides = (*_strides(flat), *_strides(more), *_strides(out))
    flags = (residual is not None, silu, *blocks)
    _launch(apply_tile, flat, sizes, flat, more, *affine, out, *sizes, *strides, slope, *flags)
    return y if out.data_ptr() == y.data_ptr() else out.view(x.shape)


def gradient_sums(
    gradient: Tensor, x: Tensor, residual: Tensor | None, affine: Any, silu: bool, slope: float
) -> tuple[Tensor, Tensor]:
    """What `norm_act_torch.gradient_sums` gives."""
    g, flat, more = _flatten(gradient), _flatten(x), _flatten(x if residual is None else residual)
    sizes, blocks = _lay_out(flat)
    sums = torch.zeros((len(flat), sizes[2], 2, flat.shape[1]), dtype=torch.float32, device=x.device)
    strides = (*_strides(g), *_strides(flat), *_strides(more))
    flags = (residual is not None, silu, *blocks)
    _launch(sum_gradients, flat, sizes, g, flat, more, *affine, sums, *sizes, *strides, slope, *flags)
    total = sums.sum(1, dtype=torch.float64)
    return total[:, 0], total[:, 1]


def spread(
    gradient: Tensor,
    x: Tensor,
    residual: Tensor | None,
    affine: Any,
    silu: bool,
    slope: float,
    factors: tuple[Tensor, ...],
) -> tuple[Tensor, Tensor]:
    """What `norm_act_torch.spread` gives."""
    dx = torch.empty_like(x)
    dr = dx if residual is None else torch.empty_like(x)
    g, flat, more = _flatten(gradient), _flatten(x), _flatten(x if residual is None else residual)
    out, out_r = _flatten(dx), _flatten(dr)
    sizes, blocks = _lay_out(flat)
    strides = (*_strides(g), *_strides(flat), *_strides(more), *_strides(out))
    flags = (residual is not None, silu, *blocks)
    tables = (*affine, *factors)
    _launch(spread_tile, flat, sizes, g, flat, more, *tables, out, out_r, *sizes, *strides, slope, *flags)
    if out.data_ptr() != dx.data_ptr():  # strides that no view flattens
        dx, dr = out.view(x.shape), out_r.view(x.shape)
    return dx, x.new_empty(0) if residual is None else dr


def _flatten(tensor: Tensor) -> Tensor:
    """(B, C, N), a view wherever strides allow one."""
    return tensor.detach().flatten(2)


def _strides(flat: Tensor) -> tuple[int, int, int]:
    """Those of items, voxels and channels."""
    return flat.stride(0), flat.stride(2), flat.stride(1)


def _lay_out(flat: Tensor) -> tuple[tuple[int, int, int, int], tuple[int, int]]:
    """Voxels, channels, and tiles of both; voxels and channels in a tile."""
    channels, voxels = flat.shape[1:]
    wide = min(triton.next_power_of_2(max(channels, 1)), 64) if flat.stride(1) == 1 and channels > 1 else 1
    blocks = (TILE // wide, wide)
    return (voxels, channels, triton.cdiv(voxels, blocks[0]), triton.cdiv(channels, wide)), blocks


def _launch(kernel: Any, flat: Tensor, sizes: tuple[int, int, int, int], *arguments: Any) -> None:
    """Run a kernel on the tensors' own device, which need not be the current one."""
    programs = len(flat) * sizes[2] * sizes[3]
    if programs:
        with torch.cuda.device(flat.device if flat.device.type == "cuda" else -1):
            kernel[(programs,)](*arguments)
