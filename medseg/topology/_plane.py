"""Barcodes and matching of images (and lines), each pair in one compiled call without Python's lock.

As `_pairing` does for volumes: loops by duality, then components, and the comparison image only where both images have
bars. Links (see `_links`) leave few edges to sort.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from medseg.topology._cavities import pair_regions
from medseg.topology._cells import leave_out
from medseg.topology._compile import compiled
from medseg.topology._components import match_components, pair_components
from medseg.topology._links import (
    Plane,
    frame_image,
    label_pixels,
    label_squares,
    link_pixels,
    link_squares,
    make_plane,
    release_pixels,
    release_squares,
    sort_open_edges,
)

Ints = NDArray[np.int32]
Flat = NDArray[np.float32]
Voxels = NDArray[np.int64]
Scratch = NDArray[np.int32]


class PlaneBars(NamedTuple):
    """Bars as numbers of cells: pixels and edges of components, edges and squares of loops."""

    pixels: Ints
    merges: Ints
    edges: Ints
    squares: Ints


Three = tuple[Plane, Plane, Plane]  # prediction, target, comparison
Both = tuple[PlaneBars, PlaneBars]  # prediction, target


@compiled
def barcode_plane(u: Flat, n1: int, n2: int, components: bool, loops: bool) -> tuple[Voxels, Voxels]:
    """Birth and death voxels of a flat image (n1, n2) in dimensions 0 and 1, as far as they are wanted."""
    plane = make_plane(frame_image(u, n1, n2), n2 + 1)
    scratch = np.empty((2, plane.keys.size), np.int32)
    bars, _ = _pair(plane, plane, components, loops, False, scratch)
    return _component_voxels(plane, bars), _loop_voxels(plane, bars)


def match_planes(
    us: Flat, ts: Flat, n1: int, n2: int, components: bool, loops: bool, positive: bool
) -> list[tuple[Voxels, Voxels, Voxels, Voxels, Voxels, Voxels]]:
    """Match the rows of two stacks (N, n1 * n2) of flat images.

    Returns:
        For each, in dimension 0, then in 1: matched bars (M, 4), unmatched bars of u (P, 2) and of t (Q, 2).
    """
    scratch = np.empty((5, (n1 + 2) * (n2 + 1) + 1), np.int32)  # fresh memory costs more than what is done with it
    return [_match_plane(u, t, n1, n2, components, loops, positive, scratch) for u, t in zip(us, ts, strict=True)]


@compiled
def _match_plane(
    u: Flat, t: Flat, n1: int, n2: int, components: bool, loops: bool, positive: bool, scratch: Scratch
) -> tuple[Voxels, Voxels, Voxels, Voxels, Voxels, Voxels]:
    keys_u, keys_t = frame_image(u, n1, n2), frame_image(t, n1, n2)
    image_u, image_t = make_plane(keys_u, n2 + 1), make_plane(keys_t, n2 + 1)
    image_c = make_plane(np.minimum(keys_u, keys_t), n2 + 1)
    bars_t, ends_t = _pair(image_t, image_c, components, loops, loops, scratch)
    bars_u, ends_u = _pair(image_u, image_c, components, loops, bars_t.edges.size > 0, scratch)
    rows_0, rows_1 = _match((image_u, image_t, image_c), (bars_u, bars_t), (ends_u, ends_t), positive, scratch)
    components_found = split_bars(_component_voxels(image_u, bars_u), _component_voxels(image_t, bars_t), rows_0)
    return components_found + split_bars(_loop_voxels(image_u, bars_u), _loop_voxels(image_t, bars_t), rows_1)


@compiled
def split_bars(bars_u: Voxels, bars_t: Voxels, rows: Ints) -> tuple[Voxels, Voxels, Voxels]:
    """Bars (n, 2) of two images as matched (M, 4) and unmatched (P, 2), (Q, 2), where `rows` (M, 2) are matched."""
    matched = np.empty((len(rows), 4), np.int64)
    for i in range(len(rows)):
        for k in range(2):
            matched[i, k] = bars_u[rows[i, 0], k]
            matched[i, 2 + k] = bars_t[rows[i, 1], k]
    return matched, _leave_out_rows(bars_u, rows[:, 0]), _leave_out_rows(bars_t, rows[:, 1])


@compiled
def _leave_out_rows(bars: Voxels, rows: Ints) -> Voxels:
    keep = np.ones(len(bars), np.bool_)
    for i in range(rows.size):
        keep[rows[i]] = False
    rest = np.empty((len(bars) - len(rows), 2), np.int64)
    count = 0
    for i in range(len(bars)):
        if keep[i]:
            rest[count, 0] = bars[i, 0]
            rest[count, 1] = bars[i, 1]
            count += 1
    return rest


@compiled
def _pair(
    plane: Plane, other: Plane, components: bool, loops: bool, labelled: bool, scratch: Scratch
) -> tuple[PlaneBars, Ints]:
    """Bars of an image; if labelled, also the squares at which its loops end in the order of `other`."""
    pixels, squares = scratch[0], scratch[1]
    labels = born = merges = births = deaths = ends = np.empty(0, np.int32)
    link_pixels(plane, pixels)
    link_squares(plane, squares)
    if labelled:
        release_squares(squares, plane, other)
    edges, values = sort_open_edges(plane, pixels, squares)
    if labelled:
        labels = scratch[2]
        label_squares(squares, plane, other, labels)
    if loops:
        births, deaths, ends, is_birth = pair_regions(
            edges, values, squares, labels, plane.squares, other.squares, np.array([0, 1, plane.stride]), 0
        )
        edges, values = leave_out(edges, is_birth), leave_out(values, is_birth)
    if components:
        born, merges = pair_components(edges, values, pixels, plane.keys, np.array([0, plane.stride, 1]))
    return PlaneBars(born, merges, births, deaths), ends


@compiled
def _match(planes: Three, bars: Both, ends: tuple[Ints, Ints], positive: bool, scratch: Scratch) -> tuple[Ints, Ints]:
    """Matched components and matched loops, as row numbers in the bars of both images."""
    (image_u, image_t, image_c), (bars_u, bars_t) = planes, bars
    components = bars_u.pixels.size > 0 and bars_t.pixels.size > 0
    loops = bars_u.edges.size > 0 and bars_t.edges.size > 0
    matched = loops_matched = np.empty((0, 2), np.int32)
    if not components and not loops:
        return matched, loops_matched
    pixels, squares, first, second, third = scratch[0], scratch[1], scratch[2], scratch[3], scratch[4]
    link_pixels(image_c, pixels)
    link_squares(image_c, squares)
    if components:
        release_pixels(pixels, image_c, image_u)
        release_pixels(pixels, image_c, image_t)
    edges, values = sort_open_edges(image_c, pixels, squares)
    if loops:
        _, deaths, _, is_birth = pair_regions(
            edges, values, squares, first[:0], image_c.squares, image_c.squares, np.array([0, 1, image_c.stride]), 0
        )
        edges, values = leave_out(edges, is_birth), leave_out(values, is_birth)
        loops_matched = _match_loops(deaths, planes, bars, ends, positive, scratch)
    if components:
        label_pixels(pixels, image_c, image_u, first)
        label_pixels(pixels, image_c, image_t, second)
        matched = match_components(
            edges, values, pixels, (first, second), np.array([0, image_c.stride, 1]),
            (image_c.keys, image_u.keys, image_t.keys),
            (_rows_by(bars_u.pixels, squares), _rows_by(bars_t.pixels, third)), positive,
        )  # fmt: skip
    return matched, loops_matched


@compiled
def _match_loops(
    deaths: Ints, planes: Three, bars: Both, ends: tuple[Ints, Ints], positive: bool, scratch: Scratch
) -> Ints:
    """Pairs of loops that end at one of these squares, the deaths of the comparison image's loops."""
    (image_u, image_t, image_c), (bars_u, bars_t) = planes, bars
    rows_u, rows_t = _rows_by(ends[0], scratch[2]), _rows_by(ends[1], scratch[3])
    matched = np.empty((deaths.size, 2), np.int32)
    count = 0
    for square in deaths:
        row_u, row_t = rows_u[square], rows_t[square]
        if row_u < 0 or row_t < 0:
            continue
        birth = max(_edge_key(image_u, bars_u.edges[row_u]), _edge_key(image_t, bars_t.edges[row_t]))
        if positive and birth >= image_c.squares[square]:
            continue
        matched[count, 0] = row_u
        matched[count, 1] = row_t
        count += 1
    return matched[:count].copy()


