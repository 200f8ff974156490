"""Reading zone labels in the layout of PROSTATEx, on phantoms: both kinds of files, and zones that were mixed up."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from medseg.data import (
    VolumeError,
    convert_prostatex_zones,
    find_prostatex_cases,
    load_datalist,
    make_zone_phantom,
    read_mask,
    read_prostatex_label,
)
from medseg.data.phantoms import write_nifti
from medseg.data.zone_phantom import PROSTATE_ZONES

AFFINE = np.diag([-1.5, -1.5, 4.0, 1.0])  # stored left to right and front to back, as scanners do
MAP = {"PZ": 1, "TZ": 2, "AFS": 3, "DPU": 4}
SWAPPED = MAP | {"AFS": 4, "DPU": 3}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Two cases: one with a label map, one with a file a segment; AFS is 3 and DPU is 4."""
    for index, name in enumerate(("ProstateX-0004", "ProstateX-0011")):
        phantom = make_zone_phantom((40, 40, 12), spacing=(1.5, 1.5, 4.0), seed=index)
        image, label = (np.flip(a, (0, 1)).copy() for a in (phantom.image, phantom.label))
        stored = np.array([0, 1, 2, 4, 3], np.uint8)[label]
        write_nifti(tmp_path / "images" / f"{name}.nii.gz", image, AFFINE)
        if index == 0:
            write_nifti(tmp_path / "labels" / f"{name}.nii.gz", stored, AFFINE)
        else:
            for number in range(1, 5):
                write_nifti(
                    tmp_path / "labels" / f"{name}-{number}.nii.gz", (stored == number).astype(np.uint8), AFFINE
                )
    return tmp_path


def test_both_kinds_of_files_become_a_training_folder_with_our_labels(source, tmp_path):
    folder = convert_prostatex_zones(source, tmp_path / "out", MAP)
    samples = load_datalist(str(folder))
    assert [s["sample_id"] for s in samples] == ["ProstateX-0004", "ProstateX-0011"]
    for index, sample in enumerate(samples):
        expected = make_zone_phantom((40, 40, 12), spacing=(1.5, 1.5, 4.0), seed=index).label
        assert np.array_equal(np.flip(read_mask(sample["label"]).array, (0, 1)), expected)


@pytest.mark.parametrize("case", ["ProstateX-0004", "ProstateX-0011"])
def test_zones_that_were_mixed_up_are_noticed(source, case):
    files = find_prostatex_cases(source)[case][1]
    with pytest.raises(ValueError, match="label_map may mix up DPU and AFS"):
        read_prostatex_label(files, SWAPPED)
    labels, _ = read_prostatex_label(files, SWAPPED, check=False)
    assert sorted(np.unique(labels)) == [0, 1, 2, 3, 4]


def test_a_conversion_names_the_case_that_cannot_be_used(source, tmp_path):
    with pytest.raises(ValueError, match=r"case ProstateX-0004: .*DPU is wider than AFS"):
        convert_prostatex_zones(source, tmp_path / "out", SWAPPED)
    assert not list((tmp_path / "out").rglob("*.nii.gz"))


def test_a_map_must_name_the_four_zones_and_all_numbers(source):
    files = find_prostatex_cases(source)["ProstateX-0004"][1]
    for wrong in ({"PZ": 1, "TZ": 2}, MAP | {"DPU": 3}):
        with pytest.raises(ValueError, match=f"label_map must give {', '.join(PROSTATE_ZONES)} different numbers"):
            read_prostatex_label(files, wrong)
    with pytest.raises(ValueError, match=r"holds the numbers \[4\], which label_map"):
        read_prostatex_label(files, MAP | {"DPU": 9})


def test_overlapping_segments_are_refused(source):
    files = find_prostatex_cases(source)["ProstateX-0011"][1]
    with pytest.raises(VolumeError, match="overlaps another segment"):
        read_prostatex_label({**files, 2: files[1]}, MAP)


def test_folders_and_cases_that_are_incomplete_are_named(source):
    with pytest.raises(FileNotFoundError, match=r"images is not there; expected images/ and labels/"):
        find_prostatex_cases(source / "images")
    write_nifti(source / "labels" / "ProstateX-0004-1.nii.gz", np.zeros((4, 4, 4), np.uint8), AFFINE)
    with pytest.raises(ValueError, match="case ProstateX-0004 has a label map and single segments"):
        find_prostatex_cases(source)
    (source / "labels" / "ProstateX-0004-1.nii.gz").unlink()
    (source / "labels" / "ProstateX-0004.nii.gz").unlink()
    with pytest.raises(ValueError, match="case ProstateX-0004 has no label"):
        find_prostatex_cases(source)
