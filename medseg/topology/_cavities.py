"""The highest dimension (loops of an image, cavities of a volume): union-find on the complement (Alexander duality).

Nodes are the top cells and one outside node, which is the latest of all. Walls between them (edges of an image, squares
of a volume) are taken in descending order; when two regions meet, the one whose latest cell is earlier dies: its bar is
(wall, latest cell). Walls that join regions are births, hence never deaths one dimension below: they are handed on.

Slots without a top cell stand for the outside, and as many such slots as the longest step lie in front, so that
stepping over any border of the grid lands on one without a look at coordinates.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from medseg.topology._compile import compiled
from medseg.topology._components import find_root, younger

Ints = NDArray[np.int32]
Steps = NDArray[np.int64]
LATEST = np.int32(2**31 - 1)


def frame_regions(top_values: Ints, front: int) -> Ints:
    """Values by node: `front` outside slots, the top cells, and the outside node itself at the end."""
    values = np.full(front + top_values.size + 1, -1, np.int32)
    values[front:-1] = top_values
    values[-1] = LATEST
    return values


@compiled
def separate_regions(nodes: Ints) -> Ints:
    """Parents of nodes of which none is joined yet but the outside slots, which are one."""
    parents = np.arange(nodes.size).astype(np.int32)
    for i in range(nodes.size):
        if nodes[i] < 0:
            parents[i] = nodes.size - 1
    return parents


@compiled
def pair_regions(
    order: Ints, values: Ints, parents: Ints, latest: Ints, nodes: Ints, other_nodes: Ints, steps: Steps, front: int
) -> tuple[Ints, Ints, Ints, NDArray[np.bool_]]:
    """Bars of the highest dimension: birth walls, death cells, and what dies there in another order of the same cells.

    Args:
        order: walls, ascending.
        values: rank of each wall, in the same order.
        parents: forest of the nodes, changed in place.
        latest: the latest node of each tree in the other order, by root; changed in place. Empty if not wanted: then
            the third answer is meaningless.
        nodes: rank of each node.
        other_nodes: the same in the other order.
        steps: how far apart the two nodes beside a wall of orientation 0, 1, 2 are.
        front: number of slots in front.

    Returns:
        Walls, top cells, dying top cells in the other order, and which walls are births of any bar, by
        position in `order`.
    """
    is_birth = np.zeros(order.size, np.bool_)
    most = min(order.size, nodes.size)
    births = np.empty(most, np.int32)
    deaths = np.empty(most, np.int32)
    others = np.empty(most, np.int32)
    count = 0
    for i in range(order.size - 1, -1, -1):
        wall = order[i]
        node = wall // 3 + front
        a = find_root(parents, node)
        b = find_root(parents, node - steps[wall % 3])
        if a == b:
            continue
        if younger(nodes, a, b):
            a, b = b, a
        parents[a] = b
        is_birth[i] = True
        dying = a
        if latest.size:
            dying = latest[a]
            if younger(other_nodes, dying, latest[b]):
                dying, latest[b] = latest[b], dying
        if values[i] < nodes[a]:
            births[count] = wall
            deaths[count] = a - front
            others[count] = dying - front
            count += 1
    return births[:count].copy(), deaths[:count].copy(), others[:count].copy(), is_birth
