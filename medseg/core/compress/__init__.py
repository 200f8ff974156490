"""Smaller networks: which weights to prune, and how to keep them at zero while a network trains on."""

from medseg.core.compress.essential_sparsity import EssentialSparsity, find_essential_sparsity
from medseg.core.compress.global_magnitude import (
    cubic_sparsity,
    global_magnitude_masks,
    kept_weights,
    layer_magnitude_masks,
    magnitude_scores,
)
from medseg.core.compress.prunable import find_prunable
from medseg.core.compress.rate_distortion import (
    PruningAllocation,
    allocate_pruning,
    measure_distortions,
    prune_rate_distortion,
)
from medseg.core.compress.weight_masks import WeightMasks, prune_magnitude

__all__ = [
    "EssentialSparsity",
    "PruningAllocation",
    "WeightMasks",
    "allocate_pruning",
    "cubic_sparsity",
    "find_essential_sparsity",
    "find_prunable",
    "global_magnitude_masks",
    "kept_weights",
    "layer_magnitude_masks",
    "magnitude_scores",
    "measure_distortions",
    "prune_magnitude",
    "prune_rate_distortion",
]
