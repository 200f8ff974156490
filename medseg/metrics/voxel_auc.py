"""Area under the ROC curve of voxels: how often a voxel inside a structure scores above one outside it.

    AUC = (pairs with s+ > s-, and half of those with s+ = s-) / (all pairs of a voxel inside and one outside)

Exact, from ranks, in O(n log n). It needs no threshold and judges the order of scores alone, so that logits and
probabilities give the same wherever their type tells them apart. Background is easy and plenty: the AUC of a small
structure in a large image is close to 1 for any usable model; compare it on the same images only, and crop them where
the difference matters.

Source: Hanley, McNeil, "The Meaning and Use of the Area under a Receiver Operating Characteristic (ROC) Curve"
(Radiology, 1982).

Differs from MONAI's `compute_roc_auc`, which takes (cases, classes), in that it does so for every case and channel of
an image, and gives nan where a case lacks a structure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from medseg.metrics._cumulative import SegmentationMetric
from medseg.metrics._inputs import Spacing, as_bool, fill_empty, spacing_per_sample
from medseg.metrics.empty import CASES, EmptyPolicy, Rule


def compute_voxel_auc(
    y_pred: torch.Tensor,
    y: torch.Tensor,
    *,
    include_background: bool = True,
    empty: EmptyPolicy | Mapping[str, Rule] | str | None = None,
) -> torch.Tensor:
    """Compute the area under the ROC curve of voxels for each sample and channel.

    Args:
        y_pred: scores, logits or probabilities, (B, C, H, W) or (B, C, H, W, D), any type; infinities are scores.
        y: one-hot reference of the same shape, values 0 and 1.
        include_background: whether channel 0 counts; a single channel always does.
        empty: its rule `both` says what a structure counts that the reference lacks or that fills it, default nan;
            without a threshold nothing can be missed or hallucinated.

    Returns:
        Values in [0, 1] or nan, shape (B, C), float32.

    Raises:
        ValueError: shapes differ, the reference is not of 0 and 1, or a score is NaN.

    Example:
        >>> scores, y = torch.tensor([[[[0.9, 0.4], [0.4, 0.1]]]]), torch.tensor([[[[1, 1], [0, 0]]]])
        >>> compute_voxel_auc(scores, y)                                # three of four pairs, and one tie
        tensor([[0.8750]])
    """
    return _measure(y_pred, y, include_background, empty)[0]


class VoxelAUCMetric(SegmentationMetric):
    """Area under the ROC curve of voxels collected over batches; see `compute_voxel_auc`.

    Called with scores, not masks. Arguments are those of the base class: `include_background`, `reduction`,
    `get_not_nans`, `empty` of which the rule `both` counts; `spacing` is taken and not used. `empty_counts` counts
    structures that the reference lacks or that fill it under `both_empty`.

    Example:
        >>> metric = VoxelAUCMetric()
        >>> _ = metric(torch.linspace(0, 1, 16).view(1, 1, 4, 4), (torch.arange(16) > 9).view(1, 1, 4, 4))
        >>> metric.aggregate()
        tensor([1.])
    """

    def compute(self, y_pred: torch.Tensor, y: torch.Tensor, spacing: Spacing) -> torch.Tensor:
        """Give the values of a batch, shape (B, C)."""
        return self._compute_tensor(y_pred, y, spacing=spacing)[0]

    def _compute_tensor(self, y_pred: torch.Tensor, y: torch.Tensor | None = None, **kwargs: Any) -> list[torch.Tensor]:
        if y is None:
            raise ValueError("y, the reference, is missing; call the metric with y_pred and y")
        measured = _measure(y_pred, y, self.include_background, self.empty)
        spacing_per_sample(kwargs.get("spacing"), y.shape[0], y.ndim - 2)  # a wrong one is an error everywhere
        return list(measured)


def _measure(
    y_pred: torch.Tensor,
    y: torch.Tensor,
    include_background: bool,
    empty: EmptyPolicy | Mapping[str, Rule] | str | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Values and kinds of every case, (B, C)."""
    scores, inside = _check(y_pred, y, include_background)
    counts = inside.sum(2)
    undefined = (counts == 0) | (counts == inside.shape[2])
    codes = torch.where(undefined, CASES.index("both_empty"), CASES.index("present")).float()
    values = torch.zeros(counts.shape, device=scores.device)
    for b, c in (~undefined).nonzero().tolist():
        values[b, c] = _auc(scores[b, c][inside[b, c]], scores[b, c][~inside[b, c]])
    return fill_empty(values, codes, EmptyPolicy.build(empty), best=1.0, worst=0.0), codes


def _check(y_pred: torch.Tensor, y: torch.Tensor, include_background: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores and booleans, (B, C, voxels)."""
    for name, value in (("y_pred", y_pred), ("y", y)):
        if not isinstance(value, torch.Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
    if y_pred.ndim not in (4, 5) or y_pred.shape != y.shape:
        raise ValueError(
            f"y_pred and y must have the same shape, (B, C, H, W) or (B, C, H, W, D), got {tuple(y_pred.shape)} and "
            f"{tuple(y.shape)}; give scores of every channel and a one-hot reference"
        )
    first = 0 if include_background or y.shape[1] == 1 else 1
    scores = y_pred.detach().as_subclass(torch.Tensor)[:, first:].flatten(2)
    if scores.isnan().any():
        raise ValueError("y_pred holds NaN, which has no rank; find out where the network made it")
    return scores, as_bool(y[:, first:], "y").flatten(2).to(scores.device)


def _auc(positive: torch.Tensor, negative: torch.Tensor) -> float:
    """AUC from the ranks of positive scores among sorted negative ones."""
    positive, negative = positive.double(), negative.double().sort().values
    below = torch.searchsorted(negative, positive).sum()
    not_above = torch.searchsorted(negative, positive, right=True).sum()
    return (int(below) + int(not_above)) / (2 * len(positive) * len(negative))
