from .power_law import PowerLawOffset
from .scaling_fit import Backtest, ExtrapolationWarning, IdentifiabilityWarning, Prediction, ScalingFit, Solution

__all__ = [
    "Backtest",
    "ExtrapolationWarning",
    "IdentifiabilityWarning",
    "PowerLawOffset",
    "Prediction",
    "ScalingFit",
    "Solution",
]
