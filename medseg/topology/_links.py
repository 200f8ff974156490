"""Cells of an image that a look at their neighbours pairs, so that few edges are left to sort.

A pixel v and the first of its edges e are a pair of length zero, whatever else the image holds, if v is the youngest
end of e: v then joins the other end the moment it appears. A square s and the last of its edges e are such a pair if s
is the oldest square beside e: seen from the outside, s joins the square across e. Both unions can be made at once, for
no other edge of v comes before e, and none of s after it.

Only edges in no such pair are sorted and sent through union-find: few, unless the image is white noise.

Where components carry labels of another image (see `_cavities` and `_components`), a union made too early must not hand
on a label too early. It cannot if the one that joins loses its label on joining. It does not matter in two more cases,
which cover most of a binary mask: the union belongs to the very first (of squares: last) value, at which no bar ends
(begins); or the label stands for no bar, because it begins with the last (of squares: ends with the first) value. All
other links are released, and their edges are sorted with the rest.

Layout: pixel (y, z) of an image (n1, n2) has number (y + 1) * (n2 + 1) + z in a frame of pixels later than all others,
so that no border needs a look at coordinates; square i has its smallest corner at pixel i; edge 3 i + 1 leads from
pixel i to the next row, 3 i + 2 to the next column. Squares on the frame are the outside, whose number is 0.

Idea of such pairs: Bauer, "Ripser: efficient computation of Vietoris-Rips persistence barcodes" (2021, apparent pairs);
Robins, Wood, Sheppard, "Theory and algorithms for constructing discrete Morse complexes from grayscale digital images"
(2011).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from medseg.topology._cells import radix_sort
from medseg.topology._compile import compiled
from medseg.topology._components import younger

Ints = NDArray[np.int32]
LATEST = np.int32(2**31 - 1)


class Plane(NamedTuple):
    """An image in its frame.

    Attributes:
        keys: integers in the order of the values, by pixel.
        squares: largest key of the corners, by square.
        stride: from one row to the next.
        lowest: smallest key.
        highest: largest key inside the frame.
    """

    keys: Ints
    squares: Ints
    stride: int
    lowest: np.int32
    highest: np.int32


@compiled
def frame_image(values: NDArray[np.float32], n1: int, n2: int) -> Ints:
    """Keys of a flat image (n1, n2) in their frame."""
    stride = n2 + 1
    keys = np.full((n1 + 2) * stride + 1, LATEST, np.int32)
    bits = values.view(np.int32)
    for y in range(n1):
        row = keys[(y + 1) * stride : (y + 2) * stride]
        source = bits[y * n2 : (y + 1) * n2]
        for z in range(n2):  # the bits of negative floats descend; +-0 are one value
            b = source[z]
            row[z] = b if b >= 0 else -(b & np.int32(0x7FFFFFFF))
    return keys


@compiled
def make_plane(keys: Ints, stride: int) -> Plane:
    """Complete framed keys by what follows from them."""
    count = keys.size - stride - 1
    squares = np.full(keys.size, LATEST, np.int32)
    first, right, below, last = keys[:count], keys[1:], keys[stride:], keys[stride + 1 :]
    lowest, highest = LATEST, np.int32(-LATEST)
    for i in range(count):
        squares[i] = max(max(first[i], right[i]), max(below[i], last[i]))
        lowest = min(lowest, first[i])
        highest = max(highest, first[i] if first[i] != LATEST else highest)
    return Plane(keys, squares, stride, lowest, highest)


@compiled
def link_pixels(plane: Plane, links: Ints) -> None:
    """Set the neighbour that each pixel joins at once, or itself; of several edges the first in their order counts."""
    stride = plane.stride
    count = plane.keys.size - 2 * stride
    # Shifted views with one index for all let the compiler work on many pixels at once.
    above, left, own = plane.keys, plane.keys[stride - 1 :], plane.keys[stride:]
    right, below, result = plane.keys[stride + 1 :], plane.keys[2 * stride :], links[stride:]
    for i in range(count):
        value = own[i]
        pixel = link = np.int32(i + stride)
        link = np.int32(pixel + 1) if right[i] < value else link
        link = np.int32(pixel + stride) if below[i] < value else (pixel if below[i] == value else link)
        link = np.int32(pixel - 1) if left[i] <= value else link
        link = np.int32(pixel - stride) if above[i] <= value else link
        result[i] = link
    for i in range(stride):
        links[i] = i
        links[links.size - 1 - i] = links.size - 1 - i


@compiled
def link_squares(plane: Plane, links: Ints) -> None:
    """Set the square that each square joins at once, or itself; of several edges the last counts. The outside is 0."""
    keys, squares, stride = plane.keys, plane.squares, plane.stride
    count = keys.size - 2 * stride - 1
    corner, right, below, last = keys[stride:], keys[stride + 1 :], keys[2 * stride :], keys[2 * stride + 1 :]
    own, up, before, result = squares[stride:], squares, squares[stride - 1 :], links[stride:]
    for i in range(count):
        value = own[i]
        square = link = np.int32(i + stride)
        link = np.int32(square - 1) if before[i] > value else link
        link = (np.int32(square - stride) if up[i] > value else square) if max(corner[i], right[i]) == value else link
        link = np.int32(square + 1) if max(right[i], last[i]) == value else link
        link = np.int32(square + stride) if max(below[i], last[i]) == value else link
        result[i] = link if value != LATEST else np.int32(0)
    links[:stride] = 0
    links[stride + count :] = 0


@compiled
def release_squares(links: Ints, plane: Plane, other: Plane) -> None:
    """Undo links of squares that would carry a label of `other` too early."""
    for i in range(links.size):
        free = plane.squares[i] >= plane.highest or other.squares[i] == other.lowest
        if not free and younger(other.squares, i, links[i]):
            links[i] = i


@compiled
def release_pixels(links: Ints, plane: Plane, other: Plane) -> None:
    """Undo links of pixels that would carry a label of `other` too early."""
    for i in range(links.size):
        free = plane.keys[i] == plane.lowest or other.keys[i] == other.highest
        if not free and younger(other.keys, links[i], i):
            links[i] = i


@compiled
def label_squares(links: Ints, plane: Plane, other: Plane, labels: Ints) -> None:
    """Set the latest square of each linked group in the order of `other`, by root; shortens links."""
    labels[0] = 0
    for i in range(links.size - 1, -1, -1):
        labels[i] = i
        if plane.squares[i] == plane.highest and links[i] != i:  # linked to a later number or to the outside
            root = links[i] = links[links[i]]
            if younger(other.squares, i, labels[root]):
                labels[root] = i


@compiled
def label_pixels(links: Ints, plane: Plane, other: Plane, labels: Ints) -> None:
    """Set the oldest pixel of each linked group in the order of `other`, by root; shortens links."""
    for i in range(links.size):
        labels[i] = i
        if plane.keys[i] == plane.lowest and links[i] != i:  # linked to an earlier number
            root = links[i] = links[links[i]]
            if younger(other.keys, labels[root], i):
                labels[root] = i


@compiled
def sort_open_edges(plane: Plane, pixels: Ints, squares: Ints) -> tuple[Ints, Ints]:
    """Edges by which neither pixels nor squares are linked, in ascending order, and their keys.

    Links must be as made, not yet shortened.
    """
    keys, stride = plane.keys, plane.stride
    down, right = _find_open(plane, pixels, squares, stride, 1), _find_open(plane, pixels, squares, 1, stride)
    edges = np.empty(2 * keys.size, np.int32)
    values = np.empty(2 * keys.size, np.uint32)
    count = 0
    for i in range(down.size):
        if down[i]:
            edges[count] = 3 * i + 1
            values[count] = np.uint32(max(keys[i], keys[i + stride])) ^ np.uint32(0x80000000)
            count += 1
        if right[i]:
            edges[count] = 3 * i + 2
            values[count] = np.uint32(max(keys[i], keys[i + 1])) ^ np.uint32(0x80000000)
            count += 1
    values, edges = radix_sort(values[:count], edges[:count])
    return edges, (values ^ np.uint32(0x80000000)).view(np.int32)


@compiled
def _find_open(plane: Plane, pixels: Ints, squares: Ints, along: int, across: int) -> NDArray[np.bool_]:
    """Whether the edge from each pixel to the one `along` from it is in no link, of pixels or of squares `across`."""
    count = plane.keys.size - plane.stride
    start = plane.stride
    found = np.zeros(count, np.bool_)
    size = count - start
    near, far = plane.keys[start:], plane.keys[start + along :]
    pixel, next_pixel = pixels[start:], pixels[start + along :]
    square, before, result = squares[start:], squares[start - across :], found[start:]
    for i in range(size):
        this = np.int32(i + start)
        linked = (pixel[i] == np.int32(this + along)) | (next_pixel[i] == this)
        linked |= (square[i] == np.int32(this - across)) | (before[i] == this)
        result[i] = (not linked) & (near[i] != LATEST) & (far[i] != LATEST)
    return found
