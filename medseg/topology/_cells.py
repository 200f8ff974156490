"""Cells of a cubical complex and their total order: value first, then smallest corner, then orientation.

A volume of shape (n0, n1, n2) is flattened in C order (images: see `_links`). Cells are numbered by their smallest
corner v:

    edge   3 v + a   along axis a
    square 3 v + a   normal to axis a
    cube   v

so ascending numbers are the order in which ties are broken. Values are dense ranks (int32): equal values share a rank,
hence cells of one dimension are sorted by counting: one pass counts, one pass places.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from medseg.topology._compile import compiled

Ints = NDArray[np.int32]


@compiled
def radix_sort(keys: NDArray[np.uint32], items: Ints) -> tuple[NDArray[np.uint32], Ints]:
    """Sort keys, and items with them; equal keys keep their order (three passes of 11 bits)."""
    n = keys.size
    other_keys = np.empty(n, np.uint32)
    other_items = np.empty(n, np.int32)
    for shift in (0, 11, 22):
        starts = np.zeros(2049, np.int64)
        for i in range(n):
            starts[((keys[i] >> np.uint32(shift)) & np.uint32(2047)) + 1] += 1
        for digit in range(2048):
            starts[digit + 1] += starts[digit]
        for i in range(n):
            digit = (keys[i] >> np.uint32(shift)) & np.uint32(2047)
            other_keys[starts[digit]] = keys[i]
            other_items[starts[digit]] = items[i]
            starts[digit] += 1
        keys, other_keys = other_keys, keys
        items, other_items = other_items, items
    return keys, items


@compiled
def rank_values(values: NDArray[np.float32]) -> tuple[Ints, int]:
    """Give every value its dense rank, and the number of ranks."""
    n = values.size
    bits = values.view(np.uint32)
    keys = np.empty(n, np.uint32)
    order = np.arange(n).astype(np.int32)
    for i in range(n):  # negative floats descend in their bits, positive ones ascend; +-0 are one value
        b = bits[i] if values[i] != 0 else np.uint32(0)
        keys[i] = ~b if b >> np.uint32(31) else b | np.uint32(0x80000000)
    keys, order = radix_sort(keys, order)
    ranks = np.empty(n, np.int32)
    rank = -1
    last = np.uint32(0)
    for i in range(n):
        if i == 0 or keys[i] != last:
            rank += 1
            last = keys[i]
        ranks[order[i]] = rank
    return ranks, rank + 1


@compiled
def edge_values(ranks: Ints, n0: int, n1: int, n2: int) -> Ints:
    """Rank at which each edge appears, by edge number; -1 where there is no edge."""
    plane = n1 * n2
    values = np.full(3 * ranks.size, -1, np.int32)
    v = 0
    for x in range(n0):
        for y in range(n1):
            for z in range(n2):
                if x + 1 < n0:
                    values[3 * v] = max(ranks[v], ranks[v + plane])
                if y + 1 < n1:
                    values[3 * v + 1] = max(ranks[v], ranks[v + n2])
                if z + 1 < n2:
                    values[3 * v + 2] = max(ranks[v], ranks[v + 1])
                v += 1
    return values


@compiled
def square_values(edges: Ints, n0: int, n1: int, n2: int) -> Ints:
    """Rank at which each square appears, by square number; -1 where there is no square."""
    values = np.full(edges.size, -1, np.int32)
    v = 0
    for x in range(n0):
        for y in range(n1):
            for z in range(n2):
                if y + 1 < n1 and z + 1 < n2:
                    values[3 * v] = max(edges[3 * v + 1], edges[3 * (v + 1) + 1])
                if x + 1 < n0 and z + 1 < n2:
                    values[3 * v + 1] = max(edges[3 * v], edges[3 * (v + 1)])
                if x + 1 < n0 and y + 1 < n1:
                    values[3 * v + 2] = max(edges[3 * v], edges[3 * (v + n2)])
                v += 1
    return values


@compiled
def cube_values(squares: Ints, n0: int, n1: int, n2: int) -> Ints:
    """Rank at which each cube appears, by smallest corner; -1 where there is no cube."""
    plane = n1 * n2
    values = np.full(squares.size // 3, -1, np.int32)
    for x in range(n0 - 1):
        for y in range(n1 - 1):
            for z in range(n2 - 1):
                v = x * plane + y * n2 + z
                values[v] = max(squares[3 * v], squares[3 * (v + plane)])
    return values


@compiled
def sort_cells(values: Ints, num_ranks: int) -> Ints:
    """Numbers of the existing cells, ordered by (value, number)."""
    starts = np.zeros(num_ranks + 1, np.int32)
    for value in values:
        if value >= 0:
            starts[value + 1] += 1
    for i in range(num_ranks):
        starts[i + 1] += starts[i]
    order = np.empty(starts[num_ranks], np.int32)
    for cell in range(values.size):
        value = values[cell]
        if value >= 0:
            order[starts[value]] = cell
            starts[value] += 1
    return order


@compiled
def leave_out(order: Ints, marked: NDArray[np.bool_]) -> Ints:
    """The order without the marked positions; free of branches, which a random mask would make slow."""
    kept = np.empty(order.size + 1, np.int32)
    count = 0
    for i in range(order.size):
        kept[count] = order[i]
        count += 1 - np.int64(marked[i])
    return kept[:count]


@compiled
def pick(values: Ints, cells: Ints) -> Ints:
    """Values of some cells, without the wide copy of their numbers that plain indexing makes."""
    picked = np.empty(cells.size, np.int32)
    for i in range(cells.size):
        picked[i] = values[cells[i]]
    return picked


@compiled
def invert_order(order: Ints, size: int) -> Ints:
    """Position of each cell in the order, by cell number; -1 where there is no cell."""
    positions = np.full(size, -1, np.int32)
    for i in range(order.size):
        positions[order[i]] = i
    return positions


@compiled
def without_loop_edges(edges: Ints, n0: int, n1: int, n2: int) -> Ints:
    """Edge values with -1 for each edge that comes last around some square: it closes a loop and joins nothing."""
    kept = edges.copy()
    p, r = 3 * n1 * n2, 3 * n2
    base = 0
    for x in range(n0):
        for y in range(n1):
            for z in range(n2):
                for axis in range(3):
                    if axis == 0 and y + 1 < n1 and z + 1 < n2:
                        around = (base + 1, base + 2, base + 4, base + r + 2)
                    elif axis == 1 and x + 1 < n0 and z + 1 < n2:
                        around = (base, base + 2, base + 3, base + p + 2)
                    elif axis == 2 and x + 1 < n0 and y + 1 < n1:
                        around = (base, base + 1, base + r, base + p + 1)
                    else:
                        continue
                    last = around[0]
                    for edge in around[1:]:  # ascending numbers, so that ties go to the later one
                        if edges[edge] >= edges[last]:
                            last = edge
                    kept[last] = -1
                base += 3
    return kept


@compiled
def carrying_voxels(cells: Ints, dim: int, values: Ints, ranks: Ints, n0: int, n1: int, n2: int) -> Ints:
    """One voxel per cell that carries its value: the last such corner, but the first for cubes.

    Args:
        cells: numbers of cells.
        dim: their dimension.
        values: their values, in the same order.
        ranks: rank of every voxel.
        n0: length of axis 0.
        n1: length of axis 1.
        n2: length of axis 2.
    """
    strides = np.array([n1 * n2, n2, 1])
    voxels = np.empty(cells.size, np.int32)
    for i in range(cells.size):
        cell = cells[i]
        low = cell if dim in (0, 3) else cell // 3
        axis = cell % 3
        found = -1
        for corner in range(8):  # bit 2: step along axis 0, and so on; hence corners come in ascending order
            step = np.int64(low)
            for a in range(3):
                if corner & (4 >> a):
                    inside = dim == 3 or (dim == 1 and a == axis) or (dim == 2 and a != axis)
                    step = step + strides[a] if inside and step >= 0 else -1
            if step >= 0 and ranks[step] == values[i] and (dim != 3 or found < 0):
                found = step
        voxels[i] = found
    return voxels
