"""Dimension 1 of a volume: reduction of the boundary matrix over Z/2, squares as columns, edges as rows.

While the largest edge of a column belongs to an earlier column, that column is added. Most columns need no addition at
all: they are recorded by their square's number. The others are reduced in a bit set over the edges' positions with two
summary levels, where adding is flipping bits and the next pivot is found in a few instructions, since pivots only
descend; what remains is kept as a list of positions.

For an image barcode, columns come in the order of the comparison image and rows in that of the image itself.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from medseg.topology._compile import compiled, leading_zeros

Ints = NDArray[np.int32]
Words = NDArray[np.uint64]


@compiled
def flip(words: Words, summary: Words, top: Words, i: int) -> None:
    """Flip bit i; summaries say where bits may be set, and are corrected when a search finds none."""
    word = i >> 6
    words[word] ^= np.uint64(1) << np.uint64(i & 63)
    summary[word >> 6] |= np.uint64(1) << np.uint64(word & 63)
    top[word >> 12] |= np.uint64(1) << np.uint64((word >> 6) & 63)


@compiled
def highest_bit(words: Words, summary: Words, top: Words, i: int) -> int:
    """Highest set bit at or below position i, given that none is set above; -1 if there is none."""
    k = i >> 18
    while k >= 0:
        while top[k] != 0:
            j = (k << 6) + 63 - np.int64(leading_zeros(top[k]))
            while summary[j] != 0:
                w = (j << 6) + 63 - np.int64(leading_zeros(summary[j]))
                if words[w] != 0:
                    return (w << 6) + 63 - np.int64(leading_zeros(words[w]))
                summary[j] ^= np.uint64(1) << np.uint64(w & 63)
            top[k] ^= np.uint64(1) << np.uint64(j & 63)
        k -= 1
    return -1


def boundary_offsets(n1: int, n2: int) -> NDArray[np.int64]:
    """Edge numbers of a square relative to three times its smallest corner, by normal axis."""
    p, r = 3 * n1 * n2, 3 * n2
    return np.array([[1, 2, 4, r + 2], [0, 2, 3, p + 2], [0, 1, r, p + 1]], np.int64)


@compiled
def doubled(array: Ints) -> Ints:
    """The same array with room for as much again."""
    larger = np.empty(2 * array.size, np.int32)
    for i in range(array.size):
        larger[i] = array[i]
    return larger


@compiled
def reduce_squares(
    order: Ints, cleared: NDArray[np.bool_], positions: Ints, owners: Ints, offsets: NDArray[np.int64], most: int
) -> tuple[Ints, Ints]:
    """Reduce columns until `most` rows of interest have been paired; give the pairs of interest.

    Of interest are the rows marked in `owners`, or, where none is marked (`most` < 0), all pairs that took an addition:
    a column that takes none is paired with an edge of its own value.

    Args:
        order: squares in the order of columns.
        cleared: squares that are births, by position in `order`; they are no columns.
        positions: position of each edge in the order of rows, by edge number.
        owners: changed in place, by row: -1 free, -2 - k free and of interest as number k; once paired, the number of
            the square, or `positions.size` plus the start of the reduced column in the store.
        offsets: `boundary_offsets` of the grid.
        most: number of rows of interest, or -1.

    Returns:
        Columns as positions in `order`, ascending; with each the number k of its row, or the row where none is marked.
    """
    size = positions.size
    words = np.zeros((size >> 6) + 1, np.uint64)
    summary = np.zeros((size >> 12) + 1, np.uint64)
    top = np.zeros((size >> 18) + 1, np.uint64)
    columns = np.empty(1024, np.int32)
    found = np.empty(1024, np.int32)
    count = 0
    store = np.empty(4096, np.int32)
    used = 0
    for i in range(order.size):
        if cleared[i]:
            continue
        square = order[i]
        axis = square % 3
        base = square - axis
        pivot = -1
        for k in range(4):
            pivot = max(pivot, positions[base + offsets[axis, k]])
        free = owners[pivot]
        if free < 0:
            owners[pivot] = square
            if free == -1:
                continue
        else:
            for k in range(4):
                flip(words, summary, top, positions[base + offsets[axis, k]])
            while owners[pivot] >= 0:
                owner = owners[pivot]
                if owner < size:
                    axis = owner % 3
                    base = owner - axis
                    for k in range(4):
                        flip(words, summary, top, positions[base + offsets[axis, k]])
                else:
                    start = owner - size
                    for k in range(start + 1, start + 1 + store[start]):
                        flip(words, summary, top, store[k])
                pivot = highest_bit(words, summary, top, pivot)
            free = owners[pivot]
            owners[pivot] = size + used
            start = used
            used += 1
            row = pivot
            while row >= 0:
                if used >= store.size:
                    store = doubled(store)
                store[used] = row
                used += 1
                words[row >> 6] ^= np.uint64(1) << np.uint64(row & 63)
                row = highest_bit(words, summary, top, row)
            store[start] = used - start - 1
        if most >= 0 and free == -1:
            continue
        if count == columns.size:
            columns = doubled(columns)
            found = doubled(found)
        columns[count] = i
        found[count] = pivot if most < 0 else -2 - free
        count += 1
        if count == most:
            break
    return columns[:count].copy(), found[:count].copy()
