"""`medseg adapt` as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from medseg.cli import app
from tests.engines.test_bundle_adaptation import write_scans
from tests.factories import make_tiny_bundle

SMALL = ["--epochs", "2", "--learning-rate", "0.01", "--batch-size", "2", "--crops", "1", "--device", "cpu"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    return make_tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture(scope="module")
def scans(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("scans")
    write_scans(folder, count=2)
    return folder


def _medseg(bundle: Path, scans: Path, output: Path, *more: object):
    arguments = ["--bundle", bundle, "--images", f"{scans}/*.nii.gz", "-o", output, *SMALL, *more]
    return CliRunner().invoke(app, ["adapt", *map(str, arguments)])


def test_volumes_adapt_a_bundle_and_ratios_are_printed_before_and_after(bundle, scans, tmp_path):
    result = _medseg(bundle, scans, tmp_path / "new", "--volumes-mm3", "ball=576,2=345")
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["class", "expected", "soft", "before", "after", "hard", "before", "after"]
    assert [line.split()[:3] for line in lines[1:3]] == [["1", "ball", "0.1000"], ["2", "shell", "0.0599"]]
    assert lines[-1] == str(tmp_path / "new")
    assert [line.split(",")[0] for line in result.stderr.splitlines()[:2]] == ["epoch 1/2", "epoch 2/2"]
    assert "Warning: the network has no batch normalisation" in result.stderr
    again = _medseg(bundle, scans, tmp_path / "new", "--volumes-mm3", "ball=576,2=345")
    assert again.exit_code == 2
    assert "--resume" in again.stderr


def test_a_table_gives_ratios_and_json_a_line_an_epoch(bundle, scans, tmp_path):
    table = tmp_path / "prior.csv"
    table.write_text("image_id,class_0,class_1,class_2,tag_2\nscan_0,,0.1,0.06,yes\n*,,0.1,0.06,no\n")
    result = _medseg(bundle, scans, tmp_path / "new", "--prior", table, "--json", "--quiet")
    assert result.exit_code == 0, result.stderr
    assert result.stderr == ""
    first, second, last = map(json.loads, result.stdout.splitlines())
    assert (first["epoch"], second["epoch"]) == (1, 2)
    assert last["bundle"] == str(tmp_path / "new")
    assert last["after"]["expected_ratio"] == pytest.approx([0.87, 0.10, 0.03])
    assert not any("no tags" in text for text in last["notes"])


@pytest.mark.parametrize(
    ("more", "code", "match"),
    [
        ([], 2, "give either --prior CSV or --volumes-mm3"),
        (["--prior", "no.csv"], 2, "no.csv does not exist"),
        (["--volumes-mm3", "liver=1500000"], 2, "'liver=1500000' is not NAME=MM3 of a label"),
        (["--volumes-mm3", "ball=500"], 2, r"must name the classes 1 to 2, got [1]"),
        (["--volumes-mm3", "ball=90000,shell=500"], 4, "more than there is; check the unit (mm3)"),
        (["--volumes-mm3", "ball=5,shell=5", "--learning-rate", "2"], 2, "learning_rate must be in (0, 1)"),
        (["--volumes-mm3", "ball=5,shell=5", "--method", "batch_norm"], 4, "has nothing to adapt"),
        (["--volumes-mm3", "ball=5,shell=5", "--device", "cuda:9"], 3, "CUDA devices are present"),
        (["--volumes-mm3", "ball=5,shell=5", "--images", "none.nii.gz"], 4, "none.nii.gz"),
    ],
)
def test_errors_have_documented_exit_codes_and_leave_nothing(bundle, scans, tmp_path, more, code, match):
    result = _medseg(bundle, scans, tmp_path / "new", *more)
    assert result.exit_code == code, result.stderr
    assert match in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "new").exists()


def test_a_bad_table_is_bad_input_and_an_unknown_bundle_a_usage_error(bundle, scans, tmp_path):
    table = tmp_path / "prior.csv"
    table.write_text("image_id,class_0,class_1,class_2\nscan_0,0.9,0.2,0.1\n")
    result = _medseg(bundle, scans, tmp_path / "new", "--prior", table)
    assert result.exit_code == 4
    assert "must sum to 1 as ratios, got a sum of 1.2" in result.stderr
    table.write_text("image_id,class_0,class_1\n*,0.9,0.1\n")
    assert "but the network gives 3" in _medseg(bundle, scans, tmp_path / "new", "--prior", table).stderr
    result = _medseg(tmp_path / "no_bundle", scans, tmp_path / "new", "--volumes-mm3", "ball=5,shell=5")
    assert result.exit_code == 2
