"""What methods that make a network smaller are given and give back; see `compression.py`."""

from __future__ import annotations

import gzip
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from normalization_choice import Cohort
from torch import nn


@dataclass(frozen=True, eq=False)
class Task:
    """What every method gets.

    Attributes:
        network: trained, in evaluation; methods change a copy of it.
        window: voxels of the windows that it predicts.
        cohort: training volumes, to calibrate and to train on, and volumes to measure; mean 0, deviation 1.
        tuning_steps: of the methods that train on.
        calibration_windows: on which int8 measures ranges.
    """

    network: nn.Module
    window: tuple[int, int, int]
    cohort: Cohort
    tuning_steps: int = 30
    calibration_windows: int = 24


@dataclass(frozen=True)
class Compressed:
    """What a method gives back.

    Attributes:
        predict: from a window (1, 1, *window) to logits (1, classes, *window).
        size: bytes of the file that would be shipped, compressed.
        notes: anything else for the record, as JSON has it.
    """

    predict: Callable[[torch.Tensor], torch.Tensor]
    size: int
    notes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Method:
    """A way to make a network smaller: what readers see, and what does it."""

    title: str
    build: Callable[[Task], Compressed]


def compressed_size(network: nn.Module) -> int:
    """Bytes of a network's weights, saved and compressed by gzip."""
    file = io.BytesIO()
    torch.save(network.state_dict(), file)
    return len(gzip.compress(file.getvalue(), mtime=0))
