"""Softmax-free attention with landmarks: memory for n tokens and m landmarks grows with n m instead of n^2.

Queries are keys, and the Gaussian kernel takes the place of the softmax. With q scaled by d^(-1/4) and landmarks l,

    P = exp(-|q_i - l_j|^2 / 2)   (n x m),    A = exp(-|l_i - l_j|^2 / 2)   (m x m)
    plain        y = P (A + damping I)^-1 P^T v
    symmetric    y = P D^-1/2 A^-1 D^-1/2 P^T v,    D = diag of the row sums of A

A^-1 comes from Newton's iteration Y <- 2 Y - Y A Y, which needs products only; the gradient is that of the inverse,
-Y^T G Y^T, not that of the iterations. Landmarks are a strided convolution of q over the grid, then layer
normalisation and GELU; a depthwise convolution of v is added.

Lu, Zhang, Yao, Zhang, Zhu, Xu, Fu, Xiang, Zhang, "SOFT: Softmax-free Transformer with Linear Complexity" (NeurIPS
2021), "Softmax-free Linear Transformers" (2022). The published symmetric variant differentiates through the iterations
and starts all matrices of a batch from one number; here each has its own, as in the published plain variant, and its
gradient is analytic in both. The inverse is taken in float32 under autocast. For tokens of a coarse stage; windows of a
Swin transformer are too few for it to save anything.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class _NewtonInverse(torch.autograd.Function):
    """Inverse of symmetric matrices (..., m, m) with positive entries."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, iters: int) -> Tensor:
        largest = a.abs().sum(-1).amax(-1)[..., None, None]
        y = 1.8 / largest.square() * a
        for _ in range(iters):
            y = 2 * y - y @ a @ y
        ctx.save_for_backward(y)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        (y,) = ctx.saved_tensors
        transposed = y.transpose(-1, -2)
        return -transposed @ g @ transposed, None


def soft_attention(
    q: Tensor, landmarks: Tensor, v: Tensor, *, iters: int = 20, symmetric: bool = True, damping: float = 0.01
) -> Tensor:
    """Attend without softmax through landmarks.

    Args:
        q: (..., n, d) queries, which are the keys too; scaled by d^(-1/4) here.
        landmarks: (..., m, d), used as they are.
        v: (..., n, e) values.
        iters: Newton iterations.
        symmetric: normalise by the row sums of A on both sides.
        damping: added to the diagonal of A in the plain variant.

    Returns:
        (..., n, e), in the dtype of v.

    Raises:
        ValueError: iters is below 1.

    Example:
        >>> q = torch.randn(1, 8, 4)
        >>> tuple(soft_attention(q, q[:, ::4], torch.randn(1, 8, 2)).shape)
        (1, 8, 2)
    """
    if iters < 1:
        raise ValueError(f"iters must be at least 1, got {iters}")
    with torch.autocast(q.device.type, enabled=False):
        full = [t if t.dtype in (torch.float32, torch.float64) else t.float() for t in (q, landmarks, v)]
        queries, marks, values = full[0] * full[0].shape[-1] ** -0.25, full[1], full[2]
        p, a = _kernel(queries, marks), _kernel(marks, marks)
        if symmetric:
            root = a.sum(-1).rsqrt()
            inverse = root[..., :, None] * _invert(a, iters) * root[..., None, :]
        else:
            inverse = _invert(a + damping * torch.eye(a.shape[-1], dtype=a.dtype, device=a.device), iters)
        return (p @ (inverse @ (p.transpose(-1, -2) @ values))).to(v.dtype)


def _invert(a: Tensor, iters: int) -> Tensor:
    return _NewtonInverse.apply(a, iters)  # type: ignore[return-value]


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    square = a.square().sum(-1)[..., :, None] + b.square().sum(-1)[..., None, :] - 2 * a @ b.transpose(-1, -2)
    return torch.exp(-square.clamp_min(0) / 2)  # rounding takes small distances below 0


class SoftmaxFreeAttention(nn.Module):
    """Softmax-free attention over the tokens of a grid.

    Args:
        dim: features of a token.
        num_heads: heads; a divisor of `dim`.
        spatial_dims: 1, 2 or 3.
        landmark_stride: grid cells for each landmark along each axis, one number or one an axis.
        iters: Newton iterations.
        symmetric_norm: the symmetric variant, which keeps the output's scale.
        damping: added to the diagonal in the plain variant.
        value_conv: odd width of the depthwise convolution of the values; 0 leaves it out.

    Raises:
        ValueError: arguments that do not fit, or tokens that are not those of the grid.

    Example:
        >>> block = SoftmaxFreeAttention(8, 2, landmark_stride=2)
        >>> tuple(block(torch.randn(1, 64, 8), [4, 4, 4]).shape)
        (1, 64, 8)
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        spatial_dims: int = 3,
        landmark_stride: int | Sequence[int] = 2,
        iters: int = 20,
        symmetric_norm: bool = True,
        damping: float = 0.01,
        value_conv: int = 5,
    ) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads or spatial_dims not in (1, 2, 3):
            raise ValueError(
                f"need num_heads that divide dim {dim} and spatial_dims 1 to 3, got {num_heads}, {spatial_dims}"
            )
        if value_conv and value_conv % 2 == 0:
            raise ValueError(f"value_conv must be odd or 0, got {value_conv}")
        stride = [landmark_stride] * spatial_dims if isinstance(landmark_stride, int) else list(landmark_stride)
        conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[spatial_dims - 1]
        size = dim // num_heads
        self.num_heads, self.spatial_dims, self.stride = num_heads, spatial_dims, stride
        self.iters, self.symmetric_norm, self.damping = iters, symmetric_norm, damping
        self.query = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.to_landmarks = conv(size, size, stride, stride)  # type: ignore[arg-type]
        self.norm = nn.LayerNorm(size)
        self.value_conv = conv(dim, dim, value_conv, padding=value_conv // 2, groups=dim) if value_conv else None
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor, grid: Sequence[int]) -> Tensor:
        """Attend among tokens (B, N, dim) that lie on a grid of N cells, each axis at least its stride."""
        if x.ndim != 3 or len(grid) != self.spatial_dims or math.prod(grid) != x.shape[1]:
            raise ValueError(f"x must be (B, {math.prod(grid)}, dim) for the grid {list(grid)}, got {tuple(x.shape)}")
        if any(n < s for n, s in zip(grid, self.stride, strict=True)):
            raise ValueError(
                f"landmark_stride {self.stride} is larger than the grid {list(grid)}; choose a smaller one"
            )
        batch, _, dim = x.shape
        q = self.query(x).reshape(batch, -1, self.num_heads, dim // self.num_heads).transpose(1, 2)
        v = self.value(x)
        maps = q.reshape(batch * self.num_heads, *grid, -1).movedim(-1, 1)
        marks = F.gelu(self.norm(self.to_landmarks(maps).flatten(2).transpose(1, 2)))
        marks = marks.reshape(batch, self.num_heads, *marks.shape[1:])
        heads = v.reshape(batch, -1, self.num_heads, dim // self.num_heads).transpose(1, 2)
        y = soft_attention(
            q, marks, heads, iters=self.iters, symmetric=self.symmetric_norm, damping=self.damping
        )  # fmt: skip
        y = y.transpose(1, 2).reshape(x.shape)
        if self.value_conv is not None:
            on_grid = v.transpose(1, 2).reshape(batch, dim, *grid)
            y = y + self.value_conv(on_grid).flatten(2).transpose(1, 2)
        return self.out(y)
