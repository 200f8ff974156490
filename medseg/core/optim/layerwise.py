"""Learning rates that fall from a network's head to its stem, for fine-tuning.

    lr of layer g of 0 (stem) to L - 1 (head)  =  lr decay^(L - 1 - g)

Early layers of a pre-trained network hold features that fit new data already, and are changed least. A schedule
multiplies all rates and keeps their ratios.

The recipe (rates that fall towards the input, and layers frozen in that order, see `ProgressiveFreezing`) is common in
fine-tuning of networks for radiographs from few cases; the factor is a matter of trying, 0.3 to 0.9.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from medseg.core.optim._checks import check_least, check_whole
from medseg.core.optim.decay_groups import decayed_weights

Layers = Sequence[Sequence[str]]


def find_layers(model: nn.Module, input_shape: Sequence[int], count: int = 6) -> list[list[str]]:
    """Names of a network's parameters in `count` layers from input to output, for U-Nets and transformers alike.

    The network is run once, in evaluation: modules are ordered by their first use, so that in a U-Net the encoder comes
    first and the decoder goes on to the head, and cut into runs of as many matrices. Normalisation stays with the
    convolution before it.

    Args:
        model: takes one tensor; left in the mode that it had.
        input_shape: (B, C, spatial...) of zeros to run it on.
        count: number of layers, at least 1; fewer come out of a network with fewer blocks.

    Returns:
        Names of parameters, layer by layer. Those of modules that were not run (deep supervision) are in the last.

    Example:
        >>> block = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
        >>> model = nn.Sequential(block, nn.Sequential(nn.Conv2d(2, 1, 1)))
        >>> find_layers(model, [1, 1, 8, 8], count=2)
        [['0.0.weight', '0.0.bias', '0.1.weight', '0.1.bias'], ['1.0.weight', '1.0.bias']]
    """
    check_whole("count", count, 1)
    owners = _owners_in_order(model, input_shape)
    starts = [i for i, owner in enumerate(owners) if i == 0 or any(p.ndim > 1 for _, p in owner)]
    count = min(count, len(starts))
    cuts = [*(starts[round(i * len(starts) / count)] for i in range(count)), len(owners)]
    layers = [[name for owner in owners[a:b] for name, _ in owner] for a, b in pairwise(cuts)]
    run = {name for names in layers for name in names}
    layers[-1] += [name for name, _ in model.named_parameters() if name not in run]
    return layers


def layerwise_param_groups(
    model: nn.Module, layers: Layers, lr: float, decay: float = 0.5, weight_decay: float = 0.0
) -> list[dict[str, Any]]:
    """Groups with a learning rate a layer, for any optimizer.

    Args:
        model: the network.
        layers: from stem to head, beginnings of parameters' names (`["encoder1", "encoder2"]`), or what `find_layers`
            gives. A parameter belongs to the layer with the longest fitting one.
        lr: of the head.
        decay: factor from a layer to the one before it, above 0.
        weight_decay: of the weights of convolutions, linear layers and attention; the rest has none.

    Returns:
        Groups of the trainable parameters, none empty; `layer` tells the number of a group's layer.

    Raises:
        ValueError: a parameter belongs to no layer, or an option is out of range.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 3), nn.Conv2d(2, 1, 1))
        >>> groups = layerwise_param_groups(model, [["0"], ["1"], ["2"]], lr=0.1)
        >>> sorted({(group["layer"], group["lr"]) for group in groups})
        [(0, 0.025), (1, 0.05), (2, 0.1)]
    """
    check_least("lr", lr)
    check_least("weight_decay", weight_decay)
    if not decay > 0:
        raise ValueError(f"decay must be above 0, got {decay}")
    decayed = {id(p) for p in decayed_weights(model)}
    found: dict[tuple[int, float], list[torch.Tensor]] = {}
    for number, params in enumerate(split_parameters(model, layers)):
        for p in params:
            if p.requires_grad:
                found.setdefault((number, weight_decay if id(p) in decayed else 0.0), []).append(p)
    top = len(layers) - 1
    return [
        {"params": params, "lr": lr * decay ** (top - number), "weight_decay": weight, "layer": number}
        for (number, weight), params in found.items()
    ]


def split_parameters(model: nn.Module, layers: Layers) -> list[list[nn.Parameter]]:
    """Parameters of each layer.

    Args:
        model: the network.
        layers: beginnings of parameters' names, see `layerwise_param_groups`.

    Raises:
        ValueError: a parameter belongs to no layer, or a name to no parameter.
    """
    places = {start: number for number, starts in enumerate(layers) for start in starts}
    found: list[list[nn.Parameter]] = [[] for _ in layers]
    unused, without = set(places), []
    for name, p in model.named_parameters():
        fitting = [start for start in places if name == start or name.startswith(f"{start}.")]
        if not fitting:
            without.append(name)
            continue
        best = max(fitting, key=len)
        unused.discard(best)
        found[places[best]].append(p)
    if without:
        raise ValueError(f"layers must hold every parameter, but {without[:3]} of {len(without)} are in none; add them")
    if unused:
        raise ValueError(f"layers holds {sorted(unused)[:3]}, which name no parameter; see model.named_parameters()")
    return found


def _owners_in_order(model: nn.Module, input_shape: Sequence[int]) -> list[list[tuple[str, nn.Parameter]]]:
    """Named parameters of every module that has some of its own, in the order of the modules' first use."""
    names = {name for name, _ in model.named_parameters()}  # a shared parameter once
    seen: dict[str, list[tuple[str, nn.Parameter]]] = {}
    hooks = []
    for name, module in model.named_modules():
        own = [(n, p) for n, p in module.named_parameters(prefix=name, recurse=False) if n in names]

        def note(*_: object, name: str = name, own: list[tuple[str, nn.Parameter]] = own) -> None:
            seen.setdefault(name, own)

        if own:
            hooks.append(module.register_forward_pre_hook(note))
    modes = [(module, module.training) for module in model.modules()]
    first = next(model.parameters())
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(tuple(input_shape), device=first.device, dtype=first.dtype))
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes:
            module.training = mode
    return list(seen.values())
