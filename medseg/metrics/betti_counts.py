"""Topological errors of binary masks as counts, on NumPy arrays; the metrics in `betti.py` are built on these.

    Betti number error in dimension d   = |b_d(prediction) - b_d(reference)|
    Betti matching error in dimension d = features of either mask that have no partner in the other at the same place

Sources: Stucki, Paetzold, Shit, Menze, Bauer, "Topologically Faithful Image Segmentation via Induced Matching of
Persistence Barcodes" (ICML 2023); Stucki, Bürgin, Paetzold, Bauer, "Efficient Betti Matching Enables Topology-Aware 3D
Segmentation via Persistent Homology" (2024).

Differences from the published code: Betti numbers are the real ones, 0 for an empty mask (there one component at
least), and the component that the barcode leaves out as infinite counts, as one feature, if only one mask has any.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from medseg.topology import BarTable, betti_matching_batch, betti_numbers

Counts = NDArray[np.int64]


def count_unmatched(
    preds: NDArray[np.bool_],
    refs: NDArray[np.bool_],
    *,
    dims: Sequence[int] | None = None,
    boundary: str = "none",
    image_bars: str = "all",
    include_essential: bool = True,
    num_threads: int | None = None,
) -> Counts:
    """Count features without a partner for N pairs of masks.

    Args:
        preds: predicted masks, shape (N, H, W) or (N, D, H, W).
        refs: reference masks of the same shape.
        dims: dimensions that count, all by default.
        boundary: "none", or a frame one voxel wide of "background" or "foreground" around both masks.
        image_bars: "all" as the published code, or "positive", see `medseg.topology.betti_matching`.
        include_essential: whether one more component is missing or surplus where just one of two masks is empty.
        num_threads: threads over pairs; by default as many as there are cores.

    Returns:
        Counts of shape (N, len(dims)).

    Raises:
        ValueError: an option is unknown or shapes differ.

    Example:
        >>> pred, ref = np.zeros((2, 1, 5, 5), bool)
        >>> pred[0, 1, 1], ref[0, 1, 1], ref[0, 3, 3] = True, True, True
        >>> count_unmatched(pred, ref)
        array([[1, 0]])
    """
    found = betti_matching_batch(
        preds.astype(np.float32),
        refs.astype(np.float32),
        dims=dims,
        boundary=boundary,
        image_bars=image_bars,
        num_threads=num_threads,
    )
    chosen = _chosen(dims, preds.ndim - 1)
    size = (len(preds), preds.ndim - 1)
    counts = _count(found.unmatched_pred, size) + _count(found.unmatched_target, size)
    if include_essential and boundary != "foreground":  # with that frame, no mask is empty
        axes = tuple(range(1, preds.ndim))
        counts[:, 0] += preds.any(axis=axes) != refs.any(axis=axes)
    return counts[:, chosen]


def betti_number_differences(
    preds: NDArray[np.bool_], refs: NDArray[np.bool_], *, dims: Sequence[int] | None = None
) -> Counts:
    """Compare the Betti numbers of N pairs of masks: |b_d(pred) - b_d(ref)|, shape (N, len(dims)).

    Example:
        >>> ring = np.ones((1, 3, 3), bool)
        >>> ring[0, 1, 1] = False
        >>> betti_number_differences(ring, np.zeros_like(ring))
        array([[1, 1]])
    """
    chosen = _chosen(dims, preds.ndim - 1)
    return np.abs(count_features(preds) - count_features(refs))[:, chosen]


def count_features(masks: NDArray[np.bool_]) -> Counts:
    """Give the Betti numbers of N masks, shape (N, number of spatial axes)."""
    return np.array([betti_numbers(mask) for mask in masks], np.int64).reshape(len(masks), masks.ndim - 1)


def _chosen(dims: Sequence[int] | None, axes: int) -> list[int]:
    chosen = list(range(axes)) if dims is None else sorted(set(dims))
    if not chosen or not set(chosen) <= set(range(axes)):
        raise ValueError(f"dims must be one or more of {tuple(range(axes))} for {axes} spatial axes, got {dims!r}")
    return chosen


def _count(table: BarTable, size: tuple[int, int]) -> Counts:
    return np.bincount(table.item * size[1] + table.dim, minlength=size[0] * size[1]).reshape(size)
