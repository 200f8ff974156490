from .anisotropic_unet import AnisotropicUNet
from .dual_path import DualPathOutput, DualPathZoneNet, fuse_zones
from .feature_tap import FeatureTap
from .multi_scale_attention_unet import MultiScaleAttentionUNet
from .probabilistic_unet import ProbabilisticOutput, ProbabilisticUNet
from .slicewise_parts import SlicewisePartsNet

__all__ = [
    "AnisotropicUNet",
    "DualPathOutput",
    "DualPathZoneNet",
    "FeatureTap",
    "MultiScaleAttentionUNet",
    "ProbabilisticOutput",
    "ProbabilisticUNet",
    "SlicewisePartsNet",
    "fuse_zones",
]