@compiled
def _rows_by(cells: Ints, rows: Ints) -> Ints:
    """Set the row number of each cell, by cell number; -1 where the cell is not among them."""
    rows[:] = -1
    for row in range(cells.size):
        rows[cells[row]] = row
    return rows


@compiled
def _edge_key(plane: Plane, edge: int) -> int:
    """Key at which an edge appears."""
    return int(plane.keys[_edge_pixel(plane, edge)])


@compiled
def _edge_pixel(plane: Plane, edge: int) -> int:
    """The end of an edge that carries its key; of two the last."""
    first = edge // 3
    last = first + (plane.stride if edge % 3 == 1 else 1)
    return last if plane.keys[last] >= plane.keys[first] else first


@compiled
def _square_pixel(plane: Plane, square: int) -> int:
    """The last corner of a square that carries its key."""
    corner = square + plane.stride + 1
    for step in (plane.stride, 1, 0):
        if plane.keys[corner] < plane.squares[square]:
            corner = square + step
    return corner


@compiled
def _component_voxels(plane: Plane, bars: PlaneBars) -> Voxels:
    voxels = np.empty((bars.pixels.size, 2), np.int64)
    for i in range(bars.pixels.size):
        voxels[i, 0] = _leave_frame(plane, bars.pixels[i])
        voxels[i, 1] = _leave_frame(plane, _edge_pixel(plane, bars.merges[i]))
    return voxels


@compiled
def _loop_voxels(plane: Plane, bars: PlaneBars) -> Voxels:
    voxels = np.empty((bars.edges.size, 2), np.int64)
    for i in range(bars.edges.size):
        voxels[i, 0] = _leave_frame(plane, _edge_pixel(plane, bars.edges[i]))
        voxels[i, 1] = _leave_frame(plane, _square_pixel(plane, bars.squares[i]))
    return voxels


@compiled
def _leave_frame(plane: Plane, pixel: int) -> int:
    """Number of a pixel in the flat image: each row of the frame is one pixel longer."""
    row = pixel // plane.stride - 1
    return pixel - plane.stride - row
