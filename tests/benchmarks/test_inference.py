"""The comparison of inference with its peers: what it writes, not how fast anything is."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import nibabel as nib
import numpy as np
import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def results(monkeypatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("inference_results")


def _save(path: Path, labels: np.ndarray) -> Path:
    nib.save(nib.Nifti1Image(labels.astype(np.uint8), np.eye(4)), path)
    return path


def _run(contender: str, number: int, seconds: float, peak: int) -> dict:
    parts = {"prepare": 0.5, "windows": seconds - 1, "back": 0.5}
    return {
        "contender": contender,
        "round": number,
        "seconds": seconds,
        "wall": seconds + 5,
        "peak_bytes": peak,
        "parts": parts,
    }


def test_equal_masks_agree_fully(results, tmp_path):
    labels = np.random.default_rng(0).integers(0, 3, (6, 5, 4))
    found = results.compare_masks(_save(tmp_path / "a.nii", labels), _save(tmp_path / "b.nii", labels), None, 4)
    assert set(found["dice"]) == {"0", "1", "2"}
    assert found["dice_min"] == found["dice_mean"] == 1
    assert found["different"] == 0
    assert found["near_ties_of_different"] is None


def test_differing_voxels_are_told_apart_by_their_margin(results, tmp_path):
    reference = np.zeros((4, 4, 4), int)
    reference[:2] = 1
    mask = reference.copy()
    mask[0, 0, 0] = mask[0, 0, 1] = 0
    margin = np.ones(mask.shape, np.float16)
    margin[0, 0, 0] = 1e-4
    np.save(tmp_path / "margin.npy", margin)
    masks = _save(tmp_path / "a.nii", mask), _save(tmp_path / "b.nii", reference)
    found = results.compare_masks(*masks, tmp_path / "margin.npy", 2)
    assert found["dice"] == pytest.approx({"0": 2 * 32 / 66, "1": 2 * 30 / 62})
    assert found["different"] == pytest.approx(2 / 64)
    assert found["near_ties_of_different"] == pytest.approx(0.5)


def test_masks_on_different_grids_are_refused(results, tmp_path):
    masks = _save(tmp_path / "a.nii", np.zeros((2, 2, 2))), _save(tmp_path / "b.nii", np.zeros((2, 2, 3)))
    with pytest.raises(ValueError, match=r"has the shape \(2, 2, 2\)"):
        results.compare_masks(*masks, None, 2)


def test_the_first_round_does_not_enter_the_medians(results):
    runs = [_run("monai", 0, 100.0, 4), _run("monai", 1, 10.0, 4), _run("monai", 2, 14.0, 4), _run("monai", 3, 12.0, 4)]
    runs += [_run("medseg", number, seconds, 2) for number, seconds in enumerate((50.0, 3.0, 4.0, 3.0))]
    monai, medseg = results.summarise(runs)
    assert (monai["seconds"], monai["runs"], monai["first"]["seconds"]) == (12.0, 3, 100.0)
    assert medseg["ratios"]["monai"]["seconds"] == pytest.approx(0.25)
    assert medseg["ratios"]["monai"]["peak_bytes"] == pytest.approx(0.5)
    assert "nnunet" not in medseg["ratios"]


def test_a_single_round_is_its_own_median(results):
    (row,) = results.summarise([_run("monai", 0, 10.0, 4)])
    assert (row["seconds"], row["warm"]) == (10.0, False)


def test_a_missing_contender_stands_below_the_table_with_its_reason(results):
    summary = results.summarise([_run("monai", 0, 10.0, 4)])
    network = {"summary": summary, "not_run": {"nnunet": "nnunetv2 is not installed"}}
    assert "dynunet, nnunet: not run (nnunetv2 is not installed)" in results.markdown_table({"dynunet": network})


def _compare(folder: Path, *arguments: str) -> dict:
    command = [sys.executable, "-W", "ignore", "benchmarks/inference.py", "--case", "tiny", "--networks", "dynunet"]
    command += ["--repeats", "1", *arguments, "-o", str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = folder.glob("inference-tiny*.json")
    assert path.with_suffix(".md").is_file()
    assert path.with_suffix(".png").is_file() == (find_spec("matplotlib") is not None)
    return json.loads(path.read_text())


@pytest.mark.slow
def test_a_tiny_comparison_gives_times_memory_and_equal_masks(tmp_path):
    content = _compare(tmp_path, "--contenders", "monai", "medseg:torch:fp32")
    assert content["machine"]["packages"]["monai"]
    result = content["networks"]["dynunet"]
    assert result["not_run"] == {}
    monai, medseg = result["summary"]
    assert set(monai["parts"]) == {"prepare", "windows", "back"}
    assert sum(monai["parts"].values()) == pytest.approx(monai["seconds"])
    for row in (monai, medseg):
        assert 0 < row["seconds"] < row["wall"]
        assert row["peak_bytes"] > 1e8
    found = medseg["agreement"]["monai"]
    assert len(found["dice"]) == content["settings"]["classes"]
    assert found["dice_min"] > 0.999


@pytest.mark.slow
@pytest.mark.nnunet
@pytest.mark.skipif(find_spec("nnunetv2") is None, reason="needs nnunetv2")
def test_nnunet_and_monai_agree_where_nothing_is_resampled_and_windows_are_blended_alike(tmp_path):
    content = _compare(tmp_path, "--equal-grid", "--contenders", "monai:nnunet-weights", "nnunet")
    _, nnunet = content["networks"]["dynunet"]["summary"]
    # nnU-Net accumulates in float16, which the probabilities of random weights feel.
    assert nnunet["agreement"]["monai:nnunet-weights"]["dice_min"] > 0.99
