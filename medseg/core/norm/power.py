"""PowerNorm: divide by a remembered quadratic mean, in training as in evaluation.

Batch statistics of one or two patches are noise. Here training divides by the running quadratic mean phi of earlier
steps, so that the layer does the same in training and evaluation and can be folded into a convolution:

    q = mean of x^2 per channel          (over batch and voxels; nothing is centred)
    z = x / sqrt(phi + eps),  y = w z + b
    phi <- a_f phi + (1 - a_f) q

and the gradient goes through a running statistic nu instead of through q:

    h = g w - nu z,   gx = h / sqrt(d + eps)
    nu <- nu (1 - (1 - a_b) mean(z^2)) + (1 - a_b) mean(g w z)

Until step W (warm-up) the batch's own q stands in for phi, which meanwhile also gathers the plain average of all q.

Shen, Yao, Gholami, Mahoney, Keutzer, "PowerNorm: Rethinking Batch Normalization in Transformers" (ICML 2020), and its
code. They disagree on d: the paper divides the gradient by the running phi, the code by the q of the batch. The
published results come from the code, which is the default here (`grad_denominator="batch"`). The code divides each
token by the root mean square of its channels first (`group_scaling=1`); for feature maps that is off by default, since
next to the border of an image it amplifies whatever little there is. Without centring, a constant offset of the
features dominates phi.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from medseg.core.norm.feature_norm import (
    RunningNorm,
    batch_mean,
    check_groups,
    check_rate,
    count_values,
    per_channel,
    to_full_precision,
)


class PowerNorm(RunningNorm):
    """PowerNorm for feature maps; a drop-in for batch normalisation that works with a batch of one.

    State moves once per forward and once per backward pass, so k micro-steps of gradient accumulation are k updates. A
    second backward pass through the same forward leaves the state alone; second derivatives are refused.

    Args:
        num_features: channels C.
        eps: added to the quadratic mean.
        alpha_fwd: how much of the running quadratic mean is kept each step, 0 to 1.
        alpha_bwd: the same for the statistic of the gradient.
        warmup_iters: steps with the batch's own quadratic mean. 10000 is for language models; one or two epochs, about
            500 steps of an nnU-Net, are plenty for segmentation.
        affine: learn a scale and a shift for each channel.
        group_scaling: None, or the number of groups of channels by whose root mean square each voxel is divided first.
        grad_denominator: "batch" as in the published code, or "running" as in the paper.
        sync: average over all ranks of a distributed run.
        allow_single_value: in training, accept one value per channel instead of raising.

    Raises:
        ValueError: an argument out of range, or an input of another shape.

    Example:
        >>> layer = PowerNorm(4, warmup_iters=0)
        >>> x = torch.randn(1, 4, 6, 6, 6)
        >>> _ = layer(x)
        >>> int(layer.num_batches), tuple(layer.eval()(x).shape)
        (1, (1, 4, 6, 6, 6))
    """

    running_phi: Tensor
    grad_stat: Tensor
    num_batches: Tensor

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        alpha_fwd: float = 0.9,
        alpha_bwd: float = 0.9,
        warmup_iters: int = 10000,
        affine: bool = True,
        group_scaling: int | None = None,
        grad_denominator: Literal["batch", "running"] = "batch",
        sync: bool = False,
        allow_single_value: bool = False,
    ) -> None:
        super().__init__(num_features, eps=eps, affine=affine, allow_single_value=allow_single_value)
        check_rate(alpha_fwd, "alpha_fwd")
        check_rate(alpha_bwd, "alpha_bwd")
        if group_scaling is not None:
            check_groups(group_scaling, num_features)
        if grad_denominator not in ("batch", "running"):
            raise ValueError(f"grad_denominator must be batch or running, got {grad_denominator!r}")
        self.alpha_fwd = alpha_fwd
        self.alpha_bwd = alpha_bwd
        self.warmup_iters = warmup_iters
        self.group_scaling = group_scaling
        self.grad_denominator = grad_denominator
        self.sync = sync
        self.register_buffer("running_phi", torch.ones(num_features))
        self.register_buffer("grad_stat", torch.zeros(num_features))
        self.register_buffer("num_batches", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Normalise (B, C, spatial...); `mask` (B, 1, spatial...) picks the voxels that training statistics count."""
        self.check_input(x)
        full = to_full_precision(x)
        if self.group_scaling is not None:
            full = scale_groups(full, self.group_scaling)
        if not self.learns_statistics:
            z = full * per_channel(torch.rsqrt(self.running_phi + self.eps), full)
            return self.apply_affine(z).to(x.dtype)
        self.check_count(count_values(x), "batch and voxels")
        q = self._quadratic_mean(full.detach(), mask)
        self.num_batches += 1
        phi = torch.where(self.num_batches <= self.warmup_iters, q, self.running_phi)
        self._remember(q)
        divisor = q if self.grad_denominator == "batch" else phi
        scales = (torch.rsqrt(phi + self.eps), torch.rsqrt(divisor + self.eps))
        z = _GradientStatistic.apply(full, *scales, self.grad_stat, self.alpha_bwd, self.sync)
        return self.apply_affine(z).to(x.dtype)

    def inference_affine(self) -> tuple[Tensor, Tensor] | None:
        """Give scale and shift per channel that evaluation amounts to; None with `group_scaling`."""
        if self.group_scaling is not None:
            return None
        scale = torch.rsqrt(self.running_phi + self.eps)
        if self.weight is None or self.bias is None:
            return scale, torch.zeros_like(scale)
        return scale * self.weight, self.bias

    def _quadratic_mean(self, x: Tensor, mask: Tensor | None) -> Tensor:
        if mask is None:
            return batch_mean(x.square(), self.sync)
        if mask.shape != (x.shape[0], 1, *x.shape[2:]):
            raise ValueError(f"mask must be {(x.shape[0], 1, *x.shape[2:])}, got {tuple(mask.shape)}")
        inside = mask.to(x.dtype)
        return batch_mean(x.square() * inside, self.sync) / batch_mean(inside, self.sync).clamp_min(1e-12)

    @torch.no_grad()
    def _remember(self, q: Tensor) -> None:
        step = self.num_batches.to(q.dtype)
        averaged = self.running_phi * ((step - 1) / step) + q / step
        # During warm-up the published code takes both steps, the plain average and then the moving one.
        start = torch.where(step < self.warmup_iters, averaged, self.running_phi)
        self.remember("running_phi", self.alpha_fwd * start + (1 - self.alpha_fwd) * q)


