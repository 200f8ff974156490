"""`medseg train` as a user types it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from medseg.cli import app
from medseg.data import write_phantom_dataset

ROOT = Path(__file__).parents[2]
SMALL = [
    "--set", "network_def::outline::filters=[4, 4, 8, 8]", "--set", "patch_size=[16, 16, 16]",
    "--set", "validate::inferer::roi_size=[24, 24, 24]", "--set", "val_interval=1",
]  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_phantom_dataset(folder, layout="nnunet", cases=10, seed=0)
    return folder


def _arguments(data: Path, output: Path, *more: str) -> list[str]:
    return ["train", "--bundle", "hippocampus_segmentation", "--data", str(data), "-o", str(output), *SMALL, *more]


def test_epochs_are_reported_a_line_each_and_the_folder_is_printed(data, tmp_path):
    result = CliRunner().invoke(app, _arguments(data, tmp_path / "run", "--epochs", "2", "--device", "cpu"))
    assert result.exit_code == 0, result.stderr
    assert result.stdout.split() == [str(tmp_path / "run")]
    assert [line.split(",")[0] for line in result.stderr.splitlines()] == ["epoch 1/2", "epoch 2/2"]
    again = CliRunner().invoke(app, _arguments(data, tmp_path / "run", "--epochs", "2"))
    assert again.exit_code == 2
    assert "--resume" in again.stderr


@pytest.mark.parametrize(
    ("more", "code", "match"),
    [
        (["--set", "learning_rate"], 2, "--set must look like ID=VALUE"),
        (["--device", "cuda:9"], 3, "CUDA devices are present"),
        (["--set", "learning_rate=1e30", "--epochs", "3"], 1, "Lower the learning rate"),
    ],
)
def test_errors_have_documented_exit_codes(data, tmp_path, more, code, match):
    result = CliRunner().invoke(app, _arguments(data, tmp_path / "run", *more))
    assert result.exit_code == code, result.stderr
    assert match in result.stderr
    assert "Traceback" not in result.stderr


def test_data_that_is_not_understood_exits_with_4(tmp_path):
    result = CliRunner().invoke(app, _arguments(tmp_path, tmp_path / "run"))
    assert result.exit_code == 4, result.stderr
    assert "is not understood" in result.stderr


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL is a POSIX signal")
def test_a_killed_run_resumes_to_the_same_weights(data, tmp_path):
    def arguments(output: Path, *more: str) -> list[str]:
        return _arguments(data, output, "--epochs", "6", "--device", "cpu", *more)

    command = [sys.executable, "-m", "medseg", *arguments(tmp_path / "killed")]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("epoch 1/6")
        process.kill()
    assert torch.load(tmp_path / "killed" / "models" / "last.pt", weights_only=True)["epoch"] < 6
    for folder, more in (("killed", ["--resume"]), ("whole", [])):
        assert CliRunner().invoke(app, arguments(tmp_path / folder, *more)).exit_code == 0
    for name in ("last.pt", "model.pt"):
        killed, whole = (torch.load(tmp_path / f / "models" / name, weights_only=True) for f in ("killed", "whole"))
        if name == "last.pt":
            killed, whole = killed["objects"]["network"], whole["objects"]["network"]
        assert all(torch.equal(killed[key], whole[key]) for key in whole)


@pytest.mark.skipif(sys.platform == "win32", reason="gloo under torchrun is tested on POSIX systems")
def test_two_processes_train_one_network(data, tmp_path):
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "medseg",
        *_arguments(data, tmp_path / "run", "--epochs", "2"),
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stderr
    assert "epoch 2/2" in done.stderr
    state = torch.load(tmp_path / "run" / "models" / "last.pt", weights_only=True)
    # 8 training cases on 2 processes with batches of 2: two iterations an epoch.
    assert (state["epoch"], state["iteration"]) == (2, 4)
    assert not any(name.startswith("module.") for name in state["objects"]["network"])
