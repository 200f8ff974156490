"""Which weights of a network may be pruned: convolutions and linear layers between the first one and the heads.

The first convolution has few weights and sees the image alone, the heads have few and give the answer: pruning them
saves nothing and costs most. Normalisation, biases and embeddings are no matrices. The network is run once in
evaluation and every operation of torch is watched, so nothing is guessed from names:

    first   the first layer, and all that read the network's input
    heads   the last layer, and all whose output the network gives back or uses no more (deep supervision)

Weights that this run does not reach stay as they are, and so do those that are changed before their use, as by weight
standardisation, where a zero would not stay one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode

from medseg.core.nested_tensors import nested_tensors
from medseg.core.optim.scale_invariance import PRODUCERS


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
    layers = {name: m for name, m in model.named_modules() if isinstance(m, (_ConvNd, nn.Linear))}
    _check_names("include", include, layers)
    _check_names("exclude", exclude, layers)
    used, ends = _run(model, input_shape)
    parameters = {id(p): (name, p) for name, p in model.named_parameters()}
    found = {}
    for key in dict.fromkeys([*used, *(id(module.weight) for module in layers.values())]):
        name, parameter = parameters.get(key, ("", None))  # weights that are computed are no parameters
        wanted = (key in used and key not in ends) or _begins(name, include)
        if parameter is not None and wanted and not _begins(name, exclude):
            found[name] = parameter
    return found


class _Watcher(TorchFunctionMode):
    """Notes the convolutions and linear layers as they run, and which of their outputs are used."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
        self.unused: set[int] = set()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if nested_tensors(result):  # looking at a shape is no use of the values
            self.unused -= {id(tensor) for tensor in nested_tensors((args, kwargs))}
        if func in PRODUCERS:
            source, weight = (args[n] if len(args) > n else kwargs[key] for n, key in enumerate(("input", "weight")))
            self.calls.append((source, weight, result))  # kept, so that no other tensor gets its id
            self.unused.add(id(result))
        return result


def _run(model: nn.Module, input_shape: Sequence[int]) -> tuple[list[int], set[int]]:
    """Ids of the weights in the order of their use, and those of first layers and heads."""
    first = next(model.parameters())
    image = torch.zeros(tuple(input_shape), device=first.device, dtype=first.dtype)
    watcher, modes = _Watcher(), [(module, module.training) for module in model.modules()]
    try:
        with torch.no_grad(), watcher:
            given = {id(tensor) for tensor in nested_tensors(model.eval()(image))}
    finally:
        for module, mode in modes:
            module.training = mode
    used = list(dict.fromkeys(id(weight) for _, weight, _ in watcher.calls))
    ends = {
        id(weight)
        for source, weight, output in watcher.calls
        if source is image or id(output) in given | watcher.unused
    }
    return used, ends | {*used[:1], *used[-1:]}


def _begins(name: str, starts: Iterable[str]) -> bool:
    return any(name == start or name.startswith(f"{start}.") for start in starts)


def _check_names(argument: str, starts: Sequence[str], layers: Iterable[str]) -> None:
    names = [f"{name}.weight" for name in layers]
    unknown = [start for start in starts if not any(_begins(name, [start]) for name in names)]
    if unknown:
        raise ValueError(
            f"{argument} holds {unknown}, which fit no convolution or linear layer; there are {names[:5]}..."
        )
