"""All metrics of one prediction against one reference, label by label.

Every label is cut out by the joint bounding box of its voxels, so that the cost follows the structures; surface
distances are computed once and give HD95, ASD and NSD.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from medseg.engines.case_topology import add_rim, measure_topology
from medseg.metrics.counts import dice_from_counts, iou_from_counts, volume_error_from_counts
from medseg.metrics.empty import EmptyPolicy, name_case
from medseg.metrics.surface import diagonal_mm, flat_axis, surface_distances

OVERLAP = ("Dice", "IoU", "NSD")
DISTANCES = ("HD95", "ASD")
VOLUMES = ("RelativeVolumeError", "VolumeError_mm3", "AbsoluteVolumeError_mm3")
COUNTS = ("TP", "FP", "FN", "TN", "n_pred", "n_ref")
METRICS = ("Dice", "IoU", "HD95", "ASD", "NSD", *VOLUMES)

LabelMetrics = dict[str, float]


@dataclass(frozen=True)
class CaseMetrics:
    """What was measured on one case.

    Attributes:
        case: the case id.
        prediction: path of the prediction, or "" where it was missing and counted as empty.
        reference: path of the reference.
        shape: size of the image in voxels.
        spacing: voxel size in mm.
        labels: metrics for each label that the prediction or the reference holds; see `METRICS` and `COUNTS`.
    """

    case: str
    prediction: str
    reference: str
    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    labels: dict[int, LabelMetrics] = field(default_factory=dict)


def measure_case(
    pred: np.ndarray,
    ref: np.ndarray,
    spacing: Sequence[float],
    *,
    labels: Iterable[int] | None = None,
    nsd_tolerance_mm: float = 1.0,
    empty: EmptyPolicy | None = None,
    voxel_volume: float | None = None,
    topology: bool = False,
) -> dict[int, LabelMetrics]:
    """Measure a label map against a reference.

    Args:
        pred: predicted label ids, integers, 2D or 3D.
        ref: reference label ids of the same shape.
        spacing: voxel size in mm along each axis.
        labels: label ids to measure; None takes every id above 0 that occurs in one of the two.
        nsd_tolerance_mm: tolerance of the normalised surface Dice.
        empty: rules for empty masks.
        voxel_volume: volume of a voxel in mm3; None takes the product of the spacings, which a sheared grid is not.
        topology: whether to count topological errors as well, see `case_topology`.

    Returns:
        For each label the metrics of `METRICS` and the voxel counts of `COUNTS`; with `topology` those of `TOPOLOGY`.

    Raises:
        ValueError: shapes differ.

    Example:
        >>> pred, ref = np.array([[0, 1, 1]]), np.array([[0, 0, 1]])
        >>> measure_case(pred, ref, spacing=(1.0, 2.0))[1]["VolumeError_mm3"]
        2.0
    """
    if pred.shape != ref.shape:
        raise ValueError(f"pred has shape {pred.shape}, but ref has {ref.shape}; give two label maps on one grid")
    empty = empty or EmptyPolicy()
    voxel = math.prod(spacing) if voxel_volume is None else voxel_volume
    boxes = _joint_boxes(pred, ref)
    wanted = sorted(boxes) if labels is None else sorted(labels)
    nothing = np.zeros((0,) * pred.ndim, dtype=bool)
    measured = {}
    for label in wanted:
        box = boxes.get(label)
        masks = (nothing, nothing) if box is None else (pred[box] == label, ref[box] == label)
        measured[label] = _measure_label(*masks, pred.shape, spacing, nsd_tolerance_mm, empty, voxel)
        if topology:
            if box is not None:
                wide = add_rim(box, pred.shape)
                masks = (pred[wide] == label, ref[wide] == label)
            measured[label] |= measure_topology(*masks, empty)
    return measured


def empty_metrics(
    shape: Sequence[int], spacing: Sequence[float], empty: EmptyPolicy, *, topology: bool = False
) -> LabelMetrics:
    """Give the metrics of a label that neither mask holds."""
    nothing = np.zeros((0,) * len(shape), dtype=bool)
    metrics = _measure_label(nothing, nothing, shape, spacing, 0.0, empty, math.prod(spacing))
    return metrics | measure_topology(nothing, nothing, empty) if topology else metrics


def _measure_label(
    pred: np.ndarray,
    ref: np.ndarray,
    shape: Sequence[int],
    spacing: Sequence[float],
    tolerance: float,
    empty: EmptyPolicy,
    voxel: float,
) -> LabelMetrics:
    """Measure one label; the masks are cut to the joint bounding box, `shape` is that of the whole image."""
    both, n_pred, n_ref = (int(np.count_nonzero(mask)) for mask in (pred & ref, pred, ref))
    volume = volume_error_from_counts(n_pred, n_ref, voxel, unit="mm3", empty=empty)
    return {
        "Dice": dice_from_counts(both, n_pred, n_ref, empty),
        "IoU": iou_from_counts(both, n_pred, n_ref, empty),
        **_surface_metrics(pred, ref, spacing, tolerance, empty, shape),
        "RelativeVolumeError": volume_error_from_counts(n_pred, n_ref, voxel, unit="relative", empty=empty),
        "VolumeError_mm3": volume,
        "AbsoluteVolumeError_mm3": abs(volume),
        "TP": both,
        "FP": n_pred - both,
        "FN": n_ref - both,
        "TN": math.prod(shape) - n_pred - n_ref + both,
        "n_pred": n_pred,
        "n_ref": n_ref,
    }


def _surface_metrics(
    pred: np.ndarray,
    ref: np.ndarray,
    spacing: Sequence[float],
    tolerance: float,
    empty: EmptyPolicy,
    shape: Sequence[int],
) -> LabelMetrics:
    case = name_case(int(pred.any()), int(ref.any()))
    if case != "present":
        distance = empty.value(case, best=0.0, worst=diagonal_mm(shape, spacing))
        return {"HD95": distance, "ASD": distance, "NSD": empty.value(case, best=1.0, worst=0.0)}
    flat = flat_axis(shape)
    if flat is not None:
        pred, ref = pred.squeeze(flat), ref.squeeze(flat)
        spacing = (*spacing[:flat], *spacing[flat + 1 :])
    distances = surface_distances(pred, ref, spacing)
    return {
        "HD95": distances.hausdorff(95.0),
        "ASD": distances.mean(),
        "NSD": distances.surface_dice(tolerance),
    }


def _joint_boxes(pred: np.ndarray, ref: np.ndarray) -> dict[int, tuple[slice, ...]]:
    """Bounding box of each label over both masks."""
    from scipy.ndimage import find_objects

    boxes: dict[int, tuple[slice, ...]] = {}
    for mask in (pred, ref):
        ids = np.unique(mask)
        # Ranks instead of ids: label ids may be sparse and large, and the search walks all ids up to the largest.
        ranks = np.searchsorted(ids, mask) + 1
        for label, box in zip(ids.tolist(), find_objects(ranks, max_label=len(ids)), strict=True):
            if label > 0:
                boxes[label] = _join(boxes[label], box) if label in boxes else box
    return boxes


def _join(first: tuple[slice, ...], second: tuple[slice, ...]) -> tuple[slice, ...]:
    return tuple(slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in zip(first, second, strict=True))
