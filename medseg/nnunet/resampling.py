"""Resample arrays as nnU-Net does, so that its networks see the voxels they were trained on.

The grid is that of "align corners = false": both grids fill the same box. Where one axis has more than three times the
spacing of the finest, each slice across it is resampled by itself, and the slices are then chosen by nearest neighbour.

Source: Isensee et al., "nnU-Net: a self-configuring method for deep learning-based biomedical image segmentation"
(2021), code of version 2.8.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from skimage.transform import resize
from torch.nn import functional

# Ratio of the largest spacing to the smallest above which slices are resampled one by one.
_ANISOTROPY = 3.0


def scaled_shape(shape: Sequence[int], spacing: Sequence[float], target: Sequence[float]) -> tuple[int, ...]:
    """Shape of a volume on a grid of another spacing.

    Example:
        >>> scaled_shape((10, 20, 30), (3.0, 1.0, 1.0), (1.0, 1.0, 2.0))
        (30, 20, 15)
    """
    return tuple(round(s / t * n) for n, s, t in zip(shape, spacing, target, strict=True))


def find_slice_axis(
    spacing: Sequence[float], target: Sequence[float], force_separate_z: bool | None = None
) -> int | None:
    """Axis across which slices are resampled by themselves, or None.

    Args:
        spacing: of the volume as it is, in mm.
        target: of the volume to be.
        force_separate_z: True takes the coarsest axis whatever the ratio, False none, None decides by the ratio.

    Example:
        >>> find_slice_axis((5.0, 1.0, 1.0), (1.0, 1.0, 1.0))
        0
    """
    if force_separate_z is False:
        return None
    for candidate in (spacing, target):
        if force_separate_z or max(candidate) / min(candidate) > _ANISOTROPY:
            coarsest = [axis for axis, s in enumerate(candidate) if s == max(candidate)]
            return coarsest[0] if len(coarsest) == 1 else None
    return None


def resample_image(array: np.ndarray, shape: Sequence[int], slice_axis: int | None, order: int = 3) -> np.ndarray:
    """Resample an image by splines.

    Args:
        array: (C, X, Y, Z).
        shape: (X, Y, Z) of the result.
        slice_axis: spatial axis whose slices are resampled by themselves, see `find_slice_axis`.
        order: of the spline, within the slices where there are such.

    Returns:
        (C, *shape), float32.
    """
    if array.shape[1:] == tuple(shape):
        return array.astype(np.float32, copy=False)
    if slice_axis is None:
        parts = [_resize(channel, shape, order) for channel in array]
        return np.stack(parts).astype(np.float32, copy=False)
    flat = [n for axis, n in enumerate(shape) if axis != slice_axis]
    slices = np.moveaxis(array, slice_axis + 1, 1)
    resized = np.stack([[_resize(part, flat, order) for part in channel] for channel in slices])
    chosen = resized[:, _nearest(resized.shape[1], shape[slice_axis])]
    return np.moveaxis(chosen, 1, slice_axis + 1).astype(np.float32, copy=False)


def resample_scores(scores: torch.Tensor, shape: Sequence[int], slice_axis: int | None, nearest: bool) -> torch.Tensor:
    """Resample logits linearly, or labels by nearest neighbour.

    Args:
        scores: (K, X, Y, Z).
        shape: (X, Y, Z) of the result.
        slice_axis: as in `resample_image`; across it the nearest slice is taken.
        nearest: take the nearest voxel along all axes.

    Returns:
        (K, *shape) in the type that came.
    """
    if tuple(scores.shape[1:]) == tuple(shape):
        return scores
    for axis in range(3) if nearest else [] if slice_axis is None else [slice_axis]:
        index = torch.from_numpy(_nearest(scores.shape[axis + 1], shape[axis]))
        scores = scores.index_select(axis + 1, index.to(scores.device))
    if tuple(scores.shape[1:]) == tuple(shape):
        return scores
    return functional.interpolate(scores[None], size=tuple(shape), mode="trilinear", align_corners=False)[0]


def _resize(part: np.ndarray, shape: Sequence[int], order: int) -> np.ndarray:
    if part.shape == tuple(shape):
        return part
    return np.asarray(resize(part.astype(float), tuple(shape), order, mode="edge", anti_aliasing=False))


def _nearest(old: int, new: int) -> np.ndarray:
    """Index of the old slice nearest to the middle of each new one; the next one where two are equally near."""
    middles = old / new * (np.arange(new) + 0.5) - 0.5
    return np.clip(np.floor(middles + 0.5).astype(np.int64), 0, old - 1)
