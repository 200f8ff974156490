"""Golden files and small sets of segmentations for the tests of distances between sets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = [ROOT / "tests/golden/pulaski", ROOT.parent / "shared/golden/pulaski"]


def golden_files(pattern: str) -> dict[str, Path]:
    """Golden files by name; the larger set replaces the copies where it lies beside the checkout."""
    return {path.stem: path for folder in FOLDERS for path in sorted(folder.glob(pattern))}


def read_golden(path: Path) -> dict[str, torch.Tensor]:
    """Arrays of a golden file as tensors."""
    with np.load(path) as file:
        return {key: torch.from_numpy(np.asarray(file[key])) for key in file if file[key].dtype.kind != "U"}


def make_sets(n: int, m: int, dims: int = 2, batch: int = 2, channels: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities (B, n, C, spatial...) and binary annotations (B, m, C, spatial...) in float64."""
    generator = torch.Generator().manual_seed(n * 100 + m)
    shape = (channels, *(6, 5, 4)[:dims])
    samples = torch.rand(batch, n, *shape, generator=generator, dtype=torch.float64)
    annotations = (torch.rand(batch, m, *shape, generator=generator) > 0.5).double()
    return samples, annotations
