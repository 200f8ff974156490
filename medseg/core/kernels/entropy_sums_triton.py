"""Triton kernels of `entropy_sums.py`: tiles of (all classes, BLOCK voxels), partial sums a program, no atomics.

No GPU time has been measured; `tests/core/kernels` interprets the kernels and compiles them for sm_90.
"""

# Triton's stubs know no index with None for what a reduction returns.
# pyright: reportArgumentType=false, reportCallIssue=false
from __future__ import annotations

from typing import Any

import torch
import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]
from torch import Tensor

TILE = 2048  # logits in a tile
TILES = 16  # tiles a program walks forward


@triton.jit
def _read_tile(logits, weight, b, v, voxels, channels, z_b, z_c, z_v, WEIGHTED: tl.constexpr, CP: tl.constexpr):
    """Logits (CP, BLOCK) and weights (1, BLOCK), which are contiguous."""
    c = tl.arange(0, CP).to(tl.int64)[:, None]
    inside = (c < channels) & (v < voxels)[None, :]
    z = tl.load(logits + b * z_b + c * z_c + v[None, :] * z_v, mask=inside, other=0.0).to(tl.float32)
    m = (v < voxels).to(tl.float32)[None, :]
    if WEIGHTED:
        m = tl.load(weight + b * voxels + v, mask=v < voxels, other=0.0)[None, :]
    return z, m, inside


@triton.jit
def _softmax(z, channels, CP: tl.constexpr):
    real = tl.arange(0, CP)[:, None] < channels
    below = tl.where(real, z - tl.max(tl.where(real, z, float("-inf")), axis=0)[None, :], float("-inf"))
    log_p = below - tl.log(tl.sum(tl.exp(below), axis=0))[None, :]
    return tl.exp(log_p), log_p


@triton.jit
def sum_tiles(
    logits, weight, sums, voxels, channels, programs, z_b, z_c, z_v,
    SOFTMAX: tl.constexpr, WEIGHTED: tl.constexpr, CP: tl.constexpr, BLOCK: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """Write both sums of some tiles to the program's row of `sums`, (B, programs, 2, channels) float32."""
    # 64 bits before the first product: logits above 2^31 elements exist.
    pid = tl.program_id(0).to(tl.int64)
    b = pid // programs
    entropy = tl.zeros((CP,), tl.float32)
    size = tl.zeros((CP,), tl.float32)
    for tile in range(TILES):
        v = ((pid % programs) * TILES + tile) * BLOCK + tl.arange(0, BLOCK)
        z, m, inside = _read_tile(logits, weight, b, v, voxels, channels, z_b, z_c, z_v, WEIGHTED, CP)
        if SOFTMAX:
            p, log_p = _softmax(z, channels, CP)
            own = tl.where(p == 0.0, 0.0, -p * log_p)
        else:
            e = tl.exp(-tl.abs(z))
            less = e / (1.0 + e)
            p = tl.where(z < 0.0, less, 1.0 - less)
            own = tl.log(1.0 + e) + tl.where(less == 0.0, 0.0, tl.abs(z) * less)
        entropy += tl.sum(tl.where(inside, own * m, 0.0), axis=1)
        size += tl.sum(tl.where(inside, p * m, 0.0), axis=1)
    c = tl.arange(0, CP)
    row = sums + pid * 2 * channels + c
    tl.store(row, entropy, mask=c < channels)
    tl.store(row + channels, size, mask=c < channels)


@triton.jit
def spread_tile(
    gradient, logits, weight, result, voxels, channels, programs, z_b, z_c, z_v,
    SOFTMAX: tl.constexpr, WEIGHTED: tl.constexpr, CP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write the gradient of one tile; `gradient` is (B, 2, channels) float32, it and `result` are contiguous."""
    pid = tl.program_id(0).to(tl.int64)
    b = pid // programs
    v = (pid % programs) * BLOCK + tl.arange(0, BLOCK)
    z, m, inside = _read_tile(logits, weight, b, v, voxels, channels, z_b, z_c, z_v, WEIGHTED, CP)
    c = tl.arange(0, CP)
    row = gradient + b * 2 * channels + c
    of_entropy = tl.load(row, mask=c < channels, other=0.0)[:, None]
    of_size = tl.load(row + channels, mask=c < channels, other=0.0)[:, None]
    if SOFTMAX:
        p, log_p = _softmax(z, channels, CP)
        slope = tl.where(inside & (p != 0.0), p * (of_size - of_entropy * (log_p + 1.0)), 0.0)
        slope = slope - p * tl.sum(slope, axis=0)[None, :]
    else:
        e = tl.exp(-tl.abs(z))
        slope = e / (1.0 + e) / (1.0 + e) * (of_size - of_entropy * z)
    place = (b * channels + c.to(tl.int64)[:, None]) * voxels + v[None, :]
    tl.store(result + place, (slope * m).to(result.dtype.element_ty), mask=inside)


def sum_up(logits: Tensor, weight: Tensor | None, activation: str) -> Tensor:
    """What `entropy_sums._sum` returns, by the kernel."""
    z, m, flags, block = _lay_out(logits, weight, activation)
    programs = triton.cdiv(z.shape[2], block * TILES)
    sums = torch.zeros((z.shape[0], programs, 2, z.shape[1]), dtype=torch.float32, device=z.device)
    if z.numel():
        arguments = (z, m, sums, z.shape[2], z.shape[1], programs, *z.stride())
        _launch(sum_tiles, z.shape[0] * programs, z.device, *arguments, *flags, block, TILES)
    return sums.sum(1, dtype=torch.float64).float()


def spread(gradient: Tensor, logits: Tensor, weight: Tensor | None, activation: str) -> Tensor:
    """What `entropy_sums._spread` returns, by the kernel."""
    z, m, flags, block = _lay_out(logits, weight, activation)
    result = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
    programs = triton.cdiv(z.shape[2], block)
    if z.numel():
        sizes = (z.shape[2], z.shape[1], programs, *z.stride())
        arguments = (gradient.float().contiguous(), z, m, result, *sizes)
        _launch(spread_tile, z.shape[0] * programs, z.device, *arguments, *flags, block)
    return result


def _lay_out(logits: Tensor, weight: Tensor | None, activation: str) -> tuple[Tensor, Tensor, list[Any], int]:
    """Logits (B, C, N), weights or a stand-in for them, constants of the kernels, and voxels in a tile."""
    z = logits.detach().flatten(2)
    padded = triton.next_power_of_2(z.shape[1])
    m = z if weight is None else weight.float().contiguous()
    return z, m, [activation == "softmax", weight is not None, padded], max(TILE // padded, 16)


def _launch(kernel: Any, programs: int, device: torch.device, *arguments: Any) -> None:
    """Run a kernel on the tensors' own device, which need not be the current one."""
    with torch.cuda.device(device if device.type == "cuda" else -1):
        kernel[(programs,)](*arguments)
