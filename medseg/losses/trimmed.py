"""Trimming: leave samples out of the loss of a batch, by their loss or by their label.

    trim by ratio:   keep the samples whose loss lies strictly above the quantile `ratio` of the batch (the hard ones),
                     or strictly below the quantile 1 - `ratio` (the easy ones, the usual defence against wrong labels)
    trim by label:   keep the samples that have any label
    L = sum of the losses that are kept / their number

AdaWAC is compared with both: Dong, Xie, Ward, "Adaptively Weighted Data Augmentation Consistency Regularization for
Robust Optimization under Concept Shift" (ICML 2023), whose code keeps the hard samples.

Differs from the published code, which multiplies the Dice term beside it by the batch size over the number kept; that
trains on nothing where all losses of a batch are equal, and here on all of it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn.modules.loss import _Loss

BaseLoss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class TrimmedLoss(_Loss):
    """Mean of a loss over the hard, or the easy, samples of every batch.

    Args:
        base: loss of (input, target) with `reduction="none"`: values for every sample, (B,) or (B, ...), of which the
            mean over the rest counts. In a bundle, a nested `_target_`.
        ratio: share of the batch to leave out, at least 0 and below 1; the published 0.42 is the share of slices
            without label in its data.
        keep: "high" losses, as published, or "low" ones.

    Raises:
        ValueError: an option is unknown or out of range.

    Example:
        >>> loss = TrimmedLoss(torch.nn.L1Loss(reduction="none"), ratio=0.5)
        >>> loss(torch.tensor([[1.0], [2.0], [3.0], [4.0]]), torch.zeros(4, 1))
        tensor(3.5000)
    """

    def __init__(self, base: BaseLoss, ratio: float = 0.42, keep: str = "high") -> None:
        super().__init__()
        _check_base(base)
        if not 0 <= ratio < 1:
            raise ValueError(f"ratio must be the share of the batch to leave out, at least 0 and below 1, got {ratio}")
        if keep not in ("high", "low"):
            raise ValueError(f"keep must be high or low, got {keep!r}")
        self.base, self.ratio, self.keep = base, float(ratio), keep

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Compute the loss.

        Args:
            input: what the base loss takes, batch first.
            target: what the base loss takes, batch first.

        Returns:
            A scalar.

        Raises:
            ValueError: the base loss gives no values for the samples.
        """
        values = _each_sample(self.base, input, target)
        known = values.detach()
        if self.keep == "high":
            kept = known > torch.quantile(known, self.ratio)
        else:
            kept = known < torch.quantile(known, 1 - self.ratio)
        # Equal losses, a batch of one, ratio 0 and NaN leave nothing strictly beyond the quantile.
        return _mean_of_kept(values, kept | ~kept.any() | (self.ratio == 0))


class LabelTrimmedLoss(_Loss):
    """Mean of a loss over the samples of a batch that have any label; 0, with gradient 0, where none has.

    Args:
        base: as in `TrimmedLoss`.
        ignore_index: class id that is no label.

    Raises:
        TypeError: the base is no loss.

    Example:
        >>> loss = LabelTrimmedLoss(torch.nn.L1Loss(reduction="none"))
        >>> loss(torch.tensor([[1.0], [2.0]]), torch.tensor([[0.0], [1.0]]))
        tensor(1.)
    """

    def __init__(self, base: BaseLoss, ignore_index: int = -100) -> None:
        super().__init__()
        _check_base(base)
        self.base, self.ignore_index = base, ignore_index

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Compute the loss.

        Args:
            input: what the base loss takes, (B, C, ...).
            target: class ids (B, ...) in which 0 is background; or masks (B, C, ...) of several channels, of which
                the first is background.

        Returns:
            A scalar.

        Raises:
            ValueError: the base loss gives no values for the samples.
        """
        values = _each_sample(self.base, input, target)
        label = target[:, 1:] if target.ndim == input.ndim > 2 and target.shape[1] > 1 else target
        label = label.as_subclass(torch.Tensor).flatten(1)
        return _mean_of_kept(values, ((label != 0) & (label != self.ignore_index)).any(1))


def _check_base(base: BaseLoss) -> None:
    if not callable(base):
        raise TypeError(f"base must be a loss object, got {type(base).__name__}")


def _each_sample(base: BaseLoss, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Loss of every sample, (B,)."""
    values = base(input, target)
    if values.ndim == 0 or len(values) != len(target):
        raise ValueError(
            f"base must give a value for each of the {len(target)} samples, got shape {tuple(values.shape)}; "
            'set its reduction to "none"'
        )
    return values.flatten(1).mean(1) if values.ndim > 1 else values


def _mean_of_kept(values: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """Mean of the values that are kept; the others neither count nor get a gradient, even where they are not finite."""
    return torch.where(kept, values, 0).sum() / kept.sum().clamp(min=1)
