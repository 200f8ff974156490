"""Crop the left and the right hippocampus region out of the ICBM152 2009 T1 template.

Usage: python sample_data/make_samples.py [FOLDER]     (needs nilearn, which carries the template; no download)

Writes `icbm152_left_hippocampus_T1w.nii.gz` and `icbm152_right_hippocampus_T1w.nii.gz`: 36 x 52 x 36 mm at 1 mm, axes
RAS+, world coordinates kept in the affine, int16 with the template's 0..1 stored as 0..1000. The same nilearn release
gives the same bytes. Copyright and citation stand in README.md beside the files.
"""

from __future__ import annotations

import gzip
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
from nilearn.datasets import load_mni152_template

BOX_MM = np.array([36, 52, 36])
CENTRES_MM = {"left": (-26.0, -20.0, -16.0), "right": (26.0, -20.0, -16.0)}
MNI152_SPACE = 4  # NIfTI's code for coordinates of the MNI 152 space


def crop_around(template: nib.Nifti1Image, centre_mm: tuple[float, float, float]) -> nib.Nifti1Image:
    """Cut a box of `BOX_MM` around a world point; voxels are 1 mm and axes run along the world's."""
    centre_voxel = nib.affines.apply_affine(np.linalg.inv(template.affine), centre_mm)
    start = np.round(centre_voxel - BOX_MM / 2).astype(int)
    box = tuple(slice(a, a + n) for a, n in zip(start, BOX_MM, strict=True))
    values = np.round(template.get_fdata()[box] * 1000).astype(np.int16)
    affine = template.affine.copy()
    affine[:3, 3] = nib.affines.apply_affine(template.affine, start)
    crop = nib.Nifti1Image(values, affine)
    crop.set_sform(affine, code=MNI152_SPACE)
    crop.set_qform(affine, code=MNI152_SPACE)
    crop.header.set_xyzt_units("mm")
    crop.header["descrip"] = b"ICBM152 2009 T1, McConnell BIC, MNI, McGill; cropped"
    return crop


def main(folder: Path) -> None:
    template = load_mni152_template(resolution=1)
    for side, centre in CENTRES_MM.items():
        path = folder / f"icbm152_{side}_hippocampus_T1w.nii.gz"
        # mtime 0 keeps the date out of the file, so that making it again changes nothing.
        path.write_bytes(gzip.compress(crop_around(template, centre).to_bytes(), compresslevel=9, mtime=0))
        print(path)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
