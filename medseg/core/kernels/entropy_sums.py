"""Entropy and size of every class over the voxels, from one read of the logits; with its gradient from one more.

For probabilities p = softmax(z) or sigmoid(z), weights m of the voxels and every item and class,

    entropy = sum m (-p log p)          with a sigmoid  sum m (-p log p - (1 - p) log(1 - p))
    size    = sum m p

With a and b the gradients with respect to entropy and size,

    softmax   t_c = p_c (b_c - a_c (log p_c + 1)),      dz_c = m (t_c - p_c sum over k of t_k)
    sigmoid   dz = m p (1 - p) (b - a z)

Probabilities and their logarithms never exist in full size: PyTorch walks over blocks, on a CPU in up to float32
compiled loops over slabs. Sums of blocks are added in float64 in the order of the blocks.

What it is for: entropy minimisation that keeps class ratios (Bateson, Kervadec, Dolz, Lombaert, Ben Ayed, "Source-Free
Domain Adaptation for Image Segmentation", 2022).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from medseg.core.kernels.dispatch import check_backend, choose_backend, wants_torch

SUPPORTED = (torch.float32, torch.float16, torch.bfloat16)
_BLOCK_CPU = 2**19  # logits; few on a CPU, where blocks are to stay in a cache, and few launches elsewhere
_BLOCK_OTHER = 2**26


class EntropySums(NamedTuple):
    """Sums over the voxels of every item and class, (B, C) each; float32, or float64 where the logits are."""

    entropy: Tensor
    size: Tensor


def entropy_sums(
    logits: Tensor, weight: Tensor | None = None, *, activation: str = "softmax", backend: str = "auto"
) -> EntropySums:
    """Sum entropy and probability of every class over the voxels.

    Differentiable once, with respect to `logits`; arithmetic is in float32 (float64 stays).

    Args:
        logits: (B, C, spatial...), any float type and strides.
        weight: (B, 1, spatial...), how much each voxel counts; None counts all once.
        activation: "softmax" or "sigmoid".
        backend: "auto", "torch" or "triton", see `medseg.core.kernels.choose_backend`.

    Returns:
        Entropy in nats and size in voxels, sums and not means.

    Raises:
        ValueError: wrong shapes, activation or backend.
        ImportError: `backend="triton"`, and triton is not installed.

    Example:
        >>> sums = entropy_sums(torch.zeros(1, 2, 4))       # four voxels, each (log 2) / 2 a class
        >>> sums.entropy, sums.size
        (tensor([[1.3863, 1.3863]]), tensor([[2., 2.]]))
    """
    if logits.ndim < 3 or not logits.is_floating_point():
        raise ValueError(f"logits must be (B, C, spatial...) of a float type, got {logits.dtype} {tuple(logits.shape)}")
    expected = (logits.shape[0], 1, *logits.shape[2:])
    if weight is not None and tuple(weight.shape) != expected:
        raise ValueError(f"weight must have shape {expected}, got {tuple(weight.shape)}")
    if activation not in ("softmax", "sigmoid"):
        raise ValueError(f"activation is {activation!r}; choose softmax or sigmoid")
    check_backend(backend)
    weight = None if weight is None else weight.detach().to(torch.promote_types(logits.dtype, torch.float32))
    return EntropySums(*_sum(logits, weight, activation, backend).unbind(1))


@torch.library.custom_op("medseg::entropy_sums", mutates_args=())
def _sum(logits: Tensor, weight: Tensor | None, activation: str, backend: str) -> Tensor:
    if loops := _choose_loops(logits, backend):
        return loops.sum_up(logits, weight, activation)
    sums = logits.new_zeros((logits.shape[0], 2, logits.shape[1]), dtype=torch.float64)
    for item, _, z, m in _blocks(logits, weight):
        p, log_p, rest = _activate(z, activation)
        both = (m * torch.where(p > 0, -p * log_p, 0) + rest * m, m * p)
        sums[item] += torch.stack([values.sum(1, dtype=torch.float64) for values in both])
    return sums.to(torch.promote_types(logits.dtype, torch.float32))


@_sum.register_fake
def _(logits: Tensor, weight: Tensor | None, activation: str, backend: str) -> Tensor:
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return logits.new_empty((logits.shape[0], 2, logits.shape[1]), dtype=dtype)


@torch.library.custom_op("medseg::entropy_sums_backward", mutates_args=())
def _spread(gradient: Tensor, logits: Tensor, weight: Tensor | None, activation: str, backend: str) -> Tensor:
    if loops := _choose_loops(logits, backend):
        return loops.spread(gradient, logits, weight, activation)
    result = torch.empty_like(logits, memory_format=torch.contiguous_format)
    flat = result.flatten(2)
    for item, part, z, m in _blocks(logits, weight):
        a, b = gradient[item].to(z)[..., None]
        p, log_p, _ = _activate(z, activation)
        if activation == "softmax":
            slope = torch.where(p > 0, p * (b - a * (log_p + 1)), 0)
            slope = slope - p * slope.sum(0)
        else:
            slope = p * (1 - p) * (b - a * z)
        flat[item, :, part] = (slope * m).to(logits.dtype)
    return result


@_spread.register_fake
def _(gradient: Tensor, logits: Tensor, weight: Tensor | None, activation: str, backend: str) -> Tensor:
    return torch.empty_like(logits, memory_format=torch.contiguous_format)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    logits, weight, ctx.activation, ctx.backend = inputs
    ctx.save_for_backward(logits, weight)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    logits, weight = ctx.saved_tensors
    return _spread(gradient, logits, weight, ctx.activation, ctx.backend), None, None, None


_sum.register_autograd(_backward, setup_context=_save)


def _choose_loops(logits: Tensor, backend: str) -> Any:
    """The module that does it with a Triton kernel or compiled loops; None for plain PyTorch."""
    if choose_backend(backend, logits, SUPPORTED) == "triton":
        from medseg.core.kernels import entropy_sums_triton

        return entropy_sums_triton
    if logits.device.type == "cpu" and logits.dtype in SUPPORTED and not wants_torch(backend):
        from medseg.core.kernels import entropy_sums_processor

        return entropy_sums_processor
    return None


def _blocks(logits: Tensor, weight: Tensor | None) -> Iterator[tuple[int, slice, Tensor, Tensor]]:
    """Item, voxels, logits (C, N) in full precision and weights (1, N) of one block after the other."""
    z = logits.flatten(2)
    full = torch.promote_types(logits.dtype, torch.float32)
    m = z.new_ones((1, 1, 1), dtype=full).expand(len(z), 1, z.shape[2]) if weight is None else weight.flatten(2)
    block = _BLOCK_CPU if logits.device.type == "cpu" else _BLOCK_OTHER
    size = max(block // max(z.shape[1], 1), 64)
    for item in range(z.shape[0]):
        for start in range(0, z.shape[2], size):
            part = slice(start, start + size)
            yield item, part, z[item, :, part].to(full), m[item, :, part]


def _activate(z: Tensor, activation: str) -> tuple[Tensor, Tensor, Tensor]:
    """Probabilities, their logarithms, and with a sigmoid the other half of the entropy."""
    if activation == "softmax":
        log_p = functional.log_softmax(z, 0)
        return log_p.exp(), log_p, torch.zeros_like(z)
    q, log_q = torch.sigmoid(-z), functional.logsigmoid(-z)
    return torch.sigmoid(z), functional.logsigmoid(z), torch.where(q > 0, -q * log_q, 0)
