"""Which channels of a network may change places together without changing what it computes.

The output channels of a convolution can be put in any order, as long as everything that reads them follows: the inputs
of the next layers, the scale and offset of a normalisation, the other side of a residual sum, the right block of a
concatenation. Such channels make a group. Channels of the network's input and output stay where they are.

The network is run once on zeros and every operation of torch is watched; then all groups are shuffled in a copy, whose
output must not change. An operation that treats channels in a way that cannot be followed (group norm with several
groups, attention, a linear layer over places) is therefore an error, not a wrong answer.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from medseg.core.nested_tensors import nested_tensors

_CONVOLUTIONS = (functional.conv1d, functional.conv2d, functional.conv3d)
_TRANSPOSED = (functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d)
_ADVICE = "weights can be matched for networks of convolutions, normalisation, activation, sums and concatenations"
# Groups of a tensor's channels, in their order, with sizes.
_Segments = list[tuple[int, int]]


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that may change places together.

    Attributes:
        size: number of channels.
        members: name of each parameter or buffer that has them, the axis, and where on it they begin.
    """

    size: int
    members: tuple[tuple[str, int, int], ...]


def find_channel_groups(model: nn.Module, input_shape: Sequence[int]) -> list[ChannelGroup]:
    """Groups of channels of a network, in the order in which they arise.

    Args:
        model: takes one tensor; it is left as it was.
        input_shape: (B, C, spatial...) to run a copy on; small is enough.

    Returns:
        The groups of more than one channel that are free to move.

    Raises:
        ValueError: an operation cannot be followed.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.InstanceNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))
        >>> find_channel_groups(model, [1, 1, 8, 8])
        [ChannelGroup(size=4, members=(('0.weight', 0, 0), ('0.bias', 0, 0), ('3.weight', 1, 0)))]
    """
    model = copy.deepcopy(model).eval().double().requires_grad_(False)
    device = next(model.parameters()).device
    watcher = _Watcher(model)
    x = torch.zeros(tuple(input_shape), dtype=torch.float64, device=device)
    watcher.segments[id(x)] = [(watcher.new_group(), x.shape[1])]
    ends = [watcher.segments[id(x)]]
    with watcher:
        output = model(x)
    ends += [watcher.segments[id(tensor)] for tensor in nested_tensors(output) if id(tensor) in watcher.segments]
    groups = watcher.free_groups({group for segments in ends for group, _ in segments})
    _verify(model, groups, torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(x))
    return groups


def permute_channels(
    state: Mapping[str, torch.Tensor], groups: Sequence[ChannelGroup], orders: Sequence[torch.Tensor]
) -> dict[str, torch.Tensor]:
    """State dict with channels in another order.

    Args:
        state: of the network whose groups these are.
        groups: from `find_channel_groups`.
        orders: for each group, which channel comes to each place, a permutation of 0 to size - 1.

    Returns:
        A new state dict; tensors without moved channels are the same objects.

    Raises:
        ValueError: orders are no permutations of the groups.
    """
    if [sorted(order.tolist()) for order in orders] != [[*range(group.size)] for group in groups]:
        raise ValueError(f"orders must hold a permutation for each of the {len(groups)} groups")
    moved = dict(state)
    for group, order in zip(groups, orders, strict=True):
        for name, axis, start in group.members:
            places = torch.arange(moved[name].shape[axis], device=moved[name].device)
            places[start : start + group.size] = start + order.to(places)
            moved[name] = moved[name].index_select(axis, places)
    return moved


