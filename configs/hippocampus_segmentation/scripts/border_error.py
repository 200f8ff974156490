"""How far the border between head and body lies from that of the labels, in coronal slices.

    python scripts/border_error.py PREDICTIONS LABELS

PREDICTIONS is a folder that `medseg predict` filled, LABELS holds the labels of its cases and maybe of others. It
prints the mean distance of the borders, that of a rule which knows no image but divides every predicted outline at
the same share of its length (the median share of these cases), and the Dice of the whole outline.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import nibabel as nib
import numpy as np
import torch

from medseg.metrics import compute_dice

HEAD, BODY = 1, 2
ENDING = "_seg.nii.gz"


def find_border(mask: np.ndarray) -> int:
    """The slice along y at which the head begins, with the fewest voxels on the wrong side."""
    heads, bodies = (np.append(0, np.cumsum((mask == part).sum((0, 2)))) for part in (HEAD, BODY))
    return int(np.argmin(heads + bodies[-1] - bodies))


def read(path: Path) -> np.ndarray:
    """A mask, turned such that y runs to the front."""
    return np.asarray(nib.as_closest_canonical(nib.Nifti1Image.from_filename(path)).dataobj)


def main() -> None:
    """Read the masks and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("predictions", type=Path, help="folder of *_seg.nii.gz")
    parser.add_argument("labels", type=Path, help="folder of labels")
    options = parser.parse_args()
    files = sorted(options.predictions.glob(f"*{ENDING}"))
    if not files:
        raise SystemExit(f"{options.predictions} holds no *{ENDING}; run medseg predict first")
    found, given, starts, lengths, dice = [], [], [], [], []
    for path in files:
        mask, label = read(path), read(options.labels / path.name.replace(ENDING, ".nii.gz"))
        slices = np.flatnonzero((mask > 0).any((0, 2)))
        if not slices.size:
            raise SystemExit(f"{path} is empty")
        found.append(find_border(mask))
        given.append(find_border(label))
        starts.append(slices[0])
        lengths.append(slices[-1] - slices[0])
        outlines = (torch.from_numpy(part > 0)[None, None] for part in (mask, label))
        dice.append(float(compute_dice(*outlines)))
    distances = np.subtract(found, given)
    share = np.median(np.subtract(given, starts) / lengths)
    by_share = np.subtract(np.add(starts, share * np.array(lengths)), given)
    print(f"{len(files)} cases, Dice of the whole outline {np.mean(dice):.4f}")
    print(f"border to that of the label: {np.abs(distances).mean():.2f} slices, {distances.mean():+.2f} to the front")
    print(f"by the same share of every length: {np.abs(by_share).mean():.2f} slices")


if __name__ == "__main__":
    main()
