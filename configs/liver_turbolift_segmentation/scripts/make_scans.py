"""Draw abdomens and scan them in three ways, as the bundle's training expects its data.

    python scripts/make_scans.py DIR
    python scripts/make_scans.py NEW --first 1000 --subjects 8 8 8      others, to test on

DIR gets the folders ct, cone_beam and tst, each in Decathlon layout with splits.json. A file name is a subject: whoever
has a perfusion scan (tst) has a cone-beam CT and a CT as well, and validates in all of them or in none.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import nibabel
import numpy as np

from medseg.data import ABDOMEN_LABELS, ConeBeamScan, PerfusionScan, make_abdomen_phantom

SPACING = (12.0, 12.0, 15.0)
SHAPE = (32, 32, 8)
ARM = {"sweep": 165.0, "scatter": 0.3, "hardening": 0.02}
EARLY = [ABDOMEN_LABELS.index(name) + 1 for name in ("kidneys", "vessels")]


def scan_subject(seed: int, modality: str) -> tuple[np.ndarray, np.ndarray]:
    """Image in HU and liver mask of one subject in one modality."""
    options = {"shape": SHAPE, "spacing": SPACING, "noise": 0.0, "seed": seed}
    rest, label = make_abdomen_phantom(contrast=0.0, **options)
    uptake = make_abdomen_phantom(contrast=np.random.default_rng([seed, 2]).uniform(0.4, 1.2), **options)[0] - rest
    if modality == "ct":
        image = rest + uptake + np.random.default_rng([seed, 3]).normal(0, 12, rest.shape)
    elif modality == "cone_beam":
        scan = ConeBeamScan(views=60, photons=1e5, motion=3.0, **ARM)
        image = scan.simulate(rest + uptake, spacing=SPACING[0], seed=seed)
    else:
        perfusion = PerfusionScan(ConeBeamScan(views=48, photons=2e4, motion=5.0, **ARM), sweeps=6)
        early = np.isin(label, EARLY)
        parts = [uptake * early, uptake * ~early]
        image = perfusion.image_at(perfusion.simulate(rest, parts, [9.0, 24.0], spacing=SPACING[0], seed=seed), 18.0)
    return image.astype(np.float32), (label == 1).astype(np.uint8)


def write_modality(folder: Path, modality: str, learning: int, validating: int, first: int = 0) -> None:
    """Write one folder; subjects have numbers from `first` on, those that validate from 100 more on."""
    numbers = {"train": range(first, first + learning), "val": range(first + 100, first + 100 + validating)}
    names = {part: [f"abdomen_{n:03d}" for n in found] for part, found in numbers.items()}
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for number in [*numbers["train"], *numbers["val"]]:
        for part, array in zip(("imagesTr", "labelsTr"), scan_subject(number, modality), strict=True):
            image = nibabel.Nifti1Image(array, np.diag([*SPACING, 1.0]))
            nibabel.save(image, folder / part / f"abdomen_{number:03d}.nii.gz")
    pairs = [
        {"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in [*names["train"], *names["val"]]
    ]
    content = {"name": modality, "labels": {"0": "background", "1": "liver"}, "training": pairs, "test": []}
    (folder / "dataset.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    (folder / "splits.json").write_text(json.dumps(names, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Fill the folder that the command line names."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="folder to fill")
    parser.add_argument("--subjects", type=int, nargs=3, default=(16, 4, 2), metavar=("CT", "CONE_BEAM", "TST"))
    parser.add_argument("--validation", type=int, default=2, help="further subjects, in all three")
    parser.add_argument("--first", type=int, default=0, help="number of the first subject; other numbers, other people")
    options = parser.parse_args()
    for modality, count in zip(("ct", "cone_beam", "tst"), options.subjects, strict=True):
        write_modality(options.folder / modality, modality, count, options.validation, options.first)


if __name__ == "__main__":
    main()
