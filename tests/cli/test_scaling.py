"""`medseg scaling`: what is printed and written, warnings and exit codes."""

from __future__ import annotations

import functools
import json

import numpy as np
import pytest
from typer.testing import CliRunner

from medseg.cli.scaling import app
from medseg.core import scaling

SIZES = (10, 20, 40, 80, 160)


def run(*arguments):
    return CliRunner(env={"COLUMNS": "100", "NO_COLOR": "1"}).invoke(app, [str(a) for a in arguments])


@pytest.fixture(autouse=True)
def _small_samples(monkeypatch):
    """A coarse posterior is enough to see what is printed."""
    coarse = functools.partial(scaling.CurveExtrapolator, n_particles=150, moves=10)
    monkeypatch.setattr(scaling, "CurveExtrapolator", coarse)


@pytest.fixture
def runs(tmp_path):
    """Three runs at five sizes with a Dice of 0.92 - 0.9 cases^-0.5 and a little noise."""

    def write(sizes=SIZES, name="runs.csv", header="cases,seed,dice"):
        random = np.random.default_rng(1)
        rows = [
            f"{n},{s},{1 - (0.08 + 0.9 * n**-0.5) * np.exp(0.01 * random.standard_normal()):.5f}"
            for n in sizes
            for s in range(3)
        ]
        path = tmp_path / name
        path.write_text("\n".join([header, *rows]) + "\n")
        return path

    return write


@pytest.fixture
def log(tmp_path):
    """A JSON log of 12 validations in 48 of 100 epochs that rises towards 0.85."""
    epochs = np.arange(4, 52, 4)
    dice = 0.85 - 0.5 * epochs**-0.8 + 0.01 * np.random.default_rng(0).standard_normal(12)
    rows = [
        {"epoch": e, "loss": 1 / e, "val_mean_dice": d} for e, d in zip(epochs.tolist(), dice.tolist(), strict=True)
    ]
    path = tmp_path / "log.json"
    path.write_text(json.dumps(rows))
    return path


def test_the_budget_says_how_many_cases_are_missing_and_what_they_cost(runs):
    result = run("annotation-budget", runs(), "--target-dice", 0.86, "--current", 160, "--cost-per-case", 100)
    assert result.exit_code == 0, result.stderr
    assert "cases for a Dice of 0.86:" in result.stdout
    assert "more cases:" in result.stdout
    assert "cost:" in result.stdout
    assert "back-test, 160 cases" in result.stdout
    assert result.stderr == ""


def test_json_holds_the_truth_within_its_interval(runs, tmp_path):
    target = tmp_path / "b.json"
    arguments = ("annotation-budget", runs(), "--target-dice", 0.86, "--json", "-o", target)
    result = run(*arguments)
    facts = json.loads(result.stdout)
    assert facts == json.loads(target.read_text())
    truth = (0.9 / 0.06) ** 2
    assert facts["cases"]["lower"] < truth < facts["cases"]["upper"]
    assert facts["additional_cases"]["value"] == np.ceil(facts["cases"]["value"] - 160)
    assert facts["sizes"] == list(SIZES)
    again = run(*arguments)
    assert again.exit_code == 2
    assert "--overwrite" in again.stderr
    assert run(*arguments, "--overwrite").exit_code == 0


