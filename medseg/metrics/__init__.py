"""Segmentation metrics in millimetres, with an explicit rule for empty masks.

Names load on first use: the array functions need NumPy and SciPy alone, while the metric classes bring MONAI.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medseg.metrics.average_surface_distance import AverageSurfaceDistanceMetric, compute_average_surface_distance
    from medseg.metrics.dice import DiceMetric, compute_dice
    from medseg.metrics.empty import EmptyPolicy
    from medseg.metrics.hausdorff_distance import HausdorffDistanceMetric, compute_hausdorff_distance
    from medseg.metrics.iou import IoUMetric, compute_iou
    from medseg.metrics.surface import SurfaceDistances, surface_distances
    from medseg.metrics.surface_dice import SurfaceDiceMetric, compute_surface_dice
    from medseg.metrics.volume_error import VolumeErrorMetric, compute_volume_error

_HOME = {
    "AverageSurfaceDistanceMetric": "average_surface_distance",
    "DiceMetric": "dice",
    "EmptyPolicy": "empty",
    "HausdorffDistanceMetric": "hausdorff_distance",
    "IoUMetric": "iou",
    "SurfaceDiceMetric": "surface_dice",
    "SurfaceDistances": "surface",
    "VolumeErrorMetric": "volume_error",
    "compute_average_surface_distance": "average_surface_distance",
    "compute_dice": "dice",
    "compute_hausdorff_distance": "hausdorff_distance",
    "compute_iou": "iou",
    "compute_surface_dice": "surface_dice",
    "compute_volume_error": "volume_error",
    "surface_distances": "surface",
}

__all__ = [
    "AverageSurfaceDistanceMetric",
    "DiceMetric",
    "EmptyPolicy",
    "HausdorffDistanceMetric",
    "IoUMetric",
    "SurfaceDiceMetric",
    "SurfaceDistances",
    "VolumeErrorMetric",
    "compute_average_surface_distance",
    "compute_dice",
    "compute_hausdorff_distance",
    "compute_iou",
    "compute_surface_dice",
    "compute_volume_error",
    "surface_distances",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
