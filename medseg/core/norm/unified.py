"""Unified Normalization: running statistics smoothed over a window of steps, with outliers left out.

A foldable norm in the spirit of PowerNorm. Q holds the quadratic means of the last K steps; in training step t:

    q = mean of x^2 per channel;   Q[t mod K] = q
    outlier:  arithmetic mean of Q - geometric mean of Q > K * variance of sqrt(Q before this step), in any channel
              -> Q[t mod K] = running value, and the step uses q alone
    s = geometric mean of Q        (q itself while t <= K, in warm-up, and in outlier steps)
    r = clamp(sqrt((s + eps) / (running + eps)), 0.2, 5)       (1 until `grad_compensation_start`, and in outlier steps)
    z = x / sqrt(s + eps),  y = w z + b,   running <- m running + (1 - m) s

and backwards, with B the window of gradient statistics and E its moving average:

    h = g w r,   B[t mod K] = mean(h z),   E <- m E + (1 - m) mean of B,   gx = (h - E z) / sqrt(s + eps)

Evaluation uses `running` alone. Yang et al., "Unified Normalization for Accelerating and Stabilizing Transformers" (ACM
MM 2022), and its code, which this follows. Differences: the published windows start at zero, so that the geometric mean
is zero and steps are taken for outliers until they are full; here the first step fills them
(`init_buffers="zeros"` gives the published start). The published code lets one channel's outlier set the step aside for
all (`per_channel_filter=True` does so for that channel alone), and fixes `grad_compensation_start` at 1000.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from medseg.core.norm.feature_norm import (
    RunningNorm,
    batch_mean,
    check_rate,
    count_values,
    per_channel,
    to_full_precision,
)


class UnifiedNorm(RunningNorm):
    """Unified Normalization for feature maps; works with a batch of one and folds into a convolution.

    State moves once per forward and once per backward pass; second derivatives are refused.

    Args:
        num_features: channels C.
        window: steps K that are smoothed over, or [forward, backward]; 1 smooths nothing.
        warmup_iters: steps W with the batch's own statistics. 4000 is the published value; a few hundred suit
            segmentation.
        grad_compensation_start: step from which the gradient is rescaled by r, at least W.
        outlier_filtration: set outlier steps aside; advised for images.
        eps: added to the quadratic mean.
        momentum: how much of the running values is kept each step, 0 to 1.
        affine: learn a scale and a shift for each channel.
        init_buffers: "first" or "zeros", what the windows hold at the start.
        per_channel_filter: an outlier sets its own channel aside, not the layer.
        sync: average over all ranks of a distributed run.

    Raises:
        ValueError: an argument out of range, or an input of another shape.

    Example:
        >>> layer = UnifiedNorm(4, window=2, warmup_iters=0)
        >>> _ = layer(torch.randn(1, 4, 6, 6, 6))
        >>> int(layer.num_batches), int(layer.skipped_steps)
        (1, 0)
    """

    running_var: Tensor
    window_forward: Tensor
    window_backward: Tensor
    grad_stat: Tensor
    num_batches: Tensor
    skipped_steps: Tensor

    def __init__(
        self,
        num_features: int,
        window: int | list[int] = 4,
        warmup_iters: int = 4000,
        grad_compensation_start: int = 1000,
        outlier_filtration: bool = True,
        eps: float = 1e-5,
        momentum: float = 0.9,
        affine: bool = True,
        init_buffers: Literal["first", "zeros"] = "first",
        per_channel_filter: bool = False,
        sync: bool = False,
    ) -> None:
        super().__init__(num_features, eps=eps, affine=affine)
        check_rate(momentum, "momentum")
        sizes = [window, window] if isinstance(window, int) else list(window)
        if len(sizes) != 2 or min(sizes) < 1:
            raise ValueError(f"window must be a positive number or [forward, backward], got {window!r}")
        if init_buffers not in ("first", "zeros"):
            raise ValueError(f"init_buffers must be first or zeros, got {init_buffers!r}")
        self.warmup_iters = warmup_iters
        self.grad_compensation_start = grad_compensation_start
        self.outlier_filtration = outlier_filtration
        self.momentum = momentum
        self.init_buffers = init_buffers
        self.per_channel_filter = per_channel_filter
        self.sync = sync
        self.register_buffer("running_var", torch.ones(num_features))
        self.register_buffer("window_forward", torch.zeros(sizes[0], num_features))
        self.register_buffer("window_backward", torch.zeros(sizes[1], num_features))
        self.register_buffer("grad_stat", torch.zeros(num_features))
        self.register_buffer("num_batches", torch.zeros((), dtype=torch.int64))
        self.register_buffer("skipped_steps", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, C, spatial...)."""
        self.check_input(x)
        full = to_full_precision(x)
        if not self.learns_statistics:
            z = full * per_channel(torch.rsqrt(self.running_var + self.eps), full)
            return self.apply_affine(z).to(x.dtype)
        self.check_count(count_values(x), "batch and voxels")
        self.num_batches += 1
        q = batch_mean(full.detach().square(), self.sync)
        outlier = self._enter(q)
        early = (self.num_batches <= len(self.window_forward)) | (self.num_batches < self.warmup_iters) | outlier
        s = torch.where(early, q, self.window_forward.log().mean(0).exp())
        ratio = self._compensate(s, outlier)
        self.remember("running_var", self.momentum * self.running_var + (1 - self.momentum) * s)
        scale = torch.rsqrt(s + self.eps)
        state = (
            self.window_backward,
            self.grad_stat,
            self.num_batches.clone(),
            self.warmup_iters,
            self.momentum,
            self.sync,
        )
        z = _WindowedGradient.apply(full, scale, outlier, *state)
        if self.weight is not None:
            z = z * per_channel(self.weight, z)
        y = _ScaledGradient.apply(z, ratio)
        # A copy where nothing is added: y is a view, which an activation that works in place may not write to.
        return (y.clone() if self.bias is None else y + per_channel(self.bias, y)).to(x.dtype)

    def inference_affine(self) -> tuple[Tensor, Tensor]:
        """Give scale and shift per channel that evaluation amounts to."""
        scale = torch.rsqrt(self.running_var + self.eps)
        if self.weight is None or self.bias is None:
            return scale, torch.zeros_like(scale)
        return scale * self.weight, self.bias

    @torch.no_grad()
    def _enter(self, q: Tensor) -> Tensor:
        """Put q into the window; give where the step is an outlier, for the layer () or for each channel (C,)."""
        rows = self.window_forward
        if self.init_buffers == "first":
            rows.copy_(torch.where(self.num_batches == 1, q.expand_as(rows), rows))
        # A variance needs two rows; a window of one has none, and its only row no spread to filter by.
        spread = rows.sqrt().var(0) if len(rows) > 1 else torch.zeros_like(q)
        place = torch.remainder(self.num_batches, len(rows)).reshape(1)
        rows.index_copy_(0, place, torch.where(torch.isfinite(q), q, self.running_var).to(rows.dtype)[None])
        if not self.outlier_filtration:
            return torch.zeros((), dtype=torch.bool, device=q.device)
        apart = rows.mean(0) - rows.log().mean(0).exp() > len(rows) * spread
        apart &= self.num_batches >= self.warmup_iters
        outlier = apart if self.per_channel_filter else apart.any()
        rows.index_copy_(0, place, torch.where(outlier, self.running_var, rows.index_select(0, place)))
        self.skipped_steps += outlier.any()
        return outlier

    @torch.no_grad()
    def _compensate(self, s: Tensor, outlier: Tensor) -> Tensor:
        ratio = ((s + self.eps) / (self.running_var + self.eps)).sqrt().clamp(0.2, 5)
        plain = (self.num_batches <= max(self.grad_compensation_start, self.warmup_iters)) | outlier
        return torch.where(plain, torch.ones_like(ratio), ratio)


