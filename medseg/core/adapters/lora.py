"""LoRA: fine-tune a trained network through low-rank updates of its weights, convolutions included.

    W' = W + (s / r) B A,      W frozen, A and B trained; A starts at random (Kaiming), B at zero, so W' starts as W

W is seen as a matrix of its first axis and all others, B has r columns and A has r rows:

    Conv        (Cout | Cin/groups k^n)    A: a convolution of the same kernel to r channels, B: kernel 1 behind it
    transposed  (Cin  | Cout/groups k^n)   B: kernel 1 to r channels, A: a transposed convolution behind it
    Linear      (out  | in)

Source: Hu, Shen, Wallis, Allen-Zhu, Li, Wang, Wang, Chen, "LoRA: Low-Rank Adaptation of Large Language Models" (ICLR
2022), for linear layers. Here for all three, in 1D to 3D, with groups: A is shared by all groups. The update is added
to the weight (`torch.nn.utils.parametrize`), not to the output: the answer is the same, no feature map is added, which
in 3D is what memory is spent on, and the merged network is the adapted one to the last bit. As usual for U-Nets the
norms train as well; biases do not.

In a bundle's train.json, or by `medseg train --finetune --set 'network=...'` without touching the bundle:

    "network": {"_target_": "medseg.core.adapters.add_lora",
                "network": "$@network_def.to(device=@device)", "rank": 4, "train_fully": ["output_block.*"]}

The optimizer may be given all parameters: those that are frozen have no gradient. `medseg.engines.TrainingCheckpoint`
writes the merged weights as the product, which the bundle's inference.json loads as ever.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize

from medseg.core.norm import norm_parameters


class LowRankUpdate(nn.Module):
    """A parametrization that adds (alpha / rank) B A to a weight.

    Args:
        shape: shape of the weight; its first axis and the product of the others are the sides of the matrix.
        rank: rank of the update, from 1 to the shorter side.
        alpha: factor of the update times the rank; by default the rank, a factor of 1.

    Raises:
        ValueError: the rank is out of range, or alpha is not above 0.

    Example:
        >>> update = LowRankUpdate((8, 4, 3, 3), rank=2)
        >>> update.a.shape, update.b.shape
        (torch.Size([2, 36]), torch.Size([8, 2]))
    """

    scale: Tensor

    def __init__(self, shape: Sequence[int], rank: int = 4, alpha: float | None = None) -> None:
        super().__init__()
        rows, columns = shape[0], math.prod(shape[1:])
        if not 1 <= rank <= min(rows, columns):
            raise ValueError(
                f"rank must be from 1 to {min(rows, columns)} for a weight of {tuple(shape)}, a matrix of {rows} x "
                f"{columns}, got {rank}"
            )
        if alpha is not None and not alpha > 0:
            raise ValueError(f"alpha must be above 0, got {alpha}; leave it out for a factor of 1")
        self.a = nn.Parameter(torch.empty(rank, columns))
        self.b = nn.Parameter(torch.zeros(rows, rank))
        # A buffer, so that a file of adapters says all that is needed to load it.
        self.register_buffer("scale", torch.tensor(1.0 if alpha is None else alpha / rank))
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        """Give the adapted weight; the update is computed in its own precision under autocast as well."""
        with torch.autocast(weight.device.type, enabled=False):
            return weight + (self.scale * (self.b @ self.a)).view_as(weight)


def add_lora(
    network: nn.Module,
    rank: int = 4,
    alpha: float | None = None,
    layers: Sequence[str] = ("*",),
    train_fully: Sequence[str] = (),
    train_norm: bool = True,
) -> nn.Module:
    """Freeze a network but for low-rank updates of its convolutions and linear layers.

    Load the trained weights first. The updates are drawn from PyTorch's global generator, as new layers are.

    Args:
        network: the trained network; changed in place.
        rank: rank of every update, from 1 to the shorter side of the smallest chosen weight.
        alpha: factor of the updates times the rank; by default the rank, a factor of 1.
        layers: names of the layers to adapt, with `*` and `?`; by default all convolutions and linear layers.
        train_fully: names of layers that train without an update, all their parameters, such as a small head.
        train_norm: train the scales and shifts of normalisation as well.

    Returns:
        The network itself, so that a bundle can name this function where it names a network.

    Raises:
        ValueError: a pattern matches no layer, the rank is too large for a layer, or a weight is parametrized already.

    Example:
        >>> network = nn.Sequential(nn.Conv3d(1, 8, 3), nn.BatchNorm3d(8), nn.Conv3d(8, 2, 1))
        >>> [n for n, p in add_lora(network, rank=2, train_fully=["2"]).named_parameters() if p.requires_grad]
        ['0.parametrizations.weight.0.a', '0.parametrizations.weight.0.b', '1.weight', '1.bias', '2.weight', '2.bias']
    """
    known = {name: module for name, module in network.named_modules() if isinstance(module, (_ConvNd, nn.Linear))}
    fully = _matching(train_fully, [name for name, _ in network.named_modules() if name], "train_fully")
    whole = {module for name in fully for module in network.get_submodule(name).modules()}
    chosen = [name for name in _matching(layers, list(known), "layers") if known[name] not in whole]
    updates = {name: _update_for(name, known[name], rank, alpha) for name in chosen}
    network.requires_grad_(False)
    for name, update in updates.items():
        parametrize.register_parametrization(known[name], "weight", update)
    for name in fully:
        network.get_submodule(name).requires_grad_(True)
    for parameter in norm_parameters(network).values() if train_norm else ():
        parameter.requires_grad_(True)
    return network


def merge_lora(network: nn.Module) -> nn.Module:
    """Write the updates into the weights and remove them, in place.

    Which parameters train stays as it is: merged weights do not.

    Args:
        network: a network with updates.

    Returns:
        The network itself, as it was before `add_lora` but for its values; it exports and converts as ever.

    Raises:
        ValueError: it has no updates.

    Example:
        >>> merge_lora(add_lora(nn.Sequential(nn.Conv2d(2, 4, 3)), rank=1))
        Sequential(
          (0): Conv2d(2, 4, kernel_size=(3, 3), stride=(1, 1))
        )
    """
    layers = lora_layers(network)
    if not layers:
        raise ValueError("network has no low-rank updates to merge; add_lora adds them")
    for layer in layers.values():
        merged, plain = _merged_weight(layer), _original(layer)
        # Not remove_parametrizations: it takes the property `weight` from the class, which copies of a network share,
        # so that merging a copy would break the network itself.
        del layer.parametrizations
        layer.__class__ = type(layer).__bases__[0]
        plain.data = merged
        layer.register_parameter("weight", plain)
    return network


def merged_state_dict(network: nn.Module) -> dict[str, Tensor]:
    """Give the state that a network would have without its updates: names of the plain network, merged weights.

    Args:
        network: any network; stays as it is. Without updates this is its `state_dict`.

    Example:
        >>> list(merged_state_dict(add_lora(nn.Sequential(nn.Conv2d(2, 4, 3)), rank=1)))
        ['0.bias', '0.weight']
    """
    merged = {layer: _merged_weight(layer) for layer in lora_layers(network).values()}
    state: dict[str, Tensor] = {}
    for name, value in network.state_dict().items():
        # A layer may stand under several names, of which state_dict has all.
        prefix, found, rest = name.rpartition("parametrizations.weight.")
        layer = network.get_submodule(prefix.removesuffix(".")) if found else None
        if layer not in merged:
            state[name] = value
        elif rest == "original":
            state[f"{prefix}weight"] = merged[layer]
    return state


def lora_layers(network: nn.Module) -> dict[str, nn.Module]:
    """Give the layers that have an update, by name."""
    return {name: module for name, module in network.named_modules() if _is_adapted(module)}


def _original(layer: nn.Module) -> nn.Parameter:
    return layer.parametrizations["weight"].original  # type: ignore[index, return-value]


def _merged_weight(layer: nn.Module) -> Tensor:
    weight: Tensor = layer.weight  # type: ignore[assignment]
    return weight.detach()


def _is_adapted(module: nn.Module) -> bool:
    steps = getattr(module, "parametrizations", {})
    return list(steps) == ["weight"] and [type(step) for step in steps["weight"]] == [LowRankUpdate]


def _update_for(name: str, layer: nn.Module, rank: int, alpha: float | None) -> LowRankUpdate:
    if parametrize.is_parametrized(layer):
        raise ValueError(f"layer {name!r} has a parametrized weight already; merge_lora removes low-rank updates")
    weight: Tensor = layer.weight  # type: ignore[assignment]
    try:
        update = LowRankUpdate(weight.shape, rank, alpha)
    except ValueError as error:
        raise ValueError(
            f"layer {name!r}: {error}; lower the rank, name the layers to adapt without it in layers, or name it in "
            "train_fully"
        ) from error
    return update.to(weight)


def _matching(patterns: Sequence[str], names: Sequence[str], argument: str) -> list[str]:
    if isinstance(patterns, str):
        raise ValueError(f"{argument} must be a list of names, got the string {patterns!r}; put it in a list")
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(f"{argument}: {pattern!r} matches no layer; there are: {', '.join(names)[:600]}")
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]
