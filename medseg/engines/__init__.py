"""What runs: prediction over cases, evaluation, and the handlers of a training run."""

from medseg.engines.cleanup import keep_largest_component, remove_small_components
from medseg.engines.devices import DeviceNotFoundError
from medseg.engines.evaluation import Comparison, Evaluation, compare, evaluate
from medseg.engines.handlers import EpochSeeder, StopOnNonFiniteLoss, TrainingCheckpoint
from medseg.engines.prediction import CaseResult, PredictionOptions, predict_cases
from medseg.engines.predictor import InsufficientMemoryError, Prediction, Predictor
from medseg.engines.training import TrainingProgress, train_bundle

__all__ = [
    "CaseResult",
    "Comparison",
    "DeviceNotFoundError",
    "EpochSeeder",
    "Evaluation",
    "InsufficientMemoryError",
    "Prediction",
    "PredictionOptions",
    "Predictor",
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
