"""Write the simulated prostates that the weights of this bundle were trained and validated on.

Every case draws its own voxel size, bias field, noise and blur, so that no single look is learned. The folder is in the
layout of the Medical Segmentation Decathlon, with `splits.json` beside it; the same arguments give the same files.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from medseg.data import ZonePhantom, make_zone_phantom
from medseg.data.phantoms import describe_dataset, write_nifti
from medseg.data.zone_phantom import PROSTATE_ZONES

_EXTENT = (90.0, 90.0, 68.0)  # mm, a little more than the box that the network sees


def main() -> None:
    """Read the command line and write the set."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path, help="folder to fill")
    parser.add_argument("--training", type=int, default=24, help="cases to train on")
    parser.add_argument("--validation", type=int, default=8, help="cases to validate on")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    write_set(options.directory, options.training, options.validation, options.seed)


def write_set(directory: Path, training: int, validation: int, seed: int) -> None:
    """Write the training and then the validation cases, each drawn from its own seed."""
    names = [f"prostate_{index:03d}" for index in range(training + validation)]
    for index, name in enumerate(names):
        phantom = _draw(np.random.default_rng([seed, index]))
        affine = np.diag([*phantom.spacing, 1.0])
        write_nifti(directory / "imagesTr" / f"{name}.nii.gz", phantom.image, affine)
        write_nifti(directory / "labelsTr" / f"{name}.nii.gz", phantom.label, affine)
    content = describe_dataset("decathlon", names, PROSTATE_ZONES, title="simulated prostates", modality="T2w MRI")
    _write_json(directory / "dataset.json", content)
    _write_json(directory / "splits.json", {"train": names[:training], "val": names[training:]})


def _draw(random: np.random.Generator) -> ZonePhantom:
    in_plane, slice_thickness = random.uniform(0.9, 1.3), random.uniform(3.0, 4.0)
    spacing = (in_plane, in_plane, slice_thickness)
    return make_zone_phantom(
        np.rint(np.divide(_EXTENT, spacing)).astype(int).tolist(),
        spacing=spacing,
        bias=random.uniform(0.05, 0.25),
        noise=random.uniform(0.02, 0.08),
        blur=random.uniform(0.4, 1.0),
        seed=random,
    )


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
