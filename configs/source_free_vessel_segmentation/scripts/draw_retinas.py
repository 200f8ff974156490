"""Draw pictures that look a little like the back of an eye, with their vessels: the data that the weights come from.

    python scripts/draw_retinas.py DATA --cases 48 --seed 0

Writes DATA/images and DATA/labels as NIfTI with one slice. A picture is the largest value along the view of a phantom
of vessel trees (`medseg.data.make_vessel_phantom`), dark on a bright ground with a slow shading, a bright disc and
noise, inside a round field of view. Nothing in it is an image of a person.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import nibabel
import numpy as np
from scipy import ndimage

from medseg.data import make_vessel_phantom

SIDE, DEPTH = 176, 72


def draw_retina(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """One picture of about 0 to 1 and its vessels, both (SIDE, SIDE)."""
    random = np.random.default_rng(seed)
    phantom = make_vessel_phantom((SIDE, SIDE, DEPTH), num_trees=7, radii=(0.7, 3.2), bias=0, noise=0, seed=random)
    label = phantom.label.max(axis=2)
    depth = np.clip((phantom.image.max(axis=2) - 0.4) / 0.6, 0.25, 1) * label
    ground = 0.65 + 0.12 * _smooth(random, 30) + 0.03 * _smooth(random, 6)
    image = ground - random.uniform(0.2, 0.35) * ndimage.gaussian_filter(depth.astype(float), 0.6)
    y, x = np.mgrid[:SIDE, :SIDE]
    centre, radius = random.uniform(0.25, 0.75, 2) * SIDE, random.uniform(9, 14)
    image += 0.2 / (1 + np.exp((np.hypot(y - centre[0], x - centre[1]) - radius) / 1.5))
    image += random.uniform(0.015, 0.04) * random.standard_normal(image.shape)
    seen = np.hypot(y - SIDE / 2, x - SIDE / 2) < SIDE / 2 - 4
    return np.where(seen, image, 0.08).astype(np.float32), (label * seen).astype(np.uint8)


def _smooth(random: np.random.Generator, width: float) -> np.ndarray:
    field = ndimage.gaussian_filter(random.standard_normal((SIDE, SIDE)), width)
    return field / field.std()


def main() -> None:
    """Read the command line and write the pictures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("data", type=Path, help="folder to fill")
    parser.add_argument("--cases", type=int, default=48)
    parser.add_argument("--seed", type=int, default=0, help="of the first picture; the next one has the next")
    options = parser.parse_args()
    for kind in ("images", "labels"):
        (options.data / kind).mkdir(parents=True, exist_ok=True)
    for seed in range(options.seed, options.seed + options.cases):
        for kind, array in zip(("images", "labels"), draw_retina(seed), strict=True):
            picture = nibabel.Nifti1Image(array[..., None], np.eye(4))
            nibabel.save(picture, options.data / kind / f"drawn_{seed:03d}.nii.gz")


if __name__ == "__main__":
    main()
