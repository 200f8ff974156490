"""Dice plus cross-entropy, MONAI's `DiceCELoss`, without one-hot labels and copies of the probabilities.

With I_c = sum p_c y_c, P_c = sum p_c^k, G_c = sum y_c^k over the voxels of an item, k = 1 or 2, and class weights w,

    Dice_c = 1 - (2 I_c + smooth_nr) / (P_c + G_c + smooth_dr)              Jaccard: P_c + G_c - I_c, 2 I_c as before
    CE     = sum over voxels of -w_y log p_y / sum over voxels of w_y
    L      = lambda_dice * mean of Dice_c + lambda_ce * CE

All sums come from `medseg.core.kernels.class_sums`, which walks over the voxels in blocks; what stands here is a
formula on (B, C) tensors. Value and gradient are MONAI's to rounding.

Sources: Milletari, Navab, Ahmadi, "V-Net: Fully Convolutional Neural Networks for Volumetric Medical Image
Segmentation", 2016; Isensee et al., "nnU-Net: a self-configuring method for deep learning-based biomedical image
segmentation", 2021, for the sum of both; MONAI (`monai.losses.DiceCELoss`) for arguments and conventions.

Differs from MONAI in `ignore_index` (MONAI's `DiceLoss` has it, its `DiceCELoss` has not); in that stray labels and a
softmax over one channel are errors; and in that batches without any voxel that counts give 0 with gradient 0, not NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.modules.loss import _Loss

from medseg.core.kernels import ClassSums, class_sums
from medseg.losses._inputs import (
    check_activation,
    check_class_ids,
    check_scores,
    check_shapes,
    in_full_precision,
)


class DiceCELoss(_Loss):
    """Weighted sum of Dice loss and cross-entropy on (B, C, H, W) or (B, C, H, W, D).

    Computed in float32 (float64 stays), outside autocast; it can be differentiated once. As in MONAI the activation is
    that of the Dice term alone: the cross-entropy takes the softmax of two or more channels, and the sigmoid of a
    single one.

    Args:
        include_background: whether channel 0 counts in the Dice term; a single channel always does.
        to_onehot_y: whether target holds class ids (B, 1, spatial...).
        sigmoid: apply a sigmoid to the input.
        softmax: apply a softmax over the channels.
        other_act: apply this function instead.
        squared_pred: square predictions and targets in the denominator.
        jaccard: the Jaccard index instead of Dice.
        reduction: "mean" or "sum", of each term by itself.
        smooth_nr: added to the numerator.
        smooth_dr: added to the denominator.
        batch: sum over the batch as well: one Dice value for every class.
        weight: one number for each channel, at least 0, in both terms; with one channel that of its foreground in the
            cross-entropy.
        lambda_dice: weight of the Dice term.
        lambda_ce: weight of the cross-entropy.
        label_smoothing: share of the target, in [0, 1], that the cross-entropy spreads over all classes; not with one
            channel.
        ignore_index: voxels of this class id count in neither term. With masks, the voxels in the mask of that index,
            or where it is no channel, those in no mask. A batch without voxels that count gives 0.

    Raises:
        ValueError: an option is out of range or contradicts another.

    Example:
        >>> loss = DiceCELoss(to_onehot_y=True, softmax=True)
        >>> loss(torch.zeros(1, 2, 4, 4), torch.zeros(1, 1, 4, 4))      # (1/3 + 1) / 2 + log 2
        tensor(1.3598)
    """

    def __init__(
        self,
        include_background: bool = True,
        to_onehot_y: bool = False,
        sigmoid: bool = False,
        softmax: bool = False,
        other_act: Callable[[Tensor], Tensor] | None = None,
        squared_pred: bool = False,
        jaccard: bool = False,
        reduction: str = "mean",
        smooth_nr: float = 1e-5,
        smooth_dr: float = 1e-5,
        batch: bool = False,
        weight: Sequence[float] | Tensor | None = None,
        lambda_dice: float = 1.0,
        lambda_ce: float = 1.0,
        label_smoothing: float = 0.0,
        ignore_index: int | None = None,
    ) -> None:
        super().__init__(reduction=reduction)
        check_activation(sigmoid=sigmoid, softmax=softmax, other_act=other_act)
        if reduction not in ("mean", "sum"):
            raise ValueError(f"reduction must be mean or sum, got {reduction!r}; the terms have no values in common")
        for name, value in {"lambda_dice": lambda_dice, "lambda_ce": lambda_ce}.items():
            if not 0 <= value < float("inf"):
                raise ValueError(f"{name} must be a finite number of at least 0, got {value}")
        if not 0 <= label_smoothing <= 1:
            raise ValueError(f"label_smoothing must be in [0, 1], got {label_smoothing}")
        self.weight = None if weight is None else [float(w) for w in torch.as_tensor(weight).flatten()]
        if any(not 0 <= w < float("inf") for w in self.weight or ()):
            raise ValueError(f"weight must hold finite numbers of at least 0, got {self.weight}")
        self.include_background, self.to_onehot_y = include_background, to_onehot_y
        self.sigmoid, self.softmax, self.other_act = sigmoid, softmax, other_act
        self.squared_pred, self.jaccard, self.batch = squared_pred, jaccard, batch
        self.smooth_nr, self.smooth_dr = float(smooth_nr), float(smooth_dr)
        self.lambda_dice, self.lambda_ce = float(lambda_dice), float(lambda_ce)
        self.label_smoothing, self.ignore_index = float(label_smoothing), ignore_index

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Compute the loss.

        Args:
            input: logits, (B, C, H, W) or (B, C, H, W, D), any float type.
            target: one-hot or soft masks of the same shape, or class ids (B, 1, spatial...) with `to_onehot_y`.

        Returns:
            A scalar; float32, or float64 if the input is. NaN where voxels that count hold NaN.

        Raises:
            ValueError: shapes or types do not fit, or target holds an id without a channel.
        """
        check_scores(input, softmax=self.softmax)
        channels = input.shape[1]
        check_shapes(input, target, class_ids=self.to_onehot_y and channels > 1)
        target = target.detach().as_subclass(torch.Tensor)
        if self.to_onehot_y and channels > 1:
            known = target if self.ignore_index is None else target.masked_fill(target == self.ignore_index, 0)
            check_class_ids(known, channels)
        if self.weight is not None and len(self.weight) not in (1, channels):
            raise ValueError(f"weight must hold one number for each of {channels} channels, got {len(self.weight)}")
        with torch.autocast(input.device.type, enabled=False):
            overlap, entropy = self._sum(input.as_subclass(torch.Tensor), target)
            dice = self._dice(overlap)
            return self.lambda_dice * dice + self.lambda_ce * self._cross_entropy(entropy, target.shape[1] < channels)

    def _sum(self, input: Tensor, target: Tensor) -> tuple[ClassSums, ClassSums]:
        """Sums for the Dice term and for the cross-entropy; the same ones where one walk over the logits gives both."""
        act = "softmax" if self.softmax else "sigmoid" if self.sigmoid else "none"
        power = 2 if self.squared_pred else 1
        many = input.shape[1] > 1
        if self.other_act is None and (many or act == "sigmoid"):
            entropy = "softmax" if many else "same"
            sums = class_sums(
                input, target, activation=act, power=power, ignore_index=self.ignore_index, entropy=entropy
            )
            return sums, sums
        scores = input if self.other_act is None else self.other_act(in_full_precision(input))
        sums = class_sums(scores, target, activation=act, power=power, ignore_index=self.ignore_index, entropy="none")
        of_entropy = "softmax" if many else "sigmoid"
        return sums, class_sums(input, target, activation=of_entropy, ignore_index=self.ignore_index)

    def _dice(self, sums: ClassSums) -> Tensor:
        first = 0 if self.include_background or sums.hits.shape[1] == 1 else 1
        hits, predicted, present = (
            (s.sum(0, keepdim=True) if self.batch else s)[:, first:] for s in (sums.hits, sums.predicted, sums.present)
        )
        union = 2 * (predicted + present - hits) if self.jaccard else predicted + present
        values = 1 - (2 * hits + self.smooth_nr) / (union + self.smooth_dr)
        if self.weight is not None and values.shape[1] > 1:
            values = values * self._weights(sums)[first:]
        return values.mean() if self.reduction == "mean" else values.sum()

    def _cross_entropy(self, sums: ClassSums, by_id: bool) -> Tensor:
        w = self._weights(sums)
        if sums.hits.shape[1] == 1:
            total, count = (w * sums.surprise + sums.rest).sum(), sums.voxels.sum()
        else:
            total = (w * sums.surprise).sum()
            if self.label_smoothing > 0:
                total = (1 - self.label_smoothing) * total + self.label_smoothing * (w * sums.rest).sum() / len(w)
            count = (w * sums.present).sum() if by_id else sums.voxels[:, 0].sum()
        return total / torch.where(count > 0, count, 1) if self.reduction == "mean" else total

    def _weights(self, sums: ClassSums) -> Tensor:
        weights = sums.hits.new_ones(sums.hits.shape[1])
        return weights if self.weight is None else weights * weights.new_tensor(self.weight)
