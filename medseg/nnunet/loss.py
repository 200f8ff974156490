"""Losses as nnU-Net calls them: lists of outputs and targets, ids of any integer type, logits of any float type.

    loss = sum over the levels i of  w_i L(output_i, target_i)  +  v M(output_0, target_0)

L is cheap and taken at every level, M is dear (a persistence barcode, say) and taken at the finest alone. The weights
w_i halve from level to level, the coarsest level is left out, and they add up to 1, as in nnU-Net.

Source: Isensee et al., "nnU-Net: a self-configuring method for deep learning-based biomedical image segmentation"
(2021), code of version 2.8. Differs in that one level alone has weight 1: there, nnU-Net divides 0 by 0 and trains on
NaN (its issue 2670).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import nn

from medseg.losses import DeepSupervisionLoss

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def find_level_weights(levels: int, *, keep_coarsest: bool = False) -> list[float]:
    """Give nnU-Net's weights of deep supervision, finest first.

    Args:
        levels: number of outputs, at least 1.
        keep_coarsest: give the coarsest level a weight of 1e-6 rather than 0, so that each parameter has a gradient,
            as `DistributedDataParallel` wants.

    Returns:
        Weights that add up to 1.

    Raises:
        ValueError: there is no level.

    Example:
        >>> find_level_weights(3)
        [0.6666666666666666, 0.3333333333333333, 0.0]
        >>> find_level_weights(1)
        [1.0]
    """
    if levels < 1:
        raise ValueError(f"levels must be at least 1, got {levels}")
    weights = [0.5**level for level in range(levels)]
    if levels > 1:
        weights[-1] = 1e-6 if keep_coarsest else 0.0
    return [weight / sum(weights) for weight in weights]


class NNUNetLoss(nn.Module):
    """A loss at every level of deep supervision, and if wanted a dear one at the finest.

    Args:
        loss: taken at every level.
        level_weights: weights of the levels, finest first, see `find_level_weights`; None for a network with one
            output.
        finest: further loss for the finest output alone.
        finest_weight: its weight; a trainer may change it while it runs. At 0 the loss is not computed.

    Raises:
        ValueError: a weight is out of range.

    Example:
        >>> loss = NNUNetLoss(nn.L1Loss(), find_level_weights(2), finest=nn.MSELoss(), finest_weight=0.5)
        >>> outputs = [torch.ones(1, 1, 4, 4), torch.ones(1, 1, 2, 2)]
        >>> loss(outputs, [torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 2, 2)])
        tensor(1.5000)
    """

    def __init__(
        self,
        loss: Loss,
        level_weights: Sequence[float] | None = None,
        *,
        finest: Loss | None = None,
        finest_weight: float = 1.0,
    ) -> None:
        super().__init__()
        if not (math.isfinite(finest_weight) and finest_weight >= 0):
            raise ValueError(f"finest_weight must be a finite number, at least 0, got {finest_weight}")
        self.levels = DeepSupervisionLoss(loss, level_weights)
        self.finest, self.finest_weight = finest, float(finest_weight)

    def forward(
        self, output: torch.Tensor | Sequence[torch.Tensor], target: torch.Tensor | Sequence[torch.Tensor]
    ) -> torch.Tensor:
        """Compute the loss.

        Args:
            output: logits (B, C, spatial...), or a list of them, finest first.
            target: class ids (B, 1, spatial...), or boolean masks of regions (B, C, spatial...), or a list of them.

        Returns:
            A scalar.

        Raises:
            ValueError: the lists do not fit each other, or as the losses.
        """
        if isinstance(output, torch.Tensor) or self.levels.weights is None:
            output, target = _first(output), _first(target)
        total = self.levels(output, target)
        if self.finest is not None and self.finest_weight:
            total = total + self.finest_weight * self.finest(_first(output), _first(target))
        return total


def _first(tensors: torch.Tensor | Sequence[torch.Tensor]) -> torch.Tensor:
    return tensors if isinstance(tensors, torch.Tensor) else tensors[0]
