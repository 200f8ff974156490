"""`medseg evaluate`: tables, JSON, files and exit codes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from medseg.cli.evaluate import evaluate

SHAPE = (9, 8, 7)


@pytest.fixture
def run():
    app = typer.Typer()
    app.command()(evaluate)
    return lambda *args: CliRunner(env={"COLUMNS": "80", "NO_COLOR": "1"}).invoke(app, [str(a) for a in args])


@pytest.fixture
def folders(make_nifti, tmp_path):
    """Three cases of two boxes; in `c` the prediction lacks label 2."""
    ref = np.zeros(SHAPE, np.uint8)
    ref[1:4, 1:4, 1:4], ref[5:8, 4:7, 2:5] = 1, 2
    for case in "abc":
        make_nifti(f"ref/{case}.nii.gz", ref)
        make_nifti(f"pred/{case}_seg.nii.gz", np.where(ref == 2, 0, ref) if case == "c" else ref)
    return tmp_path / "pred", tmp_path / "ref"


def test_a_table_on_stdout_fits_80_columns_and_names_labels(run, folders):
    result = run(*folders, "--names", "1=head,2=body")
    assert result.exit_code == 0, result.stderr
    assert "1 head" in result.stdout
    assert "95 % CI" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert result.stdout.rstrip().splitlines()[-1].split() == ["2", "body", "2", "1", "0", "0"]
    assert result.stderr == ""


def test_long_names_are_not_cut(run, folders):
    name = "a_very_long_name_of_a_structure_" * 4
    assert name in run(*folders, "--names", f"1={name}").stdout


def test_json_on_stdout_is_one_object(run, folders):
    result = run(*folders, "--json", "--labels", "1")
    summary = json.loads(result.stdout)
    assert list(summary["mean"]) == ["1"]
    assert summary["mean"]["1"]["Dice"] == 1.0


def test_results_are_written_and_not_overwritten_unasked(run, folders, tmp_path):
    target = tmp_path / "m.json"
    assert run(*folders, "-o", target).exit_code == 0
    assert json.loads(target.read_text())["counts"]["2"]["missed"] == 1
    again = run(*folders, "-o", target)
    assert again.exit_code == 2
    assert "--overwrite" in again.stderr
    assert run(*folders, "-o", target, "--overwrite").exit_code == 0
    assert run(*folders, "-o", tmp_path / "m.csv").exit_code == 0


def test_two_folders_are_compared(run, folders, tmp_path):
    result = run(*folders, "--compare", folders[1], "-o", tmp_path / "c.json")
    assert result.exit_code == 0, result.stderr
    assert "PRED2" in result.stdout
    assert "Wilcoxon" in result.stdout
    content = json.loads((tmp_path / "c.json").read_text())
    assert content["comparison"]["2"]["Dice"]["mean_difference"] == pytest.approx(-1 / 3)


def test_a_failed_case_gives_exit_code_1_and_its_reason(run, folders):
    (folders[0] / "a_seg.nii.gz").write_bytes(b"nothing")
    result = run(*folders)
    assert result.exit_code == 1
    assert "a was not evaluated" in result.stderr
    assert "2 cases" in result.stdout


def test_when_nothing_matches_the_error_says_why(run, folders, make_nifti, tmp_path):
    make_nifti("other/x.nii.gz", np.ones(SHAPE, np.uint8))
    result = run(tmp_path / "other", folders[1])
    assert result.exit_code == 4
    assert "cases are x against a, b, c" in result.stderr
    assert "Traceback" not in result.stderr
    assert run(tmp_path / "absent", folders[1]).exit_code == 4


def test_missing_and_surplus_predictions_are_told(run, folders):
    (folders[0] / "a_seg.nii.gz").rename(folders[0] / "z_seg.nii.gz")
    stopped = run(*folders)
    assert stopped.exit_code == 4
    assert "1 of 3 references have no prediction" in stopped.stderr
    result = run(*folders, "--missing", "skip")
    assert result.exit_code == 0
    assert "no prediction, left out" in result.stderr
    assert "no reference for" in result.stderr
    assert run(*folders, "--missing", "empty", "-q").stderr == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--empty", "missed=bad"], "--empty"),
        (["--labels", "liver"], "neither a label id nor a known name"),
        (["--labels", "0"], "background"),
        (["--names", "head"], "1=head,2=body"),
        (["--missing", "ignore"], "error, skip, empty"),
        (["-o", "metrics.txt"], ".json or .csv"),
        (["--bundle", "no_such_bundle"], "no_such_bundle"),
        (["--preview", "pictures"], "give --topology"),
    ],
)
def test_wrong_options_are_usage_errors(run, folders, options, message):
    result = run(*folders, *options)
    assert result.exit_code == 2
    assert message in result.stderr


def test_labels_may_be_given_by_name(run, folders):
    result = run(*folders, "--names", "1=head,2=body", "--labels", "body", "--json")
    assert list(json.loads(result.stdout)["label_names"]) == ["2"]


def test_topology_is_counted_and_drawn_when_asked(run, folders, tmp_path):
    result = run(*folders, "--topology", "--preview", tmp_path / "pictures", "-o", tmp_path / "m.json")
    assert result.exit_code == 0, result.stderr
    assert "unmatched" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert json.loads((tmp_path / "m.json").read_text())["mean"]["2"]["BettiMatchingError"] == pytest.approx(1 / 3)
    assert len(list((tmp_path / "pictures").glob("*.png"))) == 6


def test_help_explains_empty_masks(run):
    result = run("--help")
    assert result.exit_code == 0
    assert "missed" in result.stdout
