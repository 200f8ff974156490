"""Serial training: weights go from stage to stage, a stopped run goes on where it stood, and nobody is in two roles."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from medseg.engines import SerialTrainer, Stage
from medseg.engines.stage import hash_items, subject_of
from medseg.transforms import RandFlipShiftRotated

ROOT = Path(__file__).resolve().parents[2]


def items(*subjects: str, size: int = 16) -> list[dict]:
    """Noise whose bright pixels are the label."""
    found = []
    for subject in subjects:
        image = torch.rand(1, size, size, generator=torch.Generator().manual_seed(len(subject) + ord(subject[-1])))
        found.append({"subject": subject, "image": image, "label": (image > 0.5).float()})
    return found


def network(classes: int = 1) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, classes, 1))


def stages(epochs: int = 2, **options) -> list[Stage]:
    data = [items("a", "b", "c", "d"), items("a", "b", "c"), items("a", "b")]
    names = ("ct", "cone_beam", "tst")
    augment = RandFlipShiftRotated(["image", "label"], max_shift=2, mode=["bilinear", "nearest"])
    val = {"val_data": items("v"), "val_transforms": lambda item: item, "transforms": augment}
    return [
        Stage(name, train, max_epochs=epochs, lr=0.01, **{**val, **options})
        for name, train in zip(names, data, strict=True)
    ]


def make(folder: Path, todo: list[Stage] | None = None, net: nn.Module | None = None, **options) -> SerialTrainer:
    loss = nn.BCEWithLogitsLoss()
    options = {"batch_size": 2, **options}
    return SerialTrainer(net or network(), todo or stages(), loss, torch.optim.Adam, folder, **options)


def weights(folder: Path, stage: str, name: str = "model.pt") -> dict[str, torch.Tensor]:
    state = torch.load(folder / stage / "models" / name, weights_only=True)
    return state["objects"]["network"] if "objects" in state else state


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("serial") / "whole"
    make(folder).run()
    return folder


def test_every_stage_starts_from_the_best_weights_before_it_with_a_new_optimizer(tmp_path):
    starts = []

    def look(number, stage, engine):
        if engine.state.iteration == 1 and engine.state.epoch == 1:
            (group,) = engine.optimizer.param_groups
            steps = {float(s["step"]) for s in engine.optimizer.state.values()}
            starts.append((number, stage.name, steps, group["lr"]))

    plan = stages()
    plan[1].lr = 0.0
    plan[2].lr = 0.0
    plan = [Stage(**{**vars(s), "transforms": None}) for s in plan]
    net = network()
    results = make(tmp_path, plan, net, progress=look).run()
    assert starts == [(0, "ct", {1.0}, 0.01), (1, "cone_beam", {1.0}, 0.0), (2, "tst", {1.0}, 0.0)]
    assert [r.parent for r in results] == ["initial", "ct (best)", "cone_beam (best)"]
    assert [r.parent_sha256 for r in results[1:]] == [r.weights_sha256 for r in results[:-1]]
    for name in ("01_cone_beam", "02_tst"):
        for key, value in weights(tmp_path, name).items():
            if "running" not in key and "num_batches" not in key:
                assert torch.equal(value, weights(tmp_path, "00_ct")[key])
    assert same(net.state_dict(), weights(tmp_path, "02_tst"))


def test_the_best_epoch_has_the_lowest_loss_or_the_highest_dice(tmp_path):
    for metric, better in (("val_loss", min), ("val_dice", max)):
        seen: dict[int, list[float]] = {}

        def look(number, stage, engine, seen=seen):
            seen.setdefault(number, [])

        trainer = make(tmp_path / metric, stages(4), selection_metric=metric, progress=look)
        build = trainer._build_evaluator
        values: list[float] = []

        def record(stage, build=build, values=values, metric=metric):
            evaluator = build(stage)
            evaluator.add_event_handler("EPOCH_COMPLETED", lambda e: values.append(e.state.metrics[metric]))
            return evaluator

        trainer._build_evaluator = record
        results = trainer.run()
        for number, result in enumerate(results):
            mine = values[4 * number : 4 * number + 4]
            assert result.best_value == pytest.approx(better(mine))
            assert result.best_epoch == mine.index(better(mine)) + 1


@pytest.mark.parametrize("when", [(0, 1, 2), (1, 2, 1), (2, 1, 1), (2, 2, 1)])
def test_a_stopped_run_goes_on_in_its_stage_and_ends_with_the_same_weights(whole, tmp_path, when):
    def stop(number, stage, engine):
        step = engine.state.iteration - (engine.state.epoch - 1) * engine.state.epoch_length
        if (number, engine.state.epoch, step) == when:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, progress=stop).run()
    done = [s["result"] is not None for s in json.loads((tmp_path / "manifest.json").read_text())["stages"]]
    assert done == [number < when[0] for number in range(3)]
    visited = []
    torch.manual_seed(99)  # neither another seed nor another network at the start may matter
    other = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 1, 1))
    make(tmp_path, net=other, progress=lambda n, s, e: visited.append((n, e.state.epoch))).run()
    assert visited[0] == (when[0], when[1])
    for name in ("00_ct", "01_cone_beam", "02_tst"):
        for file in ("model.pt", "last.pt"):
            assert same(weights(tmp_path, name, file), weights(whole, name, file)), (name, file)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_killed_process_goes_on_in_its_stage_and_ends_with_the_same_weights(tmp_path):
    script = "import sys; from pathlib import Path; from tests.engines.test_serial_trainer import make, stages, time\n"
    script += "make(Path(sys.argv[1]), stages(6), progress=lambda *_: time.sleep(float(sys.argv[2]))).run()"
    start = [sys.executable, "-c", script]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([*start, str(tmp_path / "whole"), "0"], env=environment, check=True)
    process = subprocess.Popen([*start, str(tmp_path / "killed"), "0.2"], env=environment)
    while not (tmp_path / "killed" / "01_cone_beam" / "models" / "last.pt").is_file():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed" / "02_tst").exists()
    subprocess.run([*start, str(tmp_path / "killed"), "0"], env=environment, check=True)
    for name in ("00_ct", "01_cone_beam", "02_tst"):
        assert same(weights(tmp_path / "killed", name, "last.pt"), weights(tmp_path / "whole", name, "last.pt"))


def test_a_finished_run_is_read_and_a_stage_killed_before_its_entry_is_not_trained_again(whole, tmp_path):
    def fail(*_):
        raise AssertionError("trained again")

    net = network()
    assert [r.name for r in make(whole, net=net, progress=fail).run()] == ["ct", "cone_beam", "tst"]
    assert same(net.state_dict(), weights(whole, "02_tst"))
    make(tmp_path).run()
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    expected, manifest["stages"][2]["result"] = manifest["stages"][2]["result"], None
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    assert make(tmp_path, progress=fail).run()[2].weights_sha256 == expected["weights_sha256"]


def test_with_no_learning_all_stages_end_with_identical_weights(tmp_path):
    plan = [Stage(**{**vars(s), "lr": 0.0}) for s in stages(1)]
    net = nn.Conv2d(1, 1, 3, padding=1)
    make(tmp_path, plan, net).run()
    assert same(weights(tmp_path, "00_ct"), weights(tmp_path, "02_tst"))
    assert same(weights(tmp_path, "00_ct"), torch.load(tmp_path / "initial.pt", weights_only=True))


def test_statistics_of_batch_normalisation_are_kept_or_estimated_on_the_stages_images(tmp_path):
    bright = [{**item, "image": item["image"] + 5} for item in items("a", "b", "c", "d")]
    means = {}
    for mode in ("parent", "train_data"):
        seen = []
        net = network()

        def look(number, stage, engine, net=net, seen=seen):
            if number == 1 and engine.state.iteration == 1:
                seen.append(net[1].running_mean.clone())

        second = Stage("bright", bright, max_epochs=1, lr=0.0, norm_statistics=mode)
        make(tmp_path / mode, [stages(1)[0], second], net, batch_size=4, progress=look).run()
        with torch.no_grad():
            truth = net[0](torch.stack([i["image"] for i in bright])).mean((0, 2, 3))
        means[mode] = (seen[0] - truth).abs().max().item()
    assert means["train_data"] < 1e-4
    assert means["parent"] > 0.1


def test_frozen_parameters_stay_and_learn_again_later(tmp_path):
    plan = stages(1)
    plan[0].freeze = ("0.",)
    make(tmp_path, plan).run()
    start = torch.load(tmp_path / "initial.pt", weights_only=True)
    assert torch.equal(weights(tmp_path, "00_ct", "last.pt")["0.weight"], start["0.weight"])
    assert not torch.equal(weights(tmp_path, "00_ct", "last.pt")["3.weight"], start["3.weight"])
    assert not torch.equal(weights(tmp_path, "01_cone_beam", "last.pt")["0.weight"], start["0.weight"])


def test_an_optimizer_can_go_on_into_the_next_stage(tmp_path):
    steps = {}

    def look(number, stage, engine):
        steps.setdefault(number, float(next(iter(engine.optimizer.state.values()))["step"]))

    plan = [Stage(**{**vars(s), "reset_optimizer": False}) for s in stages(2)]
    make(tmp_path, plan, progress=look).run()
    assert steps == {0: 1.0, 1: 5.0, 2: 9.0}  # two epochs of two steps each came before


def test_another_head_is_left_as_it_was_only_when_that_is_asked_for(tmp_path):
    torch.save(network(classes=3).state_dict(), tmp_path / "three.pt")
    plan = [Stage(**{**vars(stages(1)[0]), "load": str(tmp_path / "three.pt"), "lr": 0.0, "strict": False})]
    (result,) = make(tmp_path / "loose", plan).run()
    assert result.reinitialised == ["3.bias", "3.weight"]
    found, start = weights(tmp_path / "loose", "00_ct"), network().state_dict()
    assert torch.equal(found["3.weight"], start["3.weight"])
    plan[0].strict = True
    with pytest.raises(RuntimeError, match="size mismatch"):
        make(tmp_path / "strict", plan).run()


def test_weights_can_come_from_the_last_epoch_the_start_or_a_file(whole, tmp_path):
    plan = stages(1)
    plan[1].load, plan[2].load = "last", str(whole / "00_ct" / "models" / "model.pt")
    results = make(tmp_path, plan).run()
    assert [r.parent for r in results[:2]] == ["initial", "ct (last)"]
    assert (
        results[2].parent_sha256
        == json.loads((whole / "manifest.json").read_text())["stages"][0]["result"]["weights_sha256"]
    )
    plan[2].load = "nowhere.pt"
    with pytest.raises(FileNotFoundError, match=r"stage 'tst' starts from 'nowhere\.pt'"):
        make(tmp_path / "other", plan).run()


@pytest.mark.parametrize(
    ("role", "other", "message"),
    [
        ("test_data", "c", "subject 'c' is learnt from in stage 'ct' and tested on in stage 'tst'"),
        ("val_data", "d", "subject 'd' is learnt from in stage 'ct' and validated on in stage 'tst'"),
        ("test_data", "v", "subject 'v' is validated on in stage 'ct' and tested on in stage 'tst'"),
    ],
)
def test_nobody_is_in_two_roles_in_any_two_stages(tmp_path, role, other, message):
    plan = stages()
    setattr(plan[2], role, items(other))
    with pytest.raises(ValueError, match=message):
        make(tmp_path, plan)


def test_other_settings_or_changed_checkpoints_are_not_resumed(tmp_path):
    make(tmp_path, stages(1)).run()
    with pytest.raises(ValueError, match="was trained with other settings"):
        make(tmp_path, stages(2)).run()
    with pytest.raises(ValueError, match="was trained with other settings"):
        make(tmp_path, stages(1), seed=1).run()
    with pytest.raises(FileExistsError, match="holds a run"):
        make(tmp_path, stages(1), resume=False).run()
    torch.save(network().state_dict(), tmp_path / "01_cone_beam" / "models" / "model.pt")
    with pytest.raises(ValueError, match=r"stage 'cone_beam'.*not the file of the manifest"):
        make(tmp_path, stages(1)).run()
    (tmp_path / "01_cone_beam" / "models" / "model.pt").unlink()
    with pytest.raises(FileNotFoundError, match="stage 'cone_beam' is done, but"):
        make(tmp_path, stages(1)).run()
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(FileExistsError, match=r"last\.pt belongs to a run without manifest\.json"):
        make(tmp_path, stages(1)).run()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Stage("c t", items("a")), "name must consist of letters"),
        (lambda: Stage("ct", []), "train_data of stage 'ct' is empty"),
        (lambda: Stage("ct", items("a"), max_epochs=0), "max_epochs must be at least 1"),
        (lambda: Stage("ct", items("a"), norm_statistics="none"), "norm_statistics must be parent or train_data"),
        (lambda: make(Path("unused"), stages()[:1] * 2), "each with a name of its own"),
        (lambda: SerialTrainer(network(), [], nn.L1Loss(), torch.optim.Adam, "unused"), "at least one stage"),
        (lambda: make(Path("unused"), selection_metric="dice"), "selection_metric must be one of val_loss, val_dice"),
        (lambda: make(Path("unused"), batch_size=0), "batch_size must be at least 1, got 0"),
        (lambda: subject_of({"image": torch.zeros(1)}), "give every item its subject"),
    ],
)
def test_what_cannot_be_trained_is_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_lists_of_items_are_told_apart_by_subjects_paths_and_order():
    lists = [items("a", "b"), items("b", "a"), items("a"), [{"subject": "a", "image": "x.nii"}]]
    assert len({hash_items(found) for found in lists}) == 4
    assert hash_items(items("a", "b")) == hash_items(items("a", "b"))
