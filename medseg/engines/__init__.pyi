from .adaptation_diagnostics import AdaptationDiagnostics
from .cleanup import keep_largest_component, remove_small_components
from .devices import DeviceNotFoundError
from .evaluation import Comparison, Evaluation, compare, evaluate
from .handlers import EpochSeeder, StopOnNonFiniteLoss, TrainingCheckpoint
from .memory_plan import InsufficientMemoryError, MemoryPlan
from .normalisation import configure_norm
from .prediction import CaseResult, predict_cases
from .prediction_options import PredictionOptions
from .predictor import Prediction, Predictor, PreparedCase
from .source_free_adapter import SourceFreeAdapter
from .training import TrainingProgress, train_bundle

__all__ = [
    "AdaptationDiagnostics",
    "CaseResult",
    "Comparison",
    "DeviceNotFoundError",
    "EpochSeeder",
    "Evaluation",
    "InsufficientMemoryError",
    "MemoryPlan",
    "Prediction",
    "PredictionOptions",
    "Predictor",
    "PreparedCase",
    "SourceFreeAdapter",
    "StopOnNonFiniteLoss",
    "TrainingCheckpoint",
    "TrainingProgress",
    "compare",
    "configure_norm",
    "evaluate",
    "keep_largest_component",
    "predict_cases",
    "remove_small_components",
    "train_bundle",
]
