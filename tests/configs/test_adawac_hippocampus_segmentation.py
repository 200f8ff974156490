"""The bundle that trains with AdaWAC, under medseg's and MONAI's own commands."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from medseg.bundles import Bundle
from medseg.data import write_phantom_dataset
from medseg.engines import train_bundle

ROOT = Path(__file__).parents[2]
BUNDLE = ROOT / "configs" / "adawac_hippocampus_segmentation"
SMALL = {
    "network_def::filters": [4, 4, 8, 8],
    "patch_size": [8, 16, 16],
    "validate::inferer::roi_size": [8, 16, 16],
    "batch_size": 2,
    "val_interval": 2,
}


def _config(name: str) -> dict:
    return json.loads((BUNDLE / "configs" / f"{name}.json").read_text())


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_phantom_dataset(folder, layout="plain", cases=6, seed=0)
    return folder


@pytest.fixture(scope="module")
def whole_run(data, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    train_bundle(Bundle.load(BUNDLE), data, folder, device="cpu", overrides={**SMALL, "max_epochs": 2})
    return folder


def test_the_same_network_and_preparation_stand_in_both_configs():
    train, inference = _config("train"), _config("inference")
    assert train["network_def"] == inference["network_def"]
    assert train["patch_size"] == inference["inferer"]["inferer"]["roi_size"]
    of_image = [t | {"keys": "image"} for t in train["deterministic_transforms"]]
    for expected, got in zip(of_image, inference["preprocessing"]["transforms"], strict=True):
        assert expected["_target_"] == got["_target_"]
        assert all(got[key] == expected[key] for key in ("axcodes", "pixdim") if key in expected)


def test_training_leaves_weights_of_the_network_the_table_and_its_course(whole_run):
    state = torch.load(whole_run / "models" / "last.pt", weights_only=True)["objects"]
    weights = torch.load(whole_run / "models" / "model.pt", weights_only=True)
    assert set(weights) == set(state["network"])
    assert not any(name.startswith("model.") for name in weights)
    # 4 training cases in 8 bins; every case comes once an epoch.
    assert state["loss"]["weight_logits"].shape == (32,)
    assert state["loss"]["visits"].view(4, 8).sum(1).tolist() == [2, 2, 2, 2]
    assert state["loss"]["weight_logits"][state["loss"]["visits"] > 0].abs().min() > 0
    with (whole_run / "sample_weights" / "sample_weights.csv").open(newline="") as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2"]


def test_a_stopped_run_ends_with_the_same_network_and_table(data, whole_run, tmp_path):
    def stop(state) -> None:
        if (state.epoch, state.iteration) == (2, 1):
            raise KeyboardInterrupt

    settings = {**SMALL, "max_epochs": 2}
    bundle = Bundle.load(BUNDLE)
    with pytest.raises(KeyboardInterrupt):
        train_bundle(bundle, data, tmp_path / "run", device="cpu", overrides=settings, progress=stop)
    train_bundle(bundle, data, tmp_path / "run", device="cpu", overrides=settings, resume=True)
    expected, got = (
        torch.load(f / "models" / "last.pt", weights_only=True)["objects"] for f in (whole_run, tmp_path / "run")
    )
    for name in ("network", "ema", "loss"):
        assert all(torch.equal(expected[name][key], got[name][key]) for key in expected[name]), name


def test_a_run_is_not_resumed_with_other_files(data, whole_run, tmp_path):
    other = tmp_path / "other"
    write_phantom_dataset(other, layout="plain", cases=6, seed=0)
    for kind in ("images", "labels"):
        file = sorted((other / kind).iterdir())[0]
        file.rename(file.with_name(f"renamed_{file.name}"))
    before = (whole_run / "models" / "last.pt").read_bytes()
    with pytest.raises(ValueError, match="sample_names differ from those of the saved table"):
        train_bundle(
            Bundle.load(BUNDLE), other, whole_run, device="cpu", overrides={**SMALL, "max_epochs": 2}, resume=True
        )
    assert (whole_run / "models" / "last.pt").read_bytes() == before


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="gloo under torchrun is tested on POSIX systems")
def test_two_processes_train_one_network_with_one_table(data, tmp_path):
    overrides = [part for key, value in SMALL.items() for part in ("--set", f"{key}={value}")]
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "medseg", "train",
        "--bundle", str(BUNDLE), "--data", str(data), "-o", str(tmp_path / "run"), "--epochs", "2", *overrides,
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    state = torch.load(tmp_path / "run" / "models" / "last.pt", weights_only=True)
    assert (state["epoch"], state["iteration"]) == (2, 2)
    # 4 cases, two on each process; the table of the first process knows the visits of both.
    assert state["objects"]["loss"]["visits"].view(4, 8).sum(1).tolist() == [2, 2, 2, 2]


@pytest.mark.slow
@pytest.mark.timeout(900)  # two processes one after the other; the limit is for busy machines
def test_monai_runs_the_train_and_the_evaluate_config(data, tmp_path):
    small = [
        "--dataset_dir", data, "--output_dir", tmp_path / "run", "--network_def::filters", "[4,4,8,8]",
        "--patch_size", "[8,16,16]", "--batch_size", 2,
    ]  # fmt: skip

    def run(*arguments: object) -> None:
        command = [sys.executable, "-W", "ignore", "-m", "monai.bundle", "run", *map(str, (*arguments, *small))]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, cwd=BUNDLE, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]

    common = ("--bundle_root", BUNDLE)
    run("--config_file", "configs/train.json", *common, "--max_epochs", 1, "--val_interval", 1)
    weights = tmp_path / "run" / "models" / "model.pt"
    run("--config_file", "['configs/train.json','configs/evaluate.json']", *common, "--ckpt_path", weights)
    assert (tmp_path / "run" / "evaluate" / "metrics.csv").is_file()
