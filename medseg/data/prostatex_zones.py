"""Read the public zone labels of PROSTATEx, and make a training folder of them.

The collection (PROSTATEx-Seg-Zones: axial T2-weighted series with PZ, TZ, AFS and DPU) is published as DICOM images and
DICOM segmentations. Converted to NIfTI, it is expected like this, with one file a case or one file a zone:

    SOURCE/images/ProstateX-0004.nii.gz
    SOURCE/labels/ProstateX-0004.nii.gz          values as `label_map` says
    SOURCE/labels/ProstateX-0011-1.nii.gz        or one file a segment, its number at the end of the name, as
    SOURCE/labels/ProstateX-0011-2.nii.gz ...    converters of DICOM segmentations leave them; values 0 and 1

Which number is which zone has to be said: AFS and DPU may be numbers 3 and 4 or 4 and 3. What is said is checked
against anatomy, DPU being a tube near the midline and AFS a plate in front.

Only phantoms written in this layout have been read with this; no case of the collection was at hand.

Source: Meyer et al., "Towards Patient-Individual PI-RADS v2 Sector Map: CNN for Automatic Segmentation of Prostatic
Zones from T2-Weighted MRI" (ISBI 2019), whose labels these are.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from medseg.data.atomic import atomic_path
from medseg.data.datalist import is_nifti, strip_nifti_ending
from medseg.data.phantoms import describe_dataset
from medseg.data.volume import Volume, VolumeError, check_same_grid, read_image, read_mask
from medseg.data.writing import write_mask
from medseg.data.zone_phantom import PROSTATE_ZONES

_SEGMENT = re.compile(r"(.+)-(\d+)")
_MIDLINE = 12.0  # mm that the middle of DPU may lie to the side of the gland's


def find_prostatex_cases(source: str | Path) -> dict[str, tuple[Path, dict[int | None, Path]]]:
    """List the cases of a folder in the module's layout.

    Args:
        source: folder with `images/` and `labels/`.

    Returns:
        For each case, by name, its image and its label files: under None a label map, else under their numbers.

    Raises:
        FileNotFoundError: a folder is missing, or there is no image in it.
        ValueError: an image has no label, or both kinds.
    """
    root = Path(source)
    for folder in ("images", "labels"):
        if not (root / folder).is_dir():
            raise FileNotFoundError(f"source: {root / folder} is not there; expected images/ and labels/ in {root}")
    images = {strip_nifti_ending(p.name): p for p in sorted((root / "images").iterdir()) if is_nifti(p)}
    if not images:
        raise FileNotFoundError(f"source: {root / 'images'} holds no NIfTI file")
    labels: dict[str, dict[int | None, Path]] = {name: {} for name in images}
    for path in sorted(p for p in (root / "labels").iterdir() if is_nifti(p)):
        name = strip_nifti_ending(path.name)
        segment = _SEGMENT.fullmatch(name)
        if name in labels:
            labels[name][None] = path
        elif segment and segment[1] in labels:
            labels[segment[1]][int(segment[2])] = path
    for name, files in labels.items():
        if not files or (None in files and len(files) > 1):
            state = "has no label" if not files else "has a label map and single segments"
            raise ValueError(f"case {name} {state} in {root / 'labels'}; expected {name}.nii.gz or {name}-1.nii.gz ...")
    return {name: (images[name], labels[name]) for name in images}


def read_prostatex_label(
    files: Mapping[int | None, Path], label_map: Mapping[str, int], *, check: bool = True
) -> tuple[np.ndarray, Volume]:
    """Read one case's zones as labels 1 to 4: PZ, TZ, DPU, AFS.

    Args:
        files: as `find_prostatex_cases` gives them.
        label_map: number of each of the four zones in the files, e.g. `{"PZ": 1, "TZ": 2, "AFS": 3, "DPU": 4}`.
        check: refuse zones that cannot be what they are called.

    Returns:
        Labels (X, Y, Z), uint8, and the volume of the first file, for its grid.

    Raises:
        ValueError: the map does not name the four zones, or a number in a file, or zones are not where they belong.
        VolumeError: a file cannot be read, or segments overlap or lie on different grids.
    """
    if set(label_map) != set(PROSTATE_ZONES) or len(set(label_map.values())) < len(PROSTATE_ZONES):
        raise ValueError(f"label_map must give {', '.join(PROSTATE_ZONES)} different numbers, got {dict(label_map)}")
    volumes = {number: read_mask(path) for number, path in files.items()}
    first = next(iter(volumes.values()))
    found = np.zeros(first.array.shape, np.uint8)
    numbers = {int(number): PROSTATE_ZONES.index(zone) + 1 for zone, number in label_map.items()}
    present = (int(v) for v in np.unique(first.array)) if None in volumes else (n for n in volumes if n is not None)
    if strangers := sorted(set(present) - set(numbers) - ({0} if None in volumes else set())):
        raise ValueError(
            f"{first.path}: holds the numbers {strangers}, which label_map {dict(label_map)} does not name"
        )
    for number, value in numbers.items():
        mask = volumes[None].array == number if None in volumes else None
        if mask is None:
            if number not in volumes:
                continue
            check_same_grid(first, volumes[number])
            mask = volumes[number].array > 0
            if (found[mask] > 0).any():
                raise VolumeError(f"{volumes[number].path}: overlaps another segment; convert the segmentation again")
        found[mask] = value
    if check:
        check_zone_places(found, first.affine)
    return found, first


def check_zone_places(labels: np.ndarray, affine: np.ndarray) -> None:
    """Check that AFS lies in front and DPU is a tube near the midline, thinner than AFS is wide.

    Args:
        labels: (X, Y, Z), 1 to 4 for PZ, TZ, DPU, AFS.
        affine: voxels to mm, (right, anterior, superior).

    Raises:
        ValueError: it looks otherwise, as where AFS and DPU were mixed up. Zones that are not there are not judged.

    Example:
        >>> from medseg.data import make_zone_phantom
        >>> phantom = make_zone_phantom((40, 40, 12), spacing=(1.5, 1.5, 4.0))
        >>> check_zone_places(phantom.label, np.diag([1.5, 1.5, 4.0, 1.0]))
    """
    places = {zone: _to_mm(labels == value, affine) for value, zone in enumerate(PROSTATE_ZONES, 1)}
    gland = _to_mm(labels > 0, affine)
    tube, plate = places["DPU"], places["AFS"]
    wrong = []
    if len(plate) and plate[:, 1].mean() <= gland[:, 1].mean():
        wrong.append("AFS does not lie in front of the gland's middle")
    if len(tube) and abs(tube[:, 0].mean() - gland[:, 0].mean()) > _MIDLINE:
        wrong.append(f"DPU lies more than {_MIDLINE:g} mm beside the midline")
    if len(tube) and len(plate) and np.ptp(tube[:, 0]) > np.ptp(plate[:, 0]):
        wrong.append("DPU is wider than AFS")
    if wrong:
        raise ValueError(
            f"{'; '.join(wrong)}: label_map may mix up DPU and AFS, swap their numbers and look at the case"
        )


def convert_prostatex_zones(source: str | Path, directory: str | Path, label_map: Mapping[str, int]) -> Path:
    """Make a training folder of a folder in the module's layout, every label checked.

    Args:
        source: folder with `images/` and `labels/`.
        directory: folder that gets `imagesTr/`, `labelsTr/` and `dataset.json`; made when absent.
        label_map: number of each zone, as in `read_prostatex_label`.

    Returns:
        The folder, as `load_datalist` and `medseg train` take it.

    Raises:
        ValueError: a case cannot be used; the text names it, and nothing of it is written.
    """
    directory, cases = Path(directory), find_prostatex_cases(source)
    for folder in ("imagesTr", "labelsTr"):
        (directory / folder).mkdir(parents=True, exist_ok=True)
    names = dict(enumerate(PROSTATE_ZONES, 1))
    for name, (image, files) in cases.items():
        try:
            labels, like = read_prostatex_label(files, label_map)
            check_same_grid(read_image(image), like)
        except ValueError as error:
            raise ValueError(f"case {name}: {error}") from error
        with atomic_path(directory / "imagesTr" / f"{name}.nii.gz") as part:
            shutil.copyfile(image, part)
        write_mask(directory / "labelsTr" / f"{name}.nii.gz", labels, like, names)
    content = describe_dataset("decathlon", list(cases), PROSTATE_ZONES, title="PROSTATEx zones", modality="T2w MRI")
    with atomic_path(directory / "dataset.json") as part:
        part.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return directory


def _to_mm(mask: np.ndarray, affine: np.ndarray) -> np.ndarray:
    return np.argwhere(mask) @ affine[:3, :3].T + affine[:3, 3]
