"""The shipped bundle under MONAI's own commands: train, evaluate, adapt and infer on drawn pictures."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import run as run_bundle

from medseg.bundles import Bundle
from medseg.data import ClassRatioPrior, find_cases, read_image
from medseg.engines import AdaptationOptions, Predictor, adapt_bundle

BUNDLE = Path(__file__).parents[2] / "configs" / "source_free_vessel_segmentation"
MONAI_WARNS_OF_CONFIGS = pytest.mark.filterwarnings("ignore:parsing config_file:UserWarning")


def _config(name: str) -> dict:
    return json.loads((BUNDLE / "configs" / f"{name}.json").read_text())


def _draw(seed: int) -> tuple[np.ndarray, np.ndarray]:
    spec = importlib.util.spec_from_file_location("draw_retinas", BUNDLE / "scripts" / "draw_retinas.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.draw_retina(seed)


@pytest.fixture(scope="module")
def drawn() -> tuple[np.ndarray, np.ndarray]:
    return _draw(1000)  # not among those trained on


@pytest.fixture(scope="module")
def data(tmp_path_factory, drawn) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for kind, array in zip(("images", "labels"), drawn, strict=True):
        (folder / kind).mkdir()
        for case, corner in enumerate((0, 40, 76)):
            part = array[corner : corner + 100, corner : corner + 100, None]
            nib.save(nib.Nifti1Image(part, np.eye(4)), folder / kind / f"drawn_{case}.nii.gz")
    return folder


def _run(*configs: str, **overrides: object) -> None:
    files = [str(BUNDLE / "configs" / f"{name}.json") for name in configs]
    run_bundle(config_file=files, bundle_root=str(BUNDLE), **overrides)


def test_the_same_network_stands_in_all_configs():
    assert _config("train")["network_def"] == _config("inference")["network_def"] == _config("adapt")["network_def"]
    assert _config("train")["network_def"]["norm"] == "BATCH"


def test_weights_are_small_flat_and_plain():
    path = BUNDLE / "models" / "model.pt"
    assert path.stat().st_size < 1_000_000
    state = torch.load(path, weights_only=True)
    assert all(type(v) is torch.Tensor for v in state.values())


def test_the_vessels_of_a_new_drawing_are_found(data, drawn):
    predictor = Predictor(Bundle.load(BUNDLE), device="cpu")
    case = find_cases([data / "images"])[0]
    found = predictor.predict([read_image(case.images[0])]).labels[:, :, 0] > 0
    true = drawn[1][:100, :100] > 0
    assert 2 * (found & true).sum() / (found.sum() + true.sum()) > 0.6


@MONAI_WARNS_OF_CONFIGS
def test_monai_trains_and_evaluates(data, tmp_path):
    small = {
        "dataset_dir": str(data),
        "output_dir": str(tmp_path),
        "network_def::channels": [4, 4, 8, 8],
        "max_epochs": 1,
        "val_interval": 1,
        "batch_size": 2,
        "patch_size": [32, 32, 1],
    }
    _run("train", **small)
    weights = tmp_path / "models" / "model.pt"
    _run("train", "evaluate", **small, ckpt_path=str(weights))
    assert "val_mean_dice" in (tmp_path / "evaluate" / "metrics.csv").read_text()


@MONAI_WARNS_OF_CONFIGS
def test_monai_adapts(data, tmp_path):
    small = {"max_epochs": 1, "patch_size": [64, 64, 1], "crops": 2}
    _run("adapt", dataset_dir=str(data / "images"), output_dir=str(tmp_path), **small)
    adapted = torch.load(tmp_path / "models" / "model.pt", weights_only=True)
    source = torch.load(BUNDLE / "models" / "model.pt", weights_only=True)
    assert adapted.keys() == source.keys()
    assert any(not torch.equal(adapted[name], source[name]) for name in source)


@MONAI_WARNS_OF_CONFIGS
def test_monai_infers(data, tmp_path):
    _run("inference", dataset_dir=str(data), output_dir=str(tmp_path))
    masks = sorted(tmp_path.glob("*_seg.nii.gz"))
    # MONAI drops the axis of a single slice; `medseg predict` keeps the shape of the file.
    assert [nib.load(path).shape for path in masks] == [(100, 100)] * 3


def test_batch_statistics_adapt_without_a_step_of_the_optimizer(data, tmp_path):
    options = AdaptationOptions("batch_norm", epochs=1, crops=1)
    prior = ClassRatioPrior([0.91, 0.09])
    result = adapt_bundle(
        Bundle.load(BUNDLE), find_cases([data / "images"]), prior, tmp_path / "new", options=options, device="cpu"
    )
    assert not any("batch normalisation" in text for text in result.notes)
    adapted, source = (torch.load(p / "models" / "model.pt", weights_only=True) for p in (result.path, BUNDLE))
    changed = {name for name in source if not torch.equal(adapted[name], source[name])}
    assert changed
    assert all("running" in name or "num_batches" in name for name in changed)
