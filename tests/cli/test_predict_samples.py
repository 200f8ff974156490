"""`medseg predict --samples` as a user types it."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from typer.testing import CliRunner

from medseg.cli import app
from medseg.data import make_phantom
from tests.factories import make_tiny_bundle
from tests.sampling_bundle import make_sampling_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    return make_sampling_bundle(tmp_path_factory.mktemp("bundles") / "sampling")


@pytest.fixture
def scan(tmp_path) -> Path:
    image, _ = make_phantom(shape=(16, 18, 14), noise=0.02)
    nib.save(nib.Nifti1Image(image, np.diag([-1.0, 1.0, 1.0, 1.0])), tmp_path / "scan.nii.gz")
    return tmp_path / "scan.nii.gz"


def _medseg(*arguments: object):
    return CliRunner().invoke(app, ["predict", *map(str, arguments)])


def _contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.glob("*.nii.gz")}


def test_samples_maps_and_volumes_are_written_and_the_same_again(bundle, scan, tmp_path):
    outputs = []
    for name in ("one", "two"):
        out = tmp_path / name
        result = _medseg(
            scan, "-o", out, "--bundle", bundle, "--device", "cpu", "--samples", 4, "--seed", 2, "--save-uncertainty",
            "--save-samples", "--stats", out / "s.json",
        )  # fmt: skip
        assert result.exit_code == 0, result.stderr
        outputs.append((_contents(out), json.loads((out / "s.json").read_text())))
    assert outputs[0] == outputs[1]
    assert len(outputs[0][0]) == 8
    row = outputs[0][1]["cases"][0]["labels"][0]
    assert row["samples"] == 4
    assert row["volume_mm3_p5"] <= row["volume_mm3_p50"] <= row["volume_mm3_p95"]


def test_statistics_in_a_table_have_the_spread_in_columns(bundle, scan, tmp_path):
    result = _medseg(scan, "-o", tmp_path / "o", "--bundle", bundle, "--samples", 2, "--stats", tmp_path / "s.csv")
    assert result.exit_code == 0, result.stderr
    with (tmp_path / "s.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2
    assert float(rows[0]["volume_mm3_mean"]) >= 0
    assert sorted(_contents(tmp_path / "o")) == ["scan_seg.nii.gz"]


def test_a_bundle_that_cannot_sample_says_so(scan, tmp_path):
    bundle = make_tiny_bundle(tmp_path / "tiny")
    result = _medseg(scan, "-o", tmp_path / "out", "--bundle", bundle, "--device", "cpu", "--samples", 3)
    assert result.exit_code != 0
    assert "the network Conv3d cannot draw samples" in result.stderr
    assert "Traceback" not in result.stderr
    assert not _contents(tmp_path / "out")


def test_maps_of_samples_need_samples(bundle, scan, tmp_path):
    result = _medseg(scan, "-o", tmp_path / "out", "--bundle", bundle, "--save-uncertainty", "--save-samples")
    assert result.exit_code == 2
    assert "--save-uncertainty and --save-samples need --samples N" in result.stderr
