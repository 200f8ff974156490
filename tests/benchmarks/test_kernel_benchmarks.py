"""The benchmarks of losses, upsampling and norms: that contenders compute the same, not how fast anything is."""

from __future__ import annotations

import importlib
from argparse import Namespace
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def on_path(monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setenv("MEDSEG_KERNELS", "auto")  # contenders set it; this puts it back


@pytest.mark.parametrize(
    ("name", "case"),
    [
        ("dice_ce", ((2, 3, 4, 5, 6), "ids")),
        ("dice_ce", ((2, 3, 4, 5, 6), "masks")),
        ("dice_ce", ((2, 3, 4, 5, 6), "sigmoid")),
        ("focal_tversky", (2, 3, 4, 5, 6)),
        ("upsample_argmax", (3, 8)),
        ("norm", ((1, 4, 5, 6, 7), True)),
        ("norm_step", (16, True)),
    ],
)
def test_all_contenders_compute_the_same(name, case):
    benchmark = importlib.import_module(name)
    inputs = benchmark.make_inputs(case)
    values = [build()(inputs) for contender, build in benchmark.CONTENDERS.items() if contender != "compile"]
    assert values == pytest.approx([values[0]] * len(values), rel=1e-5)
    assert benchmark.PEER in benchmark.CONTENDERS


def test_medians_over_processes_give_the_ratios_and_the_table():
    table = importlib.import_module("kernel_table")
    key = {"case": "small", "threads": 2, "value": 1.5}
    peer = {"contender": "peer", "processor_seconds": [0.4], "growth_bytes": 4e6}
    ours = {"contender": "ours", "processor_seconds": [0.3], "growth_bytes": 1e6}
    runs = [key | peer | {"seconds": [s, s, 9.0]} for s in (0.1, 0.2, 0.3)]
    runs += [key | ours | {"seconds": [s] * 3} for s in (0.05, 0.1, 0.7)]
    rows = table.summarise(runs, "peer")
    assert rows[1]["ratios"] == pytest.approx({"seconds": 0.5, "processor_seconds": 0.75, "growth_bytes": 0.25})
    assert "| small | 2 | ours | 100 | 1 | 0.50 | 0.75 | 0.25 | 1.5 |" in table.markdown_table(rows, "peer")


def test_contenders_take_turns_on_every_case(monkeypatch):
    table = importlib.import_module("kernel_table")
    calls = []
    monkeypatch.setattr(table, "run_program", lambda program, command, folder: calls.append(command) or {"value": 1})
    options = Namespace(cases=["a"], threads=[1], rounds=2, contenders=["x", "y"], repeats=3)
    assert len(table.measure("norm", options)) == 4
    assert [command[1] for command in calls] == ["x", "y", "x", "y"]
