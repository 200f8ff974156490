"""Induced matching of two images on one grid: barcodes of both, and which bars meet in the comparison image.

The comparison image and the image barcodes are only looked at in dimensions where both images have bars: elsewhere
nothing can match. Ranks are taken over both images together, so that the comparison image min(u, t) needs no sorting
and values of all three compare.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from medseg.topology import _components
from medseg.topology._cells import rank_values
from medseg.topology._complex import NO_BARS, NO_MASK, Bars, Complex, Grid

Ints = NDArray[np.int32]


class Pairing(NamedTuple):
    """Bars of one dimension as flat birth and death voxels (n, 2), and matched pairs (m, 2) of row numbers."""

    bars_u: NDArray[np.int64]
    bars_t: NDArray[np.int64]
    matched: Ints


def pair_image(u: NDArray[np.float32], shape: Sequence[int], dims: Sequence[int]) -> dict[int, NDArray[np.int64]]:
    """Barcode of a flat image in its sublevel filtration: birth and death voxels by dimension."""
    ranks, num_ranks = rank_values(u)
    complex_u = Complex(ranks, num_ranks, Grid(shape))
    bars, _, _ = _barcode(complex_u, dims)
    return {d: complex_u.voxels(bars[d], d) for d in dims}


def pair_images(
    u: NDArray[np.float32], t: NDArray[np.float32], shape: Sequence[int], dims: Sequence[int], positive: bool
) -> dict[int, Pairing]:
    """Match two flat images in their sublevel filtrations, by dimension."""
    grid = Grid(shape)
    ranks, num_ranks = rank_values(np.concatenate((u, t)))
    image_u, image_t = (Complex(r, num_ranks, grid) for r in (ranks[: u.size], ranks[u.size :]))
    image_c = Complex(np.minimum(image_u.ranks, image_t.ranks), num_ranks, grid)
    matcher = _Matcher(image_u, image_t, image_c, dims, positive)
    return {
        d: Pairing(image_u.voxels(matcher.bars_u[d], d), image_t.voxels(matcher.bars_t[d], d), matcher.matched[d])
        for d in dims
    }


def _barcode(
    image: Complex, dims: Sequence[int], other: Complex | None = None
) -> tuple[dict[int, Bars], Ints, NDArray[np.bool_]]:
    """Bars of an image by dimension, deaths of the highest in `other`, and births among the squares of a volume."""
    bars = dict.fromkeys(range(-1, 3), NO_BARS)  # -1: the highest dimension of a single voxel
    others, births, squares = np.zeros(0, np.int32), NO_MASK, NO_MASK
    axes = image.grid.num_axes
    if axes > 1 and max(dims) > 0:
        bars[axes - 1], others, births = image.pair_top(other)
    if axes == 3 and 2 not in dims:
        others = others[:0]
    if axes == 3:
        squares, births = births, NO_MASK
        if 1 in dims:
            bars[1], births = image.pair_tunnels(squares)
    if 0 in dims:
        bars[0] = image.pair_components(births)
    return bars, others, squares


class _Matcher:
    """The steps of one matching, from the highest dimension down."""

    def __init__(
        self, image_u: Complex, image_t: Complex, image_c: Complex, dims: Sequence[int], positive: bool
    ) -> None:
        self.images = image_u, image_t, image_c
        self.positive = positive
        self.top = image_u.grid.num_axes - 1
        wanted = image_c if self.top > 0 and self.top in dims else None
        self.bars_t, self.others_t, self.squares_t = _barcode(image_t, dims, wanted)
        if not self.bars_t[self.top].births.size:
            wanted = None
        self.bars_u, self.others_u, self.squares_u = _barcode(image_u, dims, wanted)
        self.matched = {d: np.zeros((0, 2), np.int32) for d in range(3)}
        open_dims = [d for d in dims if self.bars_u[d].births.size and self.bars_t[d].births.size]
        births = NO_MASK
        if self.top > 0 and (self.top in open_dims or (self.top == 2 and 1 in open_dims)):
            births = self._match_top()
        if self.top == 2:
            births = self._match_tunnels(births) if 1 in open_dims else NO_MASK
        if 0 in open_dims:
            self._match_components(births)

    def _match_top(self) -> NDArray[np.bool_]:
        image_u, image_t, image_c = self.images
        bars_c, _, births = image_c.pair_top()
        if self.others_u.size and self.others_t.size:
            bar_u = index_by(self.others_u, image_c.ranks.size)[bars_c.deaths]
            bar_t = index_by(self.others_t, image_c.ranks.size)[bars_c.deaths]
            deaths = image_c.regions[self.images[2].grid.plane :][bars_c.deaths]
            self._keep(self.top, bar_u, bar_t, deaths, image_u.values(self.top), image_t.values(self.top))
        return births

    def _match_tunnels(self, squares: NDArray[np.bool_]) -> NDArray[np.bool_]:
        image_u, image_t, image_c = self.images
        bars_c, births = image_c.pair_tunnels(squares)
        size = image_c.edge_values.size
        bar_u = index_by(self.bars_u[1].births, size)[image_u.pivots(image_c, squares)[bars_c.deaths]]
        bar_t = index_by(self.bars_t[1].births, size)[image_t.pivots(image_c, squares)[bars_c.deaths]]
        deaths = image_c.square_values[bars_c.deaths]
        self._keep(1, bar_u, bar_t, deaths, image_u.edge_values, image_t.edge_values)
        return births

    def _keep(self, dim: int, bar_u: Ints, bar_t: Ints, deaths: Ints, values_u: Ints, values_t: Ints) -> None:
        """Keep pairs of bars that both exist; with `positive`, only those whose image bars are not empty."""
        keep = (bar_u >= 0) & (bar_t >= 0)
        if self.positive:
            keep &= values_u[self.bars_u[dim].births[bar_u]] < deaths
            keep &= values_t[self.bars_t[dim].births[bar_t]] < deaths
        self.matched[dim] = np.stack([bar_u[keep], bar_t[keep]], 1)

    def _match_components(self, births: NDArray[np.bool_]) -> None:
        image_u, image_t, image_c = self.images
        bars_at = (
            index_by(self.bars_u[0].births, image_c.ranks.size),
            index_by(self.bars_t[0].births, image_c.ranks.size),
        )
        ranks = (image_c.ranks, image_u.ranks, image_t.ranks)
        self.matched[0] = _components.match_components(
            image_c.edge_order, image_c.edge_values, image_c.grid.strides, ranks, bars_at, births, self.positive
        )


def index_by(cells: Ints, size: int) -> Ints:
    """Row number of each cell, by cell number; -1 where the cell is not among them."""
    rows = np.full(size, -1, np.int32)
    rows[cells] = np.arange(cells.size, dtype=np.int32)
    return rows
