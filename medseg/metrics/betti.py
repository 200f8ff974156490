"""Betti number error and Betti matching error: how many components, loops and cavities are wrong.

Both are counts, 0 where the topology is right. The Betti number error compares how many features there are; two errors
of opposite sign cancel, and where features lie plays no role. The Betti matching error counts the features of both
masks that have no partner in the other one, where partners must overlap in space. Foreground is face-connected (4 or 6
neighbours), background fully connected (8 or 26). Measure whole images; patches cut features.

The formulas and sources stand in `betti_counts.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from medseg.metrics._cumulative import SegmentationMetric
from medseg.metrics._inputs import Spacing, as_masks, case_codes, spacing_per_sample
from medseg.metrics.betti_counts import betti_number_differences, count_features, count_unmatched
from medseg.metrics.empty import CASES, EmptyPolicy, Rule


def compute_betti_matching_error(
    y_pred: torch.Tensor,
    y: torch.Tensor,
    *,
    dims: Sequence[int] | None = None,
    boundary: str = "none",
    image_bars: str = "all",
    include_essential: bool = True,
    normalize: bool = False,
    per_dim: bool = False,
    include_background: bool = True,
    empty: EmptyPolicy | Mapping[str, Rule] | str | None = None,
) -> torch.Tensor:
    """Count the topological features without a partner for each sample and channel.

    Args:
        y_pred: one-hot prediction, shape (B, C, H, W) or (B, C, D, H, W), values 0 and 1.
        y: one-hot reference of the same shape.
        dims: dimensions that count: 0 components, 1 loops or tunnels, 2 cavities; all by default.
        boundary: "none", or a frame one voxel wide of "background" or "foreground" around both masks.
        image_bars: "all" as the published code, or "positive", which depends less on the order of equal voxels.
        include_essential: whether an empty mask lacks one component against one that is not empty.
        normalize: divide by the number of features of the reference, at most 1.
        per_dim: give each dimension, then their sum, in a last axis.
        include_background: whether channel 0 counts; a single channel always does.
        empty: rules for empty masks; default nan where both are empty and the count itself where one is ("worst").

    Returns:
        Counts or nan, shape (B, C), or (B, C, len(dims) + 1) with `per_dim`; float32.

    Raises:
        ValueError: shapes differ, values are not 0 and 1, or an option is unknown.

    Example:
        >>> ring = torch.ones(1, 1, 5, 5)
        >>> ring[..., 2, 2] = 0
        >>> compute_betti_matching_error(torch.ones(1, 1, 5, 5), ring, per_dim=True)
        tensor([[[0., 1., 1.]]])
    """
    pred, ref = as_masks(y_pred, y, include_background)
    preds, refs = _flat(pred), _flat(ref)
    options = {"boundary": boundary, "image_bars": image_bars, "include_essential": include_essential}
    counts = _with_total(count_unmatched(preds, refs, dims=dims, **options))
    if normalize:
        features = count_features(refs)
        known = features.sum(axis=1) if dims is None else features[:, sorted(set(dims))].sum(axis=1)
        counts = np.minimum(1.0, counts / np.maximum(known, 1)[:, None])
    return _finish(counts, pred, ref, EmptyPolicy.build(empty), per_dim)


def compute_betti_number_error(
    y_pred: torch.Tensor,
    y: torch.Tensor,
    *,
    dims: Sequence[int] | None = None,
    per_dim: bool = False,
    include_background: bool = True,
    empty: EmptyPolicy | Mapping[str, Rule] | str | None = None,
) -> torch.Tensor:
    """Compare the numbers of components, loops and cavities for each sample and channel.

    Args:
        y_pred: one-hot prediction, shape (B, C, H, W) or (B, C, D, H, W), values 0 and 1.
        y: one-hot reference of the same shape.
        dims: dimensions that count: 0 components, 1 loops or tunnels, 2 cavities; all by default.
        per_dim: give each dimension, then their sum, in a last axis.
        include_background: whether channel 0 counts; a single channel always does.
        empty: rules for empty masks; default nan where both are empty and the error itself where one is ("worst").

    Returns:
        Sums over dimensions of |b_d(pred) - b_d(ref)| or nan, shape (B, C), or (B, C, len(dims) + 1) with `per_dim`;
        float32. The Betti numbers of an empty mask are 0.

    Raises:
        ValueError: shapes differ, values are not 0 and 1, or `dims` does not fit.

    Example:
        >>> two = torch.zeros(1, 1, 5, 5)
        >>> two[..., 1, 1] = two[..., 3, 3] = 1
        >>> compute_betti_number_error(torch.ones(1, 1, 5, 5), two)
        tensor([[1.]])
    """
    pred, ref = as_masks(y_pred, y, include_background)
    differences = betti_number_differences(_flat(pred), _flat(ref), dims=dims)
    return _finish(_with_total(differences), pred, ref, EmptyPolicy.build(empty), per_dim)


class BettiMatchingMetric(SegmentationMetric):
    """Betti matching error collected over batches: features of either mask without a partner in the other.

    Args:
        dims: dimensions that count; all by default.
        boundary: "none", or a frame of "background" or "foreground" around both masks.
        image_bars: "all" or "positive", see `compute_betti_matching_error`.
        include_essential: whether an empty mask lacks one component against one that is not empty.
        normalize: divide by the number of features of the reference, at most 1.
        include_background: whether channel 0 counts; a single channel always does.
        reduction: how `aggregate` averages, see `SegmentationMetric`.
        get_not_nans: whether `aggregate` also returns how many values counted.
        empty: rules for empty masks.
        spacing: taken as by the other metrics and not used.

    Example:
        >>> metric = BettiMatchingMetric(dims=[0])
        >>> _ = metric(torch.ones(1, 1, 4, 4), torch.ones(1, 1, 4, 4))
        >>> metric.aggregate()
        tensor([0.])
    """

    def __init__(
        self,
        dims: Sequence[int] | None = None,
        *,
        boundary: str = "none",
        image_bars: str = "all",
        include_essential: bool = True,
        normalize: bool = False,
        include_background: bool = True,
        reduction: str = "mean",
        get_not_nans: bool = False,
        empty: EmptyPolicy | Mapping[str, Rule] | str | None = None,
        spacing: float | Sequence[float] | None = None,
    ) -> None:
        super().__init__(include_background, reduction, get_not_nans=get_not_nans, empty=empty, spacing=spacing)
        self.options = {
            "dims": dims,
            "boundary": boundary,
            "image_bars": image_bars,
            "include_essential": include_essential,
            "normalize": normalize,
        }

    def compute(self, y_pred: torch.Tensor, y: torch.Tensor, spacing: Spacing) -> torch.Tensor:
        """Give the values of a batch, shape (B, C)."""
        spacing_per_sample(spacing, y.shape[0], y.ndim - 2)  # not needed here, but a wrong one is an error everywhere
        return compute_betti_matching_error(
            y_pred, y, include_background=self.include_background, empty=self.empty, **self.options
        )


class BettiNumberMetric(SegmentationMetric):
    """Betti number error collected over batches: the sum over dimensions of |b_d(prediction) - b_d(reference)|.

    Args:
        dims: dimensions that count; all by default.
        include_background: whether channel 0 counts; a single channel always does.
        reduction: how `aggregate` averages, see `SegmentationMetric`.
        get_not_nans: whether `aggregate` also returns how many values counted.
        empty: rules for empty masks.
        spacing: taken as by the other metrics and not used.

    Example:
        >>> metric = BettiNumberMetric()
        >>> _ = metric(torch.zeros(1, 1, 4, 4), torch.ones(1, 1, 4, 4))
        >>> metric.aggregate()
        tensor([1.])
    """

    def __init__(
        self,
        dims: Sequence[int] | None = None,
        *,
        include_background: bool = True,
        reduction: str = "mean",
        get_not_nans: bool = False,
        empty: EmptyPolicy | Mapping[str, Rule] | str | None = None,
        spacing: float | Sequence[float] | None = None,
    ) -> None:
        super().__init__(include_background, reduction, get_not_nans=get_not_nans, empty=empty, spacing=spacing)
        self.dims = dims

    def compute(self, y_pred: torch.Tensor, y: torch.Tensor, spacing: Spacing) -> torch.Tensor:
        """Give the values of a batch, shape (B, C)."""
        spacing_per_sample(spacing, y.shape[0], y.ndim - 2)  # not needed here, but a wrong one is an error everywhere
        return compute_betti_number_error(
            y_pred, y, dims=self.dims, include_background=self.include_background, empty=self.empty
        )


def _flat(masks: torch.Tensor) -> np.ndarray:
    """Samples and channels in one axis, as an array."""
    return masks.flatten(0, 1).cpu().numpy()


def _with_total(counts: np.ndarray) -> np.ndarray:
    return np.concatenate([counts, counts.sum(axis=1, keepdims=True)], axis=1)


def _finish(
    counts: np.ndarray, pred: torch.Tensor, ref: torch.Tensor, empty: EmptyPolicy, per_dim: bool
) -> torch.Tensor:
    """Counts (B C, dims and total) as a tensor, with the policy's values where a mask is empty."""
    values = torch.from_numpy(counts).to(device=ref.device, dtype=torch.float32).view(*ref.shape[:2], -1)
    codes = case_codes(pred, ref)[..., None]
    for index, case in enumerate(CASES[1:], start=1):
        # A count has no bound that could be the worst value: the worst is what was counted.
        rule = empty.value(case, best=0.0, worst=float("inf"))
        values = torch.where((codes == index) & (rule != float("inf")), rule, values)
    return values if per_dim else values[..., -1]
