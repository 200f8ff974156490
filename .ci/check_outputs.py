"""Check what the README's run command leaves behind: masks, statistics, previews and the run report.

Usage: python check_outputs.py FOLDER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
from PIL import Image

PLAUSIBLE_MM3 = (3000.0, 5000.0)  # one side measures about 4000 mm3 in this template, which is larger than most heads
LARGEST_RATIO = 1.25  # of the two sides of a symmetric template


def main(folder: Path) -> None:
    volumes = {side: measure(folder / f"icbm152_{side}_hippocampus_T1w_seg.nii.gz") for side in ("left", "right")}
    for side, volume in volumes.items():
        require(PLAUSIBLE_MM3[0] <= volume <= PLAUSIBLE_MM3[1], f"{side}: {volume:.0f} mm3 is not plausible")
    ratio = max(volumes.values()) / min(volumes.values())
    require(ratio <= LARGEST_RATIO, f"left and right differ by a factor of {ratio:.2f}")
    for name in ("stats.json", "report.json"):
        require(bool(json.loads((folder / name).read_text(encoding="utf-8"))), f"{name} is empty")
    previews = sorted(folder.rglob("*.png"))
    require(len(previews) == len(volumes), f"expected {len(volumes)} previews, found {len(previews)}")
    for path in previews:
        require(np.asarray(Image.open(path).convert("L")).std() > 1, f"{path} shows nothing")
    measured = ", ".join(f"{side} {volume:.0f} mm3" for side, volume in volumes.items())
    print(f"masks {measured}; statistics, previews and report are there")


def measure(path: Path) -> float:
    """Volume of everything labelled, in mm3."""
    mask = nib.load(path)
    return float(np.count_nonzero(np.asanyarray(mask.dataobj)) * abs(np.linalg.det(mask.affine[:3, :3])))


def require(condition: bool, message: str) -> None:
    if not condition:
        raise SystemExit(f"outputs: {message}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
