from .probabilistic_unet import ProbabilisticOutput, ProbabilisticUNet

__all__ = [
    "ProbabilisticOutput",
    "ProbabilisticUNet",
]
