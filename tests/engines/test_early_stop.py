"""The handler that foresees the end of a training, on engines that do nothing and on the real bundle's config."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
from ignite.engine import Engine, Events

from medseg.bundles import Bundle
from medseg.core.scaling import CurveExtrapolator
from medseg.data import read_training_curve, write_phantom_dataset
from medseg.engines import ExtrapolatingEarlyStop, train_bundle

EPOCHS = np.arange(1, 31)
CURVE = 0.8 - 0.5 * EPOCHS**-0.8


def train(values, *, metric="val_mean_dice", end=None, **options):
    """Run a trainer that is validated after every epoch; give the trainer and the handler."""
    evaluator, trainer = Engine(lambda engine, batch: None), Engine(lambda engine, batch: None)
    evaluator.state.key_metric_name = metric
    handler = ExtrapolatingEarlyStop(evaluator, extrapolator=CurveExtrapolator(150, moves=10), **options)
    handler.attach(trainer)

    def validate(engine):
        evaluator.state.metrics = {metric: values[engine.state.epoch - 1]}
        evaluator.run([0])

    trainer.add_event_handler(Events.EPOCH_COMPLETED, validate)
    trainer.run([0, 0], max_epochs=end or len(values))
    return trainer, handler


def test_a_hopeless_run_is_stopped_at_the_tenth_validation_and_a_good_one_is_not():
    trainer, handler = train(CURVE, stop=True, incumbent=0.95)
    assert trainer.state.epoch == 10
    assert handler.history[-1]["stop"]
    assert handler.history[-1]["reason"].startswith("stop: a chance of")
    assert trainer.state.extrapolation == handler.history[-1]
    assert "stop" not in handler.history[8]
    trainer, handler = train(CURVE, stop=True, incumbent=0.7, every=10)
    assert trainer.state.epoch == 30
    assert [entry["epoch"] for entry in handler.history if "stop" in entry] == [10, 20, 30]
    seen = CurveExtrapolator(150, moves=10).fit(EPOCHS[:20], CURVE[:20], 30)
    assert handler.history[19]["median"] == seen.quantile(0.5)[0]


def test_it_advises_only_unless_it_is_told_to_stop_and_a_margin_leaves_room_for_a_falling_rate():
    trainer, handler = train(CURVE[:12], incumbent=0.95)
    assert trainer.state.epoch == 12
    assert [entry.get("stop") for entry in handler.history[-3:]] == [True] * 3
    trainer, _ = train(CURVE[:12], incumbent=0.95, margin=-0.3, stop=True)
    assert trainer.state.epoch == 12


def test_all_ranks_do_what_the_first_decides(monkeypatch):
    monkeypatch.setattr("medseg.engines.early_stop.idist.broadcast", lambda value, src: 1.0)
    trainer, handler = train(CURVE, stop=True, incumbent=0.1)
    assert trainer.state.epoch == 1
    assert "stop" not in handler.history[0]


def test_a_loss_is_to_fall():
    trainer, _ = train(2 * (1 - CURVE), metric="loss", increasing=False, bounds=(0, 2), incumbent=0.05, stop=True)
    assert trainer.state.epoch == 10


def test_the_history_is_a_log_that_can_be_read_and_a_run_goes_on_with_it(tmp_path):
    values = CURVE[:14].copy()
    values[4] = np.nan
    trainer, handler = train(values, output=str(tmp_path / "run" / "log.json"), every=20)
    curve = read_training_curve(tmp_path / "run" / "log.json")
    assert curve.metric == "val_mean_dice"
    np.testing.assert_allclose(curve.values, np.delete(values, 4))
    assert curve.steps.tolist() == [e for e in range(1, 15) if e != 5]
    state = json.loads(json.dumps(handler.state_dict()))
    later = ExtrapolatingEarlyStop(handler.evaluator, extrapolator=CurveExtrapolator(150, moves=10))
    later.load_state_dict(state)
    later.attach(trainer)
    trainer.state.epoch, trainer.state.max_epochs = 11, 30  # resumed three epochs earlier
    handler.evaluator.run([0])
    assert [entry["epoch"] for entry in later.history] == [1, 2, 3, 4, *range(6, 12)]
    assert "stop" in later.history[-1]


def test_a_metric_that_is_not_there_or_leaves_its_bounds_is_told_at_once():
    with pytest.raises(ValueError, match=r"metric must be one of the evaluator's \(val_mean_dice\), got 'dice'"):
        _ask_for("dice")
    with pytest.raises(ValueError, match=r"bounds must hold every value of val_hd95, but it is 7 and they are"):
        train([7.0], metric="val_hd95", increasing=False)
    for options, match in (
        ({"threshold": 1}, "threshold must"),
        ({"every": 0}, "every must"),
        ({"bounds": [1, 0]}, "bounds"),
    ):
        with pytest.raises(ValueError, match=match):
            train([0.5], **options)


def _ask_for(name):
    evaluator, trainer = Engine(lambda engine, batch: None), Engine(lambda engine, batch: None)
    evaluator.state.metrics = {"val_mean_dice": 0.5}
    ExtrapolatingEarlyStop(evaluator, metric=name).attach(trainer)
    evaluator.run([0])


def test_in_a_bundle_it_writes_what_tensorboard_holds(tmp_path):
    write_phantom_dataset(tmp_path / "data", layout="decathlon", cases=6, seed=0)
    bundle = Bundle.load("hippocampus_segmentation")
    handlers = copy.deepcopy(json.loads(bundle.config_path("train").read_text())["train"]["handlers"])
    at = next(i for i, handler in enumerate(handlers) if handler["_target_"] == "ValidationHandler")
    handlers.insert(
        at + 1,
        {
            "_target_": "medseg.engines.ExtrapolatingEarlyStop",
            "evaluator": "@validate::evaluator",
            "stop": True,
            "incumbent": 0.999,
            "margin": 0.0,
            "output": "$@output_dir + '/extrapolation.json'",
            "extrapolator": {"_target_": "medseg.core.scaling.CurveExtrapolator", "n_particles": 150, "moves": 10},
        },
    )
    handlers[-1]["objects"]["early_stop"] = f"@train::handlers::{at + 1}"
    overrides = {
        "train::handlers": handlers, "network_def::outline::filters": [4, 4, 8, 8], "patch_size": [16, 16, 16],
        "validate::inferer::roi_size": [24, 24, 24], "val_interval": 1, "max_epochs": 40,
    }  # fmt: skip
    run = train_bundle(bundle, tmp_path / "data", tmp_path / "run", device="cpu", overrides=overrides)
    ours, theirs = read_training_curve(run / "extrapolation.json"), read_training_curve(run)
    assert (ours.metric, theirs.metric) == ("val_mean_dice", "val_mean_dice")
    np.testing.assert_array_equal(ours.steps, theirs.steps)
    np.testing.assert_allclose(ours.values, theirs.values, rtol=1e-6)
    assert 10 <= len(ours.steps) < 40
    assert json.loads((run / "extrapolation.json").read_text())[-1]["stop"]
    assert (run / "models" / "model.pt").is_file()
