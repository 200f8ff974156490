"""Which part of a matrix FRUGAL keeps state for: draw it, take it out of a gradient, put a step back into it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

SELECTIONS = ("block", "columns", "rows", "entries")


def draw_places(
    shape: Sequence[int], selection: str, density: float, key: Sequence[int], device: torch.device
) -> torch.Tensor | None:
    """Numbers of the columns, rows or entries that have state; at least one unless the density is 0.

    Args:
        shape: rows and columns of the matrix.
        selection: "columns", "rows" or "entries".
        density: part of them.
        key: numbers that seed the draw.
        device: where the answer is wanted.

    Returns:
        Places, ascending, int32; None for none.
    """
    count = {"columns": shape[1], "rows": shape[0], "entries": shape[0] * shape[1]}[selection]
    wanted = 0 if density == 0 else max(1, round(density * count))
    if wanted == 0:
        return None
    places = torch.randperm(count, generator=_generator(key))[:wanted].sort().values
    return places.to(device, torch.int32)


def choose_matrices(sizes: Sequence[int], density: float, key: Sequence[int]) -> list[int]:
    """Numbers of the matrices that have state: the first of a random order, and those after it that still fit.

    Args:
        sizes: elements of all matrices.
        density: part of all elements that may have state; the first may exceed it.
        key: numbers that seed the draw.
    """
    if density == 0:
        return []
    room, chosen = density * sum(sizes), []
    for number in torch.randperm(len(sizes), generator=_generator(key)).tolist():
        if not chosen or sizes[number] <= room:
            chosen.append(number)
            room -= sizes[number]
    return chosen


def take_part(matrix: torch.Tensor, selection: str, places: torch.Tensor | None) -> torch.Tensor:
    """The columns, rows or entries at the places; everything where there are none."""
    if places is None:
        return matrix
    if selection == "entries":
        return matrix.reshape(-1).index_select(0, places)
    return matrix.index_select(1 if selection == "columns" else 0, places)


def put_back(matrix: torch.Tensor, part: torch.Tensor, selection: str, places: torch.Tensor | None) -> torch.Tensor:
    """The matrix with the part at its places, changed in place; the part itself where there are no places."""
    if places is None:
        return part
    if selection == "entries":
        matrix.view(-1).index_copy_(0, places.long(), part)
    else:
        matrix.index_copy_(1 if selection == "columns" else 0, places.long(), part)
    return matrix


def _generator(key: Sequence[int]) -> torch.Generator:
    return torch.Generator().manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1))
