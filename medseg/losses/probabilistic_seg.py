"""Loss of a Probabilistic U-Net: fit of the samples to the annotations, and divergence of posterior from prior.

    L = set_weight D({s_1..s_N}, {y_1..y_M}) + seg_weight S(s_1, y_m) + kl_weight KL(posterior || prior)

with samples s from the posterior of one annotation y_m, D a distance between sets and S a loss on single masks. With D
alone this is the published method; with S alone the Probabilistic U-Net it improves on; a little S beside D gives every
voxel a gradient of its own, where the gradient of a distance has unit length whatever the number of voxels.

    KL = sum over latent components of log(p_std / q_std) + (q_std^2 + (q_mean - p_mean)^2) / (2 p_std^2) - 1/2

Sources: Kohl et al., "A Probabilistic U-Net for Segmentation of Ambiguous Images" (2018); Chatterjee et al., "PULASki"
(2025). Differs from the published code in that the divergence is averaged over the batch, where that sums it, so that
its weight grows with the batch; `kl_reduction="sum"` gives that.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch.distributions import Normal, kl_divergence
from torch.nn.modules.loss import _Loss

from medseg.losses.sample_set import SampleSetLoss

if TYPE_CHECKING:
    from medseg.networks import ProbabilisticOutput


class ProbabilisticSegLoss(_Loss):
    """Distance of sets, loss on single masks, and divergence, each with its weight.

    Args:
        set_loss: distance between samples (B, N, C, spatial...) and annotations (B, M, C, spatial...); where neither
            loss is given, `SampleSetLoss(sigmoid=True)`.
        seg_loss: any loss of logits (B, C, spatial...) and one annotation.
        set_weight: weight of the distance.
        seg_weight: weight of the loss on single masks.
        kl_weight: weight of the divergence.
        kl_reduction: "batch_mean" (sum over latent components, mean over the batch) or "sum" (over both, as published).

    Raises:
        ValueError: a weight is out of range or the reduction is unknown.

    Example:
        >>> loss = ProbabilisticSegLoss(SampleSetLoss("sinkhorn", sigmoid=True), kl_weight=0.1)
        >>> loss.kl_weight
        0.1
    """

    def __init__(
        self,
        set_loss: SampleSetLoss | None = None,
        seg_loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
        *,
        set_weight: float = 1.0,
        seg_weight: float = 1.0,
        kl_weight: float = 1.0,
        kl_reduction: str = "batch_mean",
    ) -> None:
        super().__init__()
        for name, weight in {"set_weight": set_weight, "seg_weight": seg_weight, "kl_weight": kl_weight}.items():
            if not (math.isfinite(weight) and weight >= 0):
                raise ValueError(f"{name} must be a finite number, at least 0, got {weight}")
        if kl_reduction not in ("batch_mean", "sum"):
            raise ValueError(f"kl_reduction must be batch_mean or sum, got {kl_reduction!r}")
        self.set_loss = SampleSetLoss(sigmoid=True) if set_loss is None and seg_loss is None else set_loss
        self.seg_loss = seg_loss
        self.set_weight, self.seg_weight = float(set_weight), float(seg_weight)
        self.kl_weight, self.kl_reduction = float(kl_weight), kl_reduction

    def forward(
        self,
        output: ProbabilisticOutput,
        annotations: torch.Tensor,
        drawn: torch.Tensor | None = None,
        annotation_mask: torch.Tensor | None = None,
        annotation_weights: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Compute the loss.

        Args:
            output: what the network gives for images and the annotations drawn.
            annotations: all annotations, (B, M, C, spatial...), as the distance takes them.
            drawn: the annotation that the posterior saw, (B, C, spatial...), as the loss on single masks takes it.
            annotation_mask: (B, M), true where an annotation exists.
            annotation_weights: (B, M), see `SampleSetLoss`.

        Returns:
            A scalar.

        Raises:
            ValueError: as the losses, or `drawn` is missing.
        """
        value = self.kl_weight * self.divergence(output.posterior, output.prior)
        if self.set_loss is not None:
            distance = self.set_loss(output.samples, annotations, None, annotation_weights, annotation_mask)
            value = value + self.set_weight * distance
        if self.seg_loss is not None:
            if drawn is None:
                raise ValueError("drawn is missing: seg_loss compares a sample with the annotation the posterior saw")
            value = value + self.seg_weight * self.seg_loss(output.samples[:, 0], drawn)
        return value

    def divergence(self, posterior: Normal, prior: Normal) -> torch.Tensor:
        """KL(posterior || prior) of Gaussians with components (B, latent), reduced to a scalar.

        Example:
            >>> one, two = (Normal(torch.full((4, 3), mean), 1.0) for mean in (0.0, 2.0))
            >>> ProbabilisticSegLoss().divergence(one, two)      # 3 components of 2^2 / 2
            tensor(6.)
        """
        with torch.autocast(posterior.loc.device.type, enabled=False):
            total = kl_divergence(posterior, prior).sum()
        return total / posterior.loc.shape[0] if self.kl_reduction == "batch_mean" else total
