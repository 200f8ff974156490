"""Weighted entropy: how undecided a network is, class by class.

For probabilities p (B, C, spatial...), class weights nu and N voxels,

    L = -(1/N) sum over voxels i, classes c of  nu_c p_ic log p_ic                       for every image

Minimised alone it drifts to the class that is easiest to be sure of; `ClassRatioKLLoss` holds against that.

Sources: Bateson, Kervadec, Dolz, Lombaert, Ben Ayed, "Source-Relaxed Domain Adaptation for Image Segmentation" (MICCAI
2020) and "Source-Free Domain Adaptation for Image Segmentation" (Medical Image Analysis, 2022); without weights: Wang,
Shelhamer, Liu, Olshausen, Darrell, "Tent: Fully Test-Time Adaptation by Entropy Minimization" (ICLR 2021).

Differs from the published code in that logarithms are those of the softmax, not log(p + 1e-10): below 1e-7 apart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from medseg.losses._inputs import reduce
from medseg.losses._label_free import LabelFreeLoss, check_at_least_zero


class WeightedEntropyLoss(LabelFreeLoss):
    """Entropy of the class probabilities of (B, C, H, W) or (B, C, H, W, D), in nats, mean over voxels.

    Computed in float32 (float64 stays), outside autocast.

    Args:
        weight: one number for each channel, at least 0; 1 by default. A rare class needs a larger one: see
            `medseg.data.ClassRatioPrior.class_weight`.
        softmax: apply a softmax over the channels.
        sigmoid: apply a sigmoid to each channel, whose two-class entropies are then summed. Needs `softmax=False`.
        reduction: "mean" or "sum" over the images, or "none" for shape (B,).
        include_background: whether channel 0 counts; a single channel always does.
        other_act: apply this function instead; needs `softmax=False`. With no activation at all, input must hold
            probabilities whose channels sum to 1, or one channel.

    Raises:
        ValueError: an option is out of range or contradicts another.

    Example:
        >>> loss = WeightedEntropyLoss()
        >>> loss(torch.zeros(1, 2, 4, 4))       # log 2
        tensor(0.6931)
        >>> loss(torch.tensor([40.0, 0.0]).view(1, 2, 1, 1)) < 1e-6
        tensor(True)
    """

    def __init__(
        self,
        weight: Sequence[float] | None = None,
        softmax: bool = True,
        sigmoid: bool = False,
        reduction: str = "mean",
        *,
        include_background: bool = True,
        other_act: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        super().__init__(
            include_background=include_background,
            softmax=softmax,
            sigmoid=sigmoid,
            other_act=other_act,
            reduction=reduction,
        )
        check_at_least_zero(**{f"weight[{i}]": w for i, w in enumerate(weight or ())})
        self.weight = None if weight is None else [float(w) for w in weight]

    def forward(self, input: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Compute the loss.

        Args:
            input: logits or probabilities, (B, C, H, W) or (B, C, H, W, D), any float type.
            mask: (B, 1, spatial...), the voxels that count; all by default. An image with an empty mask adds 0.

        Returns:
            A scalar, or (B,) without reduction; float32, or float64 if the input is.

        Raises:
            ValueError: shapes or types do not fit.
        """
        with torch.autocast(input.device.type, enabled=False):
            return reduce(self.values(self.means(input, mask)[0], input), self.reduction)

    def values(self, entropy: torch.Tensor, input: torch.Tensor) -> torch.Tensor:
        """One value an image, (B,), from the entropies that `means` gave."""
        return (entropy * self.channel_weights(self.weight, input)).sum((1, 2))
