"""Average symmetric surface distance: how far two surfaces lie apart in the mean.

    ASD = (sum of d(p, R) over p in P + sum of d(r, P) over r in R) / (|P| + |R|)

where d(x, S) is the distance in mm from a surface voxel x to the nearest voxel of the surface S; see
`medseg.metrics.surface` for what a surface voxel is.

Equals MONAI's `compute_average_surface_distance(symmetric=True)` where both masks hold something; MONAI's default is
the one-sided distance. Where one mask is empty MONAI gives infinity; here it is the image diagonal. The package
`surface-distance` weighs by surface area and gives the two directions apart.

Reference: Heimann et al., Comparison and evaluation of methods for liver segmentation from CT datasets, IEEE TMI, 2009.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from medseg.metrics._cumulative import SegmentationMetric
from medseg.metrics._inputs import Spacing, per_surface_pair
from medseg.metrics.empty import EmptyPolicy, Rule


def compute_average_surface_distance(
    y_pred: torch.Tensor,
    y: torch.Tensor,
    *,
    spacing: Spacing = None,
    include_background: bool = True,
    empty: EmptyPolicy | Mapping[str, Rule] | str | None = None,
) -> torch.Tensor:
    """Compute the average symmetric surface distance in mm for each sample and channel.

    Args:
        y_pred: one-hot prediction, shape (B, C, H, W) or (B, C, H, W, D), values 0 and 1.
        y: one-hot reference of the same shape.
        spacing: voxel size in mm: a number, one for each axis, or such a list for each sample; None is 1 mm.
        include_background: whether channel 0 counts; a single channel always does.
        empty: rules for empty masks; default nan where both are empty and the image diagonal where one is.

    Returns:
        Distances in mm or nan, shape (B, C), float32.

    Raises:
        ValueError: shapes differ, values are not 0 and 1, or the spacing does not fit.

    Example:
        >>> a, b = torch.zeros(2, 1, 1, 4, 4)
        >>> a[..., 0, 1], b[..., 2, 1] = 1, 1
        >>> compute_average_surface_distance(a, b, spacing=(1.5, 1.0))
        tensor([[3.]])
    """
    policy = EmptyPolicy.build(empty)
    return per_surface_pair(
        y_pred,
        y,
        spacing=spacing,
        include_background=include_background,
        measure=lambda distances: distances.mean(),
        value_if_empty=lambda case, diagonal: policy.value(case, best=0.0, worst=diagonal),
    )


class AverageSurfaceDistanceMetric(SegmentationMetric):
    """Average symmetric surface distance in mm collected over batches.

    Args:
        include_background: whether channel 0 counts; a single channel always does.
        reduction: how `aggregate` averages, see `SegmentationMetric`.
        get_not_nans: whether `aggregate` also returns how many values counted.
        empty: rules for empty masks.
        spacing: voxel size in mm used when a call gives none; None is 1 mm.

    Example:
        >>> metric = AverageSurfaceDistanceMetric(spacing=[1.5, 1.0])
        >>> _ = metric(torch.ones(1, 1, 4, 4), torch.ones(1, 1, 4, 4))
        >>> metric.aggregate()
        tensor([0.])
    """

    def compute(self, y_pred: torch.Tensor, y: torch.Tensor, spacing: Spacing) -> torch.Tensor:
        """Give the values of a batch, shape (B, C)."""
        return compute_average_surface_distance(
            y_pred,
            y,
            spacing=spacing,
            include_background=self.include_background,
            empty=self.empty,
        )
