"""Logs of trainings and tables of runs."""

from __future__ import annotations

import json

import numpy as np
import pytest

from medseg.data import read_runs, read_training_curve

ROWS = [{"epoch": e, "loss": 1.0 / e, "val_mean_dice": 0.1 * e} for e in (2, 1, 3)]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", json.dumps(ROWS)),
        ("a.jsonl", "\n".join(map(json.dumps, ROWS)) + "\n"),
        ("b.json", json.dumps({k: [row[k] for row in ROWS] for k in ROWS[0]} | {"name": "run"})),
    ],
)
def test_every_form_of_json_gives_the_usual_metric_by_ascending_step(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    curve = read_training_curve(tmp_path / name)
    assert curve.metric == "val_mean_dice"
    np.testing.assert_allclose(curve.steps, [1, 2, 3])
    np.testing.assert_allclose(curve.values, [0.1, 0.2, 0.3])
    np.testing.assert_allclose(read_training_curve(tmp_path / name, "loss").values, [1, 1 / 2, 1 / 3])


def test_the_later_value_of_a_step_and_only_finite_ones_count(tmp_path):
    rows = [{"step": 1, "m": 0.1}, {"step": 2, "m": 0.2}, {"step": 2, "m": 0.3}, {"step": 3, "m": float("nan")}]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    np.testing.assert_allclose(read_training_curve(tmp_path / "a.json").values, [0.1, 0.3])


def test_a_run_folder_is_searched_for_event_files(tmp_path):
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path / "run" / "tensorboard")) as writer:
        for epoch in (5, 10, 15):
            writer.add_scalar("val_mean_dice", epoch / 20, epoch)
            writer.add_scalar("train_loss", 1 / epoch, epoch)
    curve = read_training_curve(tmp_path / "run")
    np.testing.assert_allclose(curve.steps, [5, 10, 15])
    np.testing.assert_allclose(curve.values, [0.25, 0.5, 0.75])


@pytest.mark.parametrize(
    ("text", "metric", "message"),
    [
        ("{", None, "neither JSON nor JSON lines"),
        ("[1, 2]", None, "must hold a list of objects"),
        (json.dumps([{"m": 1.0}]), None, "must name the step"),
        (json.dumps({"epoch": [1, 2], "m": [1.0]}), None, "differ in length"),
        (json.dumps([{"epoch": 1, "a": 1.0, "b": 2.0}]), None, "several metrics or none, say which: a, b"),
        (json.dumps([{"epoch": 1, "a": 1.0}]), "c", "no metric 'c'; there are: a"),
        (json.dumps([{"epoch": 1, "a": 1.0}]), None, "at least 2"),
    ],
)
def test_files_that_are_no_log_are_refused_with_what_is_there(tmp_path, text, metric, message):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_training_curve(tmp_path / "a.json", metric)


def test_absent_logs_are_told(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_training_curve(tmp_path / "a.json")
    with pytest.raises(FileNotFoundError, match="no TensorBoard event file"):
        read_training_curve(tmp_path)


def test_two_columns_of_a_table_are_read_and_empty_lines_left_out(tmp_path):
    (tmp_path / "r.csv").write_text("\ufeffcases, dice,note\n10,0.7,a\n20,,b\n40, 0.8,\n")
    cases, dice = read_runs(tmp_path / "r.csv")
    np.testing.assert_array_equal(cases, [10, 40])
    np.testing.assert_array_equal(dice, [0.7, 0.8])
    with pytest.raises(ValueError, match="no column 'n'; there are: cases, dice, note"):
        read_runs(tmp_path / "r.csv", x="n")


def test_a_value_that_is_no_number_is_told_with_its_line(tmp_path):
    (tmp_path / "r.csv").write_text("cases,dice\n10,0.7\n20,good\n")
    with pytest.raises(ValueError, match="line 3: 'good' is no number"):
        read_runs(tmp_path / "r.csv")
