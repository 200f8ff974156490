"""Dice loss plus Betti matching loss: overlap first, topology beside it.

    loss = Dice + alpha w Betti matching,    w = 1, or tanh(5 progress) during a warm-up

Sources: Stucki, Paetzold, Shit, Menze, Bauer, "Topologically Faithful Image Segmentation via Induced Matching of
Persistence Barcodes" (ICML 2023), alpha 0.5; the warm-up is that of Berger et al., "Topologically Faithful Multi-class
Segmentation in Medical Images" (MICCAI 2024). Differs in that the Dice loss is MONAI's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from monai.losses import DiceLoss
from torch.nn.modules.loss import _Loss

from medseg.losses._inputs import check_shapes, in_full_precision, make_one_hot, refuse_stray_ids
from medseg.losses.betti_matching import BettiMatchingLoss, check_choice


class DiceBettiMatchingLoss(_Loss):
    """Dice loss plus alpha times the Betti matching loss, with MONAI's Dice.

        loss = Dice + alpha (tanh(5 progress) or 1) Betti matching

    The factor follows `set_progress`, so that topology comes in when the overlap is right. The two terms may count
    different classes; without reduction, each is averaged over its classes.

    Args:
        alpha: weight of the Betti matching loss.
        include_background: whether channel 0 counts in the Betti matching loss; a single channel always does.
        to_onehot_y: whether target holds class ids (B, 1, spatial...).
        sigmoid: apply a sigmoid to the input.
        softmax: apply a softmax over the channels.
        other_act: apply this function instead.
        one_vs_max: see `BettiMatchingLoss`; the Dice loss takes the softmax then.
        dice_include_background: whether channel 0 counts in the Dice loss.
        filtration: this and the following as in `BettiMatchingLoss`.
        dims: as there.
        boundary: as there.
        topology_weights: as there.
        barcode_length_threshold: as there.
        push_unmatched_to_1_0: as there.
        image_bars: as there.
        include_essential: as there.
        num_threads: as there.
        reduction: "mean" or "sum" over items, or "none" for shape (B,).

    Raises:
        ValueError: an option is unknown or contradicts another.

    Example:
        >>> loss = DiceBettiMatchingLoss(alpha=0.5, to_onehot_y=True, softmax=True)
        >>> loss.set_progress(0.0)      # before the warm-up: Dice alone
        >>> loss(torch.zeros(1, 2, 6, 6), torch.zeros(1, 1, 6, 6))
        tensor(0.6667)
    """

    def __init__(
        self,
        alpha: float = 0.5,
        include_background: bool = False,
        to_onehot_y: bool = False,
        sigmoid: bool = False,
        softmax: bool = False,
        other_act: Callable[[torch.Tensor], torch.Tensor] | None = None,
        *,
        one_vs_max: bool = False,
        dice_include_background: bool = True,
        filtration: str = "superlevel",
        dims: Sequence[int] | None = None,
        boundary: str = "none",
        topology_weights: Sequence[float] = (1.0, 1.0),
        barcode_length_threshold: float = 0.0,
        push_unmatched_to_1_0: bool = False,
        image_bars: str = "all",
        include_essential: bool = False,
        num_threads: int | None = None,
        reduction: str = "mean",
    ) -> None:
        super().__init__(reduction=reduction)
        if not (math.isfinite(alpha) and alpha >= 0):
            raise ValueError(f"alpha must be a finite number, at least 0, got {alpha}")
        check_choice("reduction", reduction)
        self.alpha = self.weight = float(alpha)
        self.betti_matching = BettiMatchingLoss(
            include_background,
            to_onehot_y,
            sigmoid,
            softmax,
            other_act,
            one_vs_max=one_vs_max,
            filtration=filtration,
            dims=dims,
            boundary=boundary,
            topology_weights=topology_weights,
            barcode_length_threshold=barcode_length_threshold,
            push_unmatched_to_1_0=push_unmatched_to_1_0,
            image_bars=image_bars,
            include_essential=include_essential,
            num_threads=num_threads,
            reduction="none",
        )
        self.dice = DiceLoss(
            include_background=dice_include_background,
            sigmoid=sigmoid,
            softmax=softmax or one_vs_max,
            other_act=other_act,
            reduction="none",
        )

    def set_progress(self, progress: float | None) -> None:
        """Set the weight of the Betti matching loss by the training's progress.

        Args:
            progress: fraction of the training that is done, counted from where topology is to come in; None for the
                full weight.
        """
        self.weight = self.alpha * (1.0 if progress is None else warm_up_factor(progress))

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Compute the loss.

        Args:
            input: logits or probabilities, as in `BettiMatchingLoss`.
            target: as there.

        Returns:
            A scalar, or (B,) without reduction.

        Raises:
            ValueError: as `BettiMatchingLoss`.
        """
        with torch.autocast(input.device.type, enabled=False):
            values = self._dice(input, target)
            if self.weight:
                values = values + self.weight * self.betti_matching(input, target).mean(dim=1)
        return {"mean": values.mean, "sum": values.sum, "none": lambda: values}[self.reduction]()

    def _dice(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Dice loss of every item."""
        class_ids = self.betti_matching.to_onehot_y and input.shape[1] > 1
        check_shapes(input, target, class_ids=class_ids)
        target = target.as_subclass(torch.Tensor)
        input = in_full_precision(input)
        if class_ids:
            target, stray = make_one_hot(target, input.shape[1])
            if not self.weight:  # else the Betti matching loss looks at them, with the copy that it needs anyway
                refuse_stray_ids(stray.tolist(), input.shape[1])
        return self.dice(input, target.to(input)).flatten(1).mean(dim=1)


def warm_up_factor(progress: float) -> float:
    """Give the factor 2 / (1 + exp(-10 progress)) - 1 = tanh(5 progress) by which a weight grows; 0 before the start.

    Args:
        progress: fraction of the training that is done, counted from the start of the warm-up.

    Returns:
        A number from 0 to 1.

    Example:
        >>> [round(warm_up_factor(p), 3) for p in (-1.0, 0.1, 1.0)]
        [0.0, 0.462, 1.0]
    """
    return math.tanh(5 * max(0.0, progress))
