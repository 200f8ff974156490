"""Triton kernel of `softmax.py`: one read and one write of a volume, where PyTorch's own in place takes five walks.

A program owns BLOCK voxels of all classes. Three spatial strides are arguments, so a slab cut out of a longer blend is
taken as it lies. Arithmetic is in float32 whatever the logits are.

No GPU time has been measured; `tests/core/kernels` interprets the kernel and compiles it for sm_90.
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


@triton.jit
def softmax_tile(
    logits, voxels, classes, height, width, z_k, z_d, z_h, z_w,
    CP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Overwrite the logits of one tile with probabilities."""
    # 64 bits before the first product: blends above 2^31 elements exist.
    v = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    k = tl.arange(0, CP).to(tl.int64)[:, None]
    row = v // width
    place = (row // height) * z_d + (row % height) * z_h + (v % width) * z_w
    inside = (k < classes) & (v < voxels)[None, :]
    at = logits + k * z_k + place[None, :]
    z = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    below = tl.where(k < classes, z, float("-inf"))
    weights = tl.exp(below - tl.max(below, axis=0)[None, :])
    # NaN, which the maximum drops, comes back through the sum.
    p = weights / tl.sum(weights, axis=0)[None, :]
    tl.store(at, p.to(logits.dtype.element_ty), mask=inside)


def run(logits: Tensor) -> None:
    """What `softmax.softmax_` does, for up to three spatial axes."""
    if not 2 <= logits.ndim <= 4 or logits.requires_grad:
        raise ValueError(
            f"the Triton kernel takes (K, spatial...) with one to three spatial axes and without a gradient, got "
            f"{tuple(logits.shape)}; use backend='auto'"
        )
    if not logits.numel():
        return
    z = logits[(slice(None), *(None,) * (4 - logits.ndim))]
    padded = triton.next_power_of_2(z.shape[0])
    block = max(TILE // padded, 16)
    voxels = z.shape[1:].numel()
    kernel: Any = softmax_tile  # the decorated function takes a grid in brackets
    with torch.cuda.device(z.device if z.is_cuda else -1):
        kernel[(triton.cdiv(voxels, block),)](z, voxels, z.shape[0], *z.shape[2:], *z.stride(), padded, block)
