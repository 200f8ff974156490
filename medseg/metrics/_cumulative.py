"""The base of the metric classes: collects values and kinds of empty masks, and averages without inventing zeros."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from monai.metrics.metric import CumulativeIterationMetric
from monai.metrics.utils import do_metric_reduction

from medseg.metrics._inputs import Spacing, as_masks, case_codes
from medseg.metrics.empty import CASES, EmptyPolicy, Rule

REDUCTIONS = ("mean", "sum", "mean_batch", "sum_batch", "mean_channel", "sum_channel", "none")


class SegmentationMetric(CumulativeIterationMetric):
    """Base class of the segmentation metrics.

    Differs from MONAI's metric classes in two points: `aggregate` is nan where nothing counts (MONAI: 0), and
    `empty_counts` tells how often a structure was absent, missed or hallucinated.

    Args:
        include_background: whether channel 0 counts; a single channel always does.
        reduction: what `aggregate` does with the (B, C) values that are not nan: `"mean"` (over channels, then over
            samples), `"mean_batch"` (one value a channel), `"mean_channel"` (one value a sample), `"sum"`,
            `"sum_batch"`, `"sum_channel"` or `"none"`.
        get_not_nans: whether `aggregate` also returns the number of values that counted.
        empty: rules for empty masks, see `EmptyPolicy.build`.
        spacing: voxel size in mm used when a call gives none: a number or one for each axis; None is 1 mm.
    """

    def __init__(
        self,
        include_background: bool = True,
        reduction: str = "mean",
        *,
        get_not_nans: bool = False,
        empty: EmptyPolicy | Mapping[str, Rule] | str | None = None,
        spacing: float | Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.include_background = include_background
        self.reduction = _check_reduction(reduction)
        self.get_not_nans = get_not_nans
        self.empty = EmptyPolicy.build(empty)
        self.spacing = spacing

    def __call__(self, y_pred: Any, y: Any = None, **kwargs: Any) -> torch.Tensor:  # type: ignore[override]
        """Measure a batch and keep the values.

        Args:
            y_pred: one-hot prediction (B, C, spatial...), or a list of (C, spatial...).
            y: one-hot reference of the same form.
            **kwargs: `spacing` in mm: a number, one for each axis, or such a list for each sample.

        Returns:
            Values of shape (B, C).
        """
        unknown = sorted(set(kwargs) - {"spacing"})
        if unknown:
            raise TypeError(f"{type(self).__name__} takes y_pred, y and spacing, got also {', '.join(unknown)}")
        if isinstance(y_pred, (list, tuple)) and (not isinstance(y, (list, tuple)) or len(y) != len(y_pred)):
            raise ValueError(f"y must be a list of {len(y_pred)} tensors, like y_pred")
        return super().__call__(y_pred, y, **kwargs)[0]  # type: ignore[return-value]

    @abstractmethod
    def compute(self, y_pred: torch.Tensor, y: torch.Tensor, spacing: Spacing) -> torch.Tensor:
        """Give the values of a batch, shape (B, C)."""

    def aggregate(self, reduction: str | None = None) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Reduce the collected values.

        Args:
            reduction: replaces the constructor's.

        Returns:
            The result, nan where no value counts; with `get_not_nans` also the number of values that counted.
        """
        reduction = _check_reduction(reduction or self.reduction)
        values = self.get_buffer()
        if values is None:
            result, counted = torch.full((1,), torch.nan), torch.zeros(1)
        else:
            result, counted = do_metric_reduction(values, reduction)
            if reduction != "none":
                result = torch.where(counted > 0, result, torch.nan)
        return (result, counted) if self.get_not_nans else result

    def get_buffer(self) -> Any:
        """Give the collected values, shape (samples, C), or None before the first call."""
        buffers = super().get_buffer()
        return None if buffers is None else buffers[0]

    def empty_counts(self) -> dict[str, torch.Tensor]:
        """Count the samples of each kind for every channel.

        Returns:
            Counts of shape (C,) under `present`, `both_empty`, `missed` and `hallucinated`.
        """
        buffers = super().get_buffer()
        if buffers is None:
            return {case: torch.zeros(0, dtype=torch.int64) for case in CASES}
        return {case: (buffers[1] == index).sum(dim=0) for index, case in enumerate(CASES)}

    def _compute_tensor(self, y_pred: torch.Tensor, y: torch.Tensor | None = None, **kwargs: Any) -> list[torch.Tensor]:
        if y is None:
            raise ValueError("y, the reference, is missing; call the metric with y_pred and y")
        spacing = kwargs.get("spacing")
        values = self.compute(y_pred, y, self.spacing if spacing is None else spacing)
        return [values, case_codes(*as_masks(y_pred, y, self.include_background))]

    def _compute_list(self, y_pred: Any, y: Any = None, **kwargs: Any) -> list[torch.Tensor]:
        spacing = kwargs.get("spacing")
        own = isinstance(spacing, Sequence) and len(spacing) == len(y_pred) and isinstance(spacing[0], Sequence)
        parts = [
            self._compute_tensor(p.detach()[None], t.detach()[None], spacing=spacing[i] if own else spacing)  # type: ignore[index]
            for i, (p, t) in enumerate(zip(y_pred, y, strict=True))
        ]
        return [torch.cat(part) for part in zip(*parts, strict=True)]

    def __repr__(self) -> str:
        return f"{type(self).__name__}(reduction={self.reduction!r}, empty={self.empty})"


def _check_reduction(reduction: str) -> str:
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {', '.join(REDUCTIONS)}, got {reduction!r}")
    return reduction
