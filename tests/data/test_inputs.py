"""From command-line inputs to cases, and from cases to output names."""

from __future__ import annotations

from pathlib import Path

import pytest

from medseg.data import Case, find_cases, name_outputs

TWO = ("T1w", "T2w")


def _touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def _ids(cases: list[Case]) -> list[str]:
    return [c.case_id for c in cases]


def test_a_file_is_a_case(tmp_path):
    _touch(tmp_path / "scan.nii.gz")
    assert find_cases([tmp_path / "scan.nii.gz"]) == [Case("scan", (tmp_path / "scan.nii.gz",))]


def test_a_folder_gives_its_volumes_sorted_and_ignores_the_rest(tmp_path):
    _touch(*(tmp_path / n for n in ("b.nii", "a.nii.gz", "notes.txt", ".hidden.nii", "sub/c.nii")))
    assert _ids(find_cases([tmp_path])) == ["a", "b"]


def test_an_empty_folder_is_an_error_that_says_where_files_are(tmp_path):
    with pytest.raises(ValueError, match=r"holds no \.nii or \.nii\.gz file; check"):
        find_cases([tmp_path])
    _touch(tmp_path / "sub" / "c.nii")
    with pytest.raises(ValueError, match="its sub-folders hold 1"):
        find_cases([tmp_path])


def test_patterns_are_expanded(tmp_path):
    _touch(tmp_path / "x1.nii", tmp_path / "x2.nii.gz", tmp_path / "y.nii")
    assert _ids(find_cases([str(tmp_path / "x*")])) == ["x1", "x2"]
    with pytest.raises(ValueError, match="matches no NIfTI file"):
        find_cases([str(tmp_path / "z*")])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.txt", "# comment\na.nii\nb.nii\n\n"),
        ("list.csv", "image\na.nii\nb.nii\n"),
        ("list.json", '["a.nii", {"image": "b.nii"}]'),
    ],
)
def test_lists_name_files_relative_to_themselves(tmp_path, name, text):
    _touch(tmp_path / "a.nii", tmp_path / "b.nii")
    (tmp_path / name).write_text(text)
    assert find_cases([tmp_path / name]) == [Case(n, (tmp_path / f"{n}.nii",)) for n in "ab"]


def test_lists_can_name_channels(tmp_path):
    _touch(tmp_path / "a.nii", tmp_path / "b.nii")
    (tmp_path / "l.csv").write_text("T2w,T1w\nb.nii,a.nii\n")
    assert find_cases([tmp_path / "l.csv"], channel_names=TWO)[0].images == (tmp_path / "a.nii", tmp_path / "b.nii")


@pytest.mark.parametrize(
    ("name", "text", "match"),
    [
        ("l.csv", "path\na.nii\n", "has the columns"),
        ("l.json", "{", "not valid JSON"),
        ("l.json", '{"a": 1}', "expected a JSON list"),
        ("l.json", "[3]", "expected a path"),
        ("l.txt", "", "names no file"),
        ("l.txt", "a.nii\tb.nii\n", "expected 1"),
    ],
)
def test_bad_lists_are_refused(tmp_path, name, text, match):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=match):
        find_cases([tmp_path / name])


def test_nnunet_channels_are_grouped(tmp_path):
    _touch(*(tmp_path / f"{c}_{i:04d}.nii.gz" for c in ("p1", "p2") for i in (0, 1)))
    cases = find_cases([tmp_path], channel_names=TWO)
    assert _ids(cases) == ["p1", "p2"]
    assert [p.name for p in cases[0].images] == ["p1_0000.nii.gz", "p1_0001.nii.gz"]
    assert find_cases([tmp_path / "p2_0000.nii.gz"], channel_names=TWO) == [cases[1]]


def test_a_missing_channel_is_named(tmp_path):
    _touch(tmp_path / "p1_0000.nii.gz")
    with pytest.raises(ValueError, match=r"case 'p1' has the channels \[0\]; the network takes 2"):
        find_cases([tmp_path], channel_names=TWO)


def test_equal_names_from_two_folders_are_refused(tmp_path):
    _touch(tmp_path / "a" / "x.nii", tmp_path / "b" / "x.nii.gz")
    with pytest.raises(ValueError, match="same output name 'x'"):
        find_cases([tmp_path / "a", tmp_path / "b"])


def test_no_input_is_refused():
    with pytest.raises(ValueError, match="no INPUT"):
        find_cases([])


@pytest.fixture
def bids(tmp_path) -> Path:
    _touch(
        tmp_path / "dataset_description.json",
        tmp_path / "sub-01" / "anat" / "sub-01_acq-mp_T1w.nii.gz",
        tmp_path / "sub-01" / "anat" / "sub-01_T2w.nii.gz",
        tmp_path / "sub-02" / "ses-a" / "anat" / "sub-02_ses-a_T1w.nii.gz",
    )
    return tmp_path


def test_bids_takes_the_images_the_bundle_was_made_for(bids):
    cases = find_cases([bids], channel_names=["T1w"])
    assert _ids(cases) == ["sub-01_acq-mp_T1w", "sub-02_ses-a_T1w"]
    assert cases[1].bids_folder == Path("sub-02/ses-a/anat")
    with pytest.raises(ValueError, match="no image with the suffix 'CT'"):
        find_cases([bids], channel_names=["CT"])


def test_bids_outputs_keep_the_entities_in_order(bids):
    case = find_cases([bids], channel_names=["T1w"])[0]
    names = name_outputs(case, Path("out"))
    folder = Path("out/derivatives/medseg/sub-01/anat")
    assert names.mask == folder / "sub-01_acq-mp_desc-medseg_dseg.nii.gz"
    assert names.sidecar == folder / "sub-01_acq-mp_desc-medseg_dseg.json"
    assert names.table == folder / "sub-01_acq-mp_desc-medseg_dseg.tsv"
    assert names.probabilities == folder / "sub-01_acq-mp_desc-medseg_probseg.nii.gz"
    assert names.split("left head").name == "sub-01_acq-mp_desc-medseg_label-lefthead_mask.nii.gz"
    assert names.map_of("entropy").name == "sub-01_acq-mp_desc-medseg_stat-entropy_probseg.nii.gz"
    assert names.sample(3).name == "sub-01_acq-mp_desc-medsegSample03_dseg.nii.gz"


def test_plain_outputs_are_named_after_the_case():
    names = name_outputs(Case("scan", (Path("scan.nii"),)), Path("out"))
    assert names.mask == Path("out/scan_seg.nii.gz")
    assert names.split("left head") == Path("out/scan_seg_left-head.nii.gz")
    assert names.probabilities == Path("out/scan_probabilities.nii.gz")


def test_a_single_output_file_keeps_the_name_given():
    names = name_outputs(Case("scan", (Path("scan.nii"),)), Path("x/mask.nii"))
    assert names.mask == Path("x/mask.nii")
    assert names.sidecar == Path("x/mask.json")
