"""The zone bundle: both stages under medseg's runner and MONAI's, and what its weights find in simulated prostates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import run as run_bundle

from medseg.bundles import Bundle
from medseg.data import find_cases, make_zone_phantom, write_zone_phantoms
from medseg.engines import Predictor, predict_cases, train_bundle
from medseg.engines.prediction_options import PredictionOptions

BUNDLE = Path(__file__).parents[2] / "configs" / "prostate_zones_segmentation"
MONAI_WARNS_OF_CONFIGS = pytest.mark.filterwarnings("ignore:parsing config_file:UserWarning")
SMALL: dict[str, Any] = {"network_def::features": [2, 2, 2, 2, 2], "max_epochs": 1, "val_interval": 1}


def _config(name: str) -> dict[str, Any]:
    return json.loads((BUNDLE / "configs" / f"{name}.json").read_text())


def _config_files(*names: str) -> list[str]:
    return [str(BUNDLE / "configs" / f"{name}.json") for name in names]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    return write_zone_phantoms(folder, 3, shape=(36, 36, 12), spacing=(2.0, 2.0, 5.0))


@pytest.fixture(scope="module")
def first_stage(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "first"
    return train_bundle(Bundle.load(BUNDLE), data, folder, device="cpu", overrides=SMALL)


def test_the_same_network_box_and_preparation_stand_in_all_configs():
    train, inference, evaluate = (_config(name) for name in ("train", "inference", "evaluate"))
    for key in ("network_def", "spacing", "roi_size"):
        assert train[key] == inference[key]
    assert train["loss"]["branches"] == train["network_def"]["branches"]
    assert train["loss"]["aux"] == train["network_def"]["aux"]
    of_image = [t | {"keys": "image"} for t in train["deterministic_transforms"] if "ShapeBased" not in t["_target_"]]
    for chain in (inference["preprocessing"], evaluate["validate::preprocessing"]):
        for expected, got in zip(of_image, chain["transforms"], strict=True):
            same = (set(expected) & set(got)) - {"keys", "mode", "dtype"}
            assert {key: expected[key] for key in same} == {key: got[key] for key in same}


def test_the_stages_differ_in_what_the_method_says():
    first, second = _config("train_stage1"), _config("train_stage2")
    assert (first["stage"], second["stage"]) == (1, 2)
    assert second["learning_rate"] < first["learning_rate"]
    assert first["output_dir"].rstrip("'") in second["init_weights"]


def test_weights_are_small_flat_and_plain():
    path = BUNDLE / "models" / "model.pt"
    assert path.stat().st_size < 8_000_000
    state = torch.load(path, weights_only=True)
    assert all(type(v) is torch.Tensor for v in state.values())


def test_readers_are_told_that_the_prostates_were_simulated():
    metadata = _config("metadata")
    for text in (metadata["intended_use"], metadata["task"], (BUNDLE / "docs" / "README.md").read_text()):
        assert "simulated prostates" in text


def test_the_second_stage_goes_on_from_the_weights_of_the_first(first_stage: Path, data: Path, tmp_path: Path):
    overrides = SMALL | {"stage": 2, "learning_rate": 0.0}
    second = train_bundle(
        Bundle.load(first_stage), data, tmp_path / "second", device="cpu", finetune=True, overrides=overrides
    )
    before, after = (torch.load(run / "models" / "model.pt", weights_only=True) for run in (first_stage, second))
    weights = [name for name in before if "running" not in name and "num_batches" not in name]
    assert all(torch.equal(before[name], after[name]) for name in weights)


@MONAI_WARNS_OF_CONFIGS
def test_monai_trains_and_evaluates(first_stage: Path, data: Path, tmp_path: Path):
    options = {"bundle_root": str(BUNDLE), "dataset_dir": str(data), **SMALL}
    weights = str(first_stage / "models" / "model.pt")
    run_bundle(
        config_file=_config_files("train", "train_stage2"),
        output_dir=str(tmp_path / "second"),
        init_weights=weights,
        **options,
    )
    assert (tmp_path / "second" / "models" / "model.pt").is_file()
    run_bundle(
        config_file=_config_files("train", "evaluate"), output_dir=str(tmp_path / "eval"), ckpt_path=weights, **options
    )
    assert "val_mean_dice" in (tmp_path / "eval" / "evaluate" / "metrics.csv").read_text()


def test_the_shipped_weights_find_the_four_zones_of_simulated_prostates(tmp_path: Path):
    phantom = make_zone_phantom((84, 84, 20), spacing=(1.0, 1.0, 3.5), seed=2000)
    image = nib.Nifti1Image(1000 * phantom.image, np.diag([*phantom.spacing, 1.0]))
    nib.save(image, tmp_path / "prostate.nii.gz")
    predictor = Predictor(Bundle.load(BUNDLE), device="cpu", engine="torch", precision="fp32")
    (result,) = predict_cases(
        predictor, find_cases([tmp_path / "prostate.nii.gz"]), tmp_path / "out", PredictionOptions(statistics=True)
    )
    found = nib.load(result.outputs[0]).get_fdata()
    assert [row["name"] for row in result.rows] == ["PZ", "TZ", "DPU", "AFS"]
    for value, lowest in ((1, 0.8), (2, 0.8), (3, 0.5), (4, 0.5)):
        dice = 2 * ((found == value) & (phantom.label == value)).sum()
        dice /= (found == value).sum() + (phantom.label == value).sum()
        assert dice > lowest, (value, dice)
        volume = (found == value).sum() * np.prod(phantom.spacing) / 1000
        assert result.rows[value - 1]["volume_ml"] == pytest.approx(volume)
