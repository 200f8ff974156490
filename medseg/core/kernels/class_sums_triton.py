"""Triton kernels of `class_sums.py`: one read of logits and target forward, one more and one write backward.

A program owns some consecutive tiles of (all classes, BLOCK voxels) of one item. Forward it adds their sums in
registers and writes them to a row of its own; the rows are added in float64 afterwards: no atomics, and the same bits
every time for the same shape. Backward it computes the probabilities of a tile again and writes its gradient. Strides
are arguments, so channels_last_3d needs no copy. Arithmetic is in float32 whatever the logits are.

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
ACTIVATIONS = {"none": 0, "softmax": 1, "sigmoid": 2}


@triton.jit
def _fade(p, gamma):
    """(1 - p)^gamma."""
    rest = 1.0 - p
    return tl.exp(gamma * tl.log(tl.where(rest < 1.42e-14, 1.42e-14, rest)))


@triton.jit
def _bend(p, log_p, gamma, FOCAL: tl.constexpr):
    """Slope of (1 - p)^gamma (-log p), times p."""
    if FOCAL:
        rest = 1.0 - p
        rest = tl.where(rest < 1.42e-14, 1.42e-14, rest)
        return gamma * p * tl.exp((gamma - 1.0) * tl.log(rest)) * log_p - tl.exp(gamma * tl.log(rest))
    return -1.0 + 0.0 * p


@triton.jit
def _read_tile(
    logits, target, b, v, voxels, channels, z_b, z_c, z_v, y_b, y_c, y_v, ignore,
    MASKS: tl.constexpr, IGNORE: tl.constexpr, CP: tl.constexpr,
):  # fmt: skip
    """Logits and masks (CP, BLOCK), and the weights (1, BLOCK) of the voxels."""
    c = tl.arange(0, CP).to(tl.int64)[:, None]
    v = v[None, :]
    inside = (c < channels) & (v < voxels)
    z = tl.load(logits + b * z_b + c * z_c + v * z_v, mask=inside, other=0.0).to(tl.float32)
    if MASKS:
        y = tl.load(target + b * y_b + c * y_c + v * y_v, mask=inside, other=0).to(tl.float32)
        counts = (v < voxels).to(tl.float32)
        if IGNORE == 1:  # one channel: its own values
            counts = tl.where((v < voxels) & (tl.sum(tl.where(c == 0, y, 0.0), axis=0)[None, :] != ignore), 1.0, 0.0)
        elif IGNORE == 2:
            counts = tl.where(v < voxels, 1.0 - tl.sum(tl.where(c == ignore, y, 0.0), axis=0)[None, :], 0.0)
        elif IGNORE == 3:
            counts = tl.where((v < voxels) & (tl.sum(y, axis=0)[None, :] > 0.0), 1.0, 0.0)
    else:
        ids = tl.load(target + b * y_b + v * y_v, mask=v < voxels, other=0).to(tl.int64)
        y = tl.where(inside & (ids == c), 1.0, 0.0)
        counts = (v < voxels).to(tl.float32)
        if IGNORE > 0:
            counts = tl.where((v < voxels) & (ids != ignore), 1.0, 0.0)
    y = tl.where(counts == 0.0, 0.0, y)
    return z, y, counts, inside


@triton.jit
def _activate(z, channels, ACT: tl.constexpr, CP: tl.constexpr):
    """Probabilities, and the logarithms of p and of 1 - p; with a softmax, of p twice."""
    if ACT == 1:
        real = tl.arange(0, CP)[:, None] < channels
        below = tl.where(real, z - tl.max(tl.where(real, z, float("-inf")), axis=0)[None, :], float("-inf"))
        log_p = below - tl.log(tl.sum(tl.exp(below), axis=0))[None, :]
        return tl.exp(log_p), log_p, log_p
    if ACT == 2:
        e = tl.exp(-tl.abs(z))
        log_p = tl.where(z < 0.0, z, 0.0) - tl.log(1.0 + e)
        return tl.where(z < 0.0, e, 1.0) / (1.0 + e), log_p, log_p - z
    return z, z * 0.0, z * 0.0


@triton.jit
def sum_tiles(
    logits, target, sums, voxels, channels, programs, z_b, z_c, z_v, y_b, y_c, y_v, ignore, gamma,
    ACT: tl.constexpr, OF_ENTROPY: tl.constexpr, MASKS: tl.constexpr,
    POWER: tl.constexpr, FOCAL: tl.constexpr, IGNORE: tl.constexpr,
    CP: tl.constexpr, BLOCK: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """Write the six sums of some tiles to the program's row of `sums`, (B, programs, 6, channels) float32."""
    # 64 bits before the first product: logits above 2^31 elements exist.
    pid = tl.program_id(0).to(tl.int64)
    b = pid // programs
    hits = tl.zeros((CP,), tl.float32)
    predicted = tl.zeros((CP,), tl.float32)
    present = tl.zeros((CP,), tl.float32)
    surprise = tl.zeros((CP,), tl.float32)
    rest = tl.zeros((CP,), tl.float32)
    count = tl.zeros((CP,), tl.float32)
    for tile in range(TILES):
        v = ((pid % programs) * TILES + tile) * BLOCK + tl.arange(0, BLOCK)
        z, y, counts, inside = _read_tile(
            logits, target, b, v, voxels, channels, z_b, z_c, z_v, y_b, y_c, y_v, ignore, MASKS, IGNORE, CP
        )
        p, log_q, log_rest = _activate(z, channels, ACT, CP)
        q = p
        if OF_ENTROPY != ACT:
            q, log_q, log_rest = _activate(z, channels, OF_ENTROPY, CP)
        some = inside & (counts > 0.0)
        own = -y * log_q
        other = -log_rest
        if OF_ENTROPY == 2:
            other = tl.where(y < 1.0, other * (1.0 - y), 0.0)
        if FOCAL:
            own = own * _fade(q, gamma)
            if OF_ENTROPY == 2:
                other = tl.where(y < 1.0, other * _fade(1.0 - q, gamma), 0.0)
        hits += tl.sum(tl.where(some, p * y * counts, 0.0), axis=1)
        count += tl.sum(tl.where(some, counts, 0.0), axis=1)  # not of the logits: they may be infinite
        if POWER == 2:
            predicted += tl.sum(tl.where(some, p * p * counts, 0.0), axis=1)
            present += tl.sum(tl.where(some, y * y * counts, 0.0), axis=1)
        else:
            predicted += tl.sum(tl.where(some, p * counts, 0.0), axis=1)
            present += tl.sum(tl.where(some, y * counts, 0.0), axis=1)
        surprise += tl.sum(tl.where(some & (y > 0.0), own * counts, 0.0), axis=1)
        rest += tl.sum(tl.where(some, other * counts, 0.0), axis=1)
    c = tl.arange(0, CP)
    row = sums + pid * 6 * channels + c
    tl.store(row, hits, mask=c < channels)
    tl.store(row + channels, predicted, mask=c < channels)
    tl.store(row + 2 * channels, present, mask=c < channels)
    tl.store(row + 3 * channels, surprise, mask=c < channels)
    tl.store(row + 4 * channels, rest, mask=c < channels)
    tl.store(row + 5 * channels, count, mask=c < channels)


