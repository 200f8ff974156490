"""Optimizers, and what goes around them: weights' scale, running averages, layer-wise rates, robust mixing weights.

All of them can be named in a bundle's JSON, resume from their `state_dict`, and keep float32 moments for weights in
half precision.
"""

from medseg.core.optim.adamp import AdamP
from medseg.core.optim.lion import Lion
from medseg.core.optim.sgdp import SGDP

__all__ = ["SGDP", "AdamP", "Lion"]
