"""Normalised surface Dice: the fraction of two surfaces that agrees within a tolerance in mm.

    NSD = (|p in P with d(p, R) <= t| + |r in R with d(r, P) <= t|) / (|P| + |R|)

where d(x, S) is the distance in mm from a surface voxel x to the nearest voxel of the surface S; see
`medseg.metrics.surface` for what a surface voxel is.

Equals MONAI's `compute_surface_dice(use_subvoxels=False)` where both masks hold something, with one tolerance for all
channels. The package `surface-distance`, and MONAI with `use_subvoxels=True`, weigh by surface area instead of counting
surface voxels. A distance that equals the tolerance counts as close.

Reference: Nikolov et al., Clinically applicable segmentation of head and neck anatomy for radiotherapy, JMIR, 2021.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from medseg.metrics._cumulative import SegmentationMetric
from medseg.metrics._inputs import Spacing, per_surface_pair
from medseg.metrics.empty import EmptyPolicy, Rule


def compute_surface_dice(
    y_pred: torch.Tensor,
    y: torch.Tensor,
    *,
    tolerance: float = 1.0,
    spacing: Spacing = None,
    include_background: bool = True,
    empty: EmptyPolicy | Mapping[str, Rule] | str | None = None,
) -> torch.Tensor:
    """Compute the normalised surface Dice for each sample and channel.

    Args:
        y_pred: one-hot prediction, shape (B, C, H, W) or (B, C, H, W, D), values 0 and 1.
        y: one-hot reference of the same shape.
        tolerance: accepted distance in mm, at least 0.
        spacing: voxel size in mm: a number, one for each axis, or such a list for each sample; None is 1 mm.
        include_background: whether channel 0 counts; a single channel always does.
        empty: rules for empty masks; default nan where both are empty and 0 where one is.

    Returns:
        Values in [0, 1] or nan, shape (B, C), float32.

    Raises:
        ValueError: shapes differ, values are not 0 and 1, the tolerance is negative, or the spacing does not fit.

    Example:
        >>> a, b = torch.zeros(2, 1, 1, 4, 4)
        >>> a[..., 0, 1], b[..., 2, 1] = 1, 1
        >>> compute_surface_dice(a, b, spacing=(1.5, 1.0), tolerance=3)
        tensor([[1.]])
    """
    _check_tolerance(tolerance)
    policy = EmptyPolicy.build(empty)
    return per_surface_pair(
        y_pred,
        y,
        spacing=spacing,
        include_background=include_background,
        measure=lambda distances: distances.surface_dice(tolerance),
        value_if_empty=lambda case, _: policy.value(case, best=1.0, worst=0.0),
    )


class SurfaceDiceMetric(SegmentationMetric):
    """Normalised surface Dice collected over batches.

    Args:
        tolerance: accepted distance in mm, at least 0; default 1.
        include_background: whether channel 0 counts; a single channel always does.
        reduction: how `aggregate` averages, see `SegmentationMetric`.
        get_not_nans: whether `aggregate` also returns how many values counted.
        empty: rules for empty masks.
        spacing: voxel size in mm used when a call gives none; None is 1 mm.

    Example:
        >>> metric = SurfaceDiceMetric(tolerance=2.0, spacing=[1.5, 1.0])
        >>> _ = metric(torch.ones(1, 1, 4, 4), torch.ones(1, 1, 4, 4))
        >>> metric.aggregate()
        tensor([1.])
    """

    def __init__(
        self,
        tolerance: float = 1.0,
        include_background: bool = True,
        reduction: str = "mean",
        *,
        get_not_nans: bool = False,
        empty: EmptyPolicy | Mapping[str, Rule] | str | None = None,
        spacing: float | Sequence[float] | None = None,
    ) -> None:
        super().__init__(include_background, reduction, get_not_nans=get_not_nans, empty=empty, spacing=spacing)
        self.tolerance = _check_tolerance(tolerance)

    def compute(self, y_pred: torch.Tensor, y: torch.Tensor, spacing: Spacing) -> torch.Tensor:
        """Give the values of a batch, shape (B, C)."""
        return compute_surface_dice(
            y_pred,
            y,
            tolerance=self.tolerance,
            spacing=spacing,
            include_background=self.include_background,
            empty=self.empty,
        )


def _check_tolerance(tolerance: float) -> float:
    if not 0 <= tolerance < float("inf"):
        raise ValueError(f"tolerance must be a finite number of mm, at least 0, got {tolerance}")
    return float(tolerance)
