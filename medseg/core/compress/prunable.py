"""Which weights of a network may be pruned: convolutions and linear layers between the first one and the heads.

The first convolution has few weights and sees the image alone, the heads have few and give the answer: pruning them
saves nothing and costs most. Normalisation, biases and embeddings are no matrices. The network is run once to see
which layers those are, so nothing is guessed from names: first are the first layer and all that read the network's
input, heads are the last layer and all whose output the network gives back. Layers that this run does not reach (deep
supervision) stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd


def find_prunable(
    model: nn.Module,
    input_shape: Sequence[int],
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
) -> dict[str, nn.Parameter]:
    """Weights of the convolutions and linear layers of a network that may be pruned, in the order of their use.

    Args:
        model: takes one tensor; left in the mode and with the buffers that it had.
        input_shape: (B, C, spatial...) of zeros to run it on.
        include: names, or their beginnings, of layers to prune even if they are first, head or not reached.
        exclude: the same of layers that stay; they win over `include`.

    Returns:
        Weights by their names; one under two names once.

    Raises:
        ValueError: a name fits no convolution or linear layer.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1))
        >>> list(find_prunable(model, [1, 1, 8, 8]))
        ['2.weight']
        >>> list(find_prunable(model, [1, 1, 8, 8], include=["0"], exclude=["2"]))
        ['0.weight']
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, (_ConvNd, nn.Linear))}
    _check_names("include", include, layers)
    _check_names("exclude", exclude, layers)
    used, ends = _run(model, layers, input_shape)
    order = dict.fromkeys([*used, *layers])
    found = {}
    for name in order:
        wanted = (name in used and name not in ends) or _begins(name, include)
        if wanted and not _begins(name, exclude):
            found[f"{name}.weight" if name else "weight"] = layers[name].weight
    return found


def _run(model: nn.Module, layers: Mapping[str, nn.Module], input_shape: Sequence[int]) -> tuple[list[str], set[str]]:
    """Names of the layers in the order of their first use, and those of the first ones and the heads."""
    first = next(model.parameters())
    image = torch.zeros(tuple(input_shape), device=first.device, dtype=first.dtype)
    calls: list[tuple[str, torch.Tensor, torch.Tensor]] = []  # the tensors are kept, so that no other gets their ids

    def listen(name: str) -> Any:
        return lambda module, inputs, output: calls.append((name, inputs[0], output))

    handles = [module.register_forward_hook(listen(name)) for name, module in layers.items()]
    modes = [(module, module.training) for module in model.modules()]
    try:
        with torch.no_grad():
            given = {id(t) for t in _tensors(model.eval()(image))}
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes:
            module.training = mode
    ends = {name for name, source, output in calls if source is image or id(output) in given}
    used = list(dict.fromkeys(name for name, _, _ in calls))
    return used, ends | {*used[:1], *used[-1:]}


def _tensors(values: Any) -> Iterator[torch.Tensor]:
    """All tensors in nested sequences and dictionaries."""
    if isinstance(values, torch.Tensor):
        yield values
    elif isinstance(values, (tuple, list, dict)):
        for value in values.values() if isinstance(values, dict) else values:
            yield from _tensors(value)


def _begins(name: str, starts: Iterable[str]) -> bool:
    return any(name == start or f"{name}.weight" == start or name.startswith(f"{start}.") for start in starts)


def _check_names(argument: str, starts: Sequence[str], layers: Iterable[str]) -> None:
    names = list(layers)
    unknown = [start for start in starts if not any(_begins(name, [start]) for name in names)]
    if unknown:
        raise ValueError(
            f"{argument} holds {unknown}, which fit no convolution or linear layer; there are {names[:5]}..."
        )
