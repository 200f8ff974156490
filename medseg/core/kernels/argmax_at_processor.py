"""Compiled loops of `argmax_at.py` for float32 on a CPU.

An output row needs four input rows a class: they are interpolated into one along the first two axes, that one along the
last, and the best class so far is kept for the row. Only the labels and their values are written. `floor` leaves out
classes whose four rows nowhere reach it.

The steps and their order are those of `torch.lerp` axis after axis, so values agree to the last bit wherever the
processor fuses products and sums.
"""

from __future__ import annotations

from collections.abc import Sequence

import numba
import numpy as np
import torch
from torch import Tensor

from medseg.core.kernels.processor import compiled, share


@numba.njit(inline="always")
def _lerp(low, high, weight):  # noqa: ANN001, ANN202
    """From the nearer end, as `torch.lerp` does it."""
    near = weight < np.float32(0.5)
    factor = weight if near else weight - np.float32(1)
    base = low if near else high
    return factor * (high - low) + base


@compiled
def find_rows(values, lows, fractions, floor, reached, first, last, labels, best):  # noqa: ANN001
    """Fill the output rows from `first` to `last`, counted over the first two axes."""
    rows, width = labels.shape[1], labels.shape[2]
    height, breadth = values.shape[2], values.shape[3]
    row, low_row = np.empty(breadth, np.float32), np.empty(breadth, np.float32)
    d_low, h_low, w_low = lows
    d_part, h_part, w_part = fractions
    for number in range(first, last):
        i, j = number // rows, number % rows
        d, h = d_low[i], h_low[j]
        d_next, h_next = min(d + 1, values.shape[1] - 1), min(h + 1, height - 1)
        top, label = best[i, j], labels[i, j]
        for k in range(values.shape[0]):
            if floor > 0 and not (
                reached[k, d, h] or reached[k, d, h_next] or reached[k, d_next, h] or reached[k, d_next, h_next]
            ):
                continue
            volume, part = values[k], d_part[i]
            a, b = volume[d, h], volume[d_next, h]
            for w in range(breadth):
                row[w] = _lerp(a[w], b[w], part)
            if h_part[j] > 0:
                a, b, across = volume[d, h_next], volume[d_next, h_next], h_part[j]
                for w in range(breadth):
                    low_row[w] = row[w]
                for w in range(breadth):
                    row[w] = _lerp(low_row[w], _lerp(a[w], b[w], part), across)
            for w in range(width):
                low = w_low[w]
                value = _lerp(row[low], row[min(low + 1, breadth - 1)], w_part[w])
                won = value > top[w]
                top[w] = value if won else top[w]
                label[w] = k if won else label[w]


@compiled
def mark_rows(values, floor, first, last, reached):  # noqa: ANN001
    """Note which rows of the classes from `first` to `last` have a value that reaches the floor."""
    for k in range(first, last):
        for d in range(values.shape[1]):
            for h in range(values.shape[2]):
                row = values[k, d, h]
                highest = np.float32(-np.inf)
                for w in range(values.shape[3]):
                    highest = row[w] if row[w] > highest else highest
                reached[k, d, h] = highest >= floor


def find(values: Tensor, places: Sequence[Tensor], floor: float | None) -> tuple[Tensor, Tensor]:
    """What `argmax_at._argmax` returns."""
    solid = values.detach() if values.ndim == 4 else values.detach()[:, None]
    z = (solid if solid.stride(-1) == 1 else solid.contiguous()).numpy()
    lists = [place.numpy() for place in places]
    lists = lists if len(lists) == 3 else [np.zeros(1), *lists]
    lows = tuple(np.floor(place).astype(np.int64) for place in lists)
    fractions = tuple((place - low).astype(np.float32) for place, low in zip(lists, lows, strict=True))
    shape = [len(place) for place in lists]
    labels = np.zeros(shape, np.uint8 if len(z) <= 256 else np.int32)
    best = np.full(shape, -np.inf, np.float32)
    bound = np.float32(floor or 0)
    reached = np.ones((len(z), *z.shape[1:3]) if bound > 0 else (0, 0, 0), np.bool_)
    if bound > 0:
        share(lambda first, last: mark_rows(z, bound, first, last, reached), len(z))

    def work(first: int, last: int) -> None:
        find_rows(z, lows, fractions, bound, reached, first, last, labels, best)

    share(work, shape[0] * shape[1])
    outputs = torch.from_numpy(labels), torch.from_numpy(best)
    return outputs if values.ndim == 4 else (outputs[0][0], outputs[1][0])
