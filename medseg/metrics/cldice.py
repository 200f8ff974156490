"""Centreline Dice (clDice): how much of each mask's skeleton lies inside the other mask.

    precision = |S_P and R| / |S_P|,    sensitivity = |S_R and P| / |S_R|
    clDice = 2 precision * sensitivity / (precision + sensitivity),    0 where both are 0

with the skeletons S_P and S_R of prediction P and reference R. A thin vessel weighs as much as a wide one of the same
length, and a little more or less width costs nothing.

Differs from the published code: a component that scikit-image's thinning loses altogether keeps a line, see
`skeleton.py`, and empty masks follow a policy.

Source: Shit et al., "clDice - A Novel Topology-Preserving Loss Function for Tubular Structure Segmentation" (CVPR
2021).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from medseg.metrics._cumulative import SegmentationMetric
from medseg.metrics._inputs import Spacing, as_masks, case_codes, fill_empty, spacing_per_sample
from medseg.metrics.empty import EmptyPolicy, Rule
from medseg.metrics.skeleton import skeletonize_mask


def compute_cldice(
    y_pred: torch.Tensor,
    y: torch.Tensor,
    *,
    include_background: bool = True,
    empty: EmptyPolicy | Mapping[str, Rule] | str | None = None,
) -> torch.Tensor:
    """Compute the centreline Dice for each sample and channel.

    Args:
        y_pred: one-hot prediction, shape (B, C, H, W) or (B, C, H, W, D), values 0 and 1.
        y: one-hot reference of the same shape.
        include_background: whether channel 0 counts; a single channel always does.
        empty: rules for empty masks; default nan where both are empty and 0 where one is.

    Returns:
        Values in [0, 1] or nan, shape (B, C), float32.

    Raises:
        ValueError: shapes differ or values are not 0 and 1.

    Example:
        >>> line, part = torch.zeros(2, 1, 1, 5, 10)
        >>> line[..., 2, :], part[..., 2, :5] = 1, 1
        >>> compute_cldice(part, line)
        tensor([[0.6667]])
    """
    pred, ref = as_masks(y_pred, y, include_background)
    codes = case_codes(pred, ref)
    preds, refs = pred.cpu().numpy(), ref.cpu().numpy()
    values = np.zeros(codes.shape, np.float32)
    for b, c in np.argwhere(codes.cpu().numpy() == 0):
        values[b, c] = _cldice(preds[b, c], refs[b, c])
    found = torch.from_numpy(values).to(codes.device)
    return fill_empty(found, codes, EmptyPolicy.build(empty), best=1.0, worst=0.0)


def _cldice(pred: np.ndarray, ref: np.ndarray) -> float:
    """ClDice of two masks that are both not empty."""
    precision = ref[skeletonize_mask(pred)].mean()
    sensitivity = pred[skeletonize_mask(ref)].mean()
    total = precision + sensitivity
    return float(2 * precision * sensitivity / total) if total > 0 else 0.0


class ClDiceMetric(SegmentationMetric):
    """Centreline Dice collected over batches.

    Arguments are those of the base class: `include_background`, `reduction`, `get_not_nans`, `empty`; `spacing` is
    taken and not used. See `compute_cldice`.

    Example:
        >>> metric = ClDiceMetric(empty={"both": "best"})
        >>> _ = metric(torch.ones(1, 1, 4, 4), torch.ones(1, 1, 4, 4))
        >>> metric.aggregate()
        tensor([1.])
    """

    def compute(self, y_pred: torch.Tensor, y: torch.Tensor, spacing: Spacing) -> torch.Tensor:
        """Give the values of a batch, shape (B, C)."""
        spacing_per_sample(spacing, y.shape[0], y.ndim - 2)  # not needed here, but a wrong one is an error everywhere
        return compute_cldice(y_pred, y, include_background=self.include_background, empty=self.empty)
