"""Draw maximum intensity projections: the image along each axis, and below it the same with the labels' projections.

    picture_a[u] = max over the slices across axis a of image[u]       (voxels that are not a number are passed over)

Thin vessels that leave every slice show here as lines, and a gap in their mask as a gap. Where labels lie behind each
other, the one with the smallest volume is shown, so that none is hidden by a larger one around it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from medseg.report._picture import (
    CONVENTION,
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

# Of the pixels of a projection, a vessel is far fewer than of the voxels of a slice an organ: cut off fewer.
_BRIGHTEST = 99.9
_OVERLAP = "; where labels overlap, the smallest is in front"


def draw_mip_preview(
    path: str | Path,
    image: ArrayLike,
    mask: ArrayLike,
    affine: ArrayLike,
    *,
    names: Mapping[int, str],
    title: str = "",
) -> Path:
    """Draw the maximum intensity projections of an image side by side, and below them those of its mask, as a PNG.

    The projections run along the whole volume, in the orientation and scale of `draw_preview`. Directions that have a
    single slice are projected along, but not drawn from the side.

    Args:
        path: the PNG to write; its folder is made when missing.
        image: intensities, (X, Y, Z), shown from the 1st to the 99.9th percentile of the projected pixels.
        mask: integer labels on the same grid; 0 is background.
        affine: (4, 4), voxel index to world millimetres (RAS+).
        names: label values and their names, for the legend; colours are those of `label_colour`.
        title: text above the projections, such as the name of the case.

    Returns:
        The path written.

    Raises:
        ValueError: the path does not end in .png, or image, mask and affine do not fit each other.
        OSError: the file cannot be written.

    Example:
        >>> draw_mip_preview("mip.png", image, mask, affine, names={1: "vessel"})  # doctest: +SKIP
    """
    path = check_png(path)
    values, labels, spacing = to_ras(image, mask, affine)
    volumes = measure_volumes(labels, affine, names)
    # Background first and the smallest label last: the higher place in this order lies in front.
    order = np.array([0, *sorted(volumes, key=volumes.__getitem__, reverse=True)])
    fronts = _project_labels(labels, order)
    views = find_views(labels.shape)
    images, overlays = [], []
    for (name, axis, letters), grey in zip(views, _project_image(values, [axis for _, axis, _ in views]), strict=True):
        plain, size = upright(grey), find_size(labels.shape, spacing, axis)
        cut = order[_keep_thin(upright(fronts[axis]), size)]
        caption = f"{name}, maximum of {labels.shape[axis]} slices"
        images.append(Panel(caption, letters, paint(plain, np.zeros_like(cut), size)))
        overlays.append(Panel(f"{name}, with labels", letters, paint(plain, cut, size)))
    foot = CONVENTION + (_OVERLAP if np.count_nonzero(list(volumes.values())) > 1 else "")
    return save_png(path, compose([images, overlays], title, names, volumes, find_scale(labels.shape, spacing), foot))


def _project_image(values: NDArray[Any], axes: Sequence[int]) -> list[NDArray[np.float32]]:
    """Projections along some axes as grey values from 0 to 1, one scale for all."""
    faces = [np.fmax.reduce(values, axis=axis).astype(np.float32) for axis in axes]
    grey = stretch(np.concatenate([face.ravel() for face in faces]), _BRIGHTEST)
    parts = np.split(grey, np.cumsum([face.size for face in faces])[:-1])
    return [part.reshape(face.shape) for part, face in zip(parts, faces, strict=True)]


def _project_labels(labels: NDArray[Any], order: NDArray[Any]) -> list[NDArray[np.intp]]:
    """Along each axis the highest place in the order among the labels of each line, in one pass over the mask."""
    faces = [np.zeros(np.delete(labels.shape, axis), np.intp) for axis in range(3)]
    sorter = np.argsort(order)
    for i, plane in enumerate(labels):
        inside = plane != 0
        places = np.zeros(plane.shape, np.intp)
        places[inside] = sorter[np.searchsorted(order, plane[inside], sorter=sorter)]
        np.maximum(faces[0], places, out=faces[0])
        faces[1][i], faces[2][i] = places.max(axis=0), places.max(axis=1)
    return faces


def _keep_thin(places: NDArray[np.intp], size: tuple[int, int]) -> NDArray[np.intp]:
    """Widen lines where the picture has fewer points than the projection has pixels, so that none is lost."""
    width, height = size
    shrink = [max(1, -(-n // m)) for n, m in zip(places.shape, (height, width), strict=True)]
    return np.asarray(ndimage.maximum_filter(places, shrink, mode="nearest"), np.intp)
