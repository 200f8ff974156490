"""How much to prune each layer, from how far the network's output moves when that layer alone is pruned.

    minimise  sum over layers of d_l(f_l)   subject to   sum over layers of kept weights(f_l) <= budget

d_l(f) is the mean squared change of the output with the part f of layer l pruned, measured at some values of f.
Changes of several layers are taken to add up. Curves are made non-decreasing first (least squares): a dip is noise of
the measurement, and an allocation would seek it out.

Layers are joined one after another to a list of pairs (kept weights, distortion) of which none is beaten in both, so
the result is exact while that list is short. Where it grows longer than `cells`, the budget is cut into that many cells
and only the best pair of each stays; pairs keep their exact number of weights, so the budget always holds.

Source: Xu et al., "Efficient Joint Optimization of Layer-Adaptive Weight Pruning in Deep Neural Networks" (ICCV 2023).
Its dynamic programme has a column for every weight that may stay, which no 3D network affords, and its published code
stops with an index error where a layer is larger than the budget.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.optimize import isotonic_regression
from torch import nn

from medseg.core.compress.global_magnitude import kept_weights, layer_magnitude_masks, magnitude_scores
from medseg.core.compress.prunable import find_prunable
from medseg.core.compress.weight_masks import WeightMasks
from medseg.core.optim._checks import check_share, check_whole
from medseg.core.optim.scale_invariance import find_scale_invariant

FRACTIONS = (0.0, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98)


class PruningAllocation(NamedTuple):
    """How much to prune each layer.

    Attributes:
        sparsities: part to prune, by layer; `layer_magnitude_masks` takes it.
        distortion: sum of the layers' distortions.
        kept: weights that stay, of all layers.
    """

    sparsities: dict[str, float]
    distortion: float
    kept: int


def allocate_pruning(
    sizes: Mapping[str, int],
    fractions: Sequence[float],
    distortions: Mapping[str, Sequence[float]],
    keep_budget: int,
    cells: int = 4096,
) -> PruningAllocation:
    """Choose how much to prune each layer, so that at most so many weights stay and the output moves least.

    Args:
        sizes: number of weights, by layer.
        fractions: parts of a layer that may be pruned, in [0, 1], ascending.
        distortions: for each layer the change of the output at each fraction.
        keep_budget: weights that may stay, of all layers together.
        cells: pairs of weights and distortion to remember; more is slower and never worse than needed.

    Returns:
        The choice of a fraction for each layer.

    Raises:
        ValueError: the curves do not fit, or even the largest fractions leave more weights than the budget.

    Example:
        >>> curves = {"a": [0.0, 0.1, 9.0], "b": [0.0, 5.0, 6.0]}
        >>> allocate_pruning({"a": 10, "b": 10}, [0.0, 0.5, 0.9], curves, keep_budget=15).sparsities
        {'a': 0.5, 'b': 0.0}
    """
    check_whole("cells", cells, 1)
    names = list(sizes)
    curves = {name: _check_curve(name, fractions, distortions) for name in names}
    options = {n: np.array([kept_weights(sizes[n], f) for f in fractions], dtype=np.int64) for n in names}
    least = sum(int(kept.min()) for kept in options.values())
    if least > keep_budget:
        raise ValueError(
            f"keep_budget {keep_budget} is below the {least} weights that stay at the largest fraction of every layer; "
            "raise it or offer larger fractions"
        )
    kept, total, steps = np.zeros(1, dtype=np.int64), np.zeros(1), []
    for name in names:
        least -= int(options[name].min())
        chosen = _join(kept, total, options[name], curves[name], keep_budget - least, cells)
        kept = (kept[:, None] + options[name]).ravel()[chosen]
        total = (total[:, None] + curves[name]).ravel()[chosen]
        steps.append(chosen)
    best = len(kept) - 1  # the list falls in distortion
    result, place = {}, best
    for name, chosen in zip(reversed(names), reversed(steps), strict=True):
        place, option = divmod(int(chosen[place]), len(fractions))
        result[name] = float(fractions[option])
    return PruningAllocation({name: result[name] for name in names}, float(total[best]), int(kept[best]))


@torch.no_grad()
def measure_distortions(
    model: nn.Module,
    inputs: Sequence[torch.Tensor],
    scores: Mapping[str, torch.Tensor],
    fractions: Sequence[float],
    predict: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> dict[str, list[float]]:
    """Mean squared change of a network's output when one layer alone is pruned by magnitude.

    It takes as many forward passes as there are layers, fractions and inputs.

    Args:
        model: run as it is, so put it in evaluation; unchanged afterwards.
        inputs: patches (B, C, spatial...) from some cases; 4 to 8 will do.
        scores: of the weights, by the parameter's name; the smallest go first, see `magnitude_scores`.
        fractions: parts of a layer to prune, in [0, 1].
        predict: from an input to what is compared; the model's output by default.

    Returns:
        For each name the change at each fraction, for `allocate_pruning`.

    Raises:
        ValueError: there is no input, or a fraction is out of range.

    Example:
        >>> model = nn.Linear(2, 1, bias=False)
        >>> _ = model.weight.data.copy_(torch.tensor([[3.0, 1.0]]))
        >>> measure_distortions(model, [torch.ones(1, 2)], {"weight": model.weight}, [0.0, 0.5, 1.0])
        {'weight': [0.0, 1.0, 16.0]}
    """
    if not len(inputs):
        raise ValueError("inputs must hold at least one patch, got none")
    run: Any = predict or model
    dense = [run(patch) for patch in inputs]
    parameters = dict(model.named_parameters())
    found = {}
    for name, score in scores.items():
        weight = parameters[name]
        before = weight.detach().clone()
        found[name] = []
        try:
            for fraction in fractions:
                mask = layer_magnitude_masks({name: score}, {name: fraction})[name]
                weight.copy_(before * mask)
                moved = [(run(patch) - out).double().square().mean() for patch, out in zip(inputs, dense, strict=True)]
                found[name].append(float(torch.stack(moved).mean()))
        finally:
            weight.copy_(before)
    return found


def prune_rate_distortion(
    model: nn.Module,
    sparsity: float,
    inputs: Sequence[torch.Tensor],
    fractions: Sequence[float] = FRACTIONS,
    scale_aware: bool = True,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
) -> WeightMasks:
    """Set weights of a network to zero, of each layer as many as its output allows.

    Slower than `prune_magnitude`, by as many forward passes as there are layers, fractions and inputs, and kinder.

    Args:
        model: the network, changed in place; put it in evaluation.
        sparsity: least part to prune of the weights that may be pruned, in [0, 1].
        inputs: patches (B, C, spatial...) without labels from some cases; 4 to 8 will do.
        fractions: parts of a layer that may be pruned, ascending; the largest bounds the sparsity.
        scale_aware: measure filters that a normalisation follows relative to their norm.
        include: names of layers to prune that by default are not, see `find_prunable`.
        exclude: names of layers to leave.

    Returns:
        The masks; attach them to an optimizer to train on.

    Raises:
        ValueError: an option is out of range, a name fits no layer, or nothing may be pruned as far.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1))
        >>> masks = prune_rate_distortion(model, 0.7, [torch.randn(1, 1, 8, 8)])
        >>> list(masks.kept), round(masks.sparsity, 1) >= 0.7
        (['2.weight'], True)
    """
    check_share("sparsity", sparsity)
    if not len(inputs):
        raise ValueError("inputs must hold at least one patch, got none")
    weights = find_prunable(model, inputs[0].shape, include, exclude)
    scores = magnitude_scores(weights, find_scale_invariant(model, inputs[0].shape) if scale_aware else None)
    curves = measure_distortions(model, inputs, scores, fractions)
    sizes = {name: score.numel() for name, score in scores.items()}
    choice = allocate_pruning(sizes, fractions, curves, kept_weights(sum(sizes.values()), sparsity))
    return WeightMasks(model, layer_magnitude_masks(scores, choice.sparsities))


def _join(
    kept: np.ndarray, total: np.ndarray, options: np.ndarray, curve: np.ndarray, budget: int, cells: int
) -> np.ndarray:
    """Indices into all pairs of a list and a layer's options, of those that no other beats; kept weights ascend."""
    all_kept = (kept[:, None] + options).ravel()
    all_total = (total[:, None] + curve).ravel()
    order = np.lexsort((all_total, all_kept))
    order = order[all_kept[order] <= budget]
    lowest = np.minimum.accumulate(all_total[order])
    better = np.append(True, lowest[1:] < lowest[:-1])
    order = order[better]
    if len(order) > cells:
        cell = np.ceil(all_kept[order] * (cells / max(budget, 1)))
        last = np.append(cell[1:] != cell[:-1], True)  # the largest of a cell has its least distortion
        last[0] = True  # without the smallest, the layers to come might not fit
        order = order[last]
    return order


def _check_curve(name: str, fractions: Sequence[float], distortions: Mapping[str, Sequence[float]]) -> np.ndarray:
    for fraction in fractions:
        check_share("fractions", fraction)
    curve = np.asarray(distortions.get(name, ()), dtype=float)
    if curve.shape != (len(fractions),) or not len(curve) or not np.isfinite(curve).all():
        raise ValueError(
            f"distortions[{name!r}] must have a finite value for each of the {len(fractions)} fractions, got "
            f"{distortions.get(name)}"
        )
    if list(fractions) != sorted(fractions):
        raise ValueError(f"fractions must ascend, got {list(fractions)}")
    return np.asarray(isotonic_regression(curve).x)
