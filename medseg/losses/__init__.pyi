from .adawac import AdaptiveWeightedConsistencyLoss
from .betti_matching import BettiMatchingLoss
from .class_ratio_kl import ClassRatioKLLoss
from .co_training import CoTrainingDisagreementLoss
from .deep_supervision import DeepSupervisionLoss
from .dice_betti_matching import DiceBettiMatchingLoss, warm_up_factor
from .dice_ce import DiceCELoss
from .dual_path import DualPathZoneLoss
from .focal_tversky import FocalTverskyLoss
from .frechet import frechet_distance
from .mann_whitney import MannWhitneyLoss
from .mip import MIPLoss
from .probabilistic_seg import ProbabilisticSegLoss
from .pseudo_label import PseudoLabelLoss
from .sample_set import SampleSetLoss
from .sample_weights import ExponentiatedSampleWeights
from .seg_with_mip import SegWithMIPLoss
from .shape_moment import ShapeMomentLoss, compute_shape_moments
from .size_bound import SizeBoundLoss
from .source_free_adaptation import SourceFreeAdaptationLoss
from .trimmed import LabelTrimmedLoss, TrimmedLoss
from .weighted_entropy import WeightedEntropyLoss

__all__ = [
    "AdaptiveWeightedConsistencyLoss",
    "BettiMatchingLoss",
    "ClassRatioKLLoss",
    "CoTrainingDisagreementLoss",
    "DeepSupervisionLoss",
    "DiceBettiMatchingLoss",
    "DiceCELoss",
    "DualPathZoneLoss",
    "ExponentiatedSampleWeights",
    "FocalTverskyLoss",
    "LabelTrimmedLoss",
    "MIPLoss",
    "MannWhitneyLoss",
    "ProbabilisticSegLoss",
    "PseudoLabelLoss",
    "SampleSetLoss",
    "SegWithMIPLoss",
    "ShapeMomentLoss",
    "SizeBoundLoss",
    "SourceFreeAdaptationLoss",
    "TrimmedLoss",
    "WeightedEntropyLoss",
    "compute_shape_moments",
    "frechet_distance",
    "warm_up_factor",
]
