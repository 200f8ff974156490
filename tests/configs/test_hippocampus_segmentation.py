"""The shipped bundle under MONAI's own commands, without medseg's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medseg.data import list_images, write_phantom_dataset

ROOT = Path(__file__).parents[2]
BUNDLE = ROOT / "configs" / "hippocampus_segmentation"


def _config(name: str) -> dict:
    return json.loads((BUNDLE / "configs" / f"{name}.json").read_text())


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_phantom_dataset(folder, layout="plain", cases=5, seed=0)
    return folder


def _monai_bundle(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "ignore", "-m", "monai.bundle", "run", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=BUNDLE, env=environment, capture_output=True, text=True, check=False)


def test_the_same_network_and_preparation_stand_in_both_configs():
    train, inference = _config("train"), _config("inference")
    assert train["network_def"] == inference["network_def"]
    of_image = [t | {"keys": "image"} for t in train["deterministic_transforms"]]
    for expected, got in zip(of_image, inference["preprocessing"]["transforms"], strict=True):
        assert expected["_target_"] == got["_target_"]
        assert all(got[key] == expected[key] for key in ("axcodes", "pixdim") if key in expected)


def test_weights_are_small_flat_and_plain():
    torch = pytest.importorskip("torch")
    path = BUNDLE / "models" / "model.pt"
    assert path.stat().st_size < 10_000_000
    state = torch.load(path, weights_only=True)
    assert all(type(v) is torch.Tensor and v.dtype == torch.float32 for v in state.values())


def test_monai_runs_the_inference_config(data, tmp_path):
    done = _monai_bundle(
        "--config_file", "configs/inference.json", "--bundle_root", BUNDLE, "--dataset_dir", data,
        "--output_dir", tmp_path / "out",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    images = list_images(str(data))
    assert len(list((tmp_path / "out").glob("*_seg.nii.gz"))) == len(images)
    source = nib.load(images[0]["image"])
    mask = nib.load(tmp_path / "out" / f"{images[0]['sample_id']}_seg.nii.gz")
    assert mask.shape == source.shape
    assert np.allclose(mask.affine, source.affine)


def test_monai_runs_the_train_and_the_evaluate_config(data, tmp_path):
    small = [
        "--dataset_dir", data, "--output_dir", tmp_path / "run", "--network_def::outline::filters", "[4,4,8,8]",
        "--patch_size", "[16,16,16]",
    ]  # fmt: skip
    done = _monai_bundle(
        "--config_file", "configs/train.json", "--bundle_root", BUNDLE, "--max_epochs", 1, "--val_interval", 1,
        *small,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    weights = tmp_path / "run" / "models" / "model.pt"
    assert weights.is_file()
    done = _monai_bundle(
        "--config_file", "['configs/train.json','configs/evaluate.json']", "--bundle_root", BUNDLE,
        "--ckpt_path", weights, *small,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "run" / "evaluate" / "metrics.csv").is_file()


def test_the_script_measures_borders_between_head_and_body(tmp_path):
    """Outlines of equal length; one border is right, the other two slices too far in front."""
    for folder in ("predictions", "labels"):
        (tmp_path / folder).mkdir()
    for name, border, found in (("a", 17, 17), ("b", 21, 23)):
        for path, at in ((f"labels/{name}.nii.gz", border), (f"predictions/{name}_seg.nii.gz", found)):
            mask = np.zeros((12, 40, 12), np.uint8)
            mask[3:9, 5:35, 3:9] = 2
            mask[3:9, at:35, 3:9] = 1
            mask[5, 7, 5] = 1  # astray, behind the border
            nib.save(nib.Nifti1Image(mask, np.eye(4)), tmp_path / path)
    command = [sys.executable, BUNDLE / "scripts" / "border_error.py", tmp_path / "predictions", tmp_path / "labels"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert lines == [
        "2 cases, Dice of the whole outline 1.0000",
        "border to that of the label: 1.00 slices, +1.00 to the front",
        "by the same share of every length: 2.00 slices",
    ]
