"""One volume as a filtered cubical complex: its cells in order and its barcode, each part computed when first needed.

Components by union-find, tunnels by reduction, cavities by duality. Higher dimensions come first, because the births
found there need no look one dimension below. Every axis is longer than 1; flatter images are `_plane`'s.
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
Mask = NDArray[np.bool_]
NO_MASK = np.zeros(0, np.bool_)


class Bars(NamedTuple):
    """Bars as numbers of their birth and death cells."""

    births: Ints
    deaths: Ints


NO_BARS = Bars(NOTHING, NOTHING)


class Grid:
    """What follows from the shape of a volume."""

    def __init__(self, shape: Sequence[int]) -> None:
        self.shape = tuple(shape)
        self.front = shape[1] * shape[2]
        self.strides = np.array([self.front, shape[2], 1], np.int64)
        self.around = _tunnels.boundary_offsets(shape[1], shape[2])


class Complex:
    """The cells of one volume, whose values are given as ranks.

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
        """Values of the cubes with the outside around them, as the dual union-find needs them."""
        return _cavities.frame_regions(_cells.cube_values(self.square_values, *self.grid.shape), self.grid.front)

    def values(self, cells: Ints, dim: int) -> Ints:
        """Ranks at which the given cells of one dimension appear."""
        if dim == 3:
            return self.regions[cells + self.grid.front]
        return self.ranks[cells] if dim == 0 else (self.edge_values if dim == 1 else self.square_values)[cells]

    def pair_cavities(self, other: Complex | None = None) -> tuple[Bars, Ints, Mask]:
        """Bars of the highest dimension, their deaths in `other`, and which squares are births, in their order."""
        parents = _cavities.separate_regions(self.regions)
        births, deaths, others, is_birth = _cavities.pair_regions(
            self.square_order,
            _cells.pick(self.square_values, self.square_order),
            parents,
            NOTHING if other is None else parents.copy(),
            self.regions,
            NOTHING if other is None else other.regions,
            self.grid.strides,
            self.grid.front,
        )
        return Bars(births, deaths), others, is_birth

    def pair_tunnels(self, cleared: Mask) -> tuple[Bars, Mask]:
        """Bars of dimension 1 of a volume, and which edges begin a tunnel of any length, in their order."""
        owners = np.full(self.edge_order.size, -1, np.int32)
        columns, rows = _tunnels.reduce_squares(
            self.square_order, cleared, self.edge_positions, owners, self.grid.around, -1
        )
        births, deaths = self.edge_order[rows], self.square_order[columns]
        longer = self.edge_values[births] < self.square_values[deaths]
        return Bars(births[longer], deaths[longer]), owners >= 0

    def pair_image_tunnels(self, births: Ints, columns: Ints, cleared: Mask) -> tuple[Ints, Ints]:
        """Which of these births is killed by which column, where columns are squares in another image's order."""
        owners = np.full(self.edge_order.size, -1, np.int32)
        owners[self.edge_positions[births]] = -2 - np.arange(births.size, dtype=np.int32)
        return _tunnels.reduce_squares(columns, cleared, self.edge_positions, owners, self.grid.around, births.size)

    def merging_edges(self, is_birth: Mask) -> Ints:
        """Ordered edges without those that begin a loop; as far as a look at single squares tells if not known."""
        if is_birth.size:
            return _cells.leave_out(self.edge_order, is_birth)
        return _cells.sort_cells(_cells.without_loop_edges(self.edge_values, *self.grid.shape), self.num_ranks)

    def pair_components(self, is_birth: Mask) -> Bars:
        """Bars of dimension 0; `is_birth` says which edges, in their order, begin a loop; empty if not known."""
        edges = self.merging_edges(is_birth)
        parents = np.arange(self.ranks.size, dtype=np.int32)
        values = _cells.pick(self.edge_values, edges)
        return Bars(*_components.pair_components(edges, values, parents, self.ranks, self.grid.strides))

    def voxels(self, bars: Bars, dim: int) -> NDArray[np.int64]:
        """Birth and death voxels (n, 2) of bars, as flat indices."""
        voxels = np.empty((bars.births.size, 2), np.int64)
        if bars.births.size:
            voxels[:, 0] = self._carry(bars.births, dim)
            voxels[:, 1] = self._carry(bars.deaths, dim + 1)
        return voxels

    def _carry(self, cells: Ints, dim: int) -> Ints:
        if dim == 0:
            return cells
        return _cells.carrying_voxels(cells, dim, self.values(cells, dim), self.ranks, *self.grid.shape)
