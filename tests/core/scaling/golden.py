"""Where the recorded numbers of the scaling laws lie."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[3]
FOLDERS = [ROOT / "tests/golden/scaling_laws", ROOT.parent / "shared/golden/scaling_laws"]
FILES = {path.stem: path for folder in FOLDERS for path in sorted(folder.glob("*.npz"))}


def load(name: str) -> dict[str, np.ndarray]:
    """Arrays of a file; the test is skipped where it is absent."""
    if name not in FILES:
        pytest.skip(f"no golden file {name} here")
    with np.load(FILES[name]) as file:
        return dict(file)


def named(kind: str) -> list[str]:
    return sorted(name for name in FILES if name.startswith(kind))
