from .argmax_at import argmax_at, interpolate_along, upsample_argmax
from .class_sums import ClassSums, class_sums
from .dispatch import choose_backend
from .entropy_sums import EntropySums, entropy_sums
from .norm_act import norm_act
from .projection import Projection, max_projections
from .softmax import softmax_

__all__ = [
    "ClassSums",
    "EntropySums",
    "Projection",
    "argmax_at",
    "choose_backend",
    "class_sums",
    "entropy_sums",
    "interpolate_along",
    "max_projections",
    "norm_act",
    "softmax_",
    "upsample_argmax",
]
