from .allocation import ComputeOptimum, EncoderShare, best_encoder_share, compute_optimum
from .annealing import AnnealingLaw, annealing_sums, best_decay_start, fit_annealing
from .coordinate_tuning import TuningResult, tune_by_coordinates
from .curve_extrapolation import CurveExtrapolator, CurvePosterior, StopAdvice, stop_advice
from .curve_families import CURVE_FAMILIES, curve_family
from .data_laws import AnnotationBudget, annotation_budget, data_efficiency
from .data_selection import RepeatedSubsetSampler, prototype_difficulty, select_subset
from .gradient_noise import GradientNoiseScale
from .inverse_law import CriticalBatchLaw, EnsembleLaw, critical_batch_size, ensemble_losses
from .law import ScalingLaw
from .mixture import MixtureLaw, critical_mixture_ratio
from .model_size import BivariateLaw, ChinchillaLaw, OpenAILaw
from .multi_power import multi_power_loss
from .online_mixture import MixtureSampler, OnlineDataMixer
from .power_law import PowerLawOffset
from .scaling_fit import Backtest, ExtrapolationWarning, IdentifiabilityWarning, Prediction, ScalingFit, Solution
from .sequential_extrapolation import CurveForecast, SequentialExtrapolator

__all__ = [
    "CURVE_FAMILIES",
    "AnnealingLaw",
    "AnnotationBudget",
    "Backtest",
    "BivariateLaw",
    "ChinchillaLaw",
    "ComputeOptimum",
    "CriticalBatchLaw",
    "CurveExtrapolator",
    "CurveForecast",
    "CurvePosterior",
    "EncoderShare",
    "EnsembleLaw",
    "ExtrapolationWarning",
    "GradientNoiseScale",
    "IdentifiabilityWarning",
    "MixtureLaw",
    "MixtureSampler",
    "OnlineDataMixer",
    "OpenAILaw",
    "PowerLawOffset",
    "Prediction",
    "RepeatedSubsetSampler",
    "ScalingFit",
    "ScalingLaw",
    "SequentialExtrapolator",
    "Solution",
    "StopAdvice",
    "TuningResult",
    "annealing_sums",
    "annotation_budget",
    "best_decay_start",
    "best_encoder_share",
    "compute_optimum",
    "critical_batch_size",
    "critical_mixture_ratio",
    "curve_family",
    "data_efficiency",
    "ensemble_losses",
    "fit_annealing",
    "multi_power_loss",
    "prototype_difficulty",
    "select_subset",
    "stop_advice",
    "tune_by_coordinates",
]
