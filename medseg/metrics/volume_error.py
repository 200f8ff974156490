"""Volume error: how much larger or smaller a predicted structure is than the reference.

    relative = (V_pred - V_ref) / V_ref,    in mm3 = V_pred - V_ref

Both are signed: positive is too large. `absolute=True` drops the sign, so that errors of either sign do not cancel in
an average. A missed structure is -1 (all of the volume is lacking). The relative error of a structure that the
reference does not hold is not defined; its worst value is set to +1 (all of the volume is surplus). In mm3 the worst
value of an empty case is the difference itself.

Reference: Taha, Hanbury, Metrics for evaluating 3D medical image segmentation, BMC Medical Imaging, 2015.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import get_args

import torch

from medseg.metrics._cumulative import SegmentationMetric
from medseg.metrics._inputs import Spacing, as_masks, spacing_per_sample
from medseg.metrics.counts import VolumeUnit, volume_error_from_counts
from medseg.metrics.empty import EmptyPolicy, Rule


def compute_volume_error(
    y_pred: torch.Tensor,
    y: torch.Tensor,
    *,
    unit: VolumeUnit = "relative",
    absolute: bool = False,
    spacing: Spacing = None,
    include_background: bool = True,
    empty: EmptyPolicy | Mapping[str, Rule] | str | None = None,
) -> torch.Tensor:
    """Compute the volume error for each sample and channel.

    Args:
        y_pred: one-hot prediction, shape (B, C, H, W) or (B, C, H, W, D), values 0 and 1.
        y: one-hot reference of the same shape.
        unit: `"relative"` to the reference volume, or `"mm3"` (square millimetres in 2D).
        absolute: whether to drop the sign.
        spacing: voxel size in mm: a number, one for each axis, or such a list for each sample; None is 1 mm.
        include_background: whether channel 0 counts; a single channel always does.
        empty: rules for empty masks; default nan where both are empty and the full volume where one is.

    Returns:
        Errors or nan, shape (B, C), float32.

    Raises:
        ValueError: shapes differ, values are not 0 and 1, or unit or spacing do not fit.

    Example:
        >>> a, b = torch.zeros(2, 1, 1, 4, 4)
        >>> a[..., :3, 0], b[..., :2, 0] = 1, 1
        >>> compute_volume_error(a, b, unit="mm3", spacing=(2.0, 1.5))
        tensor([[3.]])
    """
    _check_unit(unit)
    pred, ref = as_masks(y_pred, y, include_background)
    dims = tuple(range(2, ref.ndim))
    voxels = [math.prod(s) for s in spacing_per_sample(spacing, ref.shape[0], len(dims))]
    policy = EmptyPolicy.build(empty)
    errors = [
        [volume_error_from_counts(p, r, voxel, unit=unit, empty=policy) for p, r in zip(row_pred, row_ref, strict=True)]
        for row_pred, row_ref, voxel in zip(pred.sum(dims).tolist(), ref.sum(dims).tolist(), voxels, strict=True)
    ]
    values = torch.tensor(errors, dtype=torch.float32, device=y_pred.device)
    return values.abs() if absolute else values


class VolumeErrorMetric(SegmentationMetric):
    """Volume error, relative or in mm3, collected over batches.

    Args:
        unit: `"relative"` to the reference volume (default), or `"mm3"`.
        absolute: whether to drop the sign, so that errors of either sign do not cancel.
        include_background: whether channel 0 counts; a single channel always does.
        reduction: how `aggregate` averages, see `SegmentationMetric`.
        get_not_nans: whether `aggregate` also returns how many values counted.
        empty: rules for empty masks.
        spacing: voxel size in mm used when a call gives none; None is 1 mm.

    Example:
        >>> metric = VolumeErrorMetric(unit="mm3", spacing=[1.5, 1.0])
        >>> _ = metric(torch.ones(1, 1, 4, 4), torch.ones(1, 1, 4, 4))
        >>> metric.aggregate()
        tensor([0.])
    """

    def __init__(
        self,
        unit: VolumeUnit = "relative",
        absolute: bool = False,
        *,
        include_background: bool = True,
        reduction: str = "mean",
        get_not_nans: bool = False,
        empty: EmptyPolicy | Mapping[str, Rule] | str | None = None,
        spacing: float | Sequence[float] | None = None,
    ) -> None:
        super().__init__(include_background, reduction, get_not_nans=get_not_nans, empty=empty, spacing=spacing)
        self.unit: VolumeUnit = _check_unit(unit)
        self.absolute = absolute

    def compute(self, y_pred: torch.Tensor, y: torch.Tensor, spacing: Spacing) -> torch.Tensor:
        """Give the values of a batch, shape (B, C)."""
        return compute_volume_error(
            y_pred,
            y,
            unit=self.unit,
            absolute=self.absolute,
            spacing=spacing,
            include_background=self.include_background,
            empty=self.empty,
        )


def _check_unit(unit: VolumeUnit) -> VolumeUnit:
    if unit not in get_args(VolumeUnit):
        raise ValueError(f"unit must be one of {', '.join(get_args(VolumeUnit))}, got {unit!r}")
    return unit
