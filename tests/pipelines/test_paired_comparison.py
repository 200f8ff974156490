"""`pipelines/paired_comparison.py`: pairs are of one image and seed, and say where a method loses."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

METHODS = {"old": "Old", "new": "New"}


@pytest.fixture
def paired(monkeypatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "pipelines"))
    return importlib.import_module("paired_comparison")


def _record(method: str, seed: int, values: dict[str, float]) -> dict:
    cases = {name: {"dice": value} for name, value in values.items()}
    return {"set": "s", "method": method, "seed": seed, "cases": cases}


@pytest.fixture
def records() -> list[dict]:
    return [
        _record("new", 1, {"b": 0.9, "a": 0.5}),  # another order of seeds and images: the pairs stay
        _record("old", 0, {"a": 0.5, "b": 0.6}),
        _record("new", 0, {"a": 0.6, "b": 0.7}),
        _record("old", 1, {"a": 0.6, "b": 0.8}),
    ]


def test_differences_are_between_the_same_image_and_seed(paired, records):
    rows = paired.compare_methods(records, baseline="old", larger_is_better={"dice": True})
    row = next(r for r in rows if r["method"] == "new")
    assert row["mean"] == pytest.approx(0.675)
    assert row["difference"] == pytest.approx(0.05)
    assert (row["pairs"], row["better"], row["worse"]) == (4, 3, 1)


def test_better_and_worse_swap_for_an_error(paired, records):
    rows = paired.compare_methods(records, baseline="old", larger_is_better={"dice": False})
    row = next(r for r in rows if r["method"] == "new")
    assert (row["better"], row["worse"]) == (1, 3)


def test_a_metric_that_a_set_does_not_have_is_left_out(paired, records):
    assert not paired.compare_methods(records, baseline="old", larger_is_better={"cavities": False})


def test_the_interval_resamples_images_and_seeds(paired):
    by_seed = np.tile([[-1.0, 1.0]], (50, 1))  # many images cannot make up for two seeds that disagree
    assert paired.crossed_interval(by_seed, resamples=500) == pytest.approx((-1.0, 1.0))
    assert paired.crossed_interval(np.full((3, 3), 0.5), resamples=100) == pytest.approx((0.5, 0.5))


def test_the_table_shows_the_difference_and_the_losses(paired, records):
    rows = paired.compare_methods(records, baseline="old", larger_is_better={"dice": True})
    table = paired.markdown_table(rows, baseline="old", methods=METHODS, metrics={"dice": "Dice"}, digits={"dice": 3})
    assert "| Dice | Old | 0.625 |  |  |  |" in table
    assert "| Dice | New | 0.675 | +0.050 (" in table
    assert "| 3 / 1 / 0 |" in table


def test_the_figure_is_written_where_matplotlib_is(paired, records, tmp_path):
    pytest.importorskip("matplotlib")
    shown = {"baseline": "old", "methods": METHODS, "metrics": {"dice": "Dice"}}
    assert paired.draw_differences(tmp_path / "d.png", records, larger_is_better={"dice": True}, **shown)
    assert (tmp_path / "d.png").stat().st_size > 1000
