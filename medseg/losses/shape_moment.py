"""Shape moments: a structure must lie where it is known to lie, or be as wide as it is known to be.

For a class map p over positions x in mm, for each spatial axis

    centroid                m = sum x p / (sum p + 1e-10)
    distance_to_centroid    d = sqrt(sum (x - m)^2 p / (sum p + 1e-10) + 1e-6)
    L = sum over classes and axes of  max(v - t (1 + margin), 0)^2 + max(t (1 - margin) - v, 0)^2   for every image

with v the moment of the prediction and t the expected one. A class counts in an image where it is tagged as present and
more than `min_voxels` voxels were predicted: the moments of a stray voxel say nothing.

Source: Bateson, Lombaert, Ben Ayed, "Test-Time Adaptation with Shape Moments for Image Segmentation" (MICCAI 2022).

Differs from the published code: positions are in mm, not in voxels; the margin is a band without a penalty (there its
signs are swapped, so that it costs most inside); the root has a guard, as its slope at 0 is infinite.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from medseg.losses._inputs import in_full_precision, reduce
from medseg.losses._label_free import LabelFreeLoss, read_mask

MOMENTS = ("centroid", "distance_to_centroid")
_TINY = 1e-10
_SMALLEST_VARIANCE = 1e-6


def compute_shape_moments(
    probabilities: torch.Tensor, moment: str = "centroid", spacing: Sequence[float] | float = 1.0
) -> torch.Tensor:
    """Measure where each class lies, or how far it spreads, along each spatial axis.

    Args:
        probabilities: class maps or one-hot masks, (B, C, H, W) or (B, C, H, W, D).
        moment: "centroid", from the first voxel on, or "distance_to_centroid", the standard deviation.
        spacing: mm between voxels, for each axis or for all.

    Returns:
        Shape (B, C, axes), in mm.

    Raises:
        ValueError: an option is unknown, or shapes do not fit.

    Example:
        >>> bar = torch.zeros(1, 1, 5, 5)
        >>> bar[..., 2, 1:4] = 1
        >>> compute_shape_moments(bar, spacing=[1.0, 2.0])
        tensor([[[2., 4.]]])
    """
    if moment not in MOMENTS:
        raise ValueError(f"moment must be {' or '.join(MOMENTS)}, got {moment!r}")
    axes = probabilities.ndim - 2
    if axes not in (2, 3):
        raise ValueError(f"probabilities must be (B, C, H, W) or (B, C, H, W, D), got {tuple(probabilities.shape)}")
    steps = [float(spacing)] * axes if isinstance(spacing, (int, float)) else list(spacing)
    if len(steps) != axes:
        raise ValueError(f"spacing must be one number, or one for each of {axes} axes, got {steps}")
    p = in_full_precision(probabilities)
    found = []
    for axis, step in enumerate(steps):
        # Only the profile along the axis matters, which spares an array of positions as large as the image.
        profile = p.sum([a + 2 for a in range(axes) if a != axis])
        position = torch.arange(profile.shape[-1], device=p.device, dtype=p.dtype) * step
        total = profile.sum(-1) + _TINY
        centre = (profile * position).sum(-1) / total
        if moment == "distance_to_centroid":
            variance = (profile * (position - centre[..., None]) ** 2).sum(-1) / total
            centre = (variance + _SMALLEST_VARIANCE).sqrt()
        found.append(centre)
    return torch.stack(found, dim=-1)


class ShapeMomentLoss(LabelFreeLoss):
    """Squared deviation in mm^2 of shape moments from expected ones, for (B, C, H, W) or (B, C, H, W, D).

    Computed in float32 (float64 stays), outside autocast. The published weight beside entropy and class ratios is 1e-4.

    Args:
        moment: "centroid", from the first voxel on, or "distance_to_centroid".
        spacing: mm between voxels, for each spatial axis or for all.
        margin: share of the expected moment that it may be off by without a cost.
        min_voxels: a class with no more predicted voxels than this does not count.
        include_background: whether channel 0 counts, which it seldom should; a single channel always does.
        softmax: apply a softmax over the channels.
        sigmoid: apply a sigmoid to each channel; needs `softmax=False`.
        other_act: apply this function instead; needs `softmax=False`. With no activation at all, input must hold
            probabilities.
        reduction: "mean" or "sum" over the images, or "none" for shape (B,).

    Raises:
        ValueError: an option is out of range or contradicts another.

    Example:
        >>> logits = torch.zeros(1, 2, 5, 5)
        >>> logits[0, 1, 2, 2:] = 9.0                   # three voxels around column 3
        >>> loss = ShapeMomentLoss(min_voxels=2)
        >>> found = compute_shape_moments(logits.softmax(1))
        >>> loss(logits, found), loss(logits, found + torch.tensor([0.0, 2.0])).round(decimals=4)
        (tensor(0.), tensor(4.))
    """

    def __init__(
        self,
        moment: str = "centroid",
        spacing: Sequence[float] | float = 1.0,
        *,
        margin: float = 0.0,
        min_voxels: int = 10,
        include_background: bool = False,
        softmax: bool = True,
        sigmoid: bool = False,
        other_act: Callable[[torch.Tensor], torch.Tensor] | None = None,
        reduction: str = "mean",
    ) -> None:
        super().__init__(
            include_background=include_background,
            softmax=softmax,
            sigmoid=sigmoid,
            other_act=other_act,
            reduction=reduction,
        )
        if moment not in MOMENTS:
            raise ValueError(f"moment must be {' or '.join(MOMENTS)}, got {moment!r}")
        steps = [spacing] if isinstance(spacing, (int, float)) else list(spacing)
        if not steps or not all(math.isfinite(s) and s > 0 for s in steps):
            raise ValueError(f"spacing must be mm above 0, got {spacing}")
        if not 0 <= margin < 1:
            raise ValueError(f"margin must be in [0, 1), got {margin}")
        if min_voxels < 0:
            raise ValueError(f"min_voxels must be at least 0, got {min_voxels}")
        self.moment, self.spacing = moment, spacing
        self.margin, self.min_voxels = float(margin), int(min_voxels)

    def forward(
        self,
        input: torch.Tensor,
        target_moment: torch.Tensor,
        tags: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Compute the loss.

        Args:
            input: logits or probabilities, (B, C, H, W) or (B, C, H, W, D), any float type.
            target_moment: expected moments in mm, (C, axes) or (B, C, axes), as `compute_shape_moments` measures them.
            tags: (C,) or (B, C), which classes are present; all by default.
            mask: (B, 1, spatial...), the voxels that count; all by default.

        Returns:
            A scalar, or (B,) without reduction; float32, or float64 if the input is.

        Raises:
            ValueError: shapes or types do not fit.
        """
        batch, channels, *size = input.shape
        if tuple(target_moment.shape) not in ((channels, len(size)), (batch, channels, len(size))):
            expected = f"({channels}, {len(size)}) or ({batch}, {channels}, {len(size)})"
            raise ValueError(f"target_moment must have shape {expected}, got {tuple(target_moment.shape)}")
        if tags is not None and tuple(tags.shape) not in ((channels,), (batch, channels)):
            raise ValueError(f"tags must have shape ({channels},) or ({batch}, {channels}), got {tuple(tags.shape)}")
        with torch.autocast(input.device.type, enabled=False):
            p = self._class_maps(input, mask)
            found = compute_shape_moments(p, self.moment, self.spacing)
            expected = target_moment.to(found)
            above = (found - expected * (1 + self.margin)).clamp(min=0)
            below = (expected * (1 - self.margin) - found).clamp(min=0)
            penalty = (above**2 + below**2).sum(-1)
            counted = self._is_large(p) & self._is_tagged(tags, input)
            return reduce(torch.where(counted, penalty, 0).sum(1), self.reduction)

    def _class_maps(self, input: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        weights = read_mask(mask, input)
        p = self.log_probabilities(input).exp()
        p = p if weights is None else p * weights.to(p)
        return self.per_channel(p, input.shape[1]).reshape(input.shape)

    def _is_large(self, p: torch.Tensor) -> torch.Tensor:
        """Where a class was predicted in more than the least number of voxels, (B, C)."""
        p = p.detach().flatten(2)
        chosen = p > 0.5 if self.is_channelwise(p.shape[1]) else (p == p.amax(1, keepdim=True)) & (p > 0)
        # A NaN equals nothing; its class must count all the same, so that it is seen.
        return (chosen.sum(-1) > self.min_voxels) | p.isnan().any(-1)

    def _is_tagged(self, tags: torch.Tensor | None, input: torch.Tensor) -> torch.Tensor:
        counted = self.channel_weights(None, input).reshape(1, -1) > 0
        return counted if tags is None else counted & tags.to(input.device).bool()
