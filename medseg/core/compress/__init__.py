"""Smaller networks: which weights to prune, and how to keep them at zero while a network trains on."""

from medseg.core.compress.global_magnitude import (
    cubic_sparsity,
    global_magnitude_masks,
    layer_magnitude_masks,
    magnitude_scores,
)
from medseg.core.compress.prunable import find_prunable
from medseg.core.compress.weight_masks import WeightMasks, prune_magnitude

__all__ = [
    "WeightMasks",
    "cubic_sparsity",
    "find_prunable",
    "global_magnitude_masks",
    "layer_magnitude_masks",
    "magnitude_scores",
    "prune_magnitude",
]
