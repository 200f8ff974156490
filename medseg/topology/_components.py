"""Dimension 0: union-find over voxels, edges ascending; when two components meet, the younger dies.

`match_components` runs over the comparison image and carries, for each of its components, the oldest voxel in the order
of the prediction and of the target. The younger of two such voxels at a merge is the birth of the image bar that dies
there, so one pass gives the barcode of the comparison image and both image barcodes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from medseg.topology._compile import compiled

Ints = NDArray[np.int32]
Steps = NDArray[np.int64]


@compiled
def find_root(parents: Ints, node: int) -> int:
    """Root of a node; every second step of the path is shortened."""
    while parents[node] != node:
        parents[node] = parents[parents[node]]
        node = parents[node]
    return node


@compiled
def younger(ranks: Ints, a: int, b: int) -> bool:
    """Whether voxel a comes after voxel b in the order (value, number)."""
    return ranks[a] > ranks[b] or (ranks[a] == ranks[b] and a > b)


@compiled
def pair_components(order: Ints, values: Ints, parents: Ints, ranks: Ints, strides: Steps) -> tuple[Ints, Ints]:
    """Bars of dimension 0 as birth voxels and death edges.

    Args:
        order: edges, ascending; those that begin a loop may be left out.
        values: rank of each, in the same order.
        parents: forest of the voxels, changed in place.
        ranks: rank of each voxel.
        strides: how far apart the ends of an edge along axis 0, 1, 2 are.
    """
    most = min(order.size, ranks.size)
    births = np.empty(most, np.int32)
    deaths = np.empty(most, np.int32)
    count = 0
    for i in range(order.size):
        edge = order[i]
        v = edge // 3
        a = find_root(parents, v)
        b = find_root(parents, v + strides[edge % 3])
        if a == b:
            continue
        if younger(ranks, b, a):
            a, b = b, a
        parents[a] = b
        if ranks[a] < values[i]:
            births[count] = a
            deaths[count] = edge
            count += 1
    return births[:count].copy(), deaths[:count].copy()


@compiled
def match_components(
    order: Ints,
    values: Ints,
    parents: Ints,
    oldest: tuple[Ints, Ints],
    strides: Steps,
    ranks: tuple[Ints, Ints, Ints],
    bars_at: tuple[Ints, Ints],
    positive: bool,
) -> Ints:
    """Matched bars (M, 2) of dimension 0.

    Args:
        order: edges of the comparison image, ascending; those that begin a loop may be left out.
        values: rank of each, in the same order.
        parents: forest of the voxels, changed in place.
        oldest: oldest voxel of each tree in the order of prediction and target, by root; changed in place.
        strides: how far apart the ends of an edge along axis 0, 1, 2 are.
        ranks: rank of each voxel in comparison image, prediction and target.
        bars_at: row of the bar that a voxel begins, in prediction and target; -1 for none.
        positive: match only through image bars that are not empty.
    """
    rank_c, rank_u, rank_t = ranks
    bar_u, bar_t = bars_at
    oldest_u, oldest_t = oldest
    matched = np.empty((min(order.size, rank_c.size), 2), np.int32)
    count = 0
    for i in range(order.size):
        edge = order[i]
        v = edge // 3
        a = find_root(parents, v)
        b = find_root(parents, v + strides[edge % 3])
        if a == b:
            continue
        if younger(rank_c, b, a):
            a, b = b, a
        parents[a] = b
        u, t = oldest_u[a], oldest_t[a]
        if younger(rank_u, oldest_u[b], u):
            u, oldest_u[b] = oldest_u[b], u
        if younger(rank_t, oldest_t[b], t):
            t, oldest_t[b] = oldest_t[b], t
        value = values[i]
        if rank_c[a] < value and bar_u[u] >= 0 and bar_t[t] >= 0:
            if positive and (rank_u[u] >= value or rank_t[t] >= value):
                continue
            matched[count, 0] = bar_u[u]
            matched[count, 1] = bar_t[t]
            count += 1
    return matched[:count].copy()