@triton.jit
def spread_tile(
    gradient, logits, target, result, voxels, channels, programs, z_b, z_c, z_v, y_b, y_c, y_v, d_b, d_c, d_v,
    ignore, gamma,
    ACT: tl.constexpr, OF_ENTROPY: tl.constexpr, MASKS: tl.constexpr,
    POWER: tl.constexpr, FOCAL: tl.constexpr, IGNORE: tl.constexpr,
    CP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write the gradient of one tile; `gradient` is (B, 6, channels) float32, contiguous."""
    pid = tl.program_id(0).to(tl.int64)
    b = pid // programs
    v = (pid % programs) * BLOCK + tl.arange(0, BLOCK)
    z, y, counts, inside = _read_tile(
        logits, target, b, v, voxels, channels, z_b, z_c, z_v, y_b, y_c, y_v, ignore, MASKS, IGNORE, CP
    )
    p, log_q, log_rest = _activate(z, channels, ACT, CP)
    q = p
    if OF_ENTROPY != ACT:
        q, log_q, log_rest = _activate(z, channels, OF_ENTROPY, CP)
    c = tl.arange(0, CP)
    row = gradient + b * 6 * channels + c
    hits = tl.load(row, mask=c < channels, other=0.0)[:, None]
    predicted = tl.load(row + channels, mask=c < channels, other=0.0)[:, None]
    surprise = tl.load(row + 3 * channels, mask=c < channels, other=0.0)[:, None]
    rest = tl.load(row + 4 * channels, mask=c < channels, other=0.0)[:, None]
    slope = hits * y + predicted
    if POWER == 2:
        slope = hits * y + 2.0 * predicted * p
    if ACT == 1:
        slope = tl.where(inside, p * slope, 0.0)
        slope = slope - p * tl.sum(slope, axis=0)[None, :]
    elif ACT == 2:
        slope = p * (1.0 - p) * slope
    if OF_ENTROPY == 1:
        term = tl.where(y > 0.0, surprise * y * _bend(q, log_q, gamma, FOCAL), 0.0)
        term = tl.where(inside, term - rest, 0.0)
        slope += term - q * tl.sum(term, axis=0)[None, :]
    elif OF_ENTROPY == 2:
        own = surprise * y * (1.0 - q) * _bend(q, log_q, gamma, FOCAL)
        slope += own - rest * (1.0 - y) * q * _bend(1.0 - q, log_rest, gamma, FOCAL)
    slope = tl.where(counts > 0.0, slope * counts, 0.0)
    c = c.to(tl.int64)[:, None]
    tl.store(result + b * d_b + c * d_c + v[None, :] * d_v, slope.to(result.dtype.element_ty), mask=inside)


def sum_up(logits: Tensor, target: Tensor, how: Any) -> Tensor:
    """What `class_sums._sum` returns, by the kernel."""
    z, y, flags, block = _lay_out(logits, target, how)
    programs = triton.cdiv(z.shape[2], block * TILES)
    sums = torch.zeros((z.shape[0], programs, 6, z.shape[1]), dtype=torch.float32, device=z.device)
    if z.numel():
        arguments = (z, y, sums, z.shape[2], z.shape[1], programs, *z.stride(), *y.stride(), *_numbers(how))
        _launch(sum_tiles, z.shape[0] * programs, z.device, *arguments, *flags, block, TILES)
    return sums.sum(1, dtype=torch.float64).float()


def spread(gradient: Tensor, logits: Tensor, target: Tensor, how: Any) -> Tensor:
    """What `class_sums._spread` returns, by the kernel."""
    z, y, flags, block = _lay_out(logits, target, how)
    result = torch.empty_like(logits)
    out = _flatten(result)
    programs = triton.cdiv(z.shape[2], block)
    if z.numel():
        sizes = (z.shape[2], z.shape[1], programs, *z.stride(), *y.stride(), *out.stride(), *_numbers(how))
        arguments = (gradient.float().contiguous(), z, y, out, *sizes)
        _launch(spread_tile, z.shape[0] * programs, z.device, *arguments, *flags, block)
    return result if out.data_ptr() == result.data_ptr() else out.view(logits.shape)


def _lay_out(logits: Tensor, target: Tensor, how: Any) -> tuple[Tensor, Tensor, list[Any], int]:
    """Logits (B, C, N), target (B, 1 or C, N), constants of the kernels, and voxels in a tile."""
    z, y = _flatten(logits), _flatten(target.to(torch.uint8) if target.dtype == torch.bool else target)
    masks = y.shape[1] == z.shape[1]
    mode = 0
    if how.ignore is not None:
        mode = 1 if y.shape[1] == 1 else 2 if 0 <= how.ignore < y.shape[1] else 3
    padded = triton.next_power_of_2(z.shape[1])
    flags = [ACTIVATIONS[how.activation], ACTIVATIONS[how.of_entropy], masks, how.power, how.gamma > 0, mode, padded]
    return z, y, flags, max(TILE // padded, 16)


def _flatten(tensor: Tensor) -> Tensor:
    """(B, C, N), a view wherever strides allow one."""
    return tensor.detach().flatten(2)


def _numbers(how: Any) -> tuple[int, float]:
    return 0 if how.ignore is None else how.ignore, how.gamma


def _launch(kernel: Any, programs: int, device: torch.device, *arguments: Any) -> None:
    """Run a kernel on the tensors' own device, which need not be the current one."""
    with torch.cuda.device(device if device.type == "cuda" else -1):
        kernel[(programs,)](*arguments)
