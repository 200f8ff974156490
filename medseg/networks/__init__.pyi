from .feature_tap import FeatureTap
from .probabilistic_unet import ProbabilisticOutput, ProbabilisticUNet

__all__ = [
    "FeatureTap",
    "ProbabilisticOutput",
    "ProbabilisticUNet",
]
