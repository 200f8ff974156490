"""Metrics that follow from voxel counts alone: plain numbers in, plain numbers out."""

from __future__ import annotations

import math
from typing import Literal

from medseg.metrics.empty import EmptyPolicy, name_case

VolumeUnit = Literal["relative", "mm3"]


def dice_from_counts(n_both: int, n_pred: int, n_ref: int, empty: EmptyPolicy) -> float:
    """Give the Dice overlap of one structure.

    Args:
        n_both: voxels in prediction and reference.
        n_pred: voxels in the prediction.
        n_ref: voxels in the reference.
        empty: rules for empty masks.

    Returns:
        A value in [0, 1], nan where it does not count.

    Example:
        >>> dice_from_counts(2, 4, 4, EmptyPolicy())
        0.5
    """
    case = name_case(n_pred, n_ref)
    return 2 * n_both / (n_pred + n_ref) if case == "present" else empty.value(case, best=1.0, worst=0.0)


def iou_from_counts(n_both: int, n_pred: int, n_ref: int, empty: EmptyPolicy) -> float:
    """Give the intersection over union of one structure; arguments as `dice_from_counts`.

    Example:
        >>> iou_from_counts(2, 3, 3, EmptyPolicy())
        0.5
    """
    case = name_case(n_pred, n_ref)
    return n_both / (n_pred + n_ref - n_both) if case == "present" else empty.value(case, best=1.0, worst=0.0)


def volume_error_from_counts(
    n_pred: int, n_ref: int, voxel_mm3: float, *, unit: VolumeUnit, empty: EmptyPolicy
) -> float:
    """Give the signed volume error of one structure.

    Args:
        n_pred: voxels in the prediction.
        n_ref: voxels in the reference.
        voxel_mm3: volume of a voxel.
        unit: `"relative"` to the reference, or `"mm3"` (square millimetres in 2D).
        empty: rules for empty masks.

    Returns:
        The error, nan where it does not count.

    Example:
        >>> volume_error_from_counts(12, 10, 1.0, unit="relative", empty=EmptyPolicy())
        0.2
    """
    case = name_case(n_pred, n_ref)
    difference = (n_pred - n_ref) * voxel_mm3
    if case == "present":
        return difference if unit == "mm3" else (n_pred - n_ref) / n_ref
    worst = difference if unit == "mm3" else math.copysign(1.0, difference)
    return empty.value(case, best=0.0, worst=worst)
