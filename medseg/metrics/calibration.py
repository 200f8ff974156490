"""Whether a probability means what it says: calibration error and Brier score of voxels against all experts.

With p the predicted probability of a voxel (the mean over samples), y_1..y_M the experts' masks and f their mean,

    ECE    = sum over bins of (share of voxels in the bin) |mean p - mean f|,    bins of equal width over p
    Brier  = mean over voxels and experts of (p - y_m)^2

0 is best in both; the Brier score of the best possible p, which is f, is the disagreement of the experts, f (1 - f).

Sources: Naeini, Cooper, Hauskrecht, "Obtaining Well Calibrated Probabilities Using Bayesian Binning" (2015); Brier,
"Verification of Forecasts Expressed in Terms of Probability" (1950). All voxels count, so that both fall with the share
of easy background; compare them on the same images only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from medseg.metrics._sets import (
    Empty,
    Measured,
    SampleSetMetric,
    as_annotations,
    as_probability,
    check_sets,
    holds_any,
    with_rules,
)
from medseg.metrics.empty import EmptyPolicy, Rule


def compute_calibration_error(
    samples: torch.Tensor,
    annotations: torch.Tensor,
    *,
    bins: int = 15,
    annotation_mask: torch.Tensor | None = None,
    include_background: bool = True,
    empty: Empty = None,
) -> torch.Tensor:
    """Compute the expected calibration error of voxels for each case and channel.

    Args:
        samples: masks or probabilities, (B, N, C, H, W) or (B, N, C, H, W, D), in [0, 1]; their mean over N counts.
        annotations: one-hot annotations, (B, M, C, spatial...).
        bins: bins of equal width.
        annotation_mask: (B, M), true where an annotation exists; all by default.
        include_background: whether channel 0 counts; a single channel always does.
        empty: rules for a structure that no annotation holds or whose probability is below one half everywhere;
            default nan where both are so, and the value itself otherwise.

    Returns:
        Values in [0, 1] or nan, shape (B, C), float32.

    Raises:
        ValueError: shapes or values do not fit, or `bins` is below 1.

    Example:
        >>> annotations = torch.zeros(1, 4, 1, 2, 2)
        >>> annotations[:, 0] = 1                                   # one of four experts
        >>> compute_calibration_error(torch.full((1, 1, 1, 2, 2), 0.75), annotations)
        tensor([[0.5000]])
    """
    return _calibration(samples, annotations, annotation_mask, include_background, empty, bins)[0]


def compute_brier_score(
    samples: torch.Tensor,
    annotations: torch.Tensor,
    *,
    annotation_mask: torch.Tensor | None = None,
    include_background: bool = True,
    empty: Empty = None,
) -> torch.Tensor:
    """Compute the Brier score of voxels for each case and channel.

    Args:
        samples: masks or probabilities, (B, N, C, H, W) or (B, N, C, H, W, D), in [0, 1]; their mean over N counts.
        annotations: one-hot annotations, (B, M, C, spatial...).
        annotation_mask: (B, M), true where an annotation exists; all by default.
        include_background: whether channel 0 counts; a single channel always does.
        empty: see `compute_calibration_error`.

    Returns:
        Values in [0, 1] or nan, shape (B, C), float32.

    Raises:
        ValueError: shapes or values do not fit.

    Example:
        >>> annotations = torch.zeros(1, 4, 1, 2, 2)
        >>> annotations[:, 0] = 1
        >>> compute_brier_score(torch.full((1, 1, 1, 2, 2), 0.75), annotations)    # (0.25^2 + 3 * 0.75^2) / 4
        tensor([[0.4375]])
    """
    return _brier(samples, annotations, annotation_mask, include_background, empty)[0]


class CalibrationErrorMetric(SampleSetMetric):
    """Expected calibration error of voxels collected over batches; see `compute_calibration_error`.

    Args:
        bins: bins of equal width.
        include_background: whether channel 0 counts; a single channel always does.
        reduction: how `aggregate` averages, see `SegmentationMetric`.
        get_not_nans: whether `aggregate` also returns how many values counted.
        empty: rules for structures that are absent.
        spacing: taken as by the other metrics and not used.

    Example:
        >>> metric = CalibrationErrorMetric(bins=10)
        >>> _ = metric(torch.ones(1, 3, 1, 4, 4), torch.ones(1, 2, 1, 4, 4))
        >>> metric.aggregate()
        tensor([0.])
    """

    def __init__(
        self,
        bins: int = 15,
        *,
        include_background: bool = True,
        reduction: str = "mean",
        get_not_nans: bool = False,
        empty: EmptyPolicy | Mapping[str, Rule] | str | None = None,
        spacing: float | Sequence[float] | None = None,
    ) -> None:
        super().__init__(include_background, reduction, get_not_nans=get_not_nans, empty=empty, spacing=spacing)
        self.bins = bins

    def measure(self, samples: torch.Tensor, annotations: torch.Tensor, mask: torch.Tensor | None) -> Measured:
        """Give the values of a batch and how empty each case is."""
        return _calibration(samples, annotations, mask, self.include_background, self.empty, self.bins)


class BrierScoreMetric(SampleSetMetric):
    """Brier score of voxels collected over batches; see `compute_brier_score`.

    Arguments are those of the base class; `spacing` is taken and not used.

    Example:
        >>> metric = BrierScoreMetric()
        >>> _ = metric(torch.ones(1, 3, 1, 4, 4), torch.ones(1, 2, 1, 4, 4))
        >>> metric.aggregate()
        tensor([0.])
    """

    def measure(self, samples: torch.Tensor, annotations: torch.Tensor, mask: torch.Tensor | None) -> Measured:
        """Give the values of a batch and how empty each case is."""
        return _brier(samples, annotations, mask, self.include_background, self.empty)


def _read(
    samples: torch.Tensor, annotations: torch.Tensor, given: torch.Tensor | None, include_background: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Probability and share of experts, (B, C, voxels); whether the structure is predicted and annotated, (B, C)."""
    mask = check_sets(samples, annotations, given)
    p, y = as_probability(samples, include_background).flatten(2), as_annotations(annotations, mask, include_background)
    share = y.float().flatten(3).sum(1) / mask.sum(1)[:, None, None]
    return p, share, (p >= 0.5).any(2), holds_any(y)


def _calibration(
    samples: torch.Tensor,
    annotations: torch.Tensor,
    given: torch.Tensor | None,
    include_background: bool,
    empty: Empty,
    bins: int,
) -> Measured:
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
    p, share, predicted, annotated = _read(samples, annotations, given, include_background)
    index = (p * bins).long().clamp(max=bins - 1)
    gaps = torch.zeros((*p.shape[:2], bins), dtype=torch.float64, device=p.device)
    gaps.scatter_add_(2, index, p.double() - share.double())
    return with_rules(gaps.abs().sum(2) / p.shape[2], predicted, annotated, empty, best=0.0)


def _brier(
    samples: torch.Tensor, annotations: torch.Tensor, given: torch.Tensor | None, include_background: bool, empty: Empty
) -> Measured:
    p, share, predicted, annotated = _read(samples, annotations, given, include_background)
    # The mean over experts of (p - y)^2 with y = y^2.
    values = (p.double().square() - 2 * p * share + share).mean(2)
    return with_rules(values, predicted, annotated, empty, best=0.0)
