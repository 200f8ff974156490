"""Generalised energy distance: how far the distribution of predictions is from that of the experts.

    GED = 2 E d(S, Y) - E d(S, S') - E d(Y, Y'),       d = 1 - intersection over union

with expectations over all pairs, those of an element with itself included. 0 where both sets are equally distributed, 2
where they share nothing and are each of one mind; it grows where the samples miss the experts, and where they agree
more among themselves than the experts do.

Source: Kohl et al., "A Probabilistic U-Net for Segmentation of Ambiguous Images" (2018); Székely, Rizzo, "Energy
statistics" (2013). Differs from the published code in that the IoU of two empty masks is 1, where that gives NaN.
"""

from __future__ import annotations

import torch

from medseg.metrics._sets import (
    Empty,
    Measured,
    SampleSetMetric,
    as_annotations,
    as_samples,
    check_sets,
    holds_any,
    pair_iou,
    with_rules,
)


def compute_generalized_energy_distance(
    samples: torch.Tensor,
    annotations: torch.Tensor,
    *,
    annotation_mask: torch.Tensor | None = None,
    include_background: bool = True,
    empty: Empty = None,
) -> torch.Tensor:
    """Compute the generalised energy distance of two sets of masks for each case and channel.

    Args:
        samples: one-hot predictions, (B, N, C, H, W) or (B, N, C, H, W, D), values 0 and 1.
        annotations: one-hot annotations, (B, M, C, spatial...).
        annotation_mask: (B, M), true where an annotation exists; all by default.
        include_background: whether channel 0 counts; a single channel always does.
        empty: rules for a structure that no sample or no annotation holds; default nan where neither does, and the
            value itself otherwise.

    Returns:
        Values in [0, 2] or nan, shape (B, C), float32.

    Raises:
        ValueError: shapes do not fit or values are not 0 and 1.

    Example:
        >>> left, right = torch.zeros(2, 4, 4), torch.zeros(2, 4, 4)
        >>> left[0, :, :2], left[1, :, 2:] = 1, 1                    # two experts, two opinions
        >>> one_sided = left[:1]
        >>> compute_generalized_energy_distance(left[None, :, None], left[None, :, None])
        tensor([[0.]])
        >>> compute_generalized_energy_distance(one_sided[None, :, None], left[None, :, None])   # 2 / 2 - 0 - 1 / 2
        tensor([[0.5000]])
    """
    return _measure(samples, annotations, annotation_mask, include_background, empty)[0]


class GeneralizedEnergyDistanceMetric(SampleSetMetric):
    """Generalised energy distance collected over batches; see `compute_generalized_energy_distance`.

    Arguments are those of the base class: `include_background`, `reduction`, `get_not_nans`, `empty`; `spacing` is
    taken and not used.

    Example:
        >>> metric = GeneralizedEnergyDistanceMetric()
        >>> _ = metric(torch.ones(1, 3, 1, 4, 4), torch.ones(1, 2, 1, 4, 4))
        >>> metric.aggregate()
        tensor([0.])
    """

    def measure(self, samples: torch.Tensor, annotations: torch.Tensor, mask: torch.Tensor | None) -> Measured:
        """Give the values of a batch and how empty each case is."""
        return _measure(samples, annotations, mask, self.include_background, self.empty)


def _measure(
    samples: torch.Tensor,
    annotations: torch.Tensor,
    annotation_mask: torch.Tensor | None,
    include_background: bool,
    empty: Empty,
) -> Measured:
    mask = check_sets(samples, annotations, annotation_mask)
    s, y = as_samples(samples, include_background), as_annotations(annotations, mask, include_background)
    b = mask.double() / mask.sum(1, keepdim=True)
    a = torch.full(s.shape[:2], 1 / s.shape[1], dtype=torch.float64, device=s.device)
    between, within, among = _mean(s, y, a, b), _mean(s, s, a, a), _mean(y, y, b, b)
    return with_rules(2 * between - within - among, holds_any(s), holds_any(y), empty, best=0.0)


def _mean(one: torch.Tensor, two: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Weighted mean of 1 - IoU over all pairs, (B, C)."""
    return torch.einsum("bcij,bi,bj->bc", 1 - pair_iou(one, two), a, b)
