"""What metrics of sets of segmentations share: samples (B, N, C, spatial...) against annotations (B, M, C, spatial...).

Two masks that are both empty agree (overlap 1), one that is empty against one that is not does not (0). Where no sample
or no annotation of a case holds a structure at all, the rules of `EmptyPolicy` apply to the case: `both` (default nan,
nothing to count), `missed` and `hallucinated` (default "worst", which here is the value as it was computed).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from monai.metrics.metric import CumulativeIterationMetric

from medseg.metrics._cumulative import SegmentationMetric
from medseg.metrics._inputs import Spacing, as_bool, spacing_per_sample
from medseg.metrics.empty import CASES, EmptyPolicy, Rule

Empty = EmptyPolicy | Mapping[str, Rule] | str | None
# Values and indices into `CASES`, (B, C) both.
Measured = tuple[torch.Tensor, torch.Tensor]
# Voxels whose 0 and 1 are multiplied in one go; float32 counts up to 2^24 exactly.
_CHUNK = 1 << 20


def check_sets(samples: torch.Tensor, annotations: torch.Tensor, annotation_mask: torch.Tensor | None) -> torch.Tensor:
    """Check shapes; give the mask (B, M) of annotations that exist."""
    for name, value in (("samples", samples), ("annotations", annotations)):
        if not isinstance(value, torch.Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
        if value.ndim not in (5, 6) or value.shape[1] < 1:
            raise ValueError(
                f"{name} must have shape (B, N, C, H, W) or (B, N, C, H, W, D) with N at least 1, got "
                f"{tuple(value.shape)}"
            )
    if samples.shape[:1] + samples.shape[2:] != annotations.shape[:1] + annotations.shape[2:]:
        raise ValueError(
            f"samples have shape {tuple(samples.shape)}, but annotations {tuple(annotations.shape)}; give one-hot "
            "tensors that differ in their second axis alone"
        )
    shape = tuple(annotations.shape[:2])
    if annotation_mask is None:
        return torch.ones(shape, dtype=torch.bool, device=annotations.device)
    if tuple(annotation_mask.shape) != shape:
        raise ValueError(f"annotation_mask must have shape {shape}, got {tuple(annotation_mask.shape)}")
    mask = annotation_mask.as_subclass(torch.Tensor).to(annotations.device).bool()
    if not bool(mask.any(1).all()):
        lonely = int((~mask.any(1)).nonzero()[0])
        raise ValueError(f"annotation_mask leaves item {lonely} of the batch without an annotation; leave the item out")
    return mask


def as_annotations(annotations: torch.Tensor, mask: torch.Tensor, include_background: bool) -> torch.Tensor:
    """Booleans (B, M, C, spatial...); masks that do not exist are empty."""
    annotations = annotations.detach().as_subclass(torch.Tensor)
    exists = mask.view(*mask.shape, *(1,) * (annotations.ndim - 2))
    return as_bool(torch.where(exists, annotations, 0), "annotations")[:, :, _first(annotations, include_background) :]


def as_samples(samples: torch.Tensor, include_background: bool) -> torch.Tensor:
    """Booleans (B, N, C, spatial...)."""
    return as_bool(samples, "samples")[:, :, _first(samples, include_background) :]


def as_probability(samples: torch.Tensor, include_background: bool) -> torch.Tensor:
    """Mean over samples, (B, C, spatial...), float32; samples may be masks or probabilities."""
    samples = samples.detach().as_subclass(torch.Tensor)[:, :, _first(samples, include_background) :]
    if not bool(((samples >= 0) & (samples <= 1)).all()):
        raise ValueError("samples must hold masks or probabilities in [0, 1]; apply a sigmoid or softmax first")
    return samples.float().mean(1)


def _first(masks: torch.Tensor, include_background: bool) -> int:
    return 0 if include_background or masks.shape[2] == 1 else 1


def shared_voxels(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Voxels that masks (B, N, C, spatial...) and (B, M, C, spatial...) share, (B, C, N, M), float64."""
    one, two = (x.flatten(3).transpose(1, 2) for x in (a, b))
    total = torch.zeros((*one.shape[:3], two.shape[2]), dtype=torch.float64, device=a.device)
    for part, other in zip(one.split(_CHUNK, 3), two.split(_CHUNK, 3), strict=True):
        total += part.float() @ other.float().transpose(2, 3)
    return total


