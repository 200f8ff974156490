"""Focal Tversky loss: overlap with separate prices for false positives and misses, bent towards hard structures.

With probabilities p and target y, summed over the voxels of one item and class,

    TP = sum p y,   FP = sum p (1 - y),   FN = sum (1 - p) y
    u  = (alpha FP + beta FN) / (TP + alpha FP + beta FN + smooth)          (1 - the Tversky index)
    L  = u^gamma where u > eps,   u eps^(gamma - 1) below,                  eps = 1e-6

The sums come from `medseg.core.kernels.class_sums` (FP = sum p - TP, FN = sum y - TP), without one-hot labels and
copies of the probabilities; what stands here is a formula on (B, C) tensors.

Source: Abraham, Khan, "A Novel Focal Tversky Loss Function with Improved Attention U-Net for Lesion Segmentation"
(ISBI 2019), whose gamma is the inverse of ours; defaults are those of Radhakrishna et al., "SPOCKMIP: Segmentation of
Vessels in MRAs with Enhanced Continuity using Maximum Intensity Projection as Loss" (2024).

Differs in that the power is a line near 0: for gamma < 1 its slope is infinite there, so that the published formula
gives NaN gradients for a perfect prediction.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import torch
from torch.nn.modules.loss import _Loss

from medseg.core.kernels import class_sums
from medseg.losses._inputs import (
    check_activation,
    check_class_ids,
    check_reduction,
    check_scores,
    check_shapes,
    in_full_precision,
    reduce,
)

_EPS = 1e-6


class FocalTverskyLoss(_Loss):
    """Focal Tversky loss on (B, C, H, W) or (B, C, H, W, D), one index for every item and class.

    Computed in float32 (float64 stays), outside autocast; it can be differentiated once. As in MONAI's `TverskyLoss`,
    `alpha` weights false positives and `beta` false negatives; the "alpha = 0.7" of the papers is the weight of false
    negatives, that is `beta` here.

    Args:
        include_background: whether channel 0 counts; a single channel always does.
        to_onehot_y: whether target holds class ids (B, 1, spatial...).
        sigmoid: apply a sigmoid to the input.
        softmax: apply a softmax over the channels.
        other_act: apply this function instead.
        alpha: weight of false positives.
        beta: weight of false negatives; more than `alpha` finds more of a thin structure.
        gamma: exponent; below 1 small errors keep a strong gradient, 1 is the Tversky loss.
        smooth: added to both sides of the index; the larger, the less an empty item counts.
        batch: sum over the batch as well: one index for every class.
        reduction: "mean" over items and classes, "sum", or "none" for shape (B, classes), (classes,) with `batch`.

    Raises:
        ValueError: an option is out of range or contradicts another.

    Example:
        >>> y = torch.zeros(1, 1, 4, 4)
        >>> y[..., 1, :] = 1
        >>> FocalTverskyLoss()(y, y)
        tensor(0.)
        >>> FocalTverskyLoss(gamma=1.0)(torch.zeros_like(y), y)     # four misses: 2.8 / (2.8 + 1)
        tensor(0.7368)
    """

    def __init__(
        self,
        include_background: bool = True,
        to_onehot_y: bool = False,
        sigmoid: bool = False,
        softmax: bool = False,
        other_act: Callable[[torch.Tensor], torch.Tensor] | None = None,
        *,
        alpha: float = 0.3,
        beta: float = 0.7,
        gamma: float = 0.75,
        smooth: float = 1.0,
        batch: bool = False,
        reduction: str = "mean",
    ) -> None:
        super().__init__(reduction=reduction)
        check_activation(sigmoid=sigmoid, softmax=softmax, other_act=other_act)
        check_reduction(reduction)
        _check_numbers(alpha=alpha, beta=beta, gamma=gamma, smooth=smooth)
        self.include_background, self.to_onehot_y = include_background, to_onehot_y
        self.sigmoid, self.softmax, self.other_act = sigmoid, softmax, other_act
        self.alpha, self.beta, self.gamma, self.smooth = float(alpha), float(beta), float(gamma), float(smooth)
        self.batch = batch

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Compute the loss.

        Args:
            input: logits or probabilities, (B, C, H, W) or (B, C, H, W, D), any float type.
            target: one-hot or soft masks of the same shape, or class ids (B, 1, spatial...) with `to_onehot_y`.

        Returns:
            A scalar, or values without reduction; float32, or float64 if the input is. NaN where the input holds NaN.

        Raises:
            ValueError: shapes or types do not fit, or target holds an id without a channel.
        """
        check_scores(input, softmax=self.softmax)
        target = self._read(input, target)
        act = "sigmoid" if self.sigmoid else "softmax" if self.softmax else "none"
        first = 0 if self.include_background or input.shape[1] == 1 else 1
        with torch.autocast(input.device.type, enabled=False):
            scores = in_full_precision(input)
            scores = scores if self.other_act is None else self.other_act(scores)
            sums = class_sums(scores, target, activation=act, entropy="none")
            values = self._losses(*(s[:, first:] for s in (sums.hits, sums.predicted, sums.present)))
        return reduce(values, self.reduction)

    def _read(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Class ids (B, 1, spatial...), or masks of the input's shape."""
        channels = input.shape[1] if input.ndim > 1 else 0
        class_ids = self.to_onehot_y and channels > 1
        check_shapes(input, target, class_ids=class_ids)
        target = target.detach().as_subclass(torch.Tensor)
        if class_ids:
            check_class_ids(target, channels)
        elif self.to_onehot_y:
            warnings.warn("single channel input, to_onehot_y=True ignored", stacklevel=3)
        return target

    def _losses(self, hits: torch.Tensor, predicted: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        """Loss of every item and class, (B, classes), or of every class."""
        if self.batch:
            hits, predicted, present = hits.sum(0), predicted.sum(0), present.sum(0)
        wrong = self.alpha * _lift(predicted - hits) + self.beta * _lift(present - hits)
        return _guarded_power(wrong / (hits + wrong + self.smooth), self.gamma)


def _lift(difference: torch.Tensor) -> torch.Tensor:
    """Not below 0, where rounding may leave the sums of a perfect prediction; the gradient is not cut off there."""
    return difference + (-difference.detach()).clamp(min=0)


def _guarded_power(u: torch.Tensor, gamma: float) -> torch.Tensor:
    """u^gamma, below eps the line through 0 that meets it there, so that the slope is finite."""
    return torch.where(u > _EPS, u.clamp(min=_EPS) ** gamma, u * _EPS ** (gamma - 1))


def _check_numbers(**numbers: float) -> None:
    for name, value in numbers.items():
        positive = name in ("gamma", "smooth")
        if not math.isfinite(value) or value < 0 or (positive and value == 0):
            raise ValueError(f"{name} must be a finite number, {'above' if positive else 'at least'} 0, got {value}")
