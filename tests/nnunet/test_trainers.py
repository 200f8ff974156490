"""nnU-Net itself plans, trains two epochs with each of our trainers and predicts, on the CPU."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import nibabel
import numpy as np
import pytest

from medseg.nnunet import trainer_folder

pytestmark = [
    pytest.mark.slow,
    pytest.mark.nnunet,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(find_spec("nnunetv2") is None, reason="needs nnU-Net: pip install nnunetv2"),
]
ROOT = Path(__file__).resolve().parents[2]
TRAINERS = re.findall(r"^class (nnUNetTrainer\w+)", (trainer_folder() / "medseg_trainers.py").read_text(), re.M)
SHORT = """
from medseg.nnunet.trainers import medseg_trainers

class {name}Short(medseg_trainers.{name}):
    def __init__(self, plans, configuration, fold, dataset_json, device=None):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs, self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = 2, 8, 1

    def perform_actual_validation(self, save_probabilities=False):
        pass
"""


def write_balls(folder: Path) -> None:
    """Six volumes with two nested balls, and one to predict."""
    random = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in (36, 40, 32)), indexing="ij"), -1)
    for name in ("imagesTr", "labelsTr", "imagesTs"):
        (folder / name).mkdir(parents=True)
    for case in range(7):
        distance = np.linalg.norm(grid - random.uniform(14, 20, 3), axis=-1)
        label = (distance < 10).astype(np.uint8) + (distance < 5)
        image = label + random.normal(0, 0.2, label.shape)
        part, name = ("imagesTr", f"toy_{case:03d}") if case < 6 else ("imagesTs", "toy_099")
        nibabel.save(nibabel.Nifti1Image(image.astype(np.float32), np.eye(4)), folder / part / f"{name}_0000.nii.gz")
        if case < 6:
            nibabel.save(nibabel.Nifti1Image(label, np.eye(4)), folder / "labelsTr" / f"{name}.nii.gz")
    facts = {
        "channel_names": {"0": "MRI"}, "labels": {"background": 0, "shell": 1, "core": 2}, "numTraining": 6,
        "file_ending": ".nii.gz",
    }  # fmt: skip
    (folder / "dataset.json").write_text(json.dumps(facts))


@pytest.fixture(scope="module")
def nnunet(tmp_path_factory):
    """Run a command of nnU-Net in folders of the test, with a planned data set 901 there."""
    home = tmp_path_factory.mktemp("nnunet")
    own = home / "trainers"
    own.mkdir()
    for name in TRAINERS:
        (own / f"short_{name}.py").write_text(SHORT.format(name=name))
    environment = {
        **os.environ,
        **{f"nnUNet_{part}": str(home / part) for part in ("raw", "preprocessed", "results")},
        "nnUNet_extTrainer": os.pathsep.join([str(trainer_folder()), str(own)]),
        "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "2",
        "nnUNet_def_n_proc": "1",
    }

    def run(command: str, *arguments: str, workers: int = 0) -> str:
        done = subprocess.run(
            [str(Path(sys.executable).with_name(command)), *arguments],
            env={**environment, "nnUNet_n_proc_DA": str(workers)},
            capture_output=True, text=True, check=False, timeout=900,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        return done.stdout

    write_balls(home / "raw" / "Dataset901_Toy")
    run("nnUNetv2_plan_and_preprocess", "-d", "901", "-c", "3d_fullres", "-np", "1", "-npfp", "1", workers=1)
    shrink_network(home / "preprocessed" / "Dataset901_Toy" / "nnUNetPlans.json")
    run.home = home
    return run


def shrink_network(path: Path) -> None:
    """Leave the plans as they are but for the widths, so that two cores train it in seconds."""
    plans = json.loads(path.read_text())
    for configuration in plans["configurations"].values():
        if "architecture" in configuration:
            arguments = configuration["architecture"]["arch_kwargs"]
            arguments["features_per_stage"] = [8] * arguments["n_stages"]
    path.write_text(json.dumps(plans))


@pytest.mark.parametrize("name", TRAINERS)
def test_a_trainer_trains_and_predicts_and_its_loss_falls(nnunet, name):
    trainer = f"{name}Short"
    log = nnunet("nnUNetv2_train", "901", "3d_fullres", "0", "-tr", trainer, "-device", "cpu")
    losses = [float(x) for x in re.findall(r"train_loss (-?[\d.]+)", log)]
    assert len(losses) == 2
    assert np.isfinite(losses).all()
    # The term of topology comes in between the two epochs.
    assert losses[1] < losses[0] or name == "nnUNetTrainerBettiMatching"
    folder = nnunet.home / "raw" / "Dataset901_Toy" / "imagesTs"
    output = nnunet.home / f"predicted_{name}"
    nnunet(
        "nnUNetv2_predict", "-i", str(folder), "-o", str(output), "-d", "901", "-c", "3d_fullres", "-f", "0",
        "-tr", trainer, "-device", "cpu", "-npp", "1", "-nps", "1", "--save_probabilities",
    )  # fmt: skip
    mask = nibabel.load(output / "toy_099.nii.gz")
    assert mask.shape == (36, 40, 32)
    if name in ("nnUNetTrainerFusedDiceCE", "nnUNetTrainerPowerNorm"):
        compare_with_ours(nnunet.home, trainer, folder, output)


def compare_with_ours(home: Path, trainer: str, scans: Path, theirs: Path) -> None:
    """Our prediction from the trained folder is nnU-Net's, but for the half precision of its sums."""
    trained = home / "results" / "Dataset901_Toy" / f"{trainer}__nnUNetPlans__3d_fullres"
    # Known by its name is the trainer itself, not the short one.
    named = trained.with_name(trained.name.replace("Short", ""))
    trained.rename(named)
    ours = home / f"ours_{trainer}"
    arguments = ["predict", str(scans), "-o", str(ours), "--nnunet", str(named), "--save-probabilities"]
    path = os.pathsep.join([str(ROOT), *sys.path])
    subprocess.run([sys.executable, "-m", "medseg", *arguments], env={**os.environ, "PYTHONPATH": path}, check=True)
    found = np.asarray(nibabel.load(ours / "toy_099_0000_probabilities.nii.gz").dataobj)
    wanted = np.load(theirs / "toy_099.npz")["probabilities"].transpose(3, 2, 1, 0)
    assert np.abs(found - wanted).mean() < 1e-3
    labels = nibabel.load(ours / "toy_099_0000_seg.nii.gz")
    other = nibabel.load(theirs / "toy_099.nii.gz")
    np.testing.assert_allclose(labels.affine, other.affine, atol=1e-5)
    assert (np.asarray(labels.dataobj) != np.asarray(other.dataobj)).mean() < 1e-3


def test_nnunet_finds_a_trainer_in_our_folder_alone():
    code = (
        "from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name as find; "
        "print(find('nnUNetTrainerMIPLoss').__name__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "nnUNet_extTrainer": str(trainer_folder())},
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.stdout.strip().endswith("nnUNetTrainerMIPLoss"), done.stderr[-1000:]
