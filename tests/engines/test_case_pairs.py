"""Which prediction belongs to which reference."""

from __future__ import annotations

from pathlib import Path

import pytest

from medseg.engines.case_pairs import case_id, match_cases


@pytest.fixture
def touch(tmp_path):
    def make(*names: str) -> None:
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"")

    return make


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("case_01.nii.gz", "case_01"),
        ("case_01_seg.nii", "case_01"),
        ("sub-01_ses-2_dseg.nii.gz", "sub-01_ses-2"),
        ("sub-01_desc-medseg_dseg.nii.gz", "sub-01"),
        ("segment_3.nii.gz", "segment_3"),
    ],
)
def test_case_ids_drop_ending_and_suffix(name, expected):
    assert case_id(Path(name)) == expected


def test_folders_are_paired_by_case_and_surplus_is_given_back(tmp_path, touch):
    touch("p/a_seg.nii.gz", "p/c_seg.nii.gz", "p/a_probabilities.nii.gz", "p/a_seg.json", "p/.hidden.nii")
    touch("r/a.nii.gz", "r/b.nii")
    pairs, surplus = match_cases(tmp_path / "p", tmp_path / "r")
    assert [(p.case, p.prediction and p.prediction.name) for p in pairs] == [("a", "a_seg.nii.gz"), ("b", None)]
    assert [path.name for path in surplus] == ["c_seg.nii.gz"]


def test_folders_below_are_searched_where_a_folder_holds_no_mask_itself(tmp_path, touch):
    touch("p/sub-01/anat/sub-01_desc-medseg_dseg.nii.gz", "r/sub-01_dseg.nii.gz")
    ((pair,), _) = match_cases(tmp_path / "p", tmp_path / "r")
    assert pair.prediction is not None


def test_two_files_are_paired_whatever_their_names(tmp_path, touch):
    touch("x.nii.gz", "y_seg.nii")
    pairs, _ = match_cases(tmp_path / "x.nii.gz", tmp_path / "y_seg.nii")
    assert [pair.case for pair in pairs] == ["y"]


def test_what_cannot_be_paired_is_named(tmp_path, touch):
    touch("p/a_seg.nii.gz", "r/b.nii.gz", "twice/a.nii", "twice/a_seg.nii", "none/readme.txt")
    with pytest.raises(ValueError, match=r"no file in .* belongs to one in .*: cases are a against b"):
        match_cases(tmp_path / "p", tmp_path / "r")
    with pytest.raises(ValueError, match="both the case 'a'"):
        match_cases(tmp_path / "twice", tmp_path / "r")
    with pytest.raises(ValueError, match="holds no mask"):
        match_cases(tmp_path / "none", tmp_path / "r")
    with pytest.raises(ValueError, match="two files or two folders"):
        match_cases(tmp_path / "p", tmp_path / "r" / "b.nii.gz")
    with pytest.raises(FileNotFoundError, match="REF"):
        match_cases(tmp_path / "p", tmp_path / "absent")
