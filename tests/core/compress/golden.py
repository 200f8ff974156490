"""Where the golden values of pruning lie: a few in the checkout, all of them beside it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parents[2] / "golden" / "pruning"
SHARED = Path(__file__).resolve().parents[4] / "shared" / "golden" / "pruning"


def find_golden(pattern: str) -> list[Path]:
    """Files whose name matches, from the larger set where it is there."""
    return sorted((SHARED if SHARED.is_dir() else HERE).glob(pattern))


def load_golden(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return dict(file)
