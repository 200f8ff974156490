"""Crop away a background that all images share, which most of a mask or of a saturated prediction is.

Where every image has its overall maximum (in the ascending order of a sublevel filtration), only the box around the
remaining voxels matters, with one voxel of that background on each side that was cropped: cells further out appear last
of all, and on every side the background hangs together within the layer that stays. Bars, matching and the voxels that
stand for them are those of the whole images (checked on random images in the tests).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Flat = NDArray[np.float32]


class Box(NamedTuple):
    """A part of a grid: first voxel and length on every axis."""

    starts: tuple[int, ...]
    shape: tuple[int, ...]

    def cut(self, image: Flat, full: Sequence[int]) -> Flat:
        """The part of a flat image on the full grid, flat again."""
        if self.shape == tuple(full):
            return image
        slices = tuple(slice(start, start + n) for start, n in zip(self.starts, self.shape, strict=True))
        return image.reshape(full)[slices].reshape(-1)

    def restore(self, voxels: NDArray[np.int64], full: Sequence[int]) -> NDArray[np.int64]:
        """Turn flat voxels of the box into flat voxels of the full grid."""
        if self.shape == tuple(full):
            return voxels
        inside = np.unravel_index(voxels, self.shape)
        moved = tuple(index + start for index, start in zip(inside, self.starts, strict=True))
        return np.ravel_multi_index(moved, tuple(full)).astype(np.int64)


def find_box(images: Sequence[Flat], shape: Sequence[int]) -> Box:
    """The smallest box that keeps all bars; the whole grid where nothing can be cropped."""
    whole = Box((0,) * len(shape), tuple(shape))
    limits = [image.max() for image in images]
    # Every side of the grid contains its first or its last voxel.
    if all(any(x[i] < top for x, top in zip(images, limits, strict=True)) for i in (0, -1)):
        return whole
    rest = np.logical_or.reduce([x < top for x, top in zip(images, limits, strict=True)]).reshape(shape)
    starts, lengths = [], []
    for axis, n in enumerate(shape):
        used = np.flatnonzero(rest.any(axis=tuple(a for a in range(rest.ndim) if a != axis)))
        if not used.size:
            return whole
        start, stop = max(int(used[0]) - 1, 0), min(int(used[-1]) + 2, n)
        starts.append(start)
        lengths.append(stop - start)
    return Box(tuple(starts), tuple(lengths))
