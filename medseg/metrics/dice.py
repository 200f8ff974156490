"""Dice overlap: how much of two masks is shared, relative to their mean size.

    Dice = 2 |P and R| / (|P| + |R|)

Differs from MONAI's `DiceMetric` in the treatment of empty masks only: there a prediction without a
reference is nan by default and drops out of the average; here it is 0, as in nnU-Net's evaluation.

Reference: Dice, Measures of the amount of ecologic association between species, Ecology, 1945.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from medseg.metrics._cumulative import SegmentationMetric
from medseg.metrics._inputs import Spacing, as_masks, case_codes, fill_empty
from medseg.metrics.empty import EmptyPolicy, Rule


def compute_dice(
    y_pred: torch.Tensor,
    y: torch.Tensor,
    *,
    include_background: bool = True,
    empty: EmptyPolicy | Mapping[str, Rule] | str | None = None,
) -> torch.Tensor:
    """Compute the Dice overlap for each sample and channel.

    Args:
        y_pred: one-hot prediction, shape (B, C, H, W) or (B, C, H, W, D), values 0 and 1.
        y: one-hot reference of the same shape.
        include_background: whether channel 0 counts; a single channel always does.
        empty: rules for empty masks; default nan where both are empty and 0 where one is.

    Returns:
        Values in [0, 1] or nan, shape (B, C), float32.

    Raises:
        ValueError: shapes differ or values are not 0 and 1.

    Example:
        >>> a, b = torch.zeros(2, 1, 1, 4, 4)
        >>> a[..., :2, 0], b[..., :1, 0] = 1, 1
        >>> compute_dice(a, b)
        tensor([[0.6667]])
    """
    pred, ref = as_masks(y_pred, y, include_background)
    dims = tuple(range(2, ref.ndim))
    shared, total = (pred & ref).sum(dims), pred.sum(dims) + ref.sum(dims)
    values = 2 * shared.double() / total
    return fill_empty(values.float(), case_codes(pred, ref), EmptyPolicy.build(empty), best=1.0, worst=0.0)


class DiceMetric(SegmentationMetric):
    """Dice overlap collected over batches; 2 |P and R| / (|P| + |R|).

    Arguments are those of the base class: `include_background`, `reduction`, `get_not_nans`, `empty`; `spacing` is
    taken and not used. See `compute_dice`.

    Example:
        >>> metric = DiceMetric(empty={"both": "best"})
        >>> _ = metric(torch.ones(1, 1, 4, 4), torch.ones(1, 1, 4, 4))
        >>> metric.aggregate()
        tensor([1.])
    """

    def compute(self, y_pred: torch.Tensor, y: torch.Tensor, spacing: Spacing) -> torch.Tensor:
        """Give the values of a batch, shape (B, C)."""
        return compute_dice(y_pred, y, include_background=self.include_background, empty=self.empty)
