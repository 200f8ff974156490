"""Volumes of each label over several plausible segmentations of one case: mean, spread and percentiles."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from medseg.report.statistics import check_affine

PERCENTILES = (5, 50, 95)


def volume_spread(masks: ArrayLike, affine: ArrayLike, labels: Iterable[int]) -> dict[int, dict[str, Any]]:
    """Describe the distribution of every label's volume.

    Args:
        masks: integer labels of each sample, (N, X, Y, Z).
        affine: (4, 4), voxel index to world millimetres.
        labels: label values, background left out.

    Returns:
        For each label `samples` (N), and in mm3 `volume_mm3_mean`, `volume_mm3_sd` (of a sample of size N; None for
        one) and the percentiles `volume_mm3_p5`, `volume_mm3_p50`, `volume_mm3_p95`, interpolated linearly.

    Raises:
        ValueError: the masks are not (N, X, Y, Z), or the affine is not usable.

    Example:
        >>> masks = np.zeros((2, 2, 2, 2), np.uint8)
        >>> masks[0, 0] = masks[1] = 1                    # 4 and 8 voxels
        >>> volume_spread(masks, np.diag([2.0, 1, 1, 1]), [1])[1]["volume_mm3_mean"]
        12.0
    """
    masks = np.asarray(masks)
    if masks.ndim != 4 or len(masks) < 1:
        raise ValueError(f"masks must have shape (N, X, Y, Z) with N at least 1, got {masks.shape}")
    voxel = abs(float(np.linalg.det(check_affine(np.asarray(affine, dtype=np.float64))[:3, :3])))
    return {label: _describe(voxel * (masks == label).sum(axis=(1, 2, 3))) for label in labels}


def _describe(volumes: np.ndarray) -> dict[str, Any]:
    spread = {
        "samples": len(volumes),
        "volume_mm3_mean": float(volumes.mean()),
        "volume_mm3_sd": float(volumes.std(ddof=1)) if len(volumes) > 1 else None,
    }
    values = np.percentile(volumes, PERCENTILES)
    return spread | {f"volume_mm3_p{q}": float(v) for q, v in zip(PERCENTILES, values, strict=True)}
