"""Draw contours of plausible segmentations over an image, beside the contours of the experts.

Every contour is a thin, translucent line: where many agree the line is bright, where they do not it frays. Slices go
through the place where the masks of both sets cover most.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from scipy import ndimage

from medseg.report._picture import (
    Grey,
    Panel,
    check_png,
    compose,
    find_scale,
    find_size,
    find_views,
    label_colour,
    save_png,
    stretch,
    to_ras,
    upright,
)

_OPACITY = 0.55
_SIDES = {"samples": 1, "raters": 2}  # name and the label whose colour is taken


def draw_sample_contours(
    path: str | Path,
    image: ArrayLike,
    samples: Sequence[ArrayLike],
    raters: Sequence[ArrayLike],
    affine: ArrayLike,
    *,
    label: int = 1,
    title: str = "",
) -> Path:
    """Draw the contours of one label in samples and in experts' annotations, as a PNG.

    Args:
        path: the PNG to write; its folder is made when missing.
        image: intensities, (X, Y, Z), shown from the 1st to the 99th percentile; Z is 1 for a 2D image.
        samples: integer labels of each sample, (N, X, Y, Z).
        raters: integer labels of each annotation, (M, X, Y, Z); empty where there is none, then samples stand alone.
        affine: (4, 4), voxel index to world millimetres (RAS+).
        label: the label whose contours are drawn.
        title: text above the pictures, such as the name of the case.

    Returns:
        The path written.

    Raises:
        ValueError: the path does not end in .png, there is no sample, or the arrays do not fit each other.

    Example:
        >>> draw_sample_contours("contours.png", image, samples, raters, affine)  # doctest: +SKIP
    """
    path = check_png(path)
    if not len(samples):
        raise ValueError("samples must hold at least one mask, got none")
    shown = {name: list(masks) for name, masks in zip(_SIDES, (samples, raters), strict=True) if len(masks)}
    oriented = {name: [to_ras(image, mask, affine) for mask in masks] for name, masks in shown.items()}
    values, _, spacing = oriented["samples"][0]
    masks = {name: np.stack([labels == label for _, labels, _ in sets]) for name, sets in oriented.items()}
    grey, cover = stretch(values), np.sum([m.mean(0) for m in masks.values()], axis=0)
    rows = []
    for view, axis, letters in find_views(values.shape):
        others = tuple(a for a in range(3) if a != axis)
        index = int(cover.sum(others).argmax())
        size = find_size(values.shape, spacing, axis)
        plane = upright(np.take(grey, index, axis))
        row = []
        for name, sets in masks.items():
            cuts = [upright(np.take(mask, index, axis)) for mask in sets]
            picture = _draw(plane, cuts, size, label_colour(_SIDES[name]))
            row.append(Panel(f"{view} {index + 1}: {len(cuts)} {name}", letters, picture))
        rows.append(row)
    voxel = abs(float(np.linalg.det(np.asarray(affine, dtype=np.float64)[:3, :3])))
    volumes = {name: voxel * mask.sum((1, 2, 3)) for name, mask in masks.items()}
    legend = {_SIDES[name]: f"{name}{_range(v)}, mean" for name, v in volumes.items()}
    means = {_SIDES[name]: float(v.mean()) for name, v in volumes.items()}
    return save_png(path, compose(rows, title, legend, means, find_scale(values.shape, spacing)))


def _range(volumes: NDArray[Any]) -> str:
    return f": {volumes.min() / 1000:.3g} to {volumes.max() / 1000:.3g} ml"


def _draw(grey: Grey, masks: Sequence[NDArray[Any]], size: tuple[int, int], colour: Sequence[int]) -> Image.Image:
    picture = np.asarray(Image.fromarray(grey).resize(size, Image.Resampling.BICUBIC))
    rgb = np.repeat(np.clip(picture, 0, 1)[..., None] * 255, 3, axis=2)
    remaining = np.ones(rgb.shape[:2])
    for mask in masks:
        # Interpolated, a contour runs between voxels instead of along their edges.
        smooth = Image.fromarray(mask.astype(np.float32)).resize(size, Image.Resampling.BILINEAR)
        inside = np.asarray(smooth) > 0.5
        remaining[inside & np.logical_not(ndimage.binary_erosion(inside, iterations=2))] *= 1 - _OPACITY
    rgb += (1 - remaining)[..., None] * (np.array(colour) - rgb)
    return Image.fromarray(rgb.round().astype(np.uint8))
