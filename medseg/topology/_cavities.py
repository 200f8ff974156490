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
LATEST = np.int32(2**31 - 1)


def frame_regions(top_values: Ints, front: int) -> Ints:
    """Values by node: `front` outside slots, the top cells, and the outside node itself at the end."""
    values = np.full(front + top_values.size + 1, -1, np.int32)
    values[front:-1] = top_values
    values[-1] = LATEST
    return values


@compiled
def pair_regions(
    order: Ints, values: Ints, nodes: Ints, other_nodes: Ints, steps: NDArray[np.int64], front: int
) -> tuple[Ints, Ints, Ints, NDArray[np.bool_]]:
    """Bars of the highest dimension: birth walls, death cells, and what dies there in another order of the same cells.

    Args:
        order: walls, ascending.
        values: rank of each wall, by number.
        nodes: `frame_regions` of the image.
        other_nodes: the same of the comparison image, or empty: then the third answer is meaningless.
        steps: how far apart the two nodes beside a wall of orientation 0, 1, 2 are.
        front: number of slots in front.

    Returns:
        Walls, top cells, dying top cells in the other order, and which walls are births of any bar, by
        position in `order`.
    """
    outside = nodes.size - 1
    parents = np.arange(nodes.size).astype(np.int32)
    for i in range(outside):
        if nodes[i] < 0:
            parents[i] = outside
    labelled = other_nodes.size > 0
    latest = parents.copy() if labelled else parents[:0]
    is_birth = np.zeros(order.size, np.bool_)
    births = np.empty(nodes.size, np.int32)
    deaths = np.empty(nodes.size, np.int32)
    others = np.empty(nodes.size, np.int32)
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
        if labelled:
            dying = latest[a]
            if younger(other_nodes, dying, latest[b]):
                dying, latest[b] = latest[b], dying
        if values[wall] < nodes[a]:
            births[count] = wall
            deaths[count] = a - front
            others[count] = dying - front
            count += 1
    return births[:count].copy(), deaths[:count].copy(), others[:count].copy(), is_birth
