"""Betti matching by the plainest means: lists of cells, sets as columns, no shortcut. For tiny images only."""

from __future__ import annotations

from itertools import combinations, product

import numpy as np


def list_cells(shape, dim):
    """Cells of one dimension as (smallest corner, spanned axes)."""
    axes = range(len(shape))
    return [
        (corner, spanned)
        for spanned in combinations(axes, dim)
        for corner in product(*(range(n - (a in spanned)) for a, n in enumerate(shape)))
    ]


def corners(cell):
    corner, spanned = cell
    return [
        tuple(x + (a in steps) for a, x in enumerate(corner))
        for k in range(len(spanned) + 1)
        for steps in combinations(spanned, k)
    ]


def faces(cell):
    corner, spanned = cell
    for axis in spanned:
        rest = tuple(a for a in spanned if a != axis)
        yield (corner, rest)
        yield (tuple(x + (a == axis) for a, x in enumerate(corner)), rest)


def value(image, cell):
    return max(image[v] for v in corners(cell))


def order_key(image, cell):
    """Value, smallest corner, type: the axis of an edge, the normal axis of a square (largest spanned axes first)."""
    corner, spanned = cell
    kind = spanned[0] if len(spanned) == 1 else tuple(-a for a in spanned)
    return (value(image, cell), corner, kind if isinstance(kind, tuple) else (kind,))


def kills(columns_image, rows_image, dim):
    """Which birth cell of `dim` each cell of `dim` + 1 kills: columns in one image's order, rows in the other's."""
    shape = columns_image.shape
    rows = sorted(list_cells(shape, dim), key=lambda cell: order_key(rows_image, cell))
    position = {cell: i for i, cell in enumerate(rows)}
    owner, found = {}, {}
    for cell in sorted(list_cells(shape, dim + 1), key=lambda cell: order_key(columns_image, cell)):
        column = set()
        for face in faces(cell):
            column ^= {position[face]}
        while column and max(column) in owner:
            column ^= owner[max(column)]
        if column:
            owner[max(column)] = column
            found[cell] = rows[max(column)]
    return found


def bars(image, dim):
    """Bars longer than zero: death cell by birth cell."""
    pairs = kills(image, image, dim)
    return {birth: death for death, birth in pairs.items() if value(image, birth) != value(image, death)}


def voxel(image, cell):
    """The voxel that stands for a cell: last corner that carries the value, first for cubes."""
    carrying = [v for v in corners(cell) if image[v] == value(image, cell)]
    return min(carrying) if len(cell[1]) == 3 else max(carrying)


def naive_matching(u, t, dim, positive=False):
    """Sorted rows: matched, unmatched of u, unmatched of t, as tuples of voxels."""
    c = np.minimum(u, t)
    bars_u, bars_t, bars_c = bars(u, dim), bars(t, dim), bars(c, dim)
    image_u, image_t = kills(c, u, dim), kills(c, t, dim)
    pairs = []
    for death in bars_c.values():
        a, b = image_u[death], image_t[death]
        empty = value(u, a) >= value(c, death) or value(t, b) >= value(c, death)
        if a in bars_u and b in bars_t and not (positive and empty):
            pairs.append((a, b))
    rows_u = {birth: (voxel(u, birth), voxel(u, death)) for birth, death in bars_u.items()}
    rows_t = {birth: (voxel(t, birth), voxel(t, death)) for birth, death in bars_t.items()}
    rest_u = sorted(row for birth, row in rows_u.items() if birth not in {a for a, _ in pairs})
    rest_t = sorted(row for birth, row in rows_t.items() if birth not in {b for _, b in pairs})
    return sorted(rows_u[a] + rows_t[b] for a, b in pairs), rest_u, rest_t
