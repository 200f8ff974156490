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
Mask = NDArray[np.bool_]
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
        self.around = _tunnels.boundary_offsets(*self.shape[1:])
        self.front = self.plane if self.num_axes == 3 else self.shape[2]


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
        if self.grid.num_axes == 2:
            top = _cells.pixel_square_values(self.ranks, *self.grid.shape[1:])
        else:
            top = _cells.cube_values(self.square_values, *self.grid.shape)
        return _cavities.frame_regions(top, self.grid.front)

    def values(self, cells: Ints, dim: int) -> Ints:
        """Ranks at which the given cells of one dimension appear."""
        if dim == 0:
            return self.ranks[cells]
        if dim == self.grid.num_axes > 1:
            return self.regions[cells + self.grid.front]
        return (self.edge_values if dim == 1 else self.square_values)[cells]

    def pair_top(self, other: Complex | None = None) -> tuple[Bars, Ints, Mask]:
        """Bars of the highest dimension, their deaths in `other`, and which walls are births, in their order."""
        volume = self.grid.num_axes == 3
        births, deaths, others, is_birth = _cavities.pair_regions(
            self.square_order if volume else self.edge_order,
            self.square_values if volume else self.edge_values,
            self.regions,
            NOTHING if other is None else other.regions,
            self.grid.wall_steps,
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
        return Bars(*_components.pair_components(edges, self.edge_values, self.ranks, self.grid.strides))

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
        # The squares of an image are numbered as top cells, by their corner; as squares they are normal to axis 0.
        numbers = cells * np.int32(3) if dim == self.grid.num_axes == 2 else cells
        return _cells.carrying_voxels(numbers, dim, self.values(cells, dim), self.ranks, *self.grid.shape)
