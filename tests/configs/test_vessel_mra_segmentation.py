"""The vessel bundle: its configs under MONAI's runner and medseg's, and what its weights find in simulated vessels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.bundle import run as run_bundle

from medseg.bundles import Bundle
from medseg.data import find_cases, list_images, make_vessel_phantom, write_phantom_dataset
from medseg.engines import Predictor, predict_cases, train_bundle
from medseg.losses import SegWithMIPLoss

BUNDLE = Path(__file__).parents[2] / "configs" / "vessel_mra_segmentation"
MONAI_WARNS_OF_CONFIGS = pytest.mark.filterwarnings("ignore:parsing config_file:UserWarning")
# The narrowest network and the smallest patches that the config's four levels allow.
SMALL: dict[str, Any] = {
    "network_def::filters": [4, 4, 8, 8],
    "patch_size": [16, 16, 16],
    "max_epochs": 1,
    "val_interval": 1,
}


def _config(name: str) -> dict[str, Any]:
    return json.loads((BUNDLE / "configs" / f"{name}.json").read_text())


def _config_files(*names: str) -> list[str]:
    return [str(BUNDLE / "configs" / f"{name}.json") for name in names]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantom_dataset(
        tmp_path_factory.mktemp("data"), layout="decathlon", kind="tube", cases=4, shape=(18, 20, 16)
    )


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    return train_bundle(Bundle.load(BUNDLE), data, folder, device="cpu", overrides=SMALL)


def test_the_same_network_window_and_preparation_stand_in_all_configs():
    train, inference, evaluate = (_config(name) for name in ("train", "inference", "evaluate"))
    assert train["network_def"] == inference["network_def"]
    assert train["patch_size"] == inference["inferer"]["roi_size"]
    of_image = [t | {"keys": "image"} for t in train["deterministic_transforms"]]
    for chain in (inference["preprocessing"], evaluate["validate::preprocessing"]):
        for expected, got in zip(of_image, chain["transforms"], strict=True):
            same = (set(expected) & set(got)) - {"keys", "mode", "dtype"}
            assert {key: expected[key] for key in same} == {key: got[key] for key in same}


def test_weights_are_small_flat_and_plain():
    path = BUNDLE / "models" / "model.pt"
    assert path.stat().st_size < 4_000_000
    state = torch.load(path, weights_only=True)
    assert all(type(v) is torch.Tensor for v in state.values())


def test_the_readers_are_told_that_the_vessels_were_simulated():
    metadata = _config("metadata")
    for text in (metadata["intended_use"], metadata["task"], (BUNDLE / "docs" / "README.md").read_text()):
        assert "simulated vessels" in text


def test_the_loss_of_the_config_counts_a_gap_in_the_projections_of_the_vessel_too():
    loss = ConfigParser(_config("train")).get_parsed_content("loss")
    assert isinstance(loss, SegWithMIPLoss)
    label = torch.zeros(1, 1, 4, 5, 6)
    label[..., 2, 3, :] = 1
    broken = label.clone()
    broken[..., 2, 3, 2] = 0
    logits, broken_logits = (20 * torch.cat([0.5 - mask, mask - 0.5], dim=1) for mask in (label, broken))
    assert loss(logits, label) < 1e-4
    assert loss(broken_logits, label) > loss.lambda_seg * loss.seg_loss(broken_logits, label) + 0.01


def test_a_tiny_training_runs_and_leaves_weights_that_fit_the_network(trained: Path):
    last = torch.load(trained / "models" / "last.pt", weights_only=True)
    assert (last["epoch"], last["best_metric_epoch"]) == (1, 1)
    best = torch.load(trained / "models" / "model.pt", weights_only=True)
    assert set(best) == set(torch.load(BUNDLE / "models" / "model.pt", weights_only=True))


@MONAI_WARNS_OF_CONFIGS
def test_monai_evaluates_a_trained_network(trained: Path, data: Path, tmp_path: Path):
    run_bundle(
        config_file=_config_files("train", "evaluate"),
        bundle_root=str(BUNDLE),
        dataset_dir=str(data),
        output_dir=str(tmp_path),
        ckpt_path=str(trained / "models" / "model.pt"),
        **SMALL,
    )
    assert "val_mean_dice" in (tmp_path / "evaluate" / "metrics.csv").read_text()


@MONAI_WARNS_OF_CONFIGS
def test_monai_runs_the_inference_config(data: Path, tmp_path: Path):
    run_bundle(
        config_file=_config_files("inference"),
        bundle_root=str(BUNDLE),
        dataset_dir=str(data / "imagesTr"),
        output_dir=str(tmp_path),
    )
    image = list_images(str(data / "imagesTr"))[0]
    source, mask = nib.load(image["image"]), nib.load(tmp_path / f"{image['sample_id']}_seg.nii.gz")
    assert mask.shape == source.shape
    assert np.allclose(mask.affine, source.affine)


@pytest.mark.parametrize("cut_to_zero", [0.0, 0.55], ids=["whole", "windowed"])
def test_the_shipped_weights_find_simulated_vessels_in_whole_and_in_windowed_images(tmp_path: Path, cut_to_zero: float):
    phantom = make_vessel_phantom((56, 56, 56), radii=(1.0, 4.0), spacing=(0.5, 0.5, 0.5), contrast=0.8, seed=2000)
    image = 3000 * np.maximum(phantom.image - cut_to_zero, 0)
    nib.save(nib.Nifti1Image(image, np.diag([*phantom.spacing, 1.0])), tmp_path / "vessels.nii.gz")
    predictor = Predictor(Bundle.load(BUNDLE), device="cpu", engine="torch", precision="fp32")
    (result,) = predict_cases(predictor, find_cases([tmp_path / "vessels.nii.gz"]), tmp_path / "out")
    found = nib.load(result.outputs[0]).get_fdata() > 0
    dice = 2 * (found & (phantom.label > 0)).sum() / (found.sum() + phantom.label.sum())
    assert dice > 0.85
