"""Induced matching of two images on one grid: barcodes of both, and which bars meet in the comparison image.

The comparison image and the image barcodes are only looked at in dimensions where both images have bars: elsewhere
nothing can match. Ranks are taken over both images together, so that the comparison image min(u, t) needs no sorting
and values of all three compare. Volumes are paired here; `_plane` does the same for images in compiled code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from medseg.topology import _components
from medseg.topology._cells import pick, rank_values
from medseg.topology._complex import NO_BARS, NO_MASK, NOTHING, Bars, Complex, Grid, Mask
from medseg.topology._crop import find_box
from medseg.topology._plane import barcode_plane, match_planes, split_bars

Ints = NDArray[np.int32]
NO_VOXELS = np.zeros((0, 2), np.int64)


class Pairing(NamedTuple):
    """Bars of one dimension as flat voxels: matched (M, 4), unmatched of each image (P, 2) and (Q, 2)."""

    matched: NDArray[np.int64]
    unmatched_u: NDArray[np.int64]
    unmatched_t: NDArray[np.int64]


NO_PAIRING = Pairing(np.zeros((0, 4), np.int64), NO_VOXELS, NO_VOXELS)


def pair_image(u: NDArray[np.float32], shape: Sequence[int], dims: Sequence[int]) -> dict[int, NDArray[np.int64]]:
    """Barcode of a flat image in its sublevel filtration: birth and death voxels by dimension."""
    if plane := _plane_shape(shape):
        bars = barcode_plane(u, *plane, 0 in dims, 1 in dims)
        return {d: bars[d] if d < 2 else NO_VOXELS for d in dims}
    box = find_box([u], shape)
    ranks, num_ranks = rank_values(box.cut(u, shape))
    volume = Complex(ranks, num_ranks, Grid(box.shape))
    bars, _ = _barcode(volume, dims)
    return {d: box.restore(volume.voxels(bars[d], d), shape) for d in dims}


def pair_images(
    us: NDArray[np.float32], ts: NDArray[np.float32], shape: Sequence[int], dims: Sequence[int], positive: bool
) -> dict[int, Pairing]:
    """Match stacks (N, voxels) of flat images, N > 0, in their sublevel filtrations, by dimension.

    Voxels are counted through the stack.
    """
    if plane := _plane_shape(shape):
        planes = match_planes(us, ts, *plane, 0 in dims, 1 in dims, positive)
        items = [{0: found[:3], 1: found[3:], 2: NO_PAIRING} for found in planes]
    else:
        items = [_pair_volumes(u, t, shape, dims, positive) for u, t in zip(us, ts, strict=True)]
    size = us.shape[1]
    return {d: Pairing(*(_join([item[d][k] for item in items], size) for k in range(3))) for d in dims}


def _join(fields: Sequence[NDArray[np.int64]], size: int) -> NDArray[np.int64]:
    """Voxels of several images of one size below each other, counted through the stack."""
    offsets = np.repeat(np.arange(len(fields)) * size, [len(field) for field in fields])
    return np.concatenate(fields) + offsets[:, None]


def _pair_volumes(
    u: NDArray[np.float32], t: NDArray[np.float32], shape: Sequence[int], dims: Sequence[int], positive: bool
) -> dict[int, tuple[NDArray[np.int64], ...]]:
    box = find_box([u, t], shape)
    grid = Grid(box.shape)
    ranks_u, ranks_t, num_ranks = _rank_together(box.cut(u, shape), box.cut(t, shape))
    image_u, image_t = Complex(ranks_u, num_ranks, grid), Complex(ranks_t, num_ranks, grid)
    image_c = Complex(np.minimum(ranks_u, ranks_t), num_ranks, grid)
    matcher = _Matcher(image_u, image_t, image_c, dims, positive)
    return {
        d: split_bars(
            box.restore(image_u.voxels(matcher.bars_u[d], d), shape),
            box.restore(image_t.voxels(matcher.bars_t[d], d), shape),
            matcher.matched[d],
        )
        for d in dims
    }


def _plane_shape(shape: Sequence[int]) -> tuple[int, int] | None:
    """Shape of an image without the axes of length 1, which carry no cells; None for a volume."""
    first, second, *more = [*(n for n in shape if n > 1), 1, 1]
    return None if len(more) > 2 else (first, second)


def _rank_together(u: NDArray[np.float32], t: NDArray[np.float32]) -> tuple[Ints, Ints, int]:
    """Ranks of both images that compare with each other; of a binary target only its two values are sorted."""
    low, high = t.min(), t.max()
    is_high = t == high
    if np.count_nonzero(is_high) + np.count_nonzero(t == low) >= t.size:
        ranks, num_ranks = rank_values(np.concatenate((u, [low, high]), dtype=np.float32))
        return ranks[:-2], np.where(is_high, ranks[-1], ranks[-2]), num_ranks
    ranks, num_ranks = rank_values(np.concatenate((u, t)))
    return ranks[: u.size], ranks[u.size :], num_ranks


def _barcode(volume: Complex, dims: Sequence[int], other: Complex | None = None) -> tuple[dict[int, Bars], Ints]:
    """Bars of a volume by dimension, and where its cavities end in `other`; none without it."""
    bars = dict.fromkeys(range(3), NO_BARS)
    others, births = NOTHING, NO_MASK
    if max(dims) > 0:
        bars[2], others, births = volume.pair_cavities(other)
    if 1 in dims:
        bars[1], births = volume.pair_tunnels(births)
    else:
        births = NO_MASK  # of squares; edges are not known yet
    if 0 in dims:
        bars[0] = volume.pair_components(births)
    return bars, others if other is not None else NOTHING


class _Matcher:
    """The steps of matching two volumes, from the highest dimension down."""

    def __init__(
        self, image_u: Complex, image_t: Complex, image_c: Complex, dims: Sequence[int], positive: bool
    ) -> None:
        self.images = image_u, image_t, image_c
        self.positive = positive
        wanted = image_c if 2 in dims else None
        self.bars_t, self.others_t = _barcode(image_t, dims, wanted)
        if not self.bars_t[2].births.size:
            wanted = None
        self.bars_u, self.others_u = _barcode(image_u, dims, wanted)
        self.matched = {d: np.zeros((0, 2), np.int32) for d in range(3)}
        open_dims = [d for d in dims if self.bars_u[d].births.size and self.bars_t[d].births.size]
        if 1 in open_dims or 2 in open_dims:
            births = self._match_cavities()
            if 1 in open_dims:
                self._match_tunnels(births)
        if 0 in open_dims:
            self._match_components()

    def _match_cavities(self) -> Mask:
        image_c = self.images[2]
        bars_c, _, births = image_c.pair_cavities()
        if self.others_u.size and self.others_t.size:
            bar_u = index_by(self.others_u, image_c.ranks.size)[bars_c.deaths]
            bar_t = index_by(self.others_t, image_c.ranks.size)[bars_c.deaths]
            both = (bar_u >= 0) & (bar_t >= 0)
            bar_u, bar_t, deaths = bar_u[both], bar_t[both], bars_c.deaths[both]
            keep = np.logical_and(*self._alive(2, bar_u, bar_t, deaths)) if self.positive else slice(None)
            self.matched[2] = np.stack([bar_u[keep], bar_t[keep]], 1)
        return births

    def _match_tunnels(self, cleared: Mask) -> None:
        """Match tunnels from the target's few bars: reductions end with the last column that can still matter.

        The comparison image's own bar at a common death is longer than zero if either image bar is; only where both
        are empty must its barcode be computed.
        """
        image_u, image_t, image_c = self.images
        order = image_c.square_order
        columns_t, bar_t = image_t.pair_image_tunnels(self.bars_t[1].births, order, cleared)
        if not columns_t.size:
            return
        end = columns_t[-1] + 1
        columns_u, bar_u = image_u.pair_image_tunnels(self.bars_u[1].births, order[:end], cleared)
        columns, at_u, at_t = np.intersect1d(columns_u, columns_t, assume_unique=True, return_indices=True)
        bar_u, bar_t = bar_u[at_u], bar_t[at_t]
        alive_u, alive_t = self._alive(1, bar_u, bar_t, order[columns])
        keep = (alive_u & alive_t) if self.positive else (alive_u | alive_t)
        if not self.positive and not keep.all():
            bars_c, _ = image_c.pair_tunnels(cleared)
            keep |= np.isin(order[columns], bars_c.deaths)
        self.matched[1] = np.stack([bar_u[keep], bar_t[keep]], 1)

    def _alive(self, dim: int, bar_u: Ints, bar_t: Ints, deaths: Ints) -> tuple[Mask, Mask]:
        """Which image bars of both images, from these bars' births to these deaths of the comparison, are not empty."""
        image_u, image_t, image_c = self.images
        end = image_c.values(deaths, dim + 1)
        return (
            image_u.values(self.bars_u[dim].births[bar_u], dim) < end,
            image_t.values(self.bars_t[dim].births[bar_t], dim) < end,
        )

    def _match_components(self) -> None:
        image_u, image_t, image_c = self.images
        edges = image_c.merging_edges(NO_MASK)
        voxels = np.arange(image_c.ranks.size, dtype=np.int32)
        rows = tuple(index_by(bars[0].births, voxels.size) for bars in (self.bars_u, self.bars_t))
        ranks = (image_c.ranks, image_u.ranks, image_t.ranks)
        self.matched[0] = _components.match_components(
            edges, pick(image_c.edge_values, edges), voxels, (voxels.copy(), voxels.copy()), image_c.grid.strides,
            ranks, rows, self.positive,
        )  # fmt: skip


def index_by(cells: Ints, size: int) -> Ints:
    """Row number of each cell, by cell number; -1 where the cell is not among them."""
    rows = np.full(size, -1, np.int32)
    rows[cells] = np.arange(cells.size, dtype=np.int32)
    return rows
