"""What every function of this sub-package asks of its images and options, and how images become filtrations."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

DIRECTIONS = {"superlevel": ("superlevel",), "sublevel": ("sublevel",), "bothlevels": ("superlevel", "sublevel")}
FRAME_VALUES = {"none": None, "background": 0.0, "foreground": 1.0}
MOST_VOXELS = 2**28  # three edges per voxel, the frame and the column store are counted in 32 bits
IMAGE_BARS = {"all": False, "positive": True}


def check_images(images: ArrayLike, name: str, *, batch: bool = False) -> NDArray[np.float32]:
    """Return images as contiguous float32, or say what is wrong with them."""
    array = np.asarray(images)
    axes = array.ndim - batch
    expected = "(N, H, W) or (N, D, H, W)" if batch else "(H, W) or (D, H, W)"
    if axes not in (2, 3):
        raise ValueError(f"{name} has shape {array.shape}; expected {expected}. Call once per item and channel.")
    if 0 in array.shape[batch:]:
        raise ValueError(f"{name} has shape {array.shape}; every spatial axis needs at least one voxel.")
    if np.prod(array.shape[batch:]) > MOST_VOXELS:
        raise ValueError(f"{name} has shape {array.shape}; more than {MOST_VOXELS} voxels cannot be numbered, crop it.")
    if array.dtype.kind not in "bfiu":
        raise ValueError(f"{name} has dtype {array.dtype}; expected real numbers.")
    array = np.ascontiguousarray(array, dtype=np.float32)
    if not np.isfinite(array).all():
        raise ValueError(f"{name} contains NaN or infinite values, which have no place in an order; remove them first.")
    return array


def check_pair(
    pred: ArrayLike, target: ArrayLike, names: tuple[str, str], *, batch: bool = False
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return both images as contiguous float32 of one shape."""
    first, second = (check_images(x, name, batch=batch) for x, name in zip((pred, target), names, strict=True))
    if first.shape != second.shape:
        raise ValueError(
            f"{names[0]} has shape {first.shape} but {names[1]} has {second.shape}; resample one to the other's grid."
        )
    return first, second


def check_dims(dims: Sequence[int] | None, num_axes: int) -> tuple[int, ...]:
    """Return the wanted dimensions in ascending order; all by default."""
    chosen = tuple(range(num_axes)) if dims is None else tuple(sorted({int(d) for d in dims}))
    if not chosen or chosen[0] < 0 or chosen[-1] >= num_axes:
        raise ValueError(f"dims is {dims!r}; expected one or more of {tuple(range(num_axes))} for {num_axes} axes.")
    return chosen


def check_option(value: str, name: str, options: Sequence[str]) -> str:
    """Return the value if it is one of the options."""
    if value not in options:
        raise ValueError(f"{name} is {value!r}; expected one of {', '.join(map(repr, options))}.")
    return value


def frame_images(images: NDArray[np.float32], boundary: str, *, batch: bool = False) -> NDArray[np.float32]:
    """Put a frame of one voxel around every spatial axis, or none."""
    value = FRAME_VALUES[check_option(boundary, "boundary", tuple(FRAME_VALUES))]
    if value is None:
        return images
    widths = [(0, 0)] * batch + [(1, 1)] * (images.ndim - batch)
    return np.pad(images, widths, constant_values=value)


def list_directions(filtration: str) -> tuple[str, ...]:
    """The directions that a filtration stands for."""
    return DIRECTIONS[check_option(filtration, "filtration", tuple(DIRECTIONS))]


def ascending(images: NDArray[np.float32], direction: str) -> NDArray[np.float32]:
    """Flat images (N, voxels) with the wanted filtration as sublevels; 1 - x in float32, as in the published code."""
    flat = images.reshape(len(images), -1)
    return np.float32(1) - flat if direction == "superlevel" else flat


def sort_rows(voxels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rows in lexicographic order."""
    return voxels[np.lexsort(voxels.T[::-1])]


def to_coordinates(voxels: NDArray[np.int64], shape: Sequence[int], boundary: str) -> NDArray[np.int64]:
    """Turn flat voxels (n, k) of the framed grid into coordinates (n, k, D) of the image."""
    coordinates = np.stack(np.unravel_index(voxels, tuple(shape)), axis=-1)
    return coordinates.astype(np.int64) - (boundary != "none")
