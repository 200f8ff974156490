"""Centreline gap: how many mm of the reference's centreline the prediction misses.

Every voxel v of the centreline stands for l(v), half of the steps in mm to its neighbours on the line, so that

    gap = sum of l(v) over the voxels v that the prediction misses,    fraction = gap / sum of l(v) over all voxels

where a voxel is missed if it lies outside the prediction, or farther than the tolerance from it. In a straight line
along an axis a break of n voxels counts n voxel edges. What the prediction holds beyond the reference plays no part:
read it beside clDice or a precision.

The centreline is the skeleton of the reference, see `skeleton.py` for its lengths, unless one is given. Related: the
detected fraction of a reference's centreline length, as in the tree length detected of airway challenges: Lo et al.,
"Extraction of Airways From CT (EXACT'09)" (IEEE Transactions on Medical Imaging, 2012).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from scipy import ndimage

from medseg.metrics._cumulative import SegmentationMetric
from medseg.metrics._inputs import Spacing, as_masks, spacing_per_sample
from medseg.metrics.empty import EmptyPolicy, Rule, name_case
from medseg.metrics.skeleton import centreline_lengths, skeletonize_mask


def compute_centreline_gap(
    y_pred: torch.Tensor,
    y: torch.Tensor,
    *,
    centreline: torch.Tensor | None = None,
    tolerance: float = 0.0,
    normalize: bool = False,
    spacing: Spacing = None,
    include_background: bool = True,
    empty: EmptyPolicy | Mapping[str, Rule] | str | None = None,
) -> torch.Tensor:
    """Compute the length of the reference's centreline that is missed, for each sample and channel.

    Args:
        y_pred: one-hot prediction, shape (B, C, H, W) or (B, C, H, W, D), values 0 and 1.
        y: one-hot reference of the same shape.
        centreline: its centreline, of the same shape, where one is known; by default its skeleton.
        tolerance: distance in mm to the prediction up to which a voxel counts as found, at least 0.
        normalize: give the fraction of the whole length instead of mm.
        spacing: voxel size in mm: a number, one for each axis, or such a list for each sample; None is 1 mm.
        include_background: whether channel 0 counts; a single channel always does.
        empty: rules for empty masks; default nan where both are empty, the whole length where the prediction is
            ("worst"), and the length of the prediction's skeleton where the reference is ("worst"); as a fraction, 1.

    Returns:
        Lengths in mm or fractions in [0, 1], or nan, shape (B, C), float32.

    Raises:
        ValueError: shapes differ, values are not 0 and 1, the tolerance is negative, the spacing does not fit, or a
            given centreline is empty where `y` is not.

    Example:
        >>> line = torch.zeros(1, 1, 5, 11)
        >>> line[..., 2, :] = 1
        >>> broken = line.clone()
        >>> broken[..., 4:6] = 0
        >>> compute_centreline_gap(broken, line, spacing=0.5)
        tensor([[1.]])
        >>> compute_centreline_gap(broken, line, normalize=True)
        tensor([[0.2000]])
    """
    tolerance = _check_tolerance(tolerance)
    policy = EmptyPolicy.build(empty)
    preds, refs = (mask.cpu().numpy() for mask in as_masks(y_pred, y, include_background))
    lines = None if centreline is None else as_masks(centreline, y, include_background)[0].cpu().numpy()
    sizes = spacing_per_sample(spacing, len(refs), refs.ndim - 2)
    values = np.empty(refs.shape[:2], np.float32)
    for b, c in np.ndindex(*values.shape):
        case = name_case(int(preds[b, c].any()), int(refs[b, c].any()))
        line = None if lines is None else lines[b, c]
        missed, whole = _measure(case, preds[b, c], refs[b, c], line, sizes[b], tolerance)
        value = missed / whole if normalize and whole > 0 else missed
        values[b, c] = value if case == "present" else policy.value(case, best=0.0, worst=value)
    return torch.from_numpy(values).to(y_pred.device)


def _measure(
    case: str,
    pred: np.ndarray,
    ref: np.ndarray,
    line: np.ndarray | None,
    spacing: Sequence[float],
    tolerance: float,
) -> tuple[float, float]:
    """Missed and whole length in mm; a structure that is in one mask only is missed as a whole."""
    if case == "both_empty":
        return 0.0, 0.0
    if case == "hallucinated":
        line = skeletonize_mask(pred)
    elif line is None:
        line = skeletonize_mask(ref)
    elif not line.any():
        raise ValueError("centreline is empty where y is not; give its voxels, or leave it out to use the skeleton")
    voxels, lengths = centreline_lengths(line, spacing)
    if case != "present":
        return float(lengths.sum()), float(lengths.sum())
    found = pred
    if tolerance > 0:  # a distance that equals the tolerance must not fail by its rounding
        found = np.asarray(ndimage.distance_transform_edt(~pred, sampling=spacing)) <= tolerance * (1 + 1e-6)
    return float(lengths[~found[tuple(voxels.T)]].sum()), float(lengths.sum())


class CentrelineGapMetric(SegmentationMetric):
    """Missed length of the reference's centreline collected over batches.

    Args:
        tolerance: distance in mm to the prediction up to which a voxel counts as found, at least 0.
        normalize: give the fraction of the whole length instead of mm.
        include_background: whether channel 0 counts; a single channel always does.
        reduction: how `aggregate` averages, see `SegmentationMetric`.
        get_not_nans: whether `aggregate` also returns how many values counted.
        empty: rules for empty masks.
        spacing: voxel size in mm used when a call gives none; None is 1 mm.

    Example:
        >>> metric = CentrelineGapMetric(spacing=[0.5, 0.5])
        >>> _ = metric(torch.ones(1, 1, 4, 4), torch.ones(1, 1, 4, 4))
        >>> metric.aggregate()
        tensor([0.])
    """

    def __init__(
        self,
        tolerance: float = 0.0,
        *,
        normalize: bool = False,
        include_background: bool = True,
        reduction: str = "mean",
        get_not_nans: bool = False,
        empty: EmptyPolicy | Mapping[str, Rule] | str | None = None,
        spacing: float | Sequence[float] | None = None,
    ) -> None:
        super().__init__(include_background, reduction, get_not_nans=get_not_nans, empty=empty, spacing=spacing)
        self.tolerance = _check_tolerance(tolerance)
        self.normalize = normalize

    def compute(self, y_pred: torch.Tensor, y: torch.Tensor, spacing: Spacing) -> torch.Tensor:
        """Give the values of a batch, shape (B, C)."""
        return compute_centreline_gap(
            y_pred,
            y,
            tolerance=self.tolerance,
            normalize=self.normalize,
            spacing=spacing,
            include_background=self.include_background,
            empty=self.empty,
        )


def _check_tolerance(tolerance: float) -> float:
    if not 0 <= tolerance < float("inf"):
        raise ValueError(f"tolerance must be a finite number of mm, at least 0, got {tolerance}")
    return float(tolerance)
