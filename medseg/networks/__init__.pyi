from .feature_tap import FeatureTap
from .multi_scale_attention_unet import MultiScaleAttentionUNet
from .probabilistic_unet import ProbabilisticOutput, ProbabilisticUNet

__all__ = [
    "FeatureTap",
    "MultiScaleAttentionUNet",
    "ProbabilisticOutput",
    "ProbabilisticUNet",
]
