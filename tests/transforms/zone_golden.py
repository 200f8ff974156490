"""Where the golden values of the prostate zones lie."""

from __future__ import annotations

from pathlib import Path

_SHARED = Path(__file__).parents[2].parent / "shared" / "golden" / "pirads_dual_path"
GOLDEN = _SHARED if _SHARED.is_dir() else Path(__file__).parents[1] / "golden" / "pirads_dual_path"
