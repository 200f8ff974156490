"""Size bounds: a class may take up any share of an image between two bounds, and pays for what lies outside.

With tau_c the mean probability of class c in an image,

    L = sum over classes c of  max(tau_c - upper_c, 0)^2 + max(lower_c - tau_c, 0)^2                for every image

Source: Kervadec, Dolz, Tang, Granger, Boykov, Ben Ayed, "Constrained-CNN losses for weakly supervised segmentation"
(Medical Image Analysis, 2019); for adaptation: Bateson, Dolz, Kervadec, Lombaert, Ben Ayed, "Constrained Domain
Adaptation for Image Segmentation" (IEEE Transactions on Medical Imaging, 2021).

Differs in the unit only: the published penalty takes voxel counts and is divided by N^2, which is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from medseg.losses._inputs import reduce
from medseg.losses._label_free import LabelFreeLoss, mean_over_voxels, read_mask


class SizeBoundLoss(LabelFreeLoss):
    """Quadratic penalty for class shares outside their bounds, for (B, C, H, W) or (B, C, H, W, D).

    Computed in float32 (float64 stays), outside autocast. Give images that lack a class another loss: the bounds are
    the same for all images.

    Args:
        lower: least share of each channel, from 0 (no bound) to 1.
        upper: largest share of each channel, from 0 to 1 (no bound), at least `lower`.
        include_background: whether channel 0 counts; a single channel always does.
        softmax: apply a softmax over the channels.
        sigmoid: apply a sigmoid to each channel; needs `softmax=False`.
        other_act: apply this function instead; needs `softmax=False`. With no activation at all, input must hold
            probabilities.
        reduction: "sum" over the images as published, "mean", or "none" for shape (B,).

    Raises:
        ValueError: an option is out of range or contradicts another.

    Example:
        >>> loss = SizeBoundLoss(lower=[0.0, 0.05], upper=[1.0, 0.2])
        >>> loss(torch.zeros(1, 2, 4, 4))               # a half is 0.3 too much
        tensor(0.0900)
    """

    def __init__(
        self,
        lower: Sequence[float],
        upper: Sequence[float],
        *,
        include_background: bool = True,
        softmax: bool = True,
        sigmoid: bool = False,
        other_act: Callable[[torch.Tensor], torch.Tensor] | None = None,
        reduction: str = "sum",
    ) -> None:
        super().__init__(
            include_background=include_background,
            softmax=softmax,
            sigmoid=sigmoid,
            other_act=other_act,
            reduction=reduction,
        )
        if len(lower) != len(upper):
            raise ValueError(f"lower and upper must be equally long, got {len(lower)} and {len(upper)} numbers")
        for channel, (low, high) in enumerate(zip(lower, upper, strict=True)):
            if not 0 <= low <= high <= 1:
                raise ValueError(
                    f"bounds of channel {channel} must be shares with 0 <= lower <= upper <= 1, got {low} and {high}; "
                    "divide voxel counts by the number of voxels"
                )
        self.lower, self.upper = [float(v) for v in lower], [float(v) for v in upper]

    def forward(self, input: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Compute the loss.

        Args:
            input: logits or probabilities, (B, C, H, W) or (B, C, H, W, D), any float type.
            mask: (B, 1, spatial...), the voxels that count; all by default.

        Returns:
            A scalar, or (B,) without reduction; float32, or float64 if the input is.

        Raises:
            ValueError: shapes or types do not fit.
        """
        channels = input.shape[1]
        if len(self.lower) != channels:
            raise ValueError(f"lower and upper hold {len(self.lower)} numbers, but input has {channels} channels")
        with torch.autocast(input.device.type, enabled=False):
            ratios = mean_over_voxels(self.log_probabilities(input).exp(), read_mask(mask, input))
            ratio = self.per_channel(ratios, channels)
            lower, upper = (ratio.new_tensor(v) for v in (self.lower, self.upper))
            penalty = (ratio - upper).clamp(min=0) ** 2 + (lower - ratio).clamp(min=0) ** 2
            values = (penalty * self.channel_weights(None, input).reshape(1, -1)).sum(1)
        return reduce(values, self.reduction)