def test_a_target_above_the_ceiling_is_out_of_reach_not_an_error(runs):
    result = run("annotation-budget", runs(), "--target-dice", 0.99, "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["cases"]["upper"] is None
    assert "out of reach" in run("annotation-budget", runs(), "--target-dice", 0.99).stdout


def test_too_few_sizes_are_told(runs):
    result = run("annotation-budget", runs(SIZES[:4]), "--target-dice", 0.8)
    assert result.exit_code == 0
    assert "too few for honest intervals" in result.stderr


def test_other_column_names_can_be_given(runs):
    path = runs(header="n,seed,score")
    wrong = run("annotation-budget", path, "--target-dice", 0.8)
    assert wrong.exit_code == 4
    assert "no column 'cases'; there are: n, seed, score" in wrong.stderr
    right = run("annotation-budget", path, "--target-dice", 0.8, "--cases-column", "n", "--dice-column", "score")
    assert right.exit_code == 0


def test_both_commands_draw_a_picture(runs, log, tmp_path):
    pytest.importorskip("matplotlib")
    for name, arguments in (
        ("a.png", ("annotation-budget", runs(), "--target-dice", 0.86)),
        ("b.png", ("extrapolate", log, "--end", 100)),
    ):
        result = run(*arguments, "--plot", tmp_path / name)
        assert result.exit_code == 0, result.stderr
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    assert not list(tmp_path.glob(".*"))


def test_a_running_training_is_extrapolated_and_advised(log):
    result = run("extrapolate", log, "--end", 100, "--json")
    assert result.exit_code == 0, result.stderr
    facts = json.loads(result.stdout)
    assert facts["lower"] < 0.85 - 0.5 * 100**-0.8 < facts["upper"]
    assert (facts["metric"], facts["validations"], facts["stop"]) == ("val_mean_dice", 12, False)
    hopeless = run("extrapolate", log, "--end", 100, "--incumbent", 0.95)
    assert hopeless.exit_code == 0
    assert "stop: a chance of" in hopeless.stdout


def test_a_loss_is_read_from_an_event_file_as_well(tmp_path):
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path / "run" / "tensorboard")) as writer:
        for epoch in range(1, 13):
            writer.add_scalar("loss", 0.2 + 0.6 / epoch, epoch)
    result = run(
        "extrapolate", tmp_path / "run", "--end", 60, "--metric", "loss", "--lower-is-better", "--incumbent", 0.05
    )
    assert result.exit_code == 0, result.stderr
    assert "stop: a chance of" in result.stdout
    assert "below 0.05" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("annotation-budget", "x.csv", "--target-dice", "1.5"), 2, "--target-dice"),
        (("annotation-budget", "x.csv", "--target-dice", "0.9", "--interval", "2"), 2, "--interval"),
        (("annotation-budget", "x.csv", "--target-dice", "0.9", "--plot", "a.pdf"), 2, ".png"),
        (("annotation-budget", "x.csv", "--target-dice", "0.9", "-o", "a.txt"), 2, ".json"),
        (("annotation-budget", "absent.csv", "--target-dice", "0.9"), 4, "absent.csv"),
        (("extrapolate", "absent.json", "--end", "9"), 4, "absent.json"),
        (("extrapolate", "absent.json", "--end", "9", "--threshold", "1"), 2, "--threshold"),
    ],
)
def test_errors_leave_with_the_documented_code_and_without_traceback(arguments, code, message):
    result = run(*arguments)
    assert result.exit_code == code
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_values_out_of_range_say_which_option_helps(tmp_path):
    path = tmp_path / "log.json"
    path.write_text(json.dumps([{"step": step, "loss": 40 / step} for step in range(1, 15)]))
    result = run("extrapolate", path, "--end", 50, "--lower-is-better")
    assert result.exit_code == 4
    assert "loss runs from 2.857 to 40, not within 0 and 1" in result.stderr
    assert "--largest" in result.stderr
    assert run("extrapolate", path, "--end", 50, "--lower-is-better", "--largest", 50).exit_code == 0


def test_a_lucky_best_of_many_values_is_told(tmp_path):
    path, random = tmp_path / "log.json", np.random.default_rng(0)
    losses = 0.4 + 0.4 / np.arange(1, 201) + 0.05 * random.standard_normal(200)
    path.write_text(json.dumps({"step": list(range(1, 201)), "train_loss": losses.tolist()}))
    arguments = ("extrapolate", path, "--end", 400, "--lower-is-better")
    assert "beyond the curve" in run(*arguments).stderr
    assert "beyond the curve" not in run(*arguments, "--incumbent", 0.3).stderr


def test_an_end_before_the_last_validation_is_bad_input(log):
    result = run("extrapolate", log, "--end", 20)
    assert result.exit_code == 4
    assert "t_max" in result.stderr
