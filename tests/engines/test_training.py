"""Training a bundle: what comes out, and that a stopped run goes on as if it had not stopped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from medseg.bundles import Bundle
from medseg.data import find_cases, write_phantom_dataset
from medseg.engines import Predictor, TrainingProgress, predict_cases, train_bundle, training

# The real bundle with a network of a few hundred weights: the config is what is tested here.
SMALL = {
    "network_def::outline::filters": [4, 4, 8, 8],
    "patch_size": [16, 16, 16],
    "validate::inferer::roi_size": [24, 24, 24],
    "val_interval": 1,
}


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return Bundle.load("hippocampus_segmentation")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_phantom_dataset(folder, layout="decathlon", cases=6, seed=0)
    return folder


@pytest.fixture(scope="module")
def whole_run(bundle, data, tmp_path_factory) -> tuple[Path, list[TrainingProgress]]:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    seen: list[TrainingProgress] = []
    train_bundle(bundle, data, folder, device="cpu", overrides={**SMALL, "max_epochs": 3}, progress=seen.append)
    return folder, seen


def _network(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path / "models" / "last.pt", weights_only=True)["objects"]["network"]


def test_progress_counts_every_iteration_and_every_epoch(whole_run):
    _, seen = whole_run
    assert [(p.epoch, p.iteration) for p in seen if not p.epoch_done] == [(e, i) for e in (1, 2, 3) for i in (1, 2)]
    assert [p.epoch for p in seen if p.epoch_done] == [1, 2, 3]
    assert seen[-1].best_epoch in (1, 2, 3)
    assert all(p.loss == p.loss for p in seen)


def test_the_run_folder_is_a_bundle_that_predicts(whole_run, data, tmp_path):
    folder, _ = whole_run
    assert {"configs", "docs", "models", "run.json", "tensorboard", "LICENSE"} <= {p.name for p in folder.iterdir()}
    assert list((folder / "tensorboard").iterdir())
    config = folder / "configs" / "inference.json"
    content = json.loads(config.read_text())
    content["network_def"]["outline"]["filters"] = SMALL["network_def::outline::filters"]
    config.write_text(json.dumps(content))
    cases = find_cases([data / "imagesTr"])[:1]
    (result,) = predict_cases(Predictor(Bundle.load(folder), device="cpu"), cases, tmp_path)
    assert result.status == "ok", result.reason


def test_a_stopped_run_ends_with_the_same_weights(bundle, data, whole_run, tmp_path):
    def stop(state: TrainingProgress) -> None:
        if (state.epoch, state.iteration) == (2, 1):
            raise KeyboardInterrupt

    settings = {**SMALL, "max_epochs": 3}
    with pytest.raises(KeyboardInterrupt):
        train_bundle(bundle, data, tmp_path / "run", device="cpu", overrides=settings, progress=stop)
    assert torch.load(tmp_path / "run" / "models" / "last.pt", weights_only=True)["epoch"] == 1
    train_bundle(bundle, data, tmp_path / "run", device="cpu", overrides=settings, resume=True)
    expected, got = _network(whole_run[0]), _network(tmp_path / "run")
    assert all(torch.equal(expected[name], got[name]) for name in expected)
    best = [torch.load(f / "models" / "model.pt", weights_only=True) for f in (whole_run[0], tmp_path / "run")]
    assert all(torch.equal(best[0][name], best[1][name]) for name in best[0])


def test_a_run_is_neither_replaced_nor_resumed_with_other_settings(bundle, data, whole_run):
    folder, _ = whole_run
    with pytest.raises(FileExistsError, match="use --resume to go on, or --overwrite"):
        train_bundle(bundle, data, folder, device="cpu", overrides={**SMALL, "max_epochs": 3})
    with pytest.raises(ValueError, match="was trained with other settings"):
        train_bundle(bundle, data, folder, device="cpu", overrides={**SMALL, "max_epochs": 4}, resume=True)


def test_starting_anew_drops_the_logs_of_the_run_before_and_resuming_keeps_them(bundle, tmp_path):
    log = tmp_path / "tensorboard" / "events.out.tfevents.1"
    for resume, kept in ((True, True), (False, False)):
        log.parent.mkdir(exist_ok=True)
        log.touch()
        training._prepare_folder(bundle, tmp_path, {}, resume=resume, overwrite=not resume)
        assert log.exists() == kept


def test_nan_stops_the_run_and_says_what_to_do(bundle, data, tmp_path):
    settings = {**SMALL, "max_epochs": 3, "learning_rate": 1e30}
    with pytest.raises(FloatingPointError, match="Lower the learning rate"):
        train_bundle(bundle, data, tmp_path / "run", device="cpu", overrides=settings)


def test_finetuning_starts_from_the_weights_of_the_bundle(data, whole_run, tmp_path):
    settings = {**SMALL, "max_epochs": 1, "learning_rate": 1e-9}
    train_bundle(Bundle.load(whole_run[0]), data, tmp_path, device="cpu", overrides=settings, finetune=True)
    start = torch.load(whole_run[0] / "models" / "model.pt", weights_only=True)
    end = _network(tmp_path)
    assert all(torch.allclose(start[name], end[name], atol=1e-6) for name in start)


def test_a_frozen_outline_stays_while_the_parts_are_learnt(data, whole_run, tmp_path):
    settings = {**SMALL, "max_epochs": 1, "freeze_outline": True}
    train_bundle(Bundle.load(whole_run[0]), data, tmp_path, device="cpu", overrides=settings, finetune=True)
    start, end = torch.load(whole_run[0] / "models" / "model.pt", weights_only=True), _network(tmp_path)
    assert {n.startswith("outline.") for n in start} == {True, False}
    assert all(torch.equal(start[name], end[name]) for name in start if name.startswith("outline."))
    assert not any(torch.equal(start[name], end[name]) for name in start if name.startswith("line."))


def test_finetuning_low_rank_updates_leaves_a_bundle_of_the_plain_network(data, whole_run, tmp_path):
    lora = {"_target_": "medseg.core.adapters.add_lora", "network": "@network_def", "rank": 1}
    settings = {**SMALL, "max_epochs": 1, "network": {**lora, "train_fully": ["outline.output_block.*"]}}
    base = Bundle.load(whole_run[0])
    train_bundle(base, data, tmp_path, device="cpu", overrides=settings, finetune=True)
    start = torch.load(base.weights_path, weights_only=True)
    end = torch.load(tmp_path / "models" / "model.pt", weights_only=True)
    assert start.keys() == end.keys()
    assert not any(torch.equal(start[name], end[name]) for name in start if name.endswith("conv.weight"))
    frozen = {n: v for n, v in _network(tmp_path).items() if n.endswith("original")}
    assert frozen
    assert all(
        torch.equal(v, start[n.replace("parametrizations.weight.original", "weight")]) for n, v in frozen.items()
    )


def test_unknown_overrides_and_folders_are_refused(bundle, data, tmp_path):
    with pytest.raises(ValueError, match="override 'max_epoch' names no entry"):
        train_bundle(bundle, data, tmp_path / "run", device="cpu", overrides={"max_epoch": 1})
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        train_bundle(bundle, tmp_path / "none", tmp_path / "run", device="cpu")
    with pytest.raises(ValueError, match="the source stays untouched"):
        train_bundle(bundle, data, bundle.path, device="cpu")
