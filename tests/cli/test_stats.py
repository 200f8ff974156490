"""Tests of `medseg stats`."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
from typer.testing import CliRunner

from medseg.cli import app
from tests.factories import make_tiny_bundle


@pytest.fixture
def mask(tmp_path: Path) -> Path:
    labels = np.zeros((6, 7, 8), np.uint8)
    labels[1:3, 1:3, 1:3] = 1
    labels[4, 4, 4] = 2
    return save(tmp_path / "case_seg.nii.gz", labels)


def save(path: Path, array: np.ndarray, shift: float = 0.0) -> Path:
    affine = np.diag([2.0, 1.0, 1.0, 1.0])
    affine[0, 3] = shift
    nibabel.save(nibabel.Nifti1Image(array, affine), path)
    return path


def run(*arguments: object):
    return CliRunner().invoke(app, ["stats", *map(str, arguments)])


def test_a_table_with_a_row_a_label_goes_to_stdout(mask):
    result = run(mask, "--names", "1=ball, 3=lost")
    assert result.exit_code == 0, result.stderr
    heading, ball, other, lost = result.stdout.splitlines()
    assert heading.split()[:3] == ["label", "name", "voxels"]
    assert ball.split()[:5] == ["1", "ball", "8", "16.0", "0.016"]
    assert other.split()[:3] == ["2", "label_2", "1"]
    assert lost.split()[:3] == ["3", "lost", "0"]


def test_json_holds_case_labels_and_intensities(mask, tmp_path):
    image = save(tmp_path / "image.nii.gz", np.full((6, 7, 8), 5, np.int16))
    result = run(mask, "--image", image, "--json")
    content = json.loads(result.stdout)
    assert content["case"] == "case_seg"
    assert [row["intensity_mean"] for row in content["labels"]] == [5.0, 5.0]


def test_names_come_from_a_bundle(mask, tmp_path):
    bundle = make_tiny_bundle(tmp_path / "tiny")
    rows = json.loads(run(mask, "--bundle", bundle, "--json").stdout)["labels"]
    assert [row["name"] for row in rows] == ["ball", "shell"]


@pytest.mark.parametrize("ending", ["json", "csv"])
def test_an_output_is_written_and_not_replaced_unasked(mask, tmp_path, ending):
    output = tmp_path / f"out.{ending}"
    assert run(mask, "-o", output).exit_code == 0
    text = output.read_text()
    rows = json.loads(text)["cases"][0]["labels"] if ending == "json" else list(csv.DictReader(text.splitlines()))
    assert len(rows) == 2
    again = run(mask, "-o", output)
    assert again.exit_code == 2
    assert "use --overwrite" in again.stderr
    assert run(mask, "-o", output, "--overwrite").exit_code == 0


def test_an_empty_mask_is_no_failure(tmp_path):
    result = run(save(tmp_path / "empty.nii.gz", np.zeros((4, 4, 4), np.uint8)))
    assert (result.exit_code, result.stdout) == (0, "")
    assert "no label found" in result.stderr


def test_an_image_on_another_grid_is_bad_input(mask, tmp_path):
    image = save(tmp_path / "image.nii.gz", np.zeros((6, 7, 8), np.int16), shift=5.0)
    result = run(mask, "--image", image)
    assert result.exit_code == 4
    assert "image.nii.gz" in result.stderr


@pytest.mark.parametrize(
    "arguments", [["--names", "head"], ["--names", "1=a,1=b"], ["-o", "x.txt"], ["--bundle", "no_such_bundle"]]
)
def test_a_usage_error_leaves_with_2_and_without_traceback(mask, arguments):
    result = run(mask, *arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: ")
    assert "Traceback" not in result.stderr


def test_a_missing_file_is_bad_input(tmp_path):
    result = run(tmp_path / "none.nii.gz")
    assert result.exit_code == 4
    assert "none.nii.gz" in result.stderr
