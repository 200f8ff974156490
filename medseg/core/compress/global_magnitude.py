"""Which weights to keep: the largest of all layers together, and some of each layer whatever their size.

    prune the round(sparsity n) smallest of all n scores |w|, but never the `min_per_layer` largest of a layer

Without the second half a layer with small weights, such as a head, can lose all of them and the network its output.
Equal scores are pruned in the order of layers and of their flattened entries.

Two weights of one size need not matter alike: what stands before a normalisation can be scaled without effect, filter
by filter (see `find_scale_invariant`). `magnitude_scores` divides such a filter by its norm. A filter of fan-in f with
the usual start has weights of about sqrt(2 / f), so a norm near sqrt(2): the scores stay comparable with those of
layers without a normalisation.

Source: global magnitude pruning with a minimum for each layer, Gupta et al., "Is Complexity Required for Neural Network
Pruning? A Case Study on Global Magnitude Pruning" (2022). The division by norms is an addition of ours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from medseg.core.optim._checks import check_least, check_share
from medseg.core.optim.scale_invariance import Invariance

Tensors = Mapping[str, torch.Tensor]


def magnitude_scores(weights: Tensors, invariances: Mapping[str, Invariance] | None = None) -> dict[str, torch.Tensor]:
    """Sizes of weights, those of scale-invariant filters relative to the filter's norm.

    Args:
        weights: by name.
        invariances: rows of weights whose scale has no effect, as `find_scale_invariant` gives them; None for none.

    Returns:
        Scores of the shapes of the weights, at least 0.

    Example:
        >>> weights = {"conv": torch.tensor([[3.0, 4.0], [30.0, 40.0]])}
        >>> magnitude_scores(weights, {"conv": Invariance(0, None)})["conv"].tolist()
        [[0.6..., 0.8...], [0.6..., 0.8...]]
    """
    scores = {}
    for name, weight in weights.items():
        score = weight.detach().abs()
        if invariances and name in invariances:
            channel_dim, groups = invariances[name]
            moved = score.movedim(channel_dim, 0)
            rows = moved.reshape(groups or moved.shape[0], -1)
            # The norm of one filter in the mean, where several stand in a row.
            norms = rows.norm(dim=1, keepdim=True) / math.sqrt(moved.shape[0] / len(rows))
            # A filter of zeros keeps its zeros.
            scaled = rows / norms.clamp_min(torch.finfo(score.dtype).tiny)
            score = scaled.reshape(moved.shape).movedim(0, channel_dim)
        scores[name] = score
    return scores


def global_magnitude_masks(
    weights: Tensors, sparsity: float, min_per_layer: int | float = 0
) -> dict[str, torch.Tensor]:
    """Masks that keep the largest weights of all layers together, and a few of each.

    Args:
        weights: weights or scores by layer; their sizes count.
        sparsity: part of all weights to prune, in [0, 1].
        min_per_layer: largest weights of each layer that stay: a number of weights if whole, a part of the layer
            (rounded up) if a fraction below 1.

    Returns:
        True where a weight stays. Fewer are pruned than asked for where the layers' minima do not leave enough.

    Raises:
        ValueError: an option is out of range.

    Example:
        >>> weights = {"body": torch.tensor([5.0, -4.0, 3.0]), "head": torch.tensor([0.2, 0.1])}
        >>> {name: mask.tolist() for name, mask in global_magnitude_masks(weights, 0.4).items()}
        {'body': [True, True, True], 'head': [False, False]}
        >>> {name: mask.tolist() for name, mask in global_magnitude_masks(weights, 0.4, min_per_layer=1).items()}
        {'body': [True, True, False], 'head': [True, False]}
    """
    check_share("sparsity", sparsity)
    check_least("min_per_layer", min_per_layer)
    if min_per_layer > 1 and min_per_layer != int(min_per_layer):
        raise ValueError(f"min_per_layer must be a whole number of weights or a part below 1, got {min_per_layer}")
    sizes = [weight.numel() for weight in weights.values()]
    if not sizes:
        return {}
    scores = torch.cat([weight.detach().abs().flatten() for weight in weights.values()])
    protected = torch.cat([_largest(part, min_per_layer) for part in scores.split(sizes)])
    order = torch.argsort(scores, stable=True)
    order = order[~protected[order]][: round(sparsity * len(scores))]
    keep = torch.ones_like(protected)
    keep[order] = False
    parts = zip(weights.items(), keep.split(sizes), strict=True)
    return {name: part.reshape(weight.shape) for (name, weight), part in parts}


def layer_magnitude_masks(weights: Tensors, sparsities: Mapping[str, float]) -> dict[str, torch.Tensor]:
    """Masks that keep the largest weights of each layer, with a sparsity of its own.

    Args:
        weights: weights or scores by layer; their sizes count.
        sparsities: part of each layer to prune, in [0, 1]; the number of weights that stay is rounded up.

    Returns:
        True where a weight stays.

    Raises:
        ValueError: a sparsity is out of range, or a layer has none.

    Example:
        >>> layer_magnitude_masks({"body": torch.tensor([5.0, -4.0, 3.0])}, {"body": 0.5})["body"].tolist()
        [True, True, False]
    """
    if missing := sorted(set(weights) - set(sparsities)):
        raise ValueError(
            f"sparsities must have a value for every layer, but {missing[:3]} have none; give 0 to keep all"
        )
    masks = {}
    for name, weight in weights.items():
        check_share(f"sparsities[{name!r}]", sparsities[name])
        kept = kept_weights(weight.numel(), sparsities[name])
        masks[name] = _largest(weight.detach().abs().flatten(), kept).reshape(weight.shape)
    return masks


def kept_weights(size: int, sparsity: float) -> int:
    """Weights that stay of a layer, rounded up.

    Example:
        >>> kept_weights(10, 0.7), kept_weights(10, 0.75)
        (3, 3)
    """
    return math.ceil(size * (1 - sparsity) - 1e-9 * size)  # 10 * (1 - 0.7) is 3.0000000000000004


def cubic_sparsity(step: int, steps: int, sparsity: float) -> float:
    """Sparsity on the way to a final one: s (1 - (1 - t / n)^3), fast while there is much to spare.

    Source: Zhu, Gupta, "To prune, or not to prune: exploring the efficacy of pruning for model compression" (2017).

    Args:
        step: t; before 0 nothing is pruned, from `steps` on all.
        steps: n, at least 1.
        sparsity: s, in [0, 1].

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> [round(cubic_sparsity(step, 4, 0.8), 3) for step in range(6)]
        [0.0, 0.463, 0.7, 0.788, 0.8, 0.8]
    """
    check_least("steps", steps, 1)
    check_share("sparsity", sparsity)
    left = 1 - min(max(step / steps, 0.0), 1.0)
    return sparsity * (1 - left**3)


def _largest(scores: torch.Tensor, count: int | float) -> torch.Tensor:
    """True at the largest scores; of equal ones the last."""
    number = math.ceil(count * len(scores)) if isinstance(count, float) and count < 1 else int(count)
    chosen = torch.zeros_like(scores, dtype=torch.bool)
    if number > 0:
        chosen[torch.argsort(scores, stable=True)[-number:]] = True
    return chosen
