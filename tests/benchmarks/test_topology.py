"""The comparison of Betti matching with its peers: what it computes and writes, not how fast anything is."""

from __future__ import annotations

import importlib
import json
import math
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def bench(monkeypatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("topology")


def _run(contender: str, seconds: list[float], growth: int, loss: float) -> dict:
    times = {"seconds": seconds, "first": 9.0, "growth_bytes": growth, "peak_bytes": 10 * growth, "loss": loss}
    return {"contender": contender, "case": "128^2", "threads": 1, **times}


def test_medians_over_processes_give_the_ratios(bench):
    runs = [_run("topolosses", [s, s, 9.0], 6, 2.0) for s in (1.0, 2.0, 3.0)]
    runs += [_run("medseg", [s] * 3, 2, 2.002) for s in (0.5, 0.1, 0.7)]
    peer, ours = bench.summarise(runs)
    assert (peer["seconds"], peer["ratios"]) == (2.0, None)
    assert ours["ratios"]["seconds"] == 0.25
    assert ours["ratios"]["growth_bytes"] == pytest.approx(1 / 3)
    assert ours["ratios"]["loss_difference"] == pytest.approx(1e-3)
    table = bench.markdown_table([peer, ours], {"gudhi barcode": "gudhi is not installed"})
    assert "| 0.25 | 0.33 | 1e-03 |" in table
    assert "not run (gudhi is not installed)" in table


def test_a_contender_without_its_peer_has_no_ratio(bench):
    (row,) = bench.summarise([_run("medseg", [1.0], 2, math.nan)])
    assert row["ratios"] is None
    json.dumps(bench._strict(row), allow_nan=False)


def test_the_images_are_the_same_every_time_and_rich_in_features(bench, monkeypatch):
    contenders = importlib.import_module("topology_contenders")
    one, two = (contenders.make_case(2, (24, 24)) for _ in range(2))
    for a, b in zip(one, two, strict=True):
        np.testing.assert_array_equal(a, b)
    assert one[0].shape == (2, 1, 24, 24)
    assert set(np.unique(one[1])) == {0, 1}
    assert not np.array_equal(one[0][0], one[0][1])


def test_one_case_runs_in_a_process_of_its_own(bench, tmp_path):
    found = bench.run_once("medseg", "128^2", 1, 1, tmp_path)
    assert len(found["seconds"]) == 1
    assert found["loss"] > 0
    with pytest.raises(RuntimeError, match="KeyError"):
        bench.run_once("medseg", "5^9", 1, 1, tmp_path)
