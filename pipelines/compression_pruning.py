"""Ways to prune a network: by magnitude over all layers, by rate and distortion, with training after it or without.

Sparsity is that of the weights that may be pruned: all but the first convolution and the heads. A network is stored as
it was, with zeros in it, and compressed by gzip.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from compression_task import Compressed, Method, Task, compressed_size
from monai.losses import DiceCELoss
from normalization_choice import Budget, Sample, draw_batches
from torch import nn

from medseg.core.compress import (
    WeightMasks,
    allocate_pruning,
    find_prunable,
    layer_magnitude_masks,
    magnitude_scores,
    measure_distortions,
    prune_magnitude,
)
from medseg.core.optim import find_scale_invariant

SPARSITIES = (0.3, 0.5, 0.7, 0.8, 0.9)
FLOOR = 0.05  # of a layer's weights
FRACTIONS = (0.0, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98)
TUNED = (0.9,)
TUNING_RATE = 3e-4


def prune(sparsity: float, min_per_layer: float, scale_aware: bool) -> Callable[[Task], Compressed]:
    """Global magnitude pruning in one shot, without training afterwards."""

    def build(task: Task) -> Compressed:
        network = copy.deepcopy(task.network)
        masks = prune_magnitude(network, sparsity, (1, 1, *task.window), min_per_layer, scale_aware)
        return describe(network, masks)

    return build


def allocate(sparsity: float) -> Callable[[Task], Compressed]:
    """Layers pruned each to what rate and distortion allow; as many weights stay as in global pruning."""

    def build(task: Task) -> Compressed:
        network = copy.deepcopy(task.network)
        scores, curves = measure_curves(task)
        sizes = {name: score.numel() for name, score in scores.items()}
        choice = allocate_pruning(sizes, FRACTIONS, curves, round((1 - sparsity) * sum(sizes.values())))
        masks = WeightMasks(network, layer_magnitude_masks(scores, choice.sparsities))
        return describe(network, masks, layers=choice.sparsities)

    return build


@lru_cache(maxsize=1)
def measure_curves(task: Task) -> tuple[dict[str, torch.Tensor], dict[str, list[float]]]:
    """Scores of the weights, and what pruning each layer alone does to the logits of a few training volumes."""
    shape = (1, 1, *task.window)
    scores = magnitude_scores(find_prunable(task.network, shape), find_scale_invariant(task.network, shape))
    patches = [centre_crop(sample, [3 * n // 4 // 8 * 8 for n in task.window]) for sample in task.cohort.train[:4]]
    return scores, measure_distortions(task.network, patches, scores, FRACTIONS)


def centre_crop(sample: Sample, size: Sequence[int]) -> torch.Tensor:
    box = tuple(slice((n - s) // 2, (n - s) // 2 + s) for n, s in zip(sample.image.shape, size, strict=True))
    return torch.from_numpy(sample.image[box].copy())[None, None]


def prune_and_train(sparsity: float, scale_aware: bool) -> Callable[[Task], Compressed]:
    """Global magnitude pruning, then a short training of what is left with the masks kept."""

    def build(task: Task) -> Compressed:
        network = copy.deepcopy(task.network)
        masks = prune_magnitude(network, sparsity, (1, 1, *task.window), FLOOR, scale_aware)
        optimizer = torch.optim.AdamW(network.parameters(), lr=TUNING_RATE)
        masks.attach(optimizer)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, task.tuning_steps)
        loss_function = DiceCELoss(softmax=True, to_onehot_y=True)
        budget = Budget(crops=task.tuning_steps, patch=task.window)
        network.train()
        for image, label in draw_batches(task.cohort, budget, 1, seed=0):
            optimizer.zero_grad()
            loss_function(network(image), label).backward()
            optimizer.step()
            schedule.step()
        return describe(network.eval(), masks, steps=task.tuning_steps)

    return build


def describe(network: nn.Module, masks: WeightMasks, **more: Any) -> Compressed:
    """A pruned network, with what is left of each layer."""
    return Compressed(network, compressed_size(network), {"sparsity": masks.sparsity, "kept": masks.kept} | more)


def pruning_methods() -> dict[str, Method]:
    """Relative to filters' norms or not, with a floor and without, at every sparsity."""
    found = {}
    for sparsity in SPARSITIES:
        for kind, scale_aware in {"plain": False, "scale-aware": True}.items():
            for floor in (0.0, FLOOR) if sparsity >= 0.8 else (0.0,):  # below no layer comes near it
                name = f"{kind}{'-floor' if floor else ''}-{sparsity}"
                title = f"{kind}{', floor' if floor else ''}, {sparsity:.0%}"
                found[name] = Method(title, prune(sparsity, floor, scale_aware))
        found[f"allocated-{sparsity}"] = Method(f"rate-distortion, {sparsity:.0%}", allocate(sparsity))
    for sparsity in TUNED:
        for kind, scale_aware in {"plain": False, "scale-aware": True}.items():
            title = f"{kind}, floor, {sparsity:.0%}, trained on"
            found[f"{kind}-trained-{sparsity}"] = Method(title, prune_and_train(sparsity, scale_aware))
    return found
