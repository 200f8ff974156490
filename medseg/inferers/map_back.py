"""Bring finished slabs from the network's grid to the grid of the input, and take the best class there.

    label(i) = argmax over classes k of  sum over the 8 neighbours j of A(i) of  w_j p_k(j)

with A the map from a voxel of the input to its place on the network's grid and w the trilinear weights; places outside
the network's grid take the border's value. This is what MONAI's `Invertd` followed by argmax gives for `Orientationd`
and `Spacingd`, but with a running maximum over classes (`medseg.core.kernels.argmax_at`): on the input grid only the
labels and the best value so far are held, as deep as a slab, where the stock way holds all classes on both whole grids.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from medseg.core.kernels import argmax_at, interpolate_along, softmax_
from medseg.inferers.sliding_window import Slab

# Voxels; shear below this over the whole volume, and distances from a voxel below the second, are rounding in affines.
_SHEAR = 1e-3
_ON_VOXEL = 1e-4


@dataclass(frozen=True)
class GridMap:
    """Where the voxels of the input lie on the network's grid, if both grids have the same axes up to order and sign.

    Attributes:
        axes: for each axis of the input, the axis of the network's grid that runs along it.
        scale: steps on the network's grid for one step on each axis of the input; negative where they run opposite.
        offset: place on the network's grid of the first voxel along each axis of the input.
        input_shape: spatial shape of the input.
        network_shape: spatial shape of the network's grid.

    Example:
        >>> fine, coarse = np.diag([1.0, 1, 1, 1]), np.diag([2.0, 2, 2, 1])
        >>> GridMap.between(fine, (4, 4, 4), coarse, (2, 2, 2)).scale
        (0.5, 0.5, 0.5)
    """

    axes: tuple[int, ...]
    scale: tuple[float, ...]
    offset: tuple[float, ...]
    input_shape: tuple[int, ...]
    network_shape: tuple[int, ...]

    @classmethod
    def between(
        cls,
        input_affine: np.ndarray,
        input_shape: Sequence[int],
        network_affine: np.ndarray,
        network_shape: Sequence[int],
    ) -> GridMap | None:
        """Compare two grids.

        Args:
            input_affine: voxel to world, shape (4, 4).
            input_shape: spatial shape.
            network_affine: voxel to world, shape (4, 4).
            network_shape: spatial shape.

        Returns:
            The map, or None where the grids are rotated or sheared against each other.
        """
        place = np.linalg.solve(np.asarray(network_affine, dtype=float), np.asarray(input_affine, dtype=float))
        linear, offset = place[:-1, :-1], place[:-1, -1]
        axes = np.abs(linear).argmax(axis=0)
        if len(set(axes.tolist())) != len(input_shape):
            return None
        along = np.zeros_like(linear)
        along[axes, np.arange(len(axes))] = linear[axes, np.arange(len(axes))]
        drift = np.abs(linear - along) @ np.asarray(input_shape, dtype=float)
        if drift.max() > _SHEAR:
            return None
        return cls(
            tuple(int(a) for a in axes),
            tuple(float(linear[a, i]) for i, a in enumerate(axes)),
            tuple(float(offset[a]) for a in axes),
            tuple(input_shape),
            tuple(network_shape),
        )

    def places(self, network_axis: int) -> np.ndarray:
        """Place on one axis of the network's grid for each voxel of the input along it, clamped to the grid."""
        i = self.axes.index(network_axis)
        places = self.offset[i] + self.scale[i] * np.arange(self.input_shape[i])
        # Grids that coincide must not be blurred by the last bit of an affine.
        near = np.round(places)
        places = np.where(np.abs(places - near) < _ON_VOXEL, near, places)
        return np.clip(places, 0, self.network_shape[network_axis] - 1)


class SlabMapper:
    """Take slabs in order and fill a label map on the input grid.

    Args:
        grid: how the two grids lie.
        axis: axis of the network's grid along which slabs are cut.
        num_classes: classes K of the slabs.
        softmax: turn logits into probabilities before they are interpolated.
        threshold: voxels whose best class is below this become class 0.
        probabilities: shape (K, input shape...), float32; filled with the interpolated classes where given.

    Attributes:
        labels: shape of the input, uint8 or, above 256 classes, int32; complete after the last slab.
    """

    def __init__(
        self,
        grid: GridMap,
        axis: int,
        num_classes: int,
        *,
        softmax: bool = True,
        threshold: float | None = None,
        probabilities: torch.Tensor | None = None,
    ) -> None:
        self.grid = grid
        self.axis = axis
        self.softmax = softmax
        self.threshold = threshold
        self.probabilities = probabilities
        self.labels = torch.zeros(grid.input_shape, dtype=torch.uint8 if num_classes <= 256 else torch.int32)
        self._places = [torch.from_numpy(grid.places(a)) for a in range(len(grid.network_shape))]
        self._last: torch.Tensor | None = None

    def add(self, slab: Slab) -> None:
        """Map a slab; its logits are overwritten."""
        values = slab.logits
        if self.softmax:
            softmax_(values)
        place = self._places[self.axis]
        upper = place.ceil()
        chosen = ((upper >= slab.start) & (upper < slab.stop)).nonzero()[:, 0]
        last, self._last = self._last, values.narrow(self.axis + 1, slab.stop - slab.start - 1, 1).clone()
        if not len(chosen):
            return
        if last is None:
            last = values.narrow(self.axis + 1, 0, 1)
        input_axis = self.grid.axes.index(self.axis)
        # The slab's neighbour to the left lies in the slab before; only places between the two need a copy of both.
        between = place[chosen] < slab.start
        for part, block, start in (
            (chosen[~between], values, slab.start),
            (chosen[between], torch.cat([last, values.narrow(self.axis + 1, 0, 1)], self.axis + 1), slab.start - 1),
        ):
            if not len(part):
                continue
            places = list(self._places)
            places[self.axis] = place[part] - start
            target = slice(int(part[0]), int(part[-1]) + 1)
            region = tuple(target if a == input_axis else slice(None) for a in range(self.labels.dim()))
            self._fill(region, block, places)

    def _fill(self, region: tuple[slice, ...], values: torch.Tensor, places: list[torch.Tensor]) -> None:
        # Probabilities of a voxel sum to one, so the best is at least 1/K, and so is one of the voxels it was made
        # from. Where a class stays below, it cannot win; the margin is for rounding.
        floor = 0.999 / values.shape[0] if self.softmax else None
        labels, best = argmax_at(values, places, floor=floor)
        if self.threshold is not None:
            labels.masked_fill_(best < self.threshold, 0)
        self.labels[region] = labels.permute(self.grid.axes).to(self.labels.device)
        if self.probabilities is not None:
            for k, block in enumerate(values):
                for axis, place in enumerate(places):
                    block = interpolate_along(block, axis, place)
                self.probabilities[(k, *region)] = block.permute(self.grid.axes).to(self.probabilities)
