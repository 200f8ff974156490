"""Distances between the surfaces of two masks, computed once and read in several ways.

A surface voxel is a voxel of the mask with at least one face neighbour (edge neighbour in 2D) outside the mask; what
lies beyond the image counts as outside. Distances run from voxel centre to voxel centre in millimetres. All surface
voxels weigh the same, as in MONAI's metrics with `use_subvoxels=False`; the package `surface-distance` instead places
the surface between the voxels and weighs each element by its area, so its numbers differ by a fraction of a voxel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import binary_erosion, generate_binary_structure

# The distance transform works in float32: a distance that equals the tolerance must not fail by its rounding.
_ROUNDING = 1e-5


@dataclass(frozen=True)
class SurfaceDistances:
    """Distances in mm from every surface voxel of one mask to the nearest surface voxel of the other.

    Attributes:
        pred_to_ref: one distance for each surface voxel of the prediction, shape (N,).
        ref_to_pred: one distance for each surface voxel of the reference, shape (M,).
    """

    pred_to_ref: np.ndarray
    ref_to_pred: np.ndarray

    def hausdorff(self, percentile: float = 95.0) -> float:
        """Larger of the two directed percentiles in mm; 100 gives the Hausdorff distance itself."""
        return float(max(np.percentile(self.pred_to_ref, percentile), np.percentile(self.ref_to_pred, percentile)))

    def mean(self) -> float:
        """Mean over the surface voxels of both masks in mm (average symmetric surface distance)."""
        total = self.pred_to_ref.sum(dtype=np.float64) + self.ref_to_pred.sum(dtype=np.float64)
        return float(total / (self.pred_to_ref.size + self.ref_to_pred.size))

    def surface_dice(self, tolerance: float) -> float:
        """Fraction of the surface voxels of both masks that lie within `tolerance` mm of the other surface."""
        limit = tolerance * (1 + _ROUNDING)
        close = np.count_nonzero(self.pred_to_ref <= limit) + np.count_nonzero(self.ref_to_pred <= limit)
        return close / (self.pred_to_ref.size + self.ref_to_pred.size)


def surface_distances(
    pred: np.ndarray, ref: np.ndarray, spacing: Sequence[float], connectivity: int = 1
) -> SurfaceDistances:
    """Measure the surface distances between two masks that are both not empty.

    The work is done inside the joint bounding box, so its cost follows the structure and not the image.

    Args:
        pred: predicted mask, boolean, 2D or 3D.
        ref: reference mask of the same shape.
        spacing: voxel size in mm along each axis.
        connectivity: which neighbours make a surface voxel, see `surface_voxels`.

    Returns:
        The distances in both directions.

    Raises:
        ValueError: the shapes differ, a mask is empty, or the spacing does not fit.

    Example:
        >>> a, b = np.zeros((2, 5, 5), bool)
        >>> a[2, 1] = b[2, 3] = True
        >>> surface_distances(a, b, spacing=(1.0, 1.5)).hausdorff()
        3.0
    """
    if pred.shape != ref.shape:
        raise ValueError(f"pred has shape {pred.shape}, but ref has {ref.shape}; give two masks on one grid")
    if not pred.any() or not ref.any():
        raise ValueError("both masks must hold at least one voxel; handle empty masks with an EmptyPolicy first")
    spacing = check_spacing(spacing, pred.ndim)
    box = bounding_box(pred | ref)
    edge_pred, edge_ref = (surface_voxels(mask[box], connectivity) for mask in (pred, ref))
    return SurfaceDistances(
        pred_to_ref=_distance_to(edge_ref, spacing)[edge_pred], ref_to_pred=_distance_to(edge_pred, spacing)[edge_ref]
    )


def surface_voxels(mask: np.ndarray, connectivity: int = 1) -> np.ndarray:
    """Mark the voxels of a mask that have a neighbour outside it or lie at the image border.

    Neighbours share a face (connectivity 1), also an edge (2), also a corner (3); at most as many as there are axes.
    """
    neighbours = generate_binary_structure(mask.ndim, min(connectivity, mask.ndim))
    return mask & np.logical_not(binary_erosion(mask, neighbours, border_value=0))


def bounding_box(mask: np.ndarray) -> tuple[slice, ...]:
    """Give the smallest box that holds every voxel of a mask that is not empty."""
    box = []
    for axis in range(mask.ndim):
        hits = np.flatnonzero(mask.any(axis=tuple(a for a in range(mask.ndim) if a != axis)))
        box.append(slice(int(hits[0]), int(hits[-1]) + 1))
    return tuple(box)


def check_spacing(spacing: Sequence[float], dims: int) -> tuple[float, ...]:
    """Check that there is one positive voxel size for each axis.

    Raises:
        ValueError: another number of sizes, or a size that is not positive and finite.
    """
    sizes = tuple(float(s) for s in spacing)
    if len(sizes) != dims or not all(math.isfinite(s) and s > 0 for s in sizes):
        raise ValueError(f"spacing must be {dims} positive voxel sizes in mm, got {list(spacing)}")
    return sizes


def flat_axis(shape: Sequence[int]) -> int | None:
    """Give the axis along which a 3D image is one voxel thick, so that it is measured as the 2D image that it is.

    In 3D every voxel of a single slice would be a surface voxel, and surface distances would mean nothing.

    Example:
        >>> flat_axis((64, 64, 1)), flat_axis((64, 64, 2))
        (2, None)
    """
    return list(shape).index(1) if len(shape) == 3 and 1 in shape else None


def diagonal_mm(shape: Sequence[int], spacing: Sequence[float]) -> float:
    """Length of the image diagonal in mm, the worst distance that a missed structure can get.

    Example:
        >>> diagonal_mm((3, 4), (1.0, 1.0))
        5.0
    """
    return math.sqrt(sum((n * s) ** 2 for n, s in zip(shape, spacing, strict=True)))


def _distance_to(edge: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    import edt

    return edt.edt(np.ascontiguousarray(~edge), anisotropy=tuple(spacing), black_border=False, parallel=1)
