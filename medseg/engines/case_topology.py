"""Topological errors of one label in one case, and the picture of its features.

Everything outside the joint bounding box is background in both masks, so one rim of it is enough: features and their
matching are the same as in the whole image.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from medseg.metrics.empty import EmptyPolicy, name_case

TOPOLOGY = ("BettiNumberError_0", "BettiNumberError_1", "BettiNumberError_2", "BettiMatchingError")


def measure_topology(pred: np.ndarray, ref: np.ndarray, empty: EmptyPolicy) -> dict[str, float]:
    """Give the topological errors of two masks.

    Args:
        pred: predicted mask, 2D or 3D; may be cut to the structures and a rim of one voxel.
        ref: reference mask of the same shape.
        empty: rules for empty masks; the worst value is the error itself, which has no bound.

    Returns:
        The values of `TOPOLOGY`: |b_d(pred) - b_d(ref)| for components, tunnels and cavities (nan in 2D), and the
        number of features of either mask without a partner in the other.

    Example:
        >>> ring = np.pad(np.ones((3, 3), bool), 1)
        >>> ring[2, 2] = False
        >>> measure_topology(np.pad(np.ones((3, 3), bool), 1), ring, EmptyPolicy())["BettiMatchingError"]
        1.0
    """
    case = name_case(int(pred.any()), int(ref.any()))
    if case != "present":
        rule = empty.value(case, best=0.0, worst=0.0 if case == "both_empty" else np.inf)
        if np.isnan(rule) or np.isfinite(rule):
            return dict.fromkeys(TOPOLOGY, rule)
    from medseg.metrics.betti_counts import betti_number_differences, count_unmatched  # Numba takes a moment

    numbers = [float(n) for n in betti_number_differences(pred[None], ref[None])[0]]
    numbers += [np.nan] * (3 - len(numbers))
    return dict(zip(TOPOLOGY, [*numbers, float(count_unmatched(pred[None], ref[None]).sum())], strict=True))


def add_rim(box: tuple[slice, ...], shape: tuple[int, ...]) -> tuple[slice, ...]:
    """Widen a box by one voxel wherever the image goes on.

    Example:
        >>> add_rim((slice(0, 2), slice(3, 5)), (4, 9))
        (slice(0, 3, None), slice(2, 6, None))
    """
    return tuple(slice(max(0, b.start - 1), min(n, b.stop + 1)) for b, n in zip(box, shape, strict=True))


def draw_label(folder: Path, case: str, label: int, name: str, pred: np.ndarray, ref: np.ndarray) -> Path:
    """Draw the features of one label, slices along the last axis of a volume; returns the picture's path."""
    from medseg.report.topology import draw_topology

    masks = pred == label, ref == label
    places = np.argwhere(masks[0] | masks[1])
    low, high = places.min(axis=0), places.max(axis=0) + 1
    box = add_rim(tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True)), pred.shape)
    path = folder / f"{case.replace('/', '_')}_label-{label}_topology.png"
    title = f"{case}, label {label}" + ("" if name == str(label) else f" {name}")
    return draw_topology(path, masks[0][box], masks[1][box], axis=pred.ndim - 1, title=title)
