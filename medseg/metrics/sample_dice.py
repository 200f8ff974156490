"""Dice between several predictions and several experts: the best sample, the best matching, and the experts themselves.

    best       mean over annotations of the largest Dice that any sample reaches with it
    matched    mean Dice of the best one-to-one matching of annotations with samples (Hungarian method)
    raters     mean Dice of two different annotations: what one expert reaches measured by another

The first asks whether every opinion can be drawn at all; the second also wants it as often as experts hold it, once
each. The third needs no prediction: it is the ceiling that a single prediction can be expected to reach.

Sources: Kohl et al., "A Probabilistic U-Net for Segmentation of Ambiguous Images" (2018); Wu et al., "Diversified and
Personalized Multi-rater Medical Image Segmentation" (2024), for the matching.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from medseg.metrics._sets import (
    Empty,
    Measured,
    SampleSetMetric,
    as_annotations,
    as_samples,
    check_sets,
    holds_any,
    pair_dice,
    with_rules,
)


def compute_best_sample_dice(
    samples: torch.Tensor,
    annotations: torch.Tensor,
    *,
    annotation_mask: torch.Tensor | None = None,
    include_background: bool = True,
    empty: Empty = None,
) -> torch.Tensor:
    """Compute the Dice of the best of N samples, averaged over annotations, for each case and channel.

    It grows with N, so compare only equal N.

    Args:
        samples: one-hot predictions, (B, N, C, H, W) or (B, N, C, H, W, D), values 0 and 1.
        annotations: one-hot annotations, (B, M, C, spatial...).
        annotation_mask: (B, M), true where an annotation exists; all by default.
        include_background: whether channel 0 counts; a single channel always does.
        empty: rules for a structure that no sample or no annotation holds; default nan where neither does.

    Returns:
        Values in [0, 1] or nan, shape (B, C), float32.

    Raises:
        ValueError: shapes do not fit or values are not 0 and 1.

    Example:
        >>> annotations = torch.zeros(1, 2, 1, 4, 4)
        >>> annotations[:, 0, ..., :2], annotations[:, 1, ..., 2:] = 1, 1
        >>> compute_best_sample_dice(annotations[:, :1], annotations)
        tensor([[0.5000]])
    """
    return _best(samples, annotations, annotation_mask, include_background, empty)[0]


def compute_matched_dice(
    samples: torch.Tensor,
    annotations: torch.Tensor,
    *,
    annotation_mask: torch.Tensor | None = None,
    include_background: bool = True,
    empty: Empty = None,
) -> torch.Tensor:
    """Compute the mean Dice of annotations with samples matched one to one, for each case and channel.

    Args:
        samples: one-hot predictions, (B, N, C, H, W) or (B, N, C, H, W, D), at least as many as annotations.
        annotations: one-hot annotations, (B, M, C, spatial...).
        annotation_mask: (B, M), true where an annotation exists; all by default.
        include_background: whether channel 0 counts; a single channel always does.
        empty: rules for a structure that no sample or no annotation holds; default nan where neither does.

    Returns:
        Values in [0, 1] or nan, shape (B, C), float32.

    Raises:
        ValueError: shapes do not fit, values are not 0 and 1, or there are fewer samples than annotations.

    Example:
        >>> annotations = torch.zeros(1, 2, 1, 4, 4)
        >>> annotations[:, 0, ..., :2], annotations[:, 1, ..., 2:] = 1, 1
        >>> compute_matched_dice(annotations.flip(1), annotations)
        tensor([[1.]])
    """
    return _matched(samples, annotations, annotation_mask, include_background, empty)[0]


def compute_inter_rater_dice(
    annotations: torch.Tensor,
    *,
    annotation_mask: torch.Tensor | None = None,
    include_background: bool = True,
    empty: Empty = None,
) -> torch.Tensor:
    """Compute the mean Dice of all pairs of different annotations, for each case and channel.

    Args:
        annotations: one-hot annotations, (B, M, C, H, W) or (B, M, C, H, W, D), values 0 and 1.
        annotation_mask: (B, M), true where an annotation exists; all by default.
        include_background: whether channel 0 counts; a single channel always does.
        empty: rule `both` for a structure that no annotation holds; default nan.

    Returns:
        Values in [0, 1], shape (B, C), float32; nan where fewer than two annotations exist.

    Raises:
        ValueError: shapes do not fit or values are not 0 and 1.

    Example:
        >>> annotations = torch.zeros(1, 2, 1, 4, 4)
        >>> annotations[..., :2], annotations[:, 0, ..., 2] = 1, 1
        >>> compute_inter_rater_dice(annotations)
        tensor([[0.8000]])
    """
    mask = check_sets(annotations, annotations, annotation_mask)
    y = as_annotations(annotations, mask, include_background)
    pairs = (mask[:, :, None] & mask[:, None]).double().triu(1)
    values = torch.einsum("bcij,bij->bc", pair_dice(y, y), pairs) / pairs.sum((1, 2))[:, None]
    held = holds_any(y)
    return with_rules(values, held, held, empty, best=1.0)[0]


class BestSampleDiceMetric(SampleSetMetric):
    """Dice of the best of N samples collected over batches; see `compute_best_sample_dice`.

    Arguments are those of the base class; `spacing` is taken and not used.

    Example:
        >>> metric = BestSampleDiceMetric()
        >>> _ = metric(torch.ones(1, 3, 1, 4, 4), torch.ones(1, 2, 1, 4, 4))
        >>> metric.aggregate()
        tensor([1.])
    """

    def measure(self, samples: torch.Tensor, annotations: torch.Tensor, mask: torch.Tensor | None) -> Measured:
        """Give the values of a batch and how empty each case is."""
        return _best(samples, annotations, mask, self.include_background, self.empty)


class MatchedDiceMetric(SampleSetMetric):
    """Dice of annotations and samples matched one to one, collected over batches; see `compute_matched_dice`.

    Arguments are those of the base class; `spacing` is taken and not used.

    Example:
        >>> metric = MatchedDiceMetric()
        >>> _ = metric(torch.ones(1, 3, 1, 4, 4), torch.ones(1, 2, 1, 4, 4))
        >>> metric.aggregate()
        tensor([1.])
    """

    def measure(self, samples: torch.Tensor, annotations: torch.Tensor, mask: torch.Tensor | None) -> Measured:
        """Give the values of a batch and how empty each case is."""
        return _matched(samples, annotations, mask, self.include_background, self.empty)


def _best(
    samples: torch.Tensor, annotations: torch.Tensor, given: torch.Tensor | None, include_background: bool, empty: Empty
) -> Measured:
    mask = check_sets(samples, annotations, given)
    s, y = as_samples(samples, include_background), as_annotations(annotations, mask, include_background)
    weights = mask.double() / mask.sum(1, keepdim=True)
    values = torch.einsum("bcm,bm->bc", pair_dice(s, y).amax(2), weights)
    return with_rules(values, holds_any(s), holds_any(y), empty, best=1.0)


def _matched(
    samples: torch.Tensor, annotations: torch.Tensor, given: torch.Tensor | None, include_background: bool, empty: Empty
) -> Measured:
    mask = check_sets(samples, annotations, given)
    most = int(mask.sum(1).max())
    if samples.shape[1] < most:
        raise ValueError(
            f"samples must be at least as many as annotations to be matched one to one, got {samples.shape[1]} for "
            f"{most}; draw more, or use compute_best_sample_dice"
        )
    s, y = as_samples(samples, include_background), as_annotations(annotations, mask, include_background)
    dice, exists = pair_dice(s, y).cpu().numpy(), mask.cpu().numpy()
    values = np.empty(dice.shape[:2])
    for b, c in np.ndindex(*values.shape):
        pairs = dice[b, c][:, exists[b]]
        values[b, c] = pairs[linear_sum_assignment(pairs, maximize=True)].mean()
    return with_rules(torch.from_numpy(values).to(y.device), holds_any(s), holds_any(y), empty, best=1.0)
