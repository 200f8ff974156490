"""Turn the cases of the brain growth task, one .npz each, into a training folder with one label file a rater.

    python scripts/convert_cases.py SOURCE DATA

SOURCE holds caseNN.npz with `image` (H, W) and `masks` (raters, H, W). DATA gets NIfTI volumes of one slice in the
layout of the Medical Segmentation Decathlon, with a list of label files for each image, and splits.json: the first 21
cases by name train, the others validate.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from medseg.data.phantoms import describe_dataset, write_nifti

TRAINING = 21


def convert(source: Path, target: Path) -> int:
    """Write all cases of a folder; give their number."""
    files = sorted(source.glob("case*.npz"))
    if len(files) <= TRAINING:
        raise SystemExit(f"{source} holds {len(files)} files case*.npz, expected more than {TRAINING}")
    entries = []
    for path in files:
        with np.load(path) as case:
            image, masks = case["image"], case["masks"]
        labels = [f"labelsTr/{path.stem}_{rater}.nii.gz" for rater in range(len(masks))]
        write_nifti(target / f"imagesTr/{path.stem}.nii.gz", image[..., None], np.eye(4))
        for label, mask in zip(labels, masks, strict=True):
            write_nifti(target / label, mask[..., None], np.eye(4))
        entries.append({"image": f"imagesTr/{path.stem}.nii.gz", "label": labels})
    names = [path.stem for path in files]
    content = describe_dataset("decathlon", names, ["white matter"], title="brain growth", modality="MR")
    (target / "dataset.json").write_text(json.dumps(content | {"training": entries}, indent=2) + "\n", encoding="utf-8")
    split = {"train": names[:TRAINING], "val": names[TRAINING:]}
    (target / "splits.json").write_text(json.dumps(split, indent=2) + "\n", encoding="utf-8")
    return len(files)


def main() -> None:
    """Read the arguments and convert."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("source", type=Path, help="folder of case*.npz")
    parser.add_argument("data", type=Path, help="folder to fill")
    options = parser.parse_args()
    convert(options.source, options.data)


if __name__ == "__main__":
    main()
