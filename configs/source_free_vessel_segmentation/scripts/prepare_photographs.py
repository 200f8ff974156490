"""Turn photographs of the retina into what this bundle reads: grey, smaller, one slice of NIfTI each.

    python scripts/prepare_photographs.py IMAGES DATA/images
    python scripts/prepare_photographs.py MASKS DATA/labels --mask

Photographs are made grey and each block of pixels becomes its mean; a mask keeps a block if half of it was set. With
blocks of 2, vessels of DRIVE and STARE are about as wide as those the network was trained on.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import nibabel
import numpy as np
from PIL import Image
from skimage.measure import block_reduce


def read_picture(path: Path, block: int) -> np.ndarray:
    """Grey values from 0 to 1, (X, Y), smaller by `block`; columns come first, as in NIfTI."""
    with Image.open(path) as picture:
        grey = np.asarray(picture.convert("L"), dtype=np.float32).T / 255
    even = grey[tuple(slice(0, n // block * block) for n in grey.shape)]
    return block_reduce(even, block, np.mean)


def main() -> None:
    """Read the command line and write the files."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("pictures", type=Path, help="folder with PNG, JPEG or TIFF files")
    parser.add_argument("output", type=Path, help="folder to fill")
    parser.add_argument("--mask", action="store_true", help="the pictures are masks")
    parser.add_argument("--block", type=int, default=2, help="pixels that become one, along each axis")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    endings = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".ppm")
    for path in sorted(p for p in options.pictures.iterdir() if p.suffix.lower() in endings):
        values = read_picture(path, options.block)
        array = (values >= 0.5).astype(np.uint8) if options.mask else values.astype(np.float32)
        nibabel.save(nibabel.Nifti1Image(array[..., None], np.eye(4)), options.output / f"{path.stem}.nii.gz")


if __name__ == "__main__":
    main()
