from .cleanup import keep_largest_component, remove_small_components
from .devices import DeviceNotFoundError
from .evaluation import Comparison, Evaluation, compare, evaluate
from .handlers import EpochSeeder, StopOnNonFiniteLoss, TrainingCheckpoint
from .memory_plan import InsufficientMemoryError, MemoryPlan
from .prediction import CaseResult, predict_cases
from .prediction_options import PredictionOptions
from .predictor import Prediction, Predictor, PreparedCase
from .training import TrainingProgress, train_bundle

__all__ = [
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
    "StopOnNonFiniteLoss",
    "TrainingCheckpoint",
    "TrainingProgress",
    "compare",
    "evaluate",
    "keep_largest_component",
    "predict_cases",
    "remove_small_components",
    "train_bundle",
]
