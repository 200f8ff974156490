"""How sparse a network can become in one shot, before its metric falls by more than it may.

    essential sparsity  =  the largest measured s with  metric(dense) - metric(pruned to s) < margin

The curve of the metric against sparsity is flat up to a knee and then falls; weights below the knee were not needed.

Source: Jaiswal, Liu, Chen, Wang, "The Emergence of Essential Sparsity in Large Pre-trained Models: The Weights that
Matter" (NeurIPS 2023), which gives the knee of one-shot magnitude pruning that name.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import nn

from medseg.core.optim._checks import check_least, check_share


class EssentialSparsity(NamedTuple):
    """What `find_essential_sparsity` found.

    Attributes:
        sparsity: the largest at which the metric holds; 0 if at none.
        dense: metric of the network as it was.
        curve: metric by sparsity, of all that were measured.
    """

    sparsity: float
    dense: float
    curve: dict[float, float]


def find_essential_sparsity(
    model: nn.Module,
    prune: Callable[[nn.Module, float], Any],
    evaluate: Callable[[nn.Module], float],
    margin: float = 0.01,
    sparsities: Sequence[float] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
) -> EssentialSparsity:
    """Measure a metric over sparsities, and give the largest at which it drops by less than a margin.

    Args:
        model: the network; stays as it is.
        prune: changes a copy of it in place to a sparsity; `prune_magnitude` with its other arguments.
        evaluate: metric of a network, larger is better; on cases that are not for testing.
        margin: drop of the metric that is too much, above 0; 0.01 is one point of Dice.
        sparsities: to try, in [0, 1].

    Returns:
        That sparsity, the dense metric and the curve.

    Raises:
        ValueError: an option is out of range.

    Example:
        >>> import torch
        >>> from medseg.core.compress import WeightMasks, layer_magnitude_masks
        >>> model = nn.Linear(10, 1)
        >>> _ = model.weight.data.copy_(torch.arange(10.0)[None] ** 3)
        >>> def prune(network, sparsity):
        ...     WeightMasks(network, layer_magnitude_masks({"weight": network.weight}, {"weight": sparsity}))
        >>> share = lambda network: float((network.weight.sum() / model.weight.sum()).detach())
        >>> find_essential_sparsity(model, prune, share, margin=0.1).sparsity
        0.5
    """
    check_least("margin", margin)
    for sparsity in sparsities:
        check_share("sparsities", sparsity)
    dense = float(evaluate(model))
    curve = {}
    for sparsity in sorted(sparsities):
        pruned = copy.deepcopy(model)
        prune(pruned, sparsity)
        curve[float(sparsity)] = float(evaluate(pruned))
    holding = [sparsity for sparsity, value in curve.items() if dense - value < margin]
    return EssentialSparsity(max(holding, default=0.0), dense, curve)