class _WindowedGradient(torch.autograd.Function):
    """z = x r forwards; backwards (h - E z) r, where h is the gradient by z and E its windowed statistic."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scale: Tensor,
        outlier: Tensor,
        window: Tensor,
        grad_stat: Tensor,
        step: Tensor,
        warmup: int,
        momentum: float,
        sync: bool,
    ) -> Tensor:
        ctx.save_for_backward(x, scale, outlier, step)
        ctx.window, ctx.grad_stat, ctx.warmup, ctx.momentum, ctx.used = window, grad_stat, warmup, momentum, None
        ctx.sync = sync
        return x * per_channel(scale, x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, h: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, outlier, step = ctx.saved_tensors
        z = x * per_channel(scale, x)
        if ctx.used is None:
            ctx.used = _move_window(ctx, batch_mean(h * z, ctx.sync), outlier, step)
        gx = (h - per_channel(ctx.used, z) * z) * per_channel(scale, z)
        return gx, *(None,) * 8


def _move_window(ctx: Any, gz: Tensor, outlier: Tensor, step: Tensor) -> Tensor:
    """Enter this step's statistic and give the one that its gradient uses."""
    rows, average = ctx.window, ctx.grad_stat
    entry = torch.where(outlier | ~torch.isfinite(gz), average, gz.to(rows.dtype))
    rows.index_copy_(0, torch.remainder(step, len(rows)).reshape(1), entry[None])
    early = (step <= len(rows)) | (step < ctx.warmup) | outlier
    mean = torch.where(early, gz.to(rows.dtype), rows.mean(0))
    new = ctx.momentum * average + (1 - ctx.momentum) * mean
    average.copy_(torch.where(torch.isfinite(new), new, average))
    return torch.where(outlier, mean, average)


class _ScaledGradient(torch.autograd.Function):
    """The same values; the gradient of channel c is multiplied by ratio[c]."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, ratio: Tensor) -> Tensor:
        ctx.save_for_backward(ratio)
        return v.view_as(v)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        (ratio,) = ctx.saved_tensors
        return g * per_channel(ratio, g), None
