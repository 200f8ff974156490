"""Hausdorff distance: how far two surfaces lie apart at worst, or at a percentile.

    HD_q = max(percentile_q of d(p, R) over p in P, percentile_q of d(r, P) over r in R)

where d(x, S) is the distance in mm from a surface voxel x to the nearest voxel of the surface S; see
`medseg.metrics.surface` for what a surface voxel is.

Equals MONAI's `compute_hausdorff_distance` where both masks hold something (the larger of the two directed
percentiles, linear interpolation); the default percentile is 95 here and 100 there. Where one mask is empty MONAI gives
nan or infinity and an average of 0 if nothing else counts; here it is the image diagonal. The package
`surface-distance` weighs by surface area.

Reference: Huttenlocher, Klanderman, Rucklidge, Comparing images using the Hausdorff distance, IEEE PAMI, 1993.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from medseg.metrics._cumulative import SegmentationMetric
from medseg.metrics._inputs import Spacing, per_surface_pair
from medseg.metrics.empty import EmptyPolicy, Rule


def compute_hausdorff_distance(
    y_pred: torch.Tensor,
    y: torch.Tensor,
    *,
    percentile: float = 95.0,
    spacing: Spacing = None,
    include_background: bool = True,
    empty: EmptyPolicy | Mapping[str, Rule] | str | None = None,
) -> torch.Tensor:
    """Compute the Hausdorff distance or its percentile in mm for each sample and channel.

    Args:
        y_pred: one-hot prediction, shape (B, C, H, W) or (B, C, H, W, D), values 0 and 1.
        y: one-hot reference of the same shape.
        percentile: in (0, 100]; 100 is the Hausdorff distance itself.
        spacing: voxel size in mm: a number, one for each axis, or such a list for each sample; None is 1 mm.
        include_background: whether channel 0 counts; a single channel always does.
        empty: rules for empty masks; default nan where both are empty and the image diagonal where one is.

    Returns:
        Distances in mm or nan, shape (B, C), float32.

    Raises:
        ValueError: shapes differ, values are not 0 and 1, the percentile is out of range, or the spacing does not fit.

    Example:
        >>> a, b = torch.zeros(2, 1, 1, 4, 4)
        >>> a[..., 0, 1], b[..., 2, 1] = 1, 1
        >>> compute_hausdorff_distance(a, b, spacing=(1.5, 1.0))
        tensor([[3.]])
    """
    _check_percentile(percentile)
    policy = EmptyPolicy.build(empty)
    return per_surface_pair(
        y_pred,
        y,
        spacing=spacing,
        include_background=include_background,
        measure=lambda distances: distances.hausdorff(percentile),
        value_if_empty=lambda case, diagonal: policy.value(case, best=0.0, worst=diagonal),
    )


class HausdorffDistanceMetric(SegmentationMetric):
    """Hausdorff distance in mm, or its percentile, collected over batches.

    Args:
        percentile: in (0, 100]; default 95, 100 is the Hausdorff distance itself.
        include_background: whether channel 0 counts; a single channel always does.
        reduction: how `aggregate` averages, see `SegmentationMetric`.
        get_not_nans: whether `aggregate` also returns how many values counted.
        empty: rules for empty masks.
        spacing: voxel size in mm used when a call gives none; None is 1 mm.

    Example:
        >>> metric = HausdorffDistanceMetric(spacing=[1.5, 1.0])
        >>> _ = metric(torch.ones(1, 1, 4, 4), torch.ones(1, 1, 4, 4))
        >>> metric.aggregate()
        tensor([0.])
    """

    def __init__(
        self,
        percentile: float = 95.0,
        include_background: bool = True,
        reduction: str = "mean",
        *,
        get_not_nans: bool = False,
        empty: EmptyPolicy | Mapping[str, Rule] | str | None = None,
        spacing: float | Sequence[float] | None = None,
    ) -> None:
        super().__init__(include_background, reduction, get_not_nans=get_not_nans, empty=empty, spacing=spacing)
        self.percentile = _check_percentile(percentile)

    def compute(self, y_pred: torch.Tensor, y: torch.Tensor, spacing: Spacing) -> torch.Tensor:
        """Give the values of a batch, shape (B, C)."""
        return compute_hausdorff_distance(
            y_pred,
            y,
            percentile=self.percentile,
            spacing=spacing,
            include_background=self.include_background,
            empty=self.empty,
        )


def _check_percentile(percentile: float) -> float:
    if not 0 < percentile <= 100:
        raise ValueError(f"percentile must be in (0, 100], got {percentile}; 95 is usual, 100 is the maximum")
    return float(percentile)
