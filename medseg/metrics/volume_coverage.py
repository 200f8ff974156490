"""Volume interval coverage: how many experts' volumes lie in the range that the samples predict.

    share of annotations m with  q_low <= volume(y_m) <= q_high

where q are quantiles of the samples' volumes that leave (1 - interval) / 2 on either side, interpolated linearly. An
honest interval of 0.9 covers about 0.9 of all experts over many cases; less says that samples agree too much, more that
they are too wide. A single case tells little.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from medseg.metrics._sets import (
    Empty,
    Measured,
    SampleSetMetric,
    as_annotations,
    as_samples,
    check_sets,
    holds_any,
    volumes,
    with_rules,
)
from medseg.metrics.empty import EmptyPolicy, Rule


def compute_volume_coverage(
    samples: torch.Tensor,
    annotations: torch.Tensor,
    *,
    interval: float = 0.9,
    annotation_mask: torch.Tensor | None = None,
    include_background: bool = True,
    empty: Empty = None,
) -> torch.Tensor:
    """Compute the share of annotations whose volume lies in the samples' interval, for each case and channel.

    Args:
        samples: one-hot predictions, (B, N, C, H, W) or (B, N, C, H, W, D), values 0 and 1.
        annotations: one-hot annotations, (B, M, C, spatial...).
        interval: share of the samples inside the interval, in (0, 1].
        annotation_mask: (B, M), true where an annotation exists; all by default.
        include_background: whether channel 0 counts; a single channel always does.
        empty: rules for a structure that no sample or no annotation holds; default nan where neither does, and the
            value itself otherwise.

    Returns:
        Values in [0, 1] or nan, shape (B, C), float32.

    Raises:
        ValueError: shapes or values do not fit, or `interval` is out of range.

    Example:
        >>> samples = torch.zeros(1, 3, 1, 4, 4)
        >>> samples[:, 0, ..., :1], samples[:, 1, ..., :2], samples[:, 2, ..., :3] = 1, 1, 1     # 4, 8 and 12 pixels
        >>> compute_volume_coverage(samples, torch.ones(1, 1, 1, 4, 4), interval=1.0)            # 16
        tensor([[0.]])
        >>> compute_volume_coverage(samples, samples, interval=1.0)
        tensor([[1.]])
    """
    return _measure(samples, annotations, annotation_mask, include_background, empty, interval)[0]


class VolumeCoverageMetric(SampleSetMetric):
    """Volume interval coverage collected over batches; see `compute_volume_coverage`.

    Args:
        interval: share of the samples inside the interval, in (0, 1].
        include_background: whether channel 0 counts; a single channel always does.
        reduction: how `aggregate` averages, see `SegmentationMetric`.
        get_not_nans: whether `aggregate` also returns how many values counted.
        empty: rules for structures that are absent.
        spacing: taken as by the other metrics and not used.

    Example:
        >>> metric = VolumeCoverageMetric(interval=0.8)
        >>> _ = metric(torch.ones(1, 3, 1, 4, 4), torch.ones(1, 2, 1, 4, 4))
        >>> metric.aggregate()
        tensor([1.])
    """

    def __init__(
        self,
        interval: float = 0.9,
        *,
        include_background: bool = True,
        reduction: str = "mean",
        get_not_nans: bool = False,
        empty: EmptyPolicy | Mapping[str, Rule] | str | None = None,
        spacing: float | Sequence[float] | None = None,
    ) -> None:
        super().__init__(include_background, reduction, get_not_nans=get_not_nans, empty=empty, spacing=spacing)
        self.interval = interval

    def measure(self, samples: torch.Tensor, annotations: torch.Tensor, mask: torch.Tensor | None) -> Measured:
        """Give the values of a batch and how empty each case is."""
        return _measure(samples, annotations, mask, self.include_background, self.empty, self.interval)


def _measure(
    samples: torch.Tensor,
    annotations: torch.Tensor,
    given: torch.Tensor | None,
    include_background: bool,
    empty: Empty,
    interval: float,
) -> Measured:
    if not 0 < interval <= 1:
        raise ValueError(f"interval must be in (0, 1], got {interval}")
    mask = check_sets(samples, annotations, given)
    s, y = as_samples(samples, include_background), as_annotations(annotations, mask, include_background)
    sizes, tail = volumes(s), (1 - interval) / 2
    low, high = (torch.quantile(sizes, q, dim=2, keepdim=True) for q in (tail, 1 - tail))
    inside = (volumes(y) >= low) & (volumes(y) <= high) & mask[:, None]
    values = inside.sum(2).double() / mask.sum(1, keepdim=True)
    return with_rules(values, holds_any(s), holds_any(y), empty, best=1.0)
