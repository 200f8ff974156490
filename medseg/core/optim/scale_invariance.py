"""Find the weights whose scale has no effect, and tell AdamP and SGDP about them.

A convolution or linear layer whose output goes to a normalisation and nowhere else is scale-invariant:

| normalisation | what may be scaled without effect | rows |
| --- | --- | --- |
| instance, batch | each output channel | channels |
| group (G groups, layer without bias) | the channels of a group together | G groups |
| layer, root mean square (linear layer without bias) | all channels together | 1 |

A bias before instance or batch norm is subtracted again; before the others it would have to be scaled too, so such a
layer is not counted. The network is run once, in evaluation and without gradients, and every operation of torch that it
does is watched: nothing is guessed from names or from the order of modules.

Source: Heo, Chun, Oh, Han, Yun, Kim, Uh, Ha, "AdamP: Slowing Down the Slowdown for Momentum Optimizers on
Scale-invariant Weights" (ICLR 2021), which tests gradients instead, and projects other layers at random by that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from medseg.core.nested_tensors import nested_tensors
from medseg.core.optim._checks import check_least
from medseg.core.optim.decay_groups import decayed_weights

CONVOLUTIONS = (functional.conv1d, functional.conv2d, functional.conv3d)
TRANSPOSED = (functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d)
PRODUCERS = (*CONVOLUTIONS, *TRANSPOSED, functional.linear)
PER_CHANNEL = (functional.instance_norm, functional.batch_norm)


class Invariance(NamedTuple):
    """Which rows of a weight may be scaled without effect.

    Attributes:
        channel_dim: axis of the output channels.
        channel_groups: number of rows that they form; None for one a channel.
    """

    channel_dim: int
    channel_groups: int | None


class _Watcher(TorchFunctionMode):
    """Notes where outputs of convolutions and linear layers go."""

    def __init__(self) -> None:
        super().__init__()
        self.outputs: dict[int, tuple[torch.Tensor, torch.Tensor, bool, Callable[..., Any]]] = {}
        self.uses: dict[int, list[tuple[Callable[..., Any], tuple[Any, ...], Mapping[str, Any]]]] = {}

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
            for tensor in nested_tensors((args, kwargs)):
                if id(tensor) in self.outputs:
                    self.uses[id(tensor)].append((func, args, kwargs))
        if func in PRODUCERS:
            weight = args[1] if len(args) > 1 else kwargs["weight"]
            bias = args[2] if len(args) > 2 else kwargs.get("bias")
            # The output is kept, so that no later tensor gets its id.
            self.outputs[id(result)] = (result, weight, bias is not None, func)
            self.uses[id(result)] = []
        return result


def find_scale_invariant(model: nn.Module, input_shape: Sequence[int]) -> dict[str, Invariance]:
    """Names of the scale-invariant weights of a network.

    Args:
        model: takes one tensor; left in the mode and with the buffers that it had.
        input_shape: (B, C, spatial...) of zeros to run it on; small saves memory, since outputs are kept.

    Returns:
        By the name of the parameter, which rows may be scaled.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.InstanceNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))
        >>> find_scale_invariant(model, [1, 1, 8, 8])
        {'0.weight': Invariance(channel_dim=0, channel_groups=None)}
    """
    first = next(model.parameters())
    watcher = _Watcher()
    with _in_evaluation(model), torch.no_grad(), watcher:
        model(torch.zeros(tuple(input_shape), device=first.device, dtype=first.dtype))
    verdicts: dict[int, set[Invariance | None]] = {}
    for key, (output, weight, has_bias, func) in watcher.outputs.items():
        verdicts.setdefault(id(weight), set()).add(_judge(output, watcher.uses[key], func, has_bias=has_bias))
    found = {}
    for name, p in model.named_parameters():
        verdict = verdicts.get(id(p), set())
        invariance = next(iter(verdict)) if len(verdict) == 1 else None  # a weight used twice must agree with itself
        if invariance is not None:
            found[name] = invariance
    return found


def scale_invariant_param_groups(
    model: nn.Module, input_shape: Sequence[int], weight_decay: float = 0.0
) -> list[dict[str, Any]]:
    """Groups for AdamP and SGDP: known scale-invariant weights, weights left to the cosine test, and the rest.

    Args:
        model: takes one tensor.
        input_shape: (B, C, spatial...) to run it on once.
        weight_decay: of the weights of convolutions, linear layers and attention; biases, normalisation and embeddings
            have none, and are never projected.

    Returns:
        Groups of the trainable parameters, none empty.

    Raises:
        ValueError: the decay is negative or not finite.

    Example:
        >>> from medseg.core.optim import AdamP
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.InstanceNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))
        >>> optimizer = AdamP(scale_invariant_param_groups(model, [1, 1, 8, 8], weight_decay=0.01))
        >>> [group["scale_invariant"] for group in optimizer.param_groups]
        [True, 'cosine', False]
    """
    check_least("weight_decay", weight_decay)
    known = find_scale_invariant(model, input_shape)
    decayed = {id(p) for p in decayed_weights(model)}
    transposed = {id(m.weight) for m in model.modules() if isinstance(m, nn.modules.conv._ConvTransposeNd)}
    groups: dict[tuple[Any, ...], list[torch.Tensor]] = {}
    for name, p in model.named_parameters():
        if not p.requires_grad:
            continue
        if name in known:
            key = (True, *known[name], weight_decay)
        elif id(p) in decayed:
            key = ("cosine", int(id(p) in transposed), None, weight_decay)
        else:
            key = (False, 0, None, 0.0)
        groups.setdefault(key, []).append(p)
    names = ("scale_invariant", "channel_dim", "channel_groups", "weight_decay")
    order = sorted(groups, key=lambda key: (True, "cosine", False).index(key[0]))
    return [{"params": groups[key], **dict(zip(names, key, strict=True))} for key in order]


def _judge(
    output: torch.Tensor, uses: Sequence[tuple[Any, ...]], func: Callable[..., Any], *, has_bias: bool
) -> Invariance | None:
    """Invariance of the layer that gave an output, from what used it."""
    if len(uses) != 1:
        return None
    used_by, args, kwargs = uses[0]
    if not nested_tensors(args[:1]) or nested_tensors(args[:1])[0] is not output:
        return None
    channel_dim = int(func in TRANSPOSED)
    if func is functional.linear:
        whole = used_by in (functional.layer_norm, functional.rms_norm) and not has_bias
        return Invariance(0, 1) if whole else None
    if used_by in PER_CHANNEL:
        return Invariance(channel_dim, None)
    if used_by is functional.group_norm and not has_bias:
        return Invariance(channel_dim, args[1] if len(args) > 1 else kwargs["num_groups"])
    return None


@contextmanager
def _in_evaluation(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
