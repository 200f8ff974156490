"""Tests of `medseg.report.run_report`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from medseg.report import RunReport


def make_report() -> RunReport:
    report = RunReport(
        bundle="balls",
        bundle_version="1.0.0",
        weights_sha256="ab",
        device="cpu",
        precision="fp32",
        options={"overlap": np.float32(0.5), "b": [1], "a": Path("x")},
    )
    report.add_case(Path("a.nii.gz"), status="ok", output="a_seg.nii.gz", seconds=1.23456, notes=["resampled"])
    report.add_case(["b_0000.nii.gz", "b_0001.nii.gz"], status="failed", reason="truncated")
    report.add_case("c.nii.gz", status="skipped", reason="output exists")
    return report


def test_totals_count_cases_by_status():
    totals = make_report().to_dict()["totals"]
    assert [totals[k] for k in ("cases", "ok", "failed", "skipped")] == [3, 1, 1, 1]
    assert totals["peak_memory_mb"] > 0


def test_the_written_report_is_valid_json_with_keys_in_a_fixed_order(tmp_path):
    content = json.loads(make_report().write(tmp_path / "new" / "run.json").read_text())
    assert list(content) == [
        "software", "bundle", "device", "engine", "precision", "command", "options", "started", "cases", "totals",
    ]  # fmt: skip
    assert list(content["options"]) == ["a", "b", "overlap"]
    assert content["options"]["overlap"] == 0.5
    assert content["cases"][0] == {
        "input": "a.nii.gz",
        "output": "a_seg.nii.gz",
        "status": "ok",
        "seconds": 1.235,
        "notes": ["resampled"],
        "reason": None,
        "memory_plan": None,
    }
    assert content["cases"][1]["input"] == ["b_0000.nii.gz", "b_0001.nii.gz"]
    assert content["software"]["packages"]["numpy"] == np.__version__


def test_a_failed_case_needs_a_reason():
    with pytest.raises(ValueError, match=r"reason must say why the case is failed: a\.nii"):
        RunReport().add_case("a.nii", status="failed")


def test_an_unknown_status_is_refused():
    with pytest.raises(ValueError, match="status must be one of ok, failed, skipped, got 'done'"):
        RunReport().add_case("a.nii", status="done")
