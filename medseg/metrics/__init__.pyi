from .average_surface_distance import AverageSurfaceDistanceMetric, compute_average_surface_distance
from .betti import (
    BettiMatchingMetric,
    BettiNumberMetric,
    compute_betti_matching_error,
    compute_betti_number_error,
)
from .centreline_gap import CentrelineGapMetric, compute_centreline_gap
from .cldice import ClDiceMetric, compute_cldice
from .dice import DiceMetric, compute_dice
from .empty import EmptyPolicy
from .hausdorff_distance import HausdorffDistanceMetric, compute_hausdorff_distance
from .iou import IoUMetric, compute_iou
from .surface import SurfaceDistances, surface_distances
from .surface_dice import SurfaceDiceMetric, compute_surface_dice
from .volume_error import VolumeErrorMetric, compute_volume_error

__all__ = [
    "AverageSurfaceDistanceMetric",
    "BettiMatchingMetric",
    "BettiNumberMetric",
    "CentrelineGapMetric",
    "ClDiceMetric",
    "DiceMetric",
    "EmptyPolicy",
    "HausdorffDistanceMetric",
    "IoUMetric",
    "SurfaceDiceMetric",
    "SurfaceDistances",
    "VolumeErrorMetric",
    "compute_average_surface_distance",
    "compute_betti_matching_error",
    "compute_betti_number_error",
    "compute_centreline_gap",
    "compute_cldice",
    "compute_dice",
    "compute_hausdorff_distance",
    "compute_iou",
    "compute_surface_dice",
    "compute_volume_error",
    "surface_distances",
]
