"""One image as a filtered cubical complex: its cells in order and its barcode, each part computed when first needed.

Axes of length 1 carry no cells and are dropped: what remains is a line (components only), an image (components by
union-find, loops by duality) or a volume (components, tunnels by reduction, cavities by duality). Higher dimensions
come first, because the births found there need no look one dimension below.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from medseg.topology import _cavities, _cells, _components, _tunnels

Ints = NDArray[np.int32]
NOTHING = np.zeros(0, np.int32)
NO_MASK = np.zeros(0, np.bool_)


class Bars(NamedTuple):
    """Bars as numbers of their birth and death cells."""

    births: Ints
    deaths: Ints


NO_BARS = Bars(NOTHING, NOTHING)


class Grid:
    """The shape of a volume without its axes of length 1, filled up to three axes in front."""

    def __init__(self, shape: Sequence[int]) -> None:
        long = [n for n in shape if n > 1]
        self.num_axes = len(long)
        self.shape: tuple[int, int, int] = (1,) * (3 - len(long)) + tuple(long)  # type: ignore[assignment]
        self.plane = self.shape[1] * self.shape[2]
        self.strides = np.array([self.plane, self.shape[2], 1], np.int64)
        # Steps across a wall: squares are numbered by their normal; edges of an image by the axis they lie along.
        self.wall_steps = self.strides if self.num_axes == 3 else self.strides[[0, 2, 1]]


class Complex:
    """The cells of one image, whose values are given as ranks.

    Args:
        ranks: rank of every voxel, flat.
        num_ranks: one more than the largest rank.
        grid: the shape.
    """

    def __init__(self, ranks: Ints, num_ranks: int, grid: Grid) -> None:
        self.ranks = ranks
        self.num_ranks = num_ranks
        self.grid = grid

    @cached_property
    def edge_values(self) -> Ints:
        return _cells.edge_values(self.ranks, *self.grid.shape)

    @cached_property
    def square_values(self) -> Ints:
        return _cells.square_values(self.edge_values, *self.grid.shape)

    @cached_property
    def edge_order(self) -> Ints:
        return _cells.sort_cells(self.edge_values, self.num_ranks)

    @cached_property
    def edge_positions(self) -> Ints:
        return _cells.invert_order(self.edge_order, self.edge_values.size)

    @cached_property
    def square_order(self) -> Ints:
        return _cells.sort_cells(self.square_values, self.num_ranks)

    @cached_property
    def regions(self) -> Ints:
        """Values of the top cells with the outside around them, as the dual union-find needs them."""
        top = self.square_values[::3] if self.grid.num_axes == 2 else None
        if top is None:
            top = _cells.cube_values(self.square_values, *self.grid.shape)
        return _cavities.frame_regions(np.ascontiguousarray(top), self.grid.plane)

    def pair_top(self, other: Complex | None = None) -> tuple[Bars, Ints, NDArray[np.bool_]]:
        """Bars of the highest dimension, their deaths in the comparison image, and the births among the walls."""
        walls = self.square_order if self.grid.num_axes == 3 else self.edge_order
        values = self.square_values if self.grid.num_axes == 3 else self.edge_values
        regions = NOTHING if other is None else other.regions
        births, deaths, others, is_birth = _cavities.pair_regions(
            walls, values, self.regions, regions, self.grid.wall_steps, self.grid.plane
        )
        return Bars(births, deaths), others, is_birth

    def pivots(self, columns: Complex, cleared: NDArray[np.bool_]) -> Ints:
        """Birth edge of the tunnel that each square of `columns` kills, by square number; -1 where it kills none."""
        _, n1, n2 = self.grid.shape
        return _tunnels.reduce_squares(columns.square_order, cleared, self.edge_positions, self.edge_order, n1, n2)

    def pair_tunnels(self, cleared: NDArray[np.bool_]) -> tuple[Bars, NDArray[np.bool_]]:
        """Bars of dimension 1 of a volume, and the edges that begin a tunnel, of length zero included."""
        births, deaths, is_birth = _tunnels.bars_of_pivots(
            self.pivots(self, cleared), self.square_order, self.edge_values, self.square_values
        )
        return Bars(births, deaths), is_birth

    def pair_components(self, is_birth: NDArray[np.bool_]) -> Bars:
        """Bars of dimension 0; `is_birth` marks edges that begin a loop or tunnel, empty if not known."""
        return Bars(
            *_components.pair_components(self.edge_order, self.edge_values, self.ranks, self.grid.strides, is_birth)
        )

    def voxels(self, bars: Bars, dim: int) -> NDArray[np.int64]:
        """Birth and death voxels (n, 2) of bars, as flat indices."""
        sides = [(bars.births, dim), (bars.deaths, dim + 1)]
        return np.stack([self._carry(cells, d) for cells, d in sides], 1).astype(np.int64)

    def _carry(self, cells: Ints, dim: int) -> Ints:
        if dim == 0 or cells.size == 0:
            return cells
        if dim == 2 and self.grid.num_axes == 2:
            cells = cells * np.int32(3)  # top cells of an image are squares normal to axis 0
        return _cells.carrying_voxels(cells, dim, self.values(dim), self.ranks, *self.grid.shape)

    def values(self, dim: int) -> Ints:
        """Rank at which each cell of a dimension appears, by its number."""
        if dim == 0:
            return self.ranks
        if dim == 1:
            return self.edge_values
        return self.square_values if dim == 2 else self.regions[self.grid.plane : -1]