def pair_iou(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Intersection over union of all pairs, (B, C, N, M), 1 where both are empty."""
    shared, of_a, of_b = _counts(a, b)
    union = of_a + of_b - shared
    return torch.where(union > 0, shared / union.clamp(min=1), 1.0)


def pair_dice(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Dice of all pairs, (B, C, N, M), 1 where both are empty."""
    shared, of_a, of_b = _counts(a, b)
    return torch.where(of_a + of_b > 0, 2 * shared / (of_a + of_b).clamp(min=1), 1.0)


def _counts(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    of_a, of_b = volumes(a)[..., None], volumes(b)[..., None, :]
    return shared_voxels(a, b), of_a, of_b


def volumes(masks: torch.Tensor) -> torch.Tensor:
    """Voxels of masks (B, N, C, spatial...), shape (B, C, N), float64."""
    return masks.flatten(3).sum(3).transpose(1, 2).double()


def holds_any(masks: torch.Tensor) -> torch.Tensor:
    """Whether any mask of a set (B, N, C, spatial...) holds something, (B, C)."""
    return masks.flatten(3).any(3).any(1)


def with_rules(
    values: torch.Tensor, predicted: torch.Tensor, annotated: torch.Tensor, empty: Empty, *, best: float
) -> Measured:
    """Values with the policy's where a set is empty ("worst" keeps the value), and the kind of every case.

    Args:
        values: as computed, (B, C).
        predicted: whether any sample holds the structure, (B, C).
        annotated: whether any annotation does.
        empty: the rules.
        best: the metric's best value.
    """
    policy = EmptyPolicy.build(empty)
    kinds = (predicted & annotated, ~predicted & ~annotated, ~predicted & annotated, predicted & ~annotated)
    codes = torch.stack(kinds).float().argmax(0)
    for index, case in enumerate(CASES[1:], start=1):
        rule = policy.value(case, best=best, worst=float("inf"))
        values = torch.where((codes == index) & (rule != float("inf")), rule, values)
    return values.float(), codes.float()


class SampleSetMetric(SegmentationMetric):
    """Base class of metrics of sets of segmentations.

    Called with samples (B, N, C, spatial...) and annotations (B, M, C, spatial...), or lists of (N, C, spatial...) and
    (M, C, spatial...) that may differ in N and M. Arguments are those of `SegmentationMetric`; `spacing` is taken and
    not used.
    """

    @abstractmethod
    def measure(self, samples: torch.Tensor, annotations: torch.Tensor, mask: torch.Tensor | None) -> Measured:
        """Give the values of a batch and how empty each case is, shape (B, C) both."""

    def __call__(  # type: ignore[override]
        self, y_pred: Any, y: Any = None, *, annotation_mask: Any = None, spacing: Spacing = None
    ) -> torch.Tensor:
        """Measure a batch and keep the values.

        Args:
            y_pred: samples.
            y: annotations.
            annotation_mask: (B, M), true where an annotation exists, or a list of (M,).
            spacing: taken as by the other metrics and not used.

        Returns:
            Values of shape (B, C).
        """
        many = isinstance(y_pred, (list, tuple))
        if many and (not isinstance(y, (list, tuple)) or len(y) != len(y_pred)):
            raise ValueError(f"y must be a list of {len(y_pred)} tensors, like y_pred")
        if not many and isinstance(y, torch.Tensor):
            spacing_per_sample(spacing, y.shape[0], y.ndim - 3)  # not needed, but a wrong one is an error everywhere
        values = CumulativeIterationMetric.__call__(self, y_pred, y, annotation_mask=annotation_mask)
        return values[0]  # type: ignore[return-value]

    def compute(self, y_pred: torch.Tensor, y: torch.Tensor, spacing: Spacing) -> torch.Tensor:
        """Give the values of a batch, shape (B, C)."""
        return self.measure(y_pred, y, None)[0]

    def _compute_tensor(self, y_pred: torch.Tensor, y: torch.Tensor | None = None, **kwargs: Any) -> list[torch.Tensor]:
        if y is None:
            raise ValueError("y, the annotations, are missing; call the metric with samples and annotations")
        return list(self.measure(y_pred, y, kwargs["annotation_mask"]))

    def _compute_list(self, y_pred: Any, y: Any = None, **kwargs: Any) -> list[torch.Tensor]:
        masks = kwargs["annotation_mask"]
        masks = [None] * len(y) if masks is None else [torch.as_tensor(mask)[None] for mask in masks]
        sets = zip(y_pred, y, masks, strict=True)
        parts = [self.measure(samples[None], annotations[None], mask) for samples, annotations, mask in sets]
        return [torch.cat(part) for part in zip(*parts, strict=True)]
