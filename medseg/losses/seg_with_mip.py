"""A loss on voxels and the MIP loss beside it.

    loss = lambda_seg * voxel loss + lambda_mip * MIP loss

Source: Radhakrishna et al., "SPOCKMIP: Segmentation of Vessels in MRAs with Enhanced Continuity using Maximum Intensity
Projection as Loss" (2024), with the weights of the published code. Both terms are active from the first step.

Differs in that the voxel loss has one index for every item, not one for the batch: an item's loss does not depend on
its neighbours. For the published sum: `FocalTverskyLoss(batch=True)` and `MIPLoss(axis_reduction="sum")`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.modules.loss import _Loss

from medseg.losses._projection import Projections
from medseg.losses.focal_tversky import FocalTverskyLoss
from medseg.losses.mip import MIPLoss


class SegWithMIPLoss(_Loss):
    """Weighted sum of a loss on voxels and a loss on maximum projections.

    Args:
        seg_loss: any loss of (input, target); by default the focal Tversky loss.
        mip_loss: by default `MIPLoss` along all axes.
        lambda_seg: weight of the loss on voxels.
        lambda_mip: weight of the loss on projections.
        include_background: this and the following flags are for the default losses; a loss that is given has its own.
        to_onehot_y: whether target holds class ids (B, 1, spatial...).
        sigmoid: apply a sigmoid to the input.
        softmax: apply a softmax over the channels.
        other_act: apply this function instead.

    Raises:
        ValueError: a weight is out of range, flags contradict each other, or nothing is left that they could apply to.

    Example:
        >>> loss = SegWithMIPLoss(sigmoid=True)
        >>> logits, label = torch.zeros(1, 1, 4, 4, 4), torch.zeros(1, 1, 4, 4, 4)
        >>> loss(logits, label)
        tensor(0.8809)
    """

    def __init__(
        self,
        seg_loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
        mip_loss: MIPLoss | None = None,
        lambda_seg: float = 0.7,
        lambda_mip: float = 0.3,
        *,
        include_background: bool = True,
        to_onehot_y: bool = False,
        sigmoid: bool = False,
        softmax: bool = False,
        other_act: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        super().__init__()
        for name, weight in {"lambda_seg": lambda_seg, "lambda_mip": lambda_mip}.items():
            if not (math.isfinite(weight) and weight >= 0):
                raise ValueError(f"{name} must be a finite number, at least 0, got {weight}")
        flags: dict[str, Any] = {
            "include_background": include_background,
            "to_onehot_y": to_onehot_y,
            "sigmoid": sigmoid,
            "softmax": softmax,
            "other_act": other_act,
        }
        if seg_loss is not None and mip_loss is not None and (not include_background or any(list(flags.values())[1:])):
            raise ValueError("seg_loss and mip_loss are both given, so flags have no effect; set them on these losses")
        self.seg_loss = FocalTverskyLoss(**flags) if seg_loss is None else seg_loss
        self.mip_loss = MIPLoss(**flags) if mip_loss is None else mip_loss
        self.lambda_seg, self.lambda_mip = float(lambda_seg), float(lambda_mip)

    def forward(
        self,
        input: torch.Tensor,
        target: torch.Tensor,
        target_mips: Projections | None = None,
        mip_mask: Projections | None = None,
    ) -> torch.Tensor:
        """Compute the loss.

        Args:
            input: logits or probabilities, (B, C, H, W) or (B, C, H, W, D), as the two losses take them.
            target: masks of the same shape, or class ids, as the two losses take them.
            target_mips: projections to use in place of the target's, see `MIPLoss`.
            mip_mask: pixels of the projections that count, see `MIPLoss`.

        Returns:
            A scalar.

        Raises:
            ValueError: as the two losses.
        """
        mip = self.mip_loss(input, target, target_mips, mip_mask)
        return self.lambda_seg * self.seg_loss(input, target) + self.lambda_mip * mip
