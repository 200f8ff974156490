"""Triton kernels of `projection.py`: one read of the volume for all axes, and one write for its gradient.

Forward: a program owns a tile of (h, w) and walks along d. Maximum and place of a line travel as one 64-bit integer,

    key = (order-preserving 32-bit image of the voxel) * 2^32 + (2^31 - 1 - index),

so that an integer maximum finds the largest value and, among equals, the lowest index. The maxima along d stay in
registers; those along h and w leave after each plane. Tiles meet by an atomic integer maximum, whose result depends on
no order. -0.0 counts as +0.0 and NaN as the largest value; values are then copied from the volume, bit for bit.

Backward: the same tiles and planes. Each voxel adds the gradients of those lines whose index is its own, in the order
of the reference and rounding as it does, and is written once: no atomics.

Slabs: a tile lies within one slab along every axis, so thin slabs leave tiles partly empty.

No GPU time has been measured; `tests/core/kernels` interprets the kernels and compiles them for sm_90.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]
from torch import Tensor

PLANES = 32  # planes a program walks: fewer give more programs, more give fewer atomics along d
TILE_H = 32
TILE_W = 64


@triton.jit
def _find_range(position, extent, slab, tiles, TILE: tl.constexpr):
    """Slab, first and last + 1 coordinate of a tile; `tiles` tiles cover one slab."""
    part = position // tiles
    start = part * slab + (position % tiles) * TILE
    end = tl.minimum(tl.minimum(start + TILE, part * slab + slab), extent)
    return part, start, end


@triton.jit
def _order(value):
    """Integers in the order of float32 values: zeros equal, NaN above infinity."""
    bits = tl.where(value == 0.0, 0.0, value).to(tl.int32, bitcast=True)
    order = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return tl.where(value != value, 0x7FFFFFFF, order).to(tl.int64) << 32


@triton.jit
def find_keys(
    volume, keys_d, keys_h, keys_w,
    channels, stride_b, stride_c, stride_d, stride_h, stride_w,
    extent_d, extent_h, extent_w, slab_d, slab_h, slab_w, count_d, count_h, count_w, tiles_d, tiles_h, tiles_w,
    WITH_D: tl.constexpr, WITH_H: tl.constexpr, WITH_W: tl.constexpr,
    PLANES: tl.constexpr, TILE_H: tl.constexpr, TILE_W: tl.constexpr,
):  # fmt: skip
    """Write the keys of all lines; they must hold the lowest integer before. Keys are contiguous, axes kept."""
    lowest = -0x7FFFFFFFFFFFFFFF - 1
    # 64 bits before the first product: volumes above 2^31 voxels exist.
    pid = tl.program_id(0).to(tl.int64)
    part_w, start_w, end_w = _find_range(pid % (count_w * tiles_w), extent_w, slab_w, tiles_w, TILE_W)
    pid = pid // (count_w * tiles_w)
    part_h, start_h, end_h = _find_range(pid % (count_h * tiles_h), extent_h, slab_h, tiles_h, TILE_H)
    pid = pid // (count_h * tiles_h)
    part_d, start_d, end_d = _find_range(pid % (count_d * tiles_d), extent_d, slab_d, tiles_d, PLANES)
    n = pid // (count_d * tiles_d)
    h = start_h + tl.arange(0, TILE_H)
    w = start_w + tl.arange(0, TILE_W)
    inside = (h < end_h)[:, None] & (w < end_w)[None, :]
    tile = (n // channels) * stride_b + (n % channels) * stride_c + h[:, None] * stride_h + w[None, :] * stride_w
    best = tl.full((TILE_H, TILE_W), lowest, tl.int64)
    # A pointer that walks: interpreted, d is a plain integer, whose product with a stride would have 32 bits.
    plane = volume + start_d * stride_d
    for d in range(start_d, end_d):
        order = _order(tl.load(plane + tile, mask=inside, other=0.0).to(tl.float32))
        plane += stride_d
        if WITH_D:
            best = tl.maximum(best, order | (0x7FFFFFFF - d))
        if WITH_H:
            found = tl.max(tl.where(inside, order | (0x7FFFFFFF - h)[:, None], lowest), axis=0)
            tl.atomic_max(keys_h + ((n * extent_d + d) * count_h + part_h) * extent_w + w, found, mask=w < end_w)
        if WITH_W:
            found = tl.max(tl.where(inside, order | (0x7FFFFFFF - w)[None, :], lowest), axis=1)
            tl.atomic_max(keys_w + ((n * extent_d + d) * extent_h + h) * count_w + part_w, found, mask=h < end_h)
    if WITH_D:
        line = ((n * count_d + part_d) * extent_h + h[:, None]) * extent_w + w[None, :]
        tl.atomic_max(keys_d + line, best, mask=inside)


@triton.jit
def read_keys(
    volume, keys, values, indices, total,
    channels, stride_b, stride_c, stride_d, stride_h, stride_w, size_d, size_h, size_w,
    DIM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Take index and voxel of each line out of its key; sizes are those of the keys, DIM the projected axis."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < total
    index = 0x7FFFFFFF - (tl.load(keys + i, mask=inside, other=0x7FFFFFFF) & 0x7FFFFFFF)
    w = i % size_w
    h = (i // size_w) % size_h
    d = (i // size_w // size_h) % size_d
    n = i // size_w // size_h // size_d
    if DIM == 0:
        d = index
    elif DIM == 1:
        h = index
    else:
        w = index
    place = (n // channels) * stride_b + (n % channels) * stride_c + d * stride_d + h * stride_h + w * stride_w
    tl.store(values + i, tl.load(volume + place, mask=inside), mask=inside)
    tl.store(indices + i, index, mask=inside)


@triton.jit
def spread_gradients(
    volume, gradient_d, gradient_h, gradient_w, index_d, index_h, index_w,
    extent_d, extent_h, extent_w, slab_d, slab_h, slab_w, count_d, count_h, count_w, tiles_d, tiles_h, tiles_w,
    FIRST: tl.constexpr, SECOND: tl.constexpr, THIRD: tl.constexpr,
    PLANES: tl.constexpr, TILE_H: tl.constexpr, TILE_W: tl.constexpr,
):  # fmt: skip
    """Write the gradient of a contiguous volume; FIRST, SECOND, THIRD are axes in order of addition, -1 for none."""
    pid = tl.program_id(0).to(tl.int64)
    part_w, start_w, end_w = _find_range(pid % (count_w * tiles_w), extent_w, slab_w, tiles_w, TILE_W)
    pid = pid // (count_w * tiles_w)
    part_h, start_h, end_h = _find_range(pid % (count_h * tiles_h), extent_h, slab_h, tiles_h, TILE_H)
    pid = pid // (count_h * tiles_h)
    part_d, start_d, end_d = _find_range(pid % (count_d * tiles_d), extent_d, slab_d, tiles_d, PLANES)
    n = pid // (count_d * tiles_d)
    h = (start_h + tl.arange(0, TILE_H))[:, None]
    w = (start_w + tl.arange(0, TILE_W))[None, :]
    inside = (h < end_h) & (w < end_w)
    for d in range(start_d, end_d):
        total = tl.zeros((TILE_H, TILE_W), tl.float32)
        for turn in tl.static_range(3):  # pyright: ignore
            if (FIRST if turn == 0 else (SECOND if turn == 1 else THIRD)) == 0:
                line = ((n * count_d + part_d) * extent_h + h) * extent_w + w
                own = tl.load(index_d + line, mask=inside, other=-1) == d
                total += tl.load(gradient_d + line, mask=own, other=0.0).to(tl.float32)
            if (FIRST if turn == 0 else (SECOND if turn == 1 else THIRD)) == 1:
                line = ((n * extent_d + d) * count_h + part_h) * extent_w + w
                own = tl.load(index_h + line, mask=w < end_w, other=-1) == h
                total += tl.where(own, tl.load(gradient_h + line, mask=w < end_w, other=0.0).to(tl.float32), 0.0)
            if (FIRST if turn == 0 else (SECOND if turn == 1 else THIRD)) == 2:
                line = ((n * extent_d + d) * extent_h + h) * count_w + part_w
                own = tl.load(index_w + line, mask=h < end_h, other=-1) == w
                total += tl.where(own, tl.load(gradient_w + line, mask=h < end_h, other=0.0).to(tl.float32), 0.0)
            # The reference keeps its sum in the volume's dtype.
            total = total.to(volume.dtype.element_ty).to(tl.float32)
        tl.store(volume + ((n * extent_d + d) * extent_h + h) * extent_w + w, total, mask=inside)


def project(volume: Tensor, dims: Sequence[int], slabs: Sequence[int]) -> list[Tensor]:
    """What `projection._project` returns, by the kernels."""
    flat = volume.ndim == 4
    solid = volume.unsqueeze(2) if flat else volume
    axes = [dim - 1 if flat else dim - 2 for dim in dims]
    keys = _allocate_keys(solid, axes, slabs)
    layout = (solid.shape[1], *solid.stride())
    grid, sizes = _lay_out(solid.shape, axes, slabs)
    if volume.numel():
        pointers = [keys.get(axis, solid) for axis in range(3)]
        flags = [axis in axes for axis in range(3)]
        _launch(find_keys, grid, volume.device, solid, *pointers, *layout, *sizes, *flags, PLANES, TILE_H, TILE_W)
    values = [torch.empty_like(keys[axis], dtype=volume.dtype) for axis in axes]
    indices = [torch.empty_like(keys[axis]) for axis in axes]
    for axis, value, index in zip(axes, values, indices, strict=True):
        key, total = keys[axis], keys[axis].numel()
        if total:
            arguments = (solid, key, value, index, total, *layout, *key.shape[2:], axis, 1024)
            _launch(read_keys, triton.cdiv(total, 1024), volume.device, *arguments)
    return [output.squeeze(2) if flat else output for output in values + indices]


def spread(
    gradients: Sequence[Tensor], indices: Sequence[Tensor], dims: Sequence[int], slabs: Sequence[int],
    shape: Sequence[int],
) -> Tensor:  # fmt: skip
    """What `projection._spread` returns, by the kernel."""
    volume = gradients[0].new_empty(shape)
    flat = len(shape) == 4
    axes = [dim - 1 if flat else dim - 2 for dim in dims]
    solid = [*shape[:2], 1, *shape[2:]] if flat else shape
    grid, sizes = _lay_out(solid, axes, slabs)
    if volume.numel():
        given = dict(zip(axes, zip(gradients, indices, strict=True), strict=True))
        pairs = [[tensor.contiguous() for tensor in given.get(axis, (volume, indices[0]))] for axis in range(3)]
        pointers = [pair[0] for pair in pairs] + [pair[1] for pair in pairs]
        order = [*axes, -1, -1][:3]
        _launch(spread_gradients, grid, volume.device, volume, *pointers, *sizes, *order, PLANES, TILE_H, TILE_W)
    return volume


def _allocate_keys(volume: Tensor, axes: Sequence[int], slabs: Sequence[int]) -> dict[int, Tensor]:
    shapes = []
    for axis, slab in zip(axes, slabs, strict=True):
        shape = list(volume.shape)
        shape[axis + 2] = triton.cdiv(shape[axis + 2], slab)
        shapes.append(shape)
    sizes = [torch.Size(shape).numel() for shape in shapes]
    lowest = torch.iinfo(torch.int64).min
    buffer = torch.full((sum(sizes),), lowest, dtype=torch.int64, device=volume.device)
    return {a: part.view(s) for a, part, s in zip(axes, buffer.split(sizes), shapes, strict=True)}


def _lay_out(shape: Sequence[int], axes: Sequence[int], slabs: Sequence[int]) -> tuple[int, list[int]]:
    """Number of programs; extents, slabs, slabs an axis and tiles a slab, three each."""
    extents = list(shape[2:])
    given = dict(zip(axes, slabs, strict=True))
    slab = [given.get(axis, extent) for axis, extent in enumerate(extents)]
    counts = [triton.cdiv(extent, s) for extent, s in zip(extents, slab, strict=True)]
    tiles = [triton.cdiv(s, tile) for s, tile in zip(slab, (PLANES, TILE_H, TILE_W), strict=True)]
    programs = shape[0] * shape[1]
    for count, tile in zip(counts, tiles, strict=True):
        programs *= count * tile
    return programs, [*extents, *slab, *counts, *tiles]


def _launch(kernel: Any, programs: int, device: torch.device, *arguments: Any) -> None:
    """Run a kernel on the tensors' own device, which need not be the current one."""
    with torch.cuda.device(device if device.type == "cuda" else -1):
        kernel[(programs,)](*arguments)
