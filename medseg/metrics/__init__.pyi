from .average_surface_distance import AverageSurfaceDistanceMetric, compute_average_surface_distance
from .betti import (
    BettiMatchingMetric,
    BettiNumberMetric,
    compute_betti_matching_error,
    compute_betti_number_error,
)
from .calibration import BrierScoreMetric, CalibrationErrorMetric, compute_brier_score, compute_calibration_error
from .centreline_gap import CentrelineGapMetric, compute_centreline_gap
from .cldice import ClDiceMetric, compute_cldice
from .contour_distance import ContourDistanceMetric, compute_contour_distance
from .dice import DiceMetric, compute_dice
from .empty import EmptyPolicy
from .generalized_energy_distance import GeneralizedEnergyDistanceMetric, compute_generalized_energy_distance
from .hausdorff_distance import HausdorffDistanceMetric, compute_hausdorff_distance
from .iou import IoUMetric, compute_iou
from .label_calibration import compute_label_calibration
from .sample_dice import (
    BestSampleDiceMetric,
    MatchedDiceMetric,
    compute_best_sample_dice,
    compute_inter_rater_dice,
    compute_matched_dice,
)
from .surface import SurfaceDistances, surface_distances
from .surface_dice import SurfaceDiceMetric, compute_surface_dice
from .volume_coverage import VolumeCoverageMetric, compute_volume_coverage
from .volume_error import VolumeErrorMetric, compute_volume_error
from .voxel_auc import VoxelAUCMetric, compute_voxel_auc

__all__ = [
    "AverageSurfaceDistanceMetric",
    "BestSampleDiceMetric",
    "BettiMatchingMetric",
    "BettiNumberMetric",
    "BrierScoreMetric",
    "CalibrationErrorMetric",
    "CentrelineGapMetric",
    "ClDiceMetric",
    "ContourDistanceMetric",
    "DiceMetric",
    "EmptyPolicy",
    "GeneralizedEnergyDistanceMetric",
    "HausdorffDistanceMetric",
    "IoUMetric",
    "MatchedDiceMetric",
    "SurfaceDiceMetric",
    "SurfaceDistances",
    "VolumeCoverageMetric",
    "VolumeErrorMetric",
    "VoxelAUCMetric",
    "compute_average_surface_distance",
    "compute_best_sample_dice",
    "compute_betti_matching_error",
    "compute_betti_number_error",
    "compute_brier_score",
    "compute_calibration_error",
    "compute_centreline_gap",
    "compute_cldice",
    "compute_contour_distance",
    "compute_dice",
    "compute_generalized_energy_distance",
    "compute_hausdorff_distance",
    "compute_inter_rater_dice",
    "compute_iou",
    "compute_label_calibration",
    "compute_matched_dice",
    "compute_surface_dice",
    "compute_volume_coverage",
    "compute_volume_error",
    "compute_voxel_auc",
    "surface_distances",
]
