"""Bring finished slabs from the network's grid to the grid of the input, and take the best class there.

    label(i) = argmax over classes k of  sum over the 8 neighbours j of A(i) of  w_j p_k(j)

with A the map from a voxel of the input to its place on the network's grid and w the trilinear weights; places outside
the network's grid take the border's value. This is what MONAI's `Invertd` followed by argmax gives for `Orientationd`
and `Spacingd`, but with a running maximum over classes: besides the slab only one class is ever held on the input grid,
and only as deep as the slab, where the stock way holds all classes on both whole grids.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

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
        places = list(self._places)
        places[self.axis] = place[chosen] - (slab.start - 1)
        input_axis = self.grid.axes.index(self.axis)
        target = slice(int(chosen[0]), int(chosen[-1]) + 1)
        region = tuple(target if a == input_axis else slice(None) for a in range(self.labels.dim()))
        self._fill(region, values, last, places)

    def _fill(
        self, region: tuple[slice, ...], values: torch.Tensor, last: torch.Tensor, places: list[torch.Tensor]
    ) -> None:
        labels = torch.zeros_like(self.labels[region], device=values.device)
        best = torch.full(labels.shape, -torch.inf, device=values.device)
        # Probabilities of a voxel sum to one, so the best is at least 1/K, and so is one of the voxels it was made
        # from. Where a class stays below, it cannot win; the margin is for rounding.
        floor = 0.999 / values.shape[0] if self.softmax and self.probabilities is None else None
        for k in range(values.shape[0]):
            # The slab's neighbour to the left lies in the slab before.
            block = torch.cat([last[k], values[k]], dim=self.axis)
            box = [slice(0, n) for n in block.shape] if floor is None else _bounding_box(block >= floor)
            if box is None:
                continue
            block = block[tuple(box)]
            window = [slice(0, n) for n in labels.shape]
            for axis, place in enumerate(places):
                inside = (place >= box[axis].start) & (place <= box[axis].stop - 1)
                chosen = inside.nonzero()[:, 0]
                first, stop = (int(chosen[0]), int(chosen[-1]) + 1) if len(chosen) else (0, 0)
                window[self.grid.axes.index(axis)] = slice(first, stop)
                block = interpolate_along(block, axis, place[first:stop] - box[axis].start)
            block = block.permute(self.grid.axes)
            if self.probabilities is not None:
                self.probabilities[(k, *region)] = block.to(self.probabilities)
            best_here = best[tuple(window)]
            labels[tuple(window)].masked_fill_(block > best_here, k)
            torch.maximum(best_here, block, out=best_here)
        if self.threshold is not None:
            labels.masked_fill_(best < self.threshold, 0)
        self.labels[region] = labels.to(self.labels.device)


def _bounding_box(mask: torch.Tensor) -> list[slice] | None:
    """Smallest box around the true voxels, widened by one where there is room; None if there are none."""
    box = []
    for axis in range(mask.dim()):
        found = mask.any(dim=tuple(a for a in range(mask.dim()) if a != axis)).nonzero()[:, 0]
        if not len(found):
            return None
        box.append(slice(max(int(found[0]) - 1, 0), min(int(found[-1]) + 2, mask.shape[axis])))
    return box


def softmax_(logits: torch.Tensor) -> torch.Tensor:
    """Softmax over the first axis in place, so that no second copy of all classes is made.

    Args:
        logits: shape (K, spatial...).

    Returns:
        The same tensor, now with probabilities.
    """
    logits.sub_(logits.amax(dim=0)).exp_()
    return logits.div_(logits.sum(dim=0))


def interpolate_along(values: torch.Tensor, axis: int, places: torch.Tensor) -> torch.Tensor:
    """Interpolate linearly along one axis.

    Args:
        values: any shape.
        axis: the axis.
        places: fractional indices along it, shape (N,), all inside [0, size - 1].

    Returns:
        `values` with N entries along the axis; a view where the places are all its own voxels in order.

    Example:
        >>> interpolate_along(torch.tensor([0.0, 10.0, 20.0]), 0, torch.tensor([0.5, 2.0]))
        tensor([ 5., 20.])
    """
    if not len(places):
        return values.narrow(axis, 0, 0)
    lower = places.floor().long()
    fraction = (places - lower).to(values.dtype)
    low = _take(values, axis, lower)
    if not fraction.any():
        return low
    high = _take(values, axis, (lower + 1).clamp(max=values.shape[axis] - 1))
    shape = [-1 if a == axis else 1 for a in range(values.dim())]
    return torch.lerp(low, high, fraction.reshape(shape).to(values.device))


def _take(values: torch.Tensor, axis: int, indices: torch.Tensor) -> torch.Tensor:
    first = int(indices[0])
    if torch.equal(indices, torch.arange(first, first + len(indices))):
        return values.narrow(axis, first, len(indices))
    return values.index_select(axis, indices.to(values.device))
