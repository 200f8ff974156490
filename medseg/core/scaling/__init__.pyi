from .allocation import ComputeOptimum, EncoderShare, best_encoder_share, compute_optimum
from .annealing import AnnealingLaw, annealing_sums, best_decay_start, fit_annealing
from .data_laws import AnnotationBudget, annotation_budget, data_efficiency
from .inverse_law import CriticalBatchLaw, EnsembleLaw, critical_batch_size, ensemble_losses
from .law import ScalingLaw
from .mixture import MixtureLaw, critical_mixture_ratio
from .model_size import BivariateLaw, ChinchillaLaw, OpenAILaw
from .power_law import PowerLawOffset
from .scaling_fit import Backtest, ExtrapolationWarning, IdentifiabilityWarning, Prediction, ScalingFit, Solution

__all__ = [
    "AnnealingLaw",
    "AnnotationBudget",
    "Backtest",
    "BivariateLaw",
    "ChinchillaLaw",
    "ComputeOptimum",
    "CriticalBatchLaw",
    "EncoderShare",
    "EnsembleLaw",
    "ExtrapolationWarning",
    "IdentifiabilityWarning",
    "MixtureLaw",
    "OpenAILaw",
    "PowerLawOffset",
    "Prediction",
    "ScalingFit",
    "ScalingLaw",
    "Solution",
    "annealing_sums",
    "annotation_budget",
    "best_decay_start",
    "best_encoder_share",
    "compute_optimum",
    "critical_batch_size",
    "critical_mixture_ratio",
    "data_efficiency",
    "ensemble_losses",
    "fit_annealing",
]
