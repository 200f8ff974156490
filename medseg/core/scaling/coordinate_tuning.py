"""Tune a few settings together with few runs: along one at a time, until no neighbour is better.

With little data, many epochs and a large network, the best weight decay can be many times the usual one, and it moves
with rate and epochs. So all three are tuned together, on coarse grids around what is usual, such as

    weight decay  1, 3, 10, 30, 100 times,    learning rate  1/3, 1, 3 times,    epochs  1/2, 1, 2 times

From the start, one setting after the other goes to the neighbouring value while that lowers the loss; when no single
step of any setting does, the point is a local optimum of the grid. 45 combinations then cost some ten runs.

Source: Kim, Kotha, Liang, Hashimoto, "Pre-training under infinite compute" (2025). Their optimum, a decay 30 times the
usual, is of language models; of the result, "tune it" carries over to networks with normalisation, the factor need not.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

Setting = dict[str, float]


@dataclass(frozen=True)
class TuningResult:
    """What a search found.

    Attributes:
        best: the setting with the smallest loss.
        loss: its loss.
        tried: every setting with its loss, in the order of evaluation.
        finished: whether no neighbour is better; False where the number of evaluations ran out.
        at_edge: settings whose best value is an end of its grid: extend the grid there.
    """

    best: Setting
    loss: float
    tried: tuple[tuple[Setting, float], ...]
    finished: bool
    at_edge: tuple[str, ...]


def tune_by_coordinates(
    evaluate: Callable[[Setting], float],
    grids: Mapping[str, Sequence[float]],
    start: Mapping[str, float] | None = None,
    max_evaluations: int | None = None,
) -> TuningResult:
    """Find a local optimum of a loss on a grid.

    Args:
        evaluate: loss of a setting, such as 1 - Dice of a short run; not finite counts as worst. No setting is
            evaluated twice.
        grids: values of each setting, ascending.
        start: where to begin, of values in the grids; by default the middle of each.
        max_evaluations: end after so many; None goes on to the optimum.

    Returns:
        The best setting and all that were tried.

    Raises:
        ValueError: a grid is empty or not ascending, the start is not in it, or no evaluation is allowed.

    Example:
        >>> result = tune_by_coordinates(
        ...     lambda s: (s["decay"] - 30) ** 2 + 100 * (s["rate"] - 1) ** 2,
        ...     {"decay": [1, 3, 10, 30, 100], "rate": [1 / 3, 1, 3]},
        ... )
        >>> result.best, len(result.tried), result.at_edge
        ({'decay': 30, 'rate': 1}, 5, ())
    """
    at = _check(grids, start, max_evaluations)
    found: dict[tuple[int, ...], float] = {}

    def setting(places: tuple[int, ...]) -> Setting:
        return {name: grid[place] for (name, grid), place in zip(grids.items(), places, strict=True)}

    def loss(places: tuple[int, ...]) -> float:
        if places not in found:
            if len(found) == max_evaluations:
                raise _EnoughError
            value = float(evaluate(setting(places)))
            found[places] = value if math.isfinite(value) else math.inf
        return found[places]

    sizes = [len(grid) for grid in grids.values()]
    try:
        loss(at)
        while (better := _round(at, sizes, loss)) != at:
            at = better
        finished = True
    except _EnoughError:
        finished = False
    best = min(found, key=lambda places: found[places])
    ends = [name for name, size, place in zip(grids, sizes, best, strict=True) if size > 1 and place in (0, size - 1)]
    tried = tuple((setting(places), value) for places, value in found.items())
    return TuningResult(setting(best), found[best], tried, finished, tuple(ends))


class _EnoughError(Exception):
    """No further evaluation is allowed."""


def _round(at: tuple[int, ...], sizes: Sequence[int], loss: Callable[[tuple[int, ...]], float]) -> tuple[int, ...]:
    """Walk along every axis in turn while it gets better."""
    for axis, step in itertools.product(range(len(sizes)), (1, -1)):
        while 0 <= at[axis] + step < sizes[axis]:
            to = (*at[:axis], at[axis] + step, *at[axis + 1 :])
            if not loss(to) < loss(at):
                break
            at = to
    return at


def _check(
    grids: Mapping[str, Sequence[float]], start: Mapping[str, float] | None, most: int | None
) -> tuple[int, ...]:
    """The start as places in the grids."""
    if not grids or any(not len(grid) or list(grid) != sorted(set(grid)) for grid in grids.values()):
        raise ValueError(f"grids must hold ascending values for each setting, got {dict(grids)}")
    if most is not None and most < 1:
        raise ValueError(f"max_evaluations must be at least 1, or None, got {most}")
    if start is None:
        return tuple(len(grid) // 2 for grid in grids.values())
    if set(start) != set(grids) or any(start[name] not in grid for name, grid in grids.items()):
        raise ValueError(f"start must name a value of each grid, got {dict(start)} for {dict(grids)}")
    return tuple(list(grid).index(start[name]) for name, grid in grids.items())
