"""The probabilistic bundle: its configs under MONAI's runner and medseg's, and the samples its weights draw."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import run as run_bundle
from typer.testing import CliRunner

from medseg.bundles import Bundle
from medseg.cli import app
from medseg.data import load_datalist, make_rater_phantom
from medseg.engines import train_bundle
from medseg.metrics import compute_generalized_energy_distance, compute_inter_rater_dice

BUNDLE = Path(__file__).parents[2] / "configs" / "probabilistic_brain_growth_segmentation"
MONAI_WARNS_OF_CONFIGS = pytest.mark.filterwarnings("ignore:parsing config_file:UserWarning")
SMALL: dict[str, Any] = {
    "network_def::features": 2,
    "patch_size": [32, 32, 1],
    "max_epochs": 1,
    "val_interval": 1,
    "val_samples": 5,
    "train_samples": 2,
}


def _config(name: str) -> dict[str, Any]:
    return json.loads((BUNDLE / "configs" / f"{name}.json").read_text())


def _config_files(*names: str) -> list[str]:
    return [str(BUNDLE / "configs" / f"{name}.json") for name in names]


def _convert(source: Path, target: Path) -> int:
    spec = importlib.util.spec_from_file_location("convert_cases", BUNDLE / "scripts" / "convert_cases.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.convert(source, target)


def _predict(scan: str, out: Path, bundle: Path) -> None:
    options = ["--samples", 5, "--save-uncertainty", "--save-samples", "--stats", out / "stats.json", "--device", "cpu"]
    arguments = ["predict", scan, "-o", out, "--bundle", bundle, *options]
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == 0, result.stderr


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Cases as the challenge's task has them, but drawn."""
    cases, folder = tmp_path_factory.mktemp("cases"), tmp_path_factory.mktemp("data")
    for number in range(23):
        image, masks = make_rater_phantom((32, 32), seed=number, small_lesions=0)
        np.savez(cases / f"case{number:02d}.npz", image=(100 * image).clip(0, 255).astype(np.uint8), masks=masks)
    assert _convert(cases, folder) == 23
    return folder


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    return train_bundle(Bundle.load(BUNDLE), data, folder, device="cpu", overrides=SMALL)


def test_converted_cases_have_a_list_of_annotations_and_the_split_of_the_readme(data):
    train, val = (load_datalist(str(data), part) for part in ("training", "validation"))
    assert (len(train), len(val)) == (21, 2)
    assert len(train[0]["label"]) == 5
    assert train[0]["annotation_mask"].all()


def test_the_same_network_and_preparation_stand_in_both_configs():
    train, inference = _config("train"), _config("inference")
    assert train["network_def"] == inference["network_def"]
    assert train["patch_size"][:2] == inference["inferer"]["roi_size"]
    of_image = [t["_target_"] for t in train["deterministic_transforms"]]
    assert of_image == [t["_target_"] for t in inference["preprocessing"]["transforms"]]


def test_a_tiny_training_validates_by_the_energy_distance_and_leaves_weights_that_fit(trained):
    last = torch.load(trained / "models" / "last.pt", weights_only=True)
    assert (last["epoch"], last["best_metric_epoch"]) == (1, 1)
    best = torch.load(trained / "models" / "model.pt", weights_only=True)
    assert set(best) == set(torch.load(BUNDLE / "models" / "model.pt", weights_only=True))


@MONAI_WARNS_OF_CONFIGS
def test_monai_evaluates_a_trained_network(trained, data, tmp_path):
    run_bundle(
        config_file=_config_files("train", "evaluate"),
        bundle_root=str(BUNDLE),
        dataset_dir=str(data),
        output_dir=str(tmp_path),
        ckpt_path=str(trained / "models" / "model.pt"),
        **SMALL,
    )
    table = (tmp_path / "evaluate" / "metrics.csv").read_text()
    for name in ("val_energy_distance", "val_best_sample_dice", "val_matched_dice"):
        assert name in table


@MONAI_WARNS_OF_CONFIGS
def test_monai_alone_writes_the_mask_at_the_mean_of_the_prior(data, tmp_path):
    run_bundle(
        config_file=_config_files("inference"),
        bundle_root=str(BUNDLE),
        dataset_dir=str(data / "imagesTr"),
        output_dir=str(tmp_path),
    )
    assert len(list(tmp_path.glob("*_seg.nii.gz"))) == 23
    assert nib.load(tmp_path / "case00_seg.nii.gz").shape[:2] == (32, 32)  # MONAI's writer drops the single slice


def test_the_shipped_weights_draw_samples_with_maps_and_intervals(data, tmp_path):
    _predict(load_datalist(str(data), "validation")[0]["image"], tmp_path, BUNDLE)
    masks = [nib.load(path).get_fdata() for path in sorted(tmp_path.glob("*_sample-*.nii.gz"))]
    assert len(masks) == 5
    assert any((mask != masks[0]).any() for mask in masks)
    entropy, variance = (nib.load(next(tmp_path.glob(f"*_{kind}.nii.gz"))) for kind in ("entropy", "variance"))
    assert entropy.shape == variance.shape == (32, 32, 1)
    assert variance.get_fdata().max() > 0
    assert "p5" in (tmp_path / "stats.json").read_text()


def test_samples_of_a_case_kept_from_training_disagree_about_as_the_raters_do(shared_data, tmp_path):
    _convert(shared_data / "brain_growth_multirater", tmp_path / "data")
    case = load_datalist(str(tmp_path / "data"), "validation")[0]
    _predict(case["image"], tmp_path / "out", BUNDLE)
    samples, raters = (
        torch.from_numpy(np.stack([nib.load(path).get_fdata() > 0 for path in paths]))[None, :, None]
        for paths in (sorted((tmp_path / "out").glob("*_sample-*.nii.gz")), case["label"])
    )
    between = [float(compute_inter_rater_dice(masks)) for masks in (samples, raters)]
    assert between[0] == pytest.approx(between[1], abs=0.1)
    assert compute_generalized_energy_distance(samples, raters) < 0.3


def test_weights_are_small_flat_and_plain():
    path = BUNDLE / "models" / "model.pt"
    assert path.stat().st_size < 4_000_000
    state = torch.load(path, weights_only=True)
    assert all(type(v) is torch.Tensor and v.dtype == torch.float32 for v in state.values())
