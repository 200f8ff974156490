"""Write the simulated vessels that the weights of this bundle were trained and validated on.

Every case draws its own voxel size, trees, radii, contrast, bias field and noise, so that no single look is learned.

The folder is in the layout of the Medical Segmentation Decathlon, with `splits.json` beside it; the same arguments
give the same files.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from medseg.data import VesselPhantom, make_vessel_phantom
from medseg.data.phantoms import describe_dataset, write_nifti

_EXTENT = (34.0, 44.0)  # mm along each axis, enough for a patch of 64 voxels of 0.5 mm nearly everywhere
_NARROW_TRUNK = 1.2  # mm, radius, as of branches in the brain


def main() -> None:
    """Read the command line and write the set."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path, help="folder to fill")
    parser.add_argument("--training", type=int, default=32, help="cases to train on")
    parser.add_argument("--validation", type=int, default=8, help="cases to validate on")
    parser.add_argument("--widest", type=float, default=3.5, metavar="MM", help="radius of the widest trunks")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    write_set(options.directory, options.training, options.validation, options.widest, options.seed)


def write_set(directory: Path, training: int, validation: int, widest: float, seed: int) -> None:
    """Write the training and then the validation cases, each drawn from its own seed."""
    names = [f"vessels_{index:03d}" for index in range(training + validation)]
    for index, name in enumerate(names):
        random = np.random.default_rng([seed, index])
        phantom = _draw(widest, random)
        affine = np.diag([*phantom.spacing, 1.0])
        write_nifti(directory / "imagesTr" / f"{name}.nii.gz", phantom.image, affine)
        write_nifti(directory / "labelsTr" / f"{name}.nii.gz", phantom.label, affine)
    content = describe_dataset("decathlon", names, ["vessel"], title="simulated vessels", modality="MRA")
    _write_json(directory / "dataset.json", content)
    _write_json(directory / "splits.json", {"train": names[:training], "val": names[training:]})


def _draw(widest: float, random: np.random.Generator) -> VesselPhantom:
    in_plane, slice_thickness = random.uniform(0.35, 0.65), random.uniform(0.4, 0.9)
    spacing = np.array([in_plane, in_plane, slice_thickness])
    unit = spacing.min()
    options: dict[str, Any] = {
        "shape": np.rint(random.uniform(*_EXTENT, 3) / spacing).astype(int).tolist(),
        "radii": (random.uniform(0.6, 1.2), random.uniform(_NARROW_TRUNK, widest) / unit),
        "spacing": spacing.tolist(),
        "contrast": random.uniform(0.35, 1.2),
        "bias": random.uniform(0.0, 0.3),
        "noise": random.uniform(0.02, 0.1),
    }
    for num_trees in range(int(random.integers(1, 6)), 0, -1):
        try:
            return make_vessel_phantom(num_trees=num_trees, seed=random, **options)
        except ValueError:  # wide trunks find no room; fewer of them do
            continue
    raise ValueError("a single tree finds no room; this seed cannot be used")


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
