"""Draw a mask on its image as one picture: three orthogonal slices through the largest label, legend, orientation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cc3d
import numpy as np
from numpy.typing import ArrayLike, NDArray

from medseg.report._picture import (
    Panel,
    check_png,
    compose,
    find_scale,
    find_size,
    find_views,
    measure_volumes,
    paint,
    save_png,
    stretch,
    to_ras,
    upright,
)


def draw_preview(
    path: str | Path,
    image: ArrayLike,
    mask: ArrayLike,
    affine: ArrayLike,
    *,
    names: Mapping[int, str],
    title: str = "",
) -> Path:
    """Draw three orthogonal slices of an image with its mask, as a PNG.

    The slices go through the centroid of the largest piece of the label with most voxels; through the middle when
    there is no label. Directions that have a single slice are left out.

    Args:
        path: the PNG to write; its folder is made when missing.
        image: intensities, (X, Y, Z), shown from the 1st to the 99th percentile.
        mask: integer labels on the same grid; 0 is background.
        affine: (4, 4), voxel index to world millimetres (RAS+).
        names: label values and their names, for the legend; colours are those of `label_colour`.
        title: text above the slices, such as the name of the case.

    Returns:
        The path written.

    Raises:
        ValueError: the path does not end in .png, or image, mask and affine do not fit each other.

    Example:
        >>> draw_preview("preview.png", image, mask, affine, names={1: "head"})  # doctest: +SKIP
    """
    path = check_png(path)
    values, labels, spacing = to_ras(image, mask, affine)
    grey = stretch(values)
    volumes = measure_volumes(labels, affine, names)
    position = _position(labels, max(volumes, key=volumes.__getitem__) if any(volumes.values()) else None)
    panels = []
    for name, axis, letters in find_views(labels.shape):
        image_cut, mask_cut = (upright(np.take(volume, position[axis], axis=axis)) for volume in (grey, labels))
        picture = paint(image_cut, mask_cut, find_size(labels.shape, spacing, axis))
        panels.append(Panel(f"{name}, slice {position[axis] + 1} of {labels.shape[axis]}", letters, picture))
    return save_png(path, compose([panels], title, names, volumes, find_scale(labels.shape, spacing)))


def _position(labels: NDArray[Any], largest: int | None) -> list[int]:
    """Index of the three slices; each holds the largest piece of the label, even if its centroid is beside it."""
    if largest is None:
        return [n // 2 for n in labels.shape]
    # As bytes: the boolean path of cc3d 4.1 fails on single voxels in boxes of odd size.
    pieces = cc3d.connected_components(np.ascontiguousarray(labels == largest).view(np.uint8), connectivity=26)
    piece = pieces == np.bincount(pieces.ravel())[1:].argmax() + 1
    indices = np.nonzero(piece)
    return [int(axis[np.abs(axis - axis.mean()).argmin()]) for axis in indices]
