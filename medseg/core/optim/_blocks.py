"""How the parameters of a step are laid out and cut: many at once for a GPU, pieces that fit the cache for a CPU.

Every tensor that belongs to a parameter (weight, gradient, moments) is seen as (before, rows, after), a view in the
order in which the weight lies in memory, so that channels_last weights need no copy. The rows are the channels that
`channel_dim` names, or equal groups of them; a row is what AdamP takes for one scale-invariant weight.

An update rule is written once, for lists of tensors (`torch._foreach_*`). With `foreach` the lists hold all parameters,
which on a GPU is one kernel for many. Without, they hold one piece of about `BLOCK` elements: on a CPU the multi-tensor
operations only loop, and a rule of ten operations on a large weight would fetch it ten times from main memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Literal

import torch

BLOCK = 1 << 19  # elements: the five or six float32 arrays of a rule then stay in a processor's cache
Scalar = float | torch.Tensor
Reach = Literal["element", "row", "parameter"]


@dataclass(slots=True)
class Slot:
    """A parameter with what belongs to it, all as (before, rows, after).

    Attributes:
        param: the weight; changed in place.
        grad: its gradient; must not be changed.
        states: moments by name; changed in place.
        step: number of this step, counted from 1; a tensor where the host must not wait for it.
    """

    param: torch.Tensor
    grad: torch.Tensor
    states: dict[str, torch.Tensor]
    step: Scalar


@dataclass(slots=True)
class Batch:
    """Columns of slots, or of pieces of one, ready for multi-tensor operations; `owners` number the slots of a span.

    `rows` says which rows of its owner a piece holds.
    """

    params: list[torch.Tensor] = field(default_factory=list)
    grads: list[torch.Tensor] = field(default_factory=list)
    states: dict[str, list[torch.Tensor]] = field(default_factory=dict)
    steps: list[Scalar] = field(default_factory=list)
    owners: list[int] = field(default_factory=list)
    rows: list[slice] = field(default_factory=list)

    @property
    def is_on_cpu(self) -> bool:
        """Whether it is computed on a CPU, and now rather than traced by a compiler."""
        return self.params[0].device.type == "cpu" and not torch.compiler.is_compiling()

    def add(self, slot: Slot, owner: int, rows: slice, axis: int = 0, part: slice | None = None) -> None:
        """Append a slot, or the part of it along an axis."""

        def cut(tensor: torch.Tensor) -> torch.Tensor:
            return tensor if part is None else tensor.narrow(axis, part.start, part.stop - part.start)

        self.params.append(cut(slot.param))
        self.grads.append(cut(slot.grad))
        self.steps.append(slot.step)
        self.owners.append(owner)
        self.rows.append(rows)
        for name, state in slot.states.items():
            self.states.setdefault(name, []).append(cut(state))


Span = list[Batch]


def row_layout(
    shape: tuple[int, ...], stride: tuple[int, ...], channel_dim: int, groups: int | None
) -> tuple[list[int], tuple[int, int, int]]:
    """Order of the axes in memory, and the shape (before, rows, after) in that order.

    Args:
        shape: of the weight.
        stride: of the weight.
        channel_dim: axis of the output channels: 0 for convolutions and linear layers, 1 for transposed convolutions.
            Weights with fewer axes have one row an element.
        groups: this many rows of neighbouring channels; None for a row a channel.

    Raises:
        ValueError: the groups do not divide the channels.
    """
    order = sorted(range(len(shape)), key=lambda axis: (-stride[axis], axis))
    if len(shape) < 2:
        return order, (1, prod(shape), 1)
    place = order.index(channel_dim)
    sizes = [shape[axis] for axis in order]
    before, channels, after = prod(sizes[:place]), sizes[place], prod(sizes[place + 1 :])
    rows = channels if groups is None else groups
    if channels % rows:
        raise ValueError(f"channel_groups must divide the {channels} channels of a weight {shape}, got {groups}")
    return order, (before, rows, channels // rows * after)


def same_layout(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Whether two tensors of one shape lie in memory in the same order; axes of length 1 do not count."""
    strides = zip(left.shape, left.stride(), right.stride(), strict=True)
    return all(mine == other for size, mine, other in strides if size > 1)


def is_dense(tensor: torch.Tensor) -> bool:
    """Whether its elements fill their memory without gaps, in any order of the axes."""
    if tensor.is_contiguous():
        return True
    order, _ = row_layout(tuple(tensor.shape), tensor.stride(), 0, None)
    return tensor.permute(order).is_contiguous()


def runs_of(params: Sequence[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """Neighbours of together at most `BLOCK` elements; larger ones alone."""
    run: list[torch.Tensor] = []
    for p in params:
        if run and sum(q.numel() for q in run) + p.numel() > BLOCK:
            yield run
            run = []
        run.append(p)
    if run:
        yield run


def whole_span(slots: Sequence[Slot]) -> Span:
    """All slots in one batch."""
    batch = Batch()
    for owner, slot in enumerate(slots):
        batch.add(slot, owner, slice(0, slot.param.shape[1]))
    return [batch]


def cut_spans(slots: Sequence[Slot], reach: Reach) -> list[Span]:
    """Several slots in one batch; a large one in pieces, each a span of its own unless they belong together.

    Args:
        slots: of one run.
        reach: what the rule must have seen whole before it can change any of it.
    """
    if len(slots) > 1 or slots[0].param.numel() <= BLOCK:
        return [whole_span(slots)]
    axis = next(a for a, size in enumerate(slots[0].param.shape) if size > 1)
    pieces = list(_cut(slots[0], axis))
    apart = reach == "element" or (reach == "row" and axis == 1)
    return [[piece] for piece in pieces] if apart else [pieces]


def _cut(slot: Slot, axis: int) -> Iterator[Batch]:
    """Pieces along an axis of (before, rows, after); along the others every piece holds something of every row."""
    rows = slot.param.shape[1]
    length = slot.param.shape[axis]
    thick = max(1, BLOCK * length // slot.param.numel())
    for start in range(0, length, thick):
        part = slice(start, min(start + thick, length))
        batch = Batch()
        batch.add(slot, 0, part if axis == 1 else slice(0, rows), axis, part)
        yield batch
