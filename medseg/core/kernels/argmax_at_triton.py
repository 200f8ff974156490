"""Triton kernel of `argmax_at.py`: one program owns a block of output voxels and walks through the classes.

The corners of a voxel and its weights are read once; each class costs eight reads, which neighbours share through the
caches, and nothing is written but the label and its value. Steps and their order are those of `torch.lerp` axis after
axis. `floor` needs no look here: what it leaves out cannot win.

No GPU time has been measured; `tests/core/kernels` interprets the kernel and compiles it for sm_90.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]
from torch import Tensor

BLOCK = 256


@triton.jit
def _lerp(low, high, weight):
    """From the nearer end, as `torch.lerp` does it."""
    near = weight < 0.5
    return tl.fma(tl.where(near, weight, weight - 1.0), high - low, tl.where(near, low, high))


@triton.jit
def find_best(
    values, low_d, low_h, low_w, part_d, part_h, part_w, labels, best, total, classes,
    size_h, size_w, extent_d, extent_h, extent_w, stride_k, stride_d, stride_h, stride_w, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write label and value of a block; sizes are those of the output, extents those of `values`."""
    # 64 bits before the first product: volumes above 2^31 voxels exist.
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < total
    w = i % size_w
    h = (i // size_w) % size_h
    d = i // size_w // size_h
    d_0 = tl.load(low_d + d, mask=inside, other=0)
    h_0 = tl.load(low_h + h, mask=inside, other=0)
    w_0 = tl.load(low_w + w, mask=inside, other=0)
    along_d = tl.load(part_d + d, mask=inside, other=0.0)
    along_h = tl.load(part_h + h, mask=inside, other=0.0)
    along_w = tl.load(part_w + w, mask=inside, other=0.0)
    near = d_0 * stride_d + h_0 * stride_h + w_0 * stride_w
    step_d = tl.where(d_0 + 1 < extent_d, 1, 0).to(tl.int64) * stride_d
    step_h = tl.where(h_0 + 1 < extent_h, 1, 0).to(tl.int64) * stride_h
    step_w = tl.where(w_0 + 1 < extent_w, 1, 0).to(tl.int64) * stride_w
    top = tl.full((BLOCK,), float("-inf"), tl.float32)
    label = tl.zeros((BLOCK,), tl.int32)
    # A pointer that walks: interpreted, k is a plain integer, whose product with a stride would have 32 bits.
    volume = values + near
    for k in range(classes):
        a = tl.load(volume, mask=inside, other=0.0).to(tl.float32)
        b = tl.load(volume + step_d, mask=inside, other=0.0).to(tl.float32)
        c = tl.load(volume + step_h, mask=inside, other=0.0).to(tl.float32)
        e = tl.load(volume + step_d + step_h, mask=inside, other=0.0).to(tl.float32)
        left = _lerp(_lerp(a, b, along_d), _lerp(c, e, along_d), along_h)
        a = tl.load(volume + step_w, mask=inside, other=0.0).to(tl.float32)
        b = tl.load(volume + step_d + step_w, mask=inside, other=0.0).to(tl.float32)
        c = tl.load(volume + step_h + step_w, mask=inside, other=0.0).to(tl.float32)
        e = tl.load(volume + step_d + step_h + step_w, mask=inside, other=0.0).to(tl.float32)
        value = _lerp(left, _lerp(_lerp(a, b, along_d), _lerp(c, e, along_d), along_h), along_w)
        won = value > top
        top = tl.where(won, value, top)
        label = tl.where(won, k, label).to(tl.int32)
        volume += stride_k
    tl.store(labels + i, label.to(labels.dtype.element_ty), mask=inside)
    tl.store(best + i, top, mask=inside)


def find(values: Tensor, places: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """What `argmax_at._argmax` returns, by the kernel."""
    solid = values.detach() if values.ndim == 4 else values.detach()[:, None]
    lists = list(places) if values.ndim == 4 else [torch.zeros(1, dtype=torch.float64), *places]
    lows = [place.floor().long() for place in lists]
    parts = [(place - low).float() for place, low in zip(lists, lows, strict=True)]
    shape = [len(place) for place in places]
    labels = torch.empty(shape, dtype=torch.uint8 if len(values) <= 256 else torch.int32, device=values.device)
    best = torch.empty(shape, dtype=torch.float32, device=values.device)
    if total := labels.numel():
        tables = [table.to(values.device) for table in (*lows, *parts)]
        sizes = (total, len(solid), len(lists[1]), len(lists[2]), *solid.shape[1:], *solid.stride())
        _launch(find_best, triton.cdiv(total, BLOCK), values.device, solid, *tables, labels, best, *sizes, BLOCK)
    return labels, best


def _launch(kernel: Any, programs: int, device: torch.device, *arguments: Any) -> None:
    """Run a kernel on the tensors' own device, which need not be the current one."""
    with torch.cuda.device(device if device.type == "cuda" else -1):
        kernel[(programs,)](*arguments)
