"""Handlers of a training run, on a run that takes milliseconds."""

from __future__ import annotations

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedTrainer
from monai.transforms import Compose, RandGaussianNoised

from medseg.engines import EpochSeeder, StopOnNonFiniteLoss, TrainingCheckpoint


def _trainer(tmp_path, epochs: int, *, resume: bool = False, poison_at: int | None = None) -> SupervisedTrainer:
    torch.manual_seed(7)
    network = torch.nn.Linear(3, 1)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1)
    transform = Compose([RandGaussianNoised(keys="image", prob=0.7, std=0.5)])
    data = [{"image": torch.full((3,), float(i)), "label": torch.tensor([float(i)])} for i in range(6)]
    calls = {"n": 0}

    def loss(pred: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        calls["n"] += 1
        value = ((pred - target) ** 2).mean()
        return value * float("nan") if calls["n"] == poison_at else value

    return SupervisedTrainer(
        device="cpu",
        max_epochs=epochs,
        train_data_loader=DataLoader(Dataset(data, transform), batch_size=2, shuffle=True, num_workers=0),
        network=network,
        optimizer=optimizer,
        loss_function=loss,
        train_handlers=[
            EpochSeeder(3, transform),
            StopOnNonFiniteLoss(),
            TrainingCheckpoint(str(tmp_path), {"network": network, "optimizer": optimizer}, resume=resume),
        ],
    )


def _weights(path) -> torch.Tensor:
    return torch.load(path, weights_only=True)["weight"]


def test_a_resumed_run_ends_with_the_same_weights(tmp_path):
    _trainer(tmp_path / "whole", 4).run()
    _trainer(tmp_path / "parts", 2).run()
    torch.rand(5), np.random.rand(5), random.random()  # noqa: NPY002 - other random state than in the whole run
    resumed = _trainer(tmp_path / "parts", 4, resume=True)
    resumed.run()
    assert resumed.state.epoch == 4
    assert resumed.state.iteration == 12
    assert torch.equal(_weights(tmp_path / "whole" / "model.pt"), _weights(tmp_path / "parts" / "model.pt"))


def test_resume_without_a_checkpoint_starts_anew(tmp_path):
    _trainer(tmp_path / "a", 2).run()
    _trainer(tmp_path / "b", 2, resume=True).run()
    assert torch.equal(_weights(tmp_path / "a" / "model.pt"), _weights(tmp_path / "b" / "model.pt"))


def test_resuming_a_finished_run_changes_nothing(tmp_path):
    _trainer(tmp_path, 2).run()
    before = (tmp_path / "model.pt").read_bytes()
    _trainer(tmp_path, 2, resume=True).run()
    assert (tmp_path / "model.pt").read_bytes() == before


def test_nan_stops_before_the_weights_and_keeps_the_last_checkpoint(tmp_path):
    trainer = _trainer(tmp_path, 5, poison_at=8)
    with pytest.raises(FloatingPointError, match=r"loss is nan at epoch 3, iteration 8; the last checkpoint is kept"):
        trainer.run()
    assert torch.isfinite(trainer.network.weight).all()
    state = torch.load(tmp_path / "last.pt", weights_only=True)
    assert state["epoch"] == 2
    assert torch.isfinite(state["objects"]["network"]["weight"]).all()


def test_the_same_epoch_draws_the_same_numbers_and_another_epoch_others():
    def draw(epoch: int, rank: int = 0) -> list[float]:
        EpochSeeder(0)(SimpleNamespace(state=SimpleNamespace(epoch=epoch, rank=rank)))
        return [random.random(), float(np.random.rand()), float(torch.rand(1))]  # noqa: NPY002

    assert draw(1) == draw(1)
    assert not set(draw(1)) & set(draw(2))
    assert not set(draw(1)) & set(draw(1, rank=1))


def test_best_must_be_one_of_the_objects(tmp_path):
    with pytest.raises(ValueError, match="best must be one of"):
        TrainingCheckpoint(str(tmp_path), {"network": torch.nn.Linear(1, 1)}, best="ema")


def test_an_interrupted_write_leaves_the_earlier_checkpoint(tmp_path, monkeypatch):
    _trainer(tmp_path, 1).run()
    before = (tmp_path / "last.pt").read_bytes()

    def fail(content: object, path: object) -> None:
        path.write_bytes(b"half")  # type: ignore[attr-defined]
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        _trainer(tmp_path, 2, resume=True).run()
    assert (tmp_path / "last.pt").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last.pt", "model.pt"]


def test_weights_are_there_before_the_first_validation(tmp_path):
    evaluator = SimpleNamespace(state=SimpleNamespace(best_metric=-1, best_metric_epoch=-1))
    trainer = _trainer(tmp_path / "unused", 2)
    objects = {"network": trainer.network}
    TrainingCheckpoint(str(tmp_path / "run"), objects, evaluator=evaluator).attach(trainer)  # type: ignore[arg-type]
    trainer.run()
    assert torch.equal(_weights(tmp_path / "run" / "model.pt"), trainer.network.weight)
