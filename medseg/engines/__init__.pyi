from .adaptation_diagnostics import AdaptationDiagnostics
from .adaptation_methods import build_adapter
from .adawac_trainer import AdaWACTrainer
from .bundle_adaptation import AdaptationOptions, AdaptationResult, adapt_bundle
from .bundle_quantization import QuantizationResult, quantize_bundle
from .cleanup import keep_largest_component, remove_small_components
from .co_training_trainer import CoTrainingTrainer
from .devices import DeviceNotFoundError
from .early_stop import ExtrapolatingEarlyStop
from .evaluation import Comparison, Evaluation, compare, evaluate
from .gradual_pruning import GradualPruning
from .handlers import EpochSeeder, StopOnNonFiniteLoss, TrainingCheckpoint
from .memory_plan import InsufficientMemoryError, MemoryPlan
from .normalisation import configure_norm
from .prediction import CaseResult, predict_cases
from .prediction_options import PredictionOptions
from .predictor import Prediction, Predictor, PreparedCase
from .probabilistic_trainer import ProbabilisticTrainer
from .sample_weight_history import SampleWeightHistory
from .serial_trainer import SerialTrainer, StageResult
from .source_free_adapter import SourceFreeAdapter
from .stability_monitor import StabilityMonitor
from .stage import Stage
from .training import TrainingProgress, train_bundle

__all__ = [
    "AdaWACTrainer",
    "AdaptationDiagnostics",
    "AdaptationOptions",
    "AdaptationResult",
    "CaseResult",
    "CoTrainingTrainer",
    "Comparison",
    "DeviceNotFoundError",
    "EpochSeeder",
    "Evaluation",
    "ExtrapolatingEarlyStop",
    "GradualPruning",
    "InsufficientMemoryError",
    "MemoryPlan",
    "Prediction",
    "PredictionOptions",
    "Predictor",
    "PreparedCase",
    "ProbabilisticTrainer",
    "QuantizationResult",
    "SampleWeightHistory",
    "SerialTrainer",
    "SourceFreeAdapter",
    "StabilityMonitor",
    "Stage",
    "StageResult",
    "StopOnNonFiniteLoss",
    "TrainingCheckpoint",
    "TrainingProgress",
    "adapt_bundle",
    "build_adapter",
    "compare",
    "configure_norm",
    "evaluate",
    "keep_largest_component",
    "predict_cases",
    "quantize_bundle",
    "remove_small_components",
    "train_bundle",
]
