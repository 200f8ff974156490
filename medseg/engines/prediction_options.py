"""What a user may choose to keep, clean and write for every case."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

PREVIEW_KINDS = ("slices", "mip")


@dataclass(frozen=True)
class PredictionOptions:
    """What to keep, clean and write for every case.

    Attributes:
        labels: label values to keep; None keeps all.
        split: write one mask a label instead of one label map.
        largest_component: keep the largest connected component of each label.
        remove_small: remove connected components below this volume in mm3.
        threshold: probability below which the best class gives way to background.
        save_probabilities: write class probabilities as a 4D float32 file, those of the mean where samples are drawn.
        save_uncertainty: write mean probabilities, entropy and variance of samples.
        save_samples: write the mask of every sample.
        label_table: store the label names inside the mask file as well.
        statistics: measure every label.
        preview: draw a picture; its path where only one case is predicted, else a folder, or None.
        preview_kind: "slices" through the largest label, or "mip", maximum intensity projections.
    """

    labels: tuple[int, ...] | None = None
    split: bool = False
    largest_component: bool = False
    remove_small: float = 0.0
    threshold: float | None = None
    save_probabilities: bool = False
    save_uncertainty: bool = False
    save_samples: bool = False
    label_table: bool = False
    statistics: bool = False
    preview: Path | None = None
    preview_kind: str = "slices"

    def __post_init__(self) -> None:
        if self.preview_kind not in PREVIEW_KINDS:
            raise ValueError(f"preview_kind must be one of {', '.join(PREVIEW_KINDS)}, got {self.preview_kind!r}")
