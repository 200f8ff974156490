"""Files of low-rank updates: all that a fine-tuning by `add_lora` has trained, and nothing of the base network.

    <layer>.parametrizations.weight.0.a, .b, .scale       of each adapted layer; the rank is that of the shapes
    <name>                                                every other parameter that trained (norms, full layers)

so that one base network serves many sites or tasks, each with a file of a few per cent of its size.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn.utils import parametrize

from medseg.core.adapters.lora import LowRankUpdate, lora_layers

_UPDATE = "parametrizations.weight.0."


def lora_state_dict(network: nn.Module) -> dict[str, Tensor]:
    """Give what has been trained: the updates, and norms and whole layers that train with them.

    Args:
        network: a network with updates; stays as it is.

    Returns:
        Copies by name, to be saved with `torch.save` and loaded with `load_lora`.

    Raises:
        ValueError: the network has no updates.

    Example:
        >>> from medseg.core.adapters import add_lora
        >>> list(lora_state_dict(add_lora(nn.Sequential(nn.Linear(4, 4)), rank=1)))
        ['0.parametrizations.weight.0.scale', '0.parametrizations.weight.0.a', '0.parametrizations.weight.0.b']
    """
    layers = lora_layers(network)
    if not layers:
        raise ValueError("network has no low-rank updates to save; add_lora adds them")
    scales = {_key(name, "scale"): layer.parametrizations["weight"][0].scale for name, layer in layers.items()}  # type: ignore[index]
    trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
    return {name: value.detach().clone() for name, value in {**scales, **trained}.items()}


def load_lora(network: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """Put saved updates onto the base network that they were trained on.

    Args:
        network: the base network with its weights, without updates; changed in place. Loaded for use, or for
            `merge_lora`: what trains stays as it is, so to go on training call `add_lora` and load the state with
            `load_state_dict(state, strict=False)` instead.
        state: what `lora_state_dict` gave.

    Returns:
        The network itself.

    Raises:
        ValueError: the network has updates, the state has none, or it names layers or shapes that the network lacks.

    Example:
        >>> from medseg.core.adapters import add_lora
        >>> state = lora_state_dict(add_lora(nn.Sequential(nn.Linear(4, 4)), rank=1))
        >>> load_lora(nn.Sequential(nn.Linear(4, 4)), state)[0].parametrizations.weight[0].a.shape
        torch.Size([1, 4])
    """
    if lora_layers(network):
        raise ValueError("network has low-rank updates already; merge_lora writes them into the weights")
    names = [key.removesuffix(f"{_UPDATE}a").removesuffix(".") for key in state if key.endswith(f"{_UPDATE}a")]
    if not names:
        raise ValueError("state holds no low-rank updates; give what lora_state_dict gave")
    _check_fit(network, names, state)
    for name in names:
        layer = network.get_submodule(name)
        update = LowRankUpdate(layer.weight.shape, state[_key(name, "a")].shape[0])  # type: ignore[union-attr]
        parametrize.register_parametrization(layer, "weight", update.to(layer.weight))  # type: ignore[arg-type]
    network.load_state_dict(dict(state), strict=False)
    return network


def _key(name: str, part: str) -> str:
    """Name of a part of a layer's update; the network itself, if it is the layer, has no name."""
    return f"{name}.{_UPDATE}{part}" if name else f"{_UPDATE}{part}"


def _check_fit(network: nn.Module, names: list[str], state: Mapping[str, Tensor]) -> None:
    """Refuse a state of another network before anything is changed."""
    parameters = dict(network.named_parameters())
    expected: dict[str, tuple[int, ...]] = {}
    for name in names:
        weight, a = parameters.get(f"{name}.weight" if name else "weight"), state[_key(name, "a")]
        if weight is None:
            raise ValueError(f"state has an update of {name!r}, which the network lacks; load it onto its own base")
        rank = a.shape[0]
        expected[_key(name, "a")] = (rank, weight[0].numel())
        expected[_key(name, "b")] = (weight.shape[0], rank)
        expected[_key(name, "scale")] = ()
    for key, value in state.items():
        wanted = expected.get(key, tuple(parameters[key].shape) if key in parameters else None)
        if wanted != tuple(value.shape):
            there = "lacks it" if wanted is None else f"needs {wanted}"
            raise ValueError(
                f"state: {key} has the shape {tuple(value.shape)}, the network {there}; is it another base?"
            )
    if missing := [key for key in expected if key not in state]:
        raise ValueError(f"state lacks {missing[0]!r}; give all that lora_state_dict gave")
