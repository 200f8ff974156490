"""Intersection over union: the shared part of two masks, relative to their union (Jaccard index).

    IoU = |P and R| / |P or R| = Dice / (2 - Dice)

Differs from MONAI's `MeanIoU` in the treatment of empty masks only: there a prediction without a
reference is nan by default and drops out of the average; here it is 0, as in nnU-Net's evaluation.

Reference: Jaccard, The distribution of the flora in the alpine zone, New Phytologist, 1912.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from medseg.metrics._cumulative import SegmentationMetric
from medseg.metrics._inputs import Spacing, as_masks, case_codes, fill_empty
from medseg.metrics.empty import EmptyPolicy, Rule


def compute_iou(
    y_pred: torch.Tensor,
    y: torch.Tensor,
    *,
    include_background: bool = True,
    empty: EmptyPolicy | Mapping[str, Rule] | str | None = None,
) -> torch.Tensor:
    """Compute the intersection over union for each sample and channel.

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
        >>> compute_iou(a, b)
        tensor([[0.5000]])
    """
    pred, ref = as_masks(y_pred, y, include_background)
    dims = tuple(range(2, ref.ndim))
    values = (pred & ref).sum(dims).double() / (pred | ref).sum(dims)
    return fill_empty(values.float(), case_codes(pred, ref), EmptyPolicy.build(empty), best=1.0, worst=0.0)


class IoUMetric(SegmentationMetric):
    """Intersection over union collected over batches; |P and R| / |P or R|.

    Arguments are those of the base class: `include_background`, `reduction`, `get_not_nans`, `empty`; `spacing` is
    taken and not used. See `compute_iou`.

    Example:
        >>> metric = IoUMetric(empty={"both": "best"})
        >>> _ = metric(torch.ones(1, 1, 4, 4), torch.ones(1, 1, 4, 4))
        >>> metric.aggregate()
        tensor([1.])
    """

    def compute(self, y_pred: torch.Tensor, y: torch.Tensor, spacing: Spacing) -> torch.Tensor:
        """Give the values of a batch, shape (B, C)."""
        return compute_iou(y_pred, y, include_background=self.include_background, empty=self.empty)