class _GradientStatistic(torch.autograd.Function):
    """z = x r forwards; backwards (g - nu z) r', where g is the gradient by z, and nu moves."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scale: Tensor,
        grad_scale: Tensor,
        grad_stat: Tensor,
        alpha: float,
        sync: bool,
    ) -> Tensor:
        ctx.save_for_backward(x, scale, grad_scale)
        ctx.grad_stat, ctx.alpha, ctx.sync, ctx.nu = grad_stat, alpha, sync, None
        return x * per_channel(scale, x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, grad_scale = ctx.saved_tensors
        z = x * per_channel(scale, x)
        if ctx.nu is None:
            ctx.nu = ctx.grad_stat.clone()
            kept = ctx.nu * (1 - (1 - ctx.alpha) * batch_mean(z.square(), ctx.sync))
            new = kept + (1 - ctx.alpha) * batch_mean(g * z, ctx.sync)
            ctx.grad_stat.copy_(torch.where(torch.isfinite(new), new, ctx.nu))
        gx = (g - per_channel(ctx.nu, z) * z) * per_channel(grad_scale, z)
        return gx, None, None, None, None, None


def scale_groups(x: Tensor, groups: int, eps: float = 1e-5) -> Tensor:
    """Divide each voxel by the root mean square of each group of its channels.

    Args:
        x: (B, C, spatial...).
        groups: a divisor of C.
        eps: added to the mean square.

    Returns:
        (B, C, spatial...).

    Example:
        >>> scale_groups(torch.tensor([[[3.0], [-3.0]]]), 1).flatten().round().tolist()
        [1.0, -1.0]
    """
    check_groups(groups, x.shape[1])
    split = x.reshape(x.shape[0], groups, -1, *x.shape[2:])
    scale = torch.rsqrt(split.square().mean(2, keepdim=True) + eps)
    return (split * scale).reshape(x.shape)
