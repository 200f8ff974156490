"""The comparison with nnU-Net's command: what it computes and writes, not how fast anything is."""

from __future__ import annotations

import importlib
from argparse import Namespace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from nibabel.nifti1 import Nifti1Image

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def bench(monkeypatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("nnunet")


def write_mask(path: Path, labels: np.ndarray, shift: float = 0.0) -> Path:
    affine = np.eye(4)
    affine[0, 3] = shift
    Nifti1Image(labels.astype(np.uint8), affine).to_filename(path)
    return path


def test_masks_are_compared_label_by_label(bench, tmp_path):
    labels = np.zeros((4, 5, 6))
    labels[:2], labels[2] = 1, 2
    other = labels.copy()
    other[2, 0, 0] = 0
    found = bench.compare_masks(write_mask(tmp_path / "a.nii", labels), write_mask(tmp_path / "b.nii", other, 0.5))
    assert found["dice"] == pytest.approx({"1": 1.0, "2": 58 / 59})
    assert (found["differing"], found["voxels"], found["affine"]) == (1, 120, 0.5)
    assert found["types"] == ["uint8", "uint8"]
    other[3, 0, 0] = 3
    found = bench.compare_masks(tmp_path / "a.nii", write_mask(tmp_path / "b.nii", other))
    assert found["dice"]["3"] == 0  # a label that nobody but us finds
    with pytest.raises(ValueError, match=r"has shape \(4, 5, 6\), .* has \(4, 5, 5\)"):
        bench.compare_masks(tmp_path / "a.nii", write_mask(tmp_path / "c.nii", labels[..., 1:]))


def test_a_further_scan_costs_the_difference_of_two_runs(bench):
    def run(seconds: float) -> dict[str, float]:
        return {"wall": seconds, "processor": 2 * seconds, "peak": 1e9}

    runs = {
        "nnunet": {"one": [run(10.0)], "all": [run(18.0)]},
        "medseg": {"one": [run(9.0), run(9.5), run(7.0)], "all": [run(11.0), run(90.0), run(10.0)]},
    }
    scan = {"dice": {"1": 0.9995, "2": 1.0}, "differing": 3, "voxels": 100, "affine": 0.0, "types": ["uint8"] * 2}
    setting = {"mirror": True, "first": run(12.0), "runs": runs, "scans": dict.fromkeys("abcde", scan)}
    row = bench.summarise(setting, "0,1")
    assert (row["nnunet_wall_scan"], row["medseg_wall_scan"]) == (2.0, 0.5)
    assert (row["lowest_dice"], row["differing"], row["voxels"]) == (0.9995, 15, 500)
    table = bench.markdown_tables([row])
    assert "| 0,1 | yes | 5 | a further scan | 2.00 | 0.50 | 0.25 |" in table
    assert "| 0,1 | yes | 5 | 0.99950 | 15 of 500 | 0e+00 |" in table


def test_masks_without_any_label_leave_a_table(bench):
    run = {"wall": 1.0, "processor": 1.0, "peak": 1.0}
    runs = {name: {"one": [run], "all": [run | {"wall": 2.0, "processor": 2.0}]} for name in bench.COMMANDS}
    scan = {"dice": {}, "differing": 0, "voxels": 10, "affine": 0.0, "types": ["uint8"] * 2}
    setting = {"mirror": False, "first": run, "runs": runs, "scans": dict.fromkeys("ab", scan)}
    assert "| 0 | no | 2 | no label | 0 of 20 | 0e+00 |" in bench.markdown_tables([bench.summarise(setting, "0")])


def test_both_commands_get_the_same_model_folds_and_mirroring(bench):
    options = Namespace(model=Path("M"), folds="0,1", workers=1, engine="auto")
    for mirror in (False, True):
        theirs, ours = (make(options, Path("in"), Path("out"), mirror=mirror) for make in bench.COMMANDS.values())
        assert ("--disable_tta" not in theirs, ours[-1] == "auto") == (mirror, mirror)
        assert [theirs[theirs.index("-f") + n] for n in (1, 2)] == ["0", "1"]
        assert ours[ours.index("--folds") + 1] == "0,1"


def test_two_scans_are_needed(bench, tmp_path):
    with pytest.raises(SystemExit, match=r"has 0 files \*_0000.nii.gz; at least 2 are needed"):
        bench.main([str(tmp_path), str(tmp_path)])
    for name in "ab":
        (tmp_path / f"{name}_0000.nii.gz").touch()
    with pytest.raises(SystemExit, match="--cases must be at least 2, got 1"):
        bench.main([str(tmp_path), str(tmp_path), "--cases", "1"])
