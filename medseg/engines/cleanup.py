"""Remove implausible pieces of a label map by the size of their connected components (26-neighbourhood)."""

from __future__ import annotations

import cc3d
import numpy as np


def keep_largest_component(labels: np.ndarray) -> np.ndarray:
    """Keep the largest connected component of every label.

    Args:
        labels: non-negative integers, shape (X, Y, Z).

    Returns:
        A new array of the same dtype.

    Example:
        >>> keep_largest_component(np.array([[[1, 1, 0, 1, 0, 2]]], dtype=np.uint8)).tolist()
        [[[1, 1, 0, 0, 0, 2]]]
    """
    components, label_of, size_of = _components(labels)
    keep = np.zeros(len(size_of), dtype=bool)
    for label in np.unique(label_of[1:]):
        candidates = np.flatnonzero(label_of == label)
        keep[candidates[np.argmax(size_of[candidates])]] = True
    return np.where(keep[components], labels, 0).astype(labels.dtype)


def remove_small_components(labels: np.ndarray, min_volume: float, voxel_volume: float) -> np.ndarray:
    """Remove connected components below a volume.

    Args:
        labels: non-negative integers, shape (X, Y, Z).
        min_volume: smallest volume that stays, in mm3.
        voxel_volume: volume of a voxel in mm3.

    Returns:
        A new array of the same dtype.

    Example:
        >>> remove_small_components(np.array([[[1, 1, 0, 1]]], dtype=np.uint8), 4.0, 2.0).tolist()
        [[[1, 1, 0, 0]]]
    """
    components, _, size_of = _components(labels)
    keep = size_of * voxel_volume >= min_volume
    keep[0] = False
    return np.where(keep[components], labels, 0).astype(labels.dtype)


def _components(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Component ids, and for each id its label and its size in voxels; id 0 is the background."""
    components, count = cc3d.connected_components(labels, connectivity=26, return_N=True)
    size_of = np.bincount(components.ravel(), minlength=count + 1)
    label_of = np.zeros(count + 1, dtype=labels.dtype)
    label_of[components.ravel()] = labels.ravel()
    return components, label_of, size_of
