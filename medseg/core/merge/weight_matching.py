"""Weight matching: put the channels of one network in the order of another, so that their weights can be averaged.

Two networks trained apart may have learnt the same filters in another order; the average of their weights is then
neither. With P the order of every group of channels,

    maximise  sum over weights of <W_reference, P W>

group by group: with all others fixed this is a linear assignment, and a step that does not raise the sum is not taken.
It is done twice, and the larger sum kept: from the order as it is, so that networks that agree already are left alone;
and after a first sweep from the input on, which looks only at weights whose other channels are in order already, so
that a mere shuffle is undone exactly.

    barrier = max over t of loss((1 - t) one + t other) less the straight line between the losses of both ends

Average only what has no barrier: networks that began from the same weights often have none and need no matching, those
trained apart on little data often keep one in spite of it. After averaging, the running statistics of batch norm are
wrong (`torch.optim.swa_utils.update_bn`); instance norm has none.

Source: Ainsworth, Hayase, Srinivasa, "Git Re-Basin: Merging Models modulo Permutation Symmetries" (ICLR 2023). Differs
in both starts (theirs takes groups at random), and in finding the groups by watching the network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from medseg.core.merge.channel_groups import ChannelGroup, permute_channels

State = Mapping[str, torch.Tensor]
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def match_weights(
    reference: State, state: State, groups: Sequence[ChannelGroup], sweeps: int = 20
) -> list[torch.Tensor]:
    """Orders of channels that bring a network closest to a reference.

    Args:
        reference: state dict whose order is kept.
        state: state dict to be reordered, of the same architecture.
        groups: from `find_channel_groups`.
        sweeps: most sweeps over all groups; it ends earlier where nothing changes.

    Returns:
        For each group, which channel comes to each place; for `permute_channels`.

    Raises:
        ValueError: the state dicts do not belong together.

    Example:
        >>> from medseg.core.merge import find_channel_groups
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(1, 3, 3), torch.nn.ReLU(), torch.nn.Conv2d(3, 2, 1))
        >>> groups = find_channel_groups(model, [1, 1, 8, 8])
        >>> shuffled = permute_channels(model.state_dict(), groups, [torch.tensor([2, 0, 1])])
        >>> match_weights(model.state_dict(), shuffled, groups)
        [tensor([1, 2, 0])]
    """
    _check(reference, state)
    names = {name for group in groups for name, _, _ in group.members if not name.endswith(_STATISTICS)}
    target, start = ({name: x[name].detach().double().cpu() for name in names} for x in (reference, state))
    groups = [ChannelGroup(g.size, tuple(m for m in g.members if m[0] in names)) for g in groups]
    found = [_descend(target, start, groups, sweeps, from_input=from_input) for from_input in (False, True)]
    return max(found, key=lambda each: each[0])[1]


def _descend(
    target: State, start: State, groups: Sequence[ChannelGroup], sweeps: int, *, from_input: bool
) -> tuple[float, list[torch.Tensor]]:
    """Sum that is reached, and the orders; from the given order, or after a first sweep from the input on."""
    weights, orders = dict(start), [torch.arange(group.size) for group in groups]
    if from_input:
        places: dict[str, set[tuple[int, int]]] = {name: set() for name in target}
        for index, group in enumerate(groups):
            for name, axis, _ in group.members:
                places[name].add((axis, index))
        for index, group in enumerate(groups):
            known = [m for m in group.members if all(i < index for axis, i in places[m[0]] if axis != m[1])]
            _reorder(index, known or group.members, target, weights, groups, orders)
    for _ in range(sweeps):
        moved = [_reorder(i, group.members, target, weights, groups, orders) for i, group in enumerate(groups)]
        if not any(moved):
            break
    return sum(float((target[name] * weights[name]).sum()) for name in target), orders


def interpolate_weights(one: State, other: State, t: float = 0.5) -> dict[str, torch.Tensor]:
    """State dict between two, (1 - t) one + t other; whole numbers are those of the first.

    Args:
        one: a state dict.
        other: a state dict of the same architecture, its channels matched.
        t: where between them, 0 to 1.

    Raises:
        ValueError: the state dicts do not belong together.

    Example:
        >>> interpolate_weights({"w": torch.tensor([0.0])}, {"w": torch.tensor([4.0])}, 0.25)
        {'w': tensor([1.])}
    """
    _check(one, other)
    return {
        name: torch.lerp(tensor, other[name].to(tensor), t) if tensor.is_floating_point() else tensor
        for name, tensor in one.items()
    }


def loss_barrier(
    evaluate: Callable[[dict[str, torch.Tensor]], float], one: State, other: State, points: int = 11
) -> tuple[float, list[float]]:
    """How far the loss rises on the straight way between two networks above the line between their losses.

    Args:
        evaluate: loss of a state dict, on data that neither network was trained on.
        one: a state dict.
        other: a state dict of the same architecture.
        points: evaluations on the way, both ends included, at least 3.

    Returns:
        The barrier, at least 0, and the losses.

    Raises:
        ValueError: there are fewer than 3 points, or the state dicts do not belong together.
    """
    if points < 3:
        raise ValueError(f"points must be at least 3, both ends included, got {points}")
    way = np.linspace(0, 1, points)
    losses = np.array([evaluate(interpolate_weights(one, other, float(t))) for t in way])
    return float((losses - (1 - way) * losses[0] - way * losses[-1]).max()), losses.tolist()


def _reorder(
    index: int,
    members: Sequence[tuple[str, int, int]],
    target: State,
    weights: dict[str, torch.Tensor],
    groups: Sequence[ChannelGroup],
    orders: list[torch.Tensor],
) -> bool:
    """Put a group in the best order that some of its weights say; whether it changed."""
    group = groups[index]
    gains = torch.zeros(group.size, group.size, dtype=torch.float64)
    for name, axis, start in members:
        ours, theirs = (x[name].narrow(axis, start, group.size).movedim(axis, 0) for x in (target, weights))
        gains += ours.reshape(group.size, -1) @ theirs.reshape(group.size, -1).T
    order = torch.from_numpy(linear_sum_assignment(gains.numpy(), maximize=True)[1])
    if torch.equal(order, torch.arange(group.size)):
        return False
    moved = permute_channels(weights, [group], [order])
    if len(members) == len(group.members):
        # A weight with the group on both of its axes makes the sum quadratic, so that a step may fall short.
        names = {name for name, _, _ in group.members}
        before, after = (sum(float((target[n] * w[n]).sum()) for n in names) for w in (weights, moved))
        if not after > before + 1e-9 * abs(before):
            return False
    weights.update(moved)
    orders[index] = orders[index][order]
    return True


def _check(one: State, other: State) -> None:
    differ = [
        name for name in {*one, *other} if name not in one or name not in other or one[name].shape != other[name].shape
    ]
    if differ:
        raise ValueError(f"state dicts must be of the same architecture, but differ in {', '.join(sorted(differ)[:5])}")
