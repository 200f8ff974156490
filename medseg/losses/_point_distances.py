"""Squared distances between two sets of points with very many coordinates, as segmentations are.

    d_ij = sum over coordinates of (a_ij - b_ij)^2

as a sum of differences, in float32 or float64: |a|^2 - 2 a.b + |b|^2 cancels where points are alike, and in half
precision it overflows. Nothing of shape (N, M, coordinates) is ever held, neither forward nor backward, where

    gradient by a_i = 2 (a_i sum_j g_ij - sum_j g_ij b_j)
"""

from __future__ import annotations

import torch
from torch.autograd.function import once_differentiable

# Coordinates that are summed in one go; sums of sums keep float32 exact enough for whole volumes.
_CHUNK = 1 << 15


def squared_distances(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Squared Euclidean distances of points (B, N, V) and (B, M, V), shape (B, N, M).

    Example:
        >>> squared_distances(torch.tensor([[[0.0, 0.0], [3.0, 0.0]]]), torch.tensor([[[0.0, 4.0]]]))
        tensor([[[16.],
                 [25.]]])
    """
    return _SquaredDistances.apply(a, b)  # type: ignore[no-any-return]


def distances(squared: torch.Tensor) -> torch.Tensor:
    """Square roots whose slope is 0, not infinite, where points coincide (below 1e-8)."""
    apart = squared > 1e-8
    root = torch.where(apart, squared, 1.0).sqrt()
    return torch.where(apart, root, squared.detach().sqrt())


class _SquaredDistances(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(a, b)
        total = a.new_zeros((a.shape[0], a.shape[1], b.shape[1]))
        for part, other in zip(a.split(_CHUNK, dim=2), b.split(_CHUNK, dim=2), strict=True):
            total += torch.cdist(part, other, compute_mode="donot_use_mm_for_euclid_dist").square_()
        return total

    @staticmethod
    @once_differentiable
    def backward(
        ctx: torch.autograd.function.FunctionCtx, gradient: torch.Tensor
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        a, b = ctx.saved_tensors  # type: ignore[attr-defined]
        needed = ctx.needs_input_grad  # type: ignore[attr-defined]
        of_a = _gradient(a, b, gradient) if needed[0] else None
        return of_a, _gradient(b, a, gradient.transpose(1, 2)) if needed[1] else None


def _gradient(a: torch.Tensor, b: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    return torch.baddbmm(a * gradient.sum(2, keepdim=True), gradient, b, beta=2, alpha=-2)