class _Watcher(TorchFunctionMode):
    """Follows channels through the operations of a network."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
        self.names: dict[int, list[str]] = {}
        for name, tensor in named:
            self.names.setdefault(id(tensor), []).append(name)
        self.segments: dict[int, _Segments] = {}
        self.parents: list[int] = []
        self.members: list[tuple[int, int, str, int, int]] = []  # group, size, name, axis, start
        self.kept: list[Any] = []  # so that no later tensor gets an id that was used

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        self.kept.append((args, kwargs, result))
        given = nested_tensors((args, kwargs))
        followed = [tensor for tensor in given if id(tensor) in self.segments]
        if followed and nested_tensors(result):
            if not isinstance(result, torch.Tensor):
                raise ValueError(f"{_name(func)} gives several tensors, which is not followed; {_ADVICE}")
            self.segments[id(result)] = self._follow(func, args, kwargs, result, given, followed)
        return result

    def new_group(self) -> int:
        self.parents.append(len(self.parents))
        return len(self.parents) - 1

    def free_groups(self, fixed: set[int]) -> list[ChannelGroup]:
        roots, fixed = [self._root(i) for i in range(len(self.parents))], {self._root(group) for group in fixed}
        found: dict[int, dict[tuple[str, int, int], int]] = {}
        for group, size, *member in self.members:
            found.setdefault(roots[group], {})[tuple(member)] = size  # type: ignore[index]
        free = sorted(root for root in found if root not in fixed)
        sizes = {root: next(iter(found[root].values())) for root in free}
        return [ChannelGroup(sizes[root], tuple(found[root])) for root in free if sizes[root] > 1]

    def _follow(
        self,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        result: torch.Tensor,
        given: list[torch.Tensor],
        followed: list[torch.Tensor],
    ) -> _Segments:
        """Segments of a result."""
        if func in (*_CONVOLUTIONS, *_TRANSPOSED):
            return self._convolve(func in _TRANSPOSED, args, kwargs, self.segments[id(followed[0])])
        if func in (torch.cat, torch.concat, torch.concatenate):
            dim = kwargs.get("dim", args[1] if len(args) > 1 else 0) % result.ndim
            if dim == 1:
                return [segment for tensor in followed for segment in self.segments[id(tensor)]]
        segments = next((self.segments[id(t)] for t in followed if t.shape[1] == result.shape[1]), None)
        if segments is None or result.ndim != followed[0].ndim:
            raise ValueError(f"{_name(func)} changes channels in a way that is not followed; {_ADVICE}")
        for tensor in followed:
            if tensor.shape[1] == result.shape[1]:
                self._unite(segments, self.segments[id(tensor)], func)
        for tensor in given:
            if id(tensor) in self.names and tensor.numel() > 1:
                self._note(tensor, _channel_axis(tensor, result, func), segments)
        return segments

    def _convolve(
        self, transposed: bool, args: tuple[Any, ...], kwargs: Mapping[str, Any], segments: _Segments
    ) -> _Segments:
        weight = args[1] if len(args) > 1 else kwargs["weight"]
        bias = args[2] if len(args) > 2 else kwargs.get("bias")
        groups = args[6] if len(args) > 6 else kwargs.get("groups", 1)
        if groups > 1 and not (weight.shape[1] == 1 and weight.shape[0] == groups):
            raise ValueError(f"a convolution with {groups} groups of several channels is not followed; {_ADVICE}")
        if groups > 1:
            self._note(weight, 0, segments)
            out = segments
        else:
            out = [(self.new_group(), weight.shape[int(transposed)])]
            self._note(weight, int(transposed), out)
            self._note(weight, 1 - int(transposed), segments)
        if bias is not None:
            self._note(bias, 0, out)
        return out

    def _note(self, tensor: torch.Tensor, axis: int, segments: _Segments) -> None:
        if id(tensor) not in self.names:
            raise ValueError(f"a weight is computed from others, which is not followed; {_ADVICE}")
        for name in self.names[id(tensor)]:
            start = 0
            for group, size in segments:
                earlier = next((m[0] for m in self.members if m[2:] == (name, axis, start)), group)
                self.parents[self._root(max(group, earlier))] = self._root(min(group, earlier))
                self.members.append((group, size, name, axis, start))
                start += size

    def _unite(self, one: _Segments, other: _Segments, func: Callable[..., Any]) -> None:
        if [size for _, size in one] != [size for _, size in other]:
            raise ValueError(f"{_name(func)} joins channels that come in different blocks, which is not followed")
        for (a, _), (b, _) in zip(one, other, strict=True):
            a, b = sorted((self._root(a), self._root(b)))
            self.parents[b] = a

    def _root(self, group: int) -> int:
        while self.parents[group] != group:
            group = self.parents[group]
        return group


def _channel_axis(weight: torch.Tensor, result: torch.Tensor, func: Callable[..., Any]) -> int:
    """Axis of a weight that goes along with the channels of a result, as broadcasting or a normalisation has it."""
    channels = result.shape[1]
    if weight.ndim == 1 and len(weight) == channels:
        return 0
    axis = weight.ndim - result.ndim + 1
    if axis >= 0 and weight.shape[axis] == channels and weight.numel() == channels:
        return axis
    raise ValueError(f"{_name(func)} uses a weight of shape {tuple(weight.shape)}, which is not followed; {_ADVICE}")


def _verify(model: nn.Module, groups: Sequence[ChannelGroup], x: torch.Tensor) -> None:
    random = torch.Generator().manual_seed(1)
    orders = [torch.randperm(group.size, generator=random) for group in groups]
    with torch.no_grad():
        expected = nested_tensors(model(x))
        model.load_state_dict(permute_channels(model.state_dict(), groups, orders))
        found = nested_tensors(model(x))
    if not all(torch.allclose(a, b, rtol=1e-6, atol=1e-9) for a, b in zip(expected, found, strict=True)):
        raise ValueError(f"the network treats channels in a way that is not followed; {_ADVICE}")


def _name(func: Callable[..., Any]) -> str:
    return getattr(func, "__name__", str(func))
