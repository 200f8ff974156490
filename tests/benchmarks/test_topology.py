"""The comparison of Betti matching with its peers: what it computes and writes, not how fast anything is."""

from __future__ import annotations

import importlib
import json
import math
import os
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
    found = {"seconds": seconds, "first": {"imports": 5.0, "image": 3.0, "volume": 1.0}, "loss": loss}
    memory = {"growth_bytes": growth, "peak_bytes": 10 * growth}
    return {"contender": contender, "case": "128^2", "threads": 1, **found, **memory}


def test_medians_over_processes_give_the_ratios(bench):
    runs = [_run("topolosses", [s, s, 9.0], 6, 2.0) for s in (1.0, 2.0, 3.0)]
    runs += [_run("medseg", [s] * 3, 2, 2.002) for s in (0.5, 0.1, 0.7)]
    peer, ours = bench.summarise(runs)
    assert (peer["seconds"], peer["first"], peer["ratios"]) == (2.0, 9.0, None)
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


@pytest.mark.slow
def test_one_case_runs_in_a_process_of_its_own(bench, tmp_path):
    found = bench.run_once("medseg", "128^2", 1, 1, tmp_path)
    assert len(found["seconds"]) == 1
    assert list(found["first"]) == ["imports", "image", "volume"]
    assert found["loss"] > 0
    with pytest.raises(RuntimeError, match="KeyError"):
        bench.run_once("medseg", "5^9", 1, 1, tmp_path)


def test_first_calls_are_timed_with_an_empty_and_a_filled_cache_of_their_own(bench, monkeypatch):
    folders = []

    def pretend(*_):
        folders.append(os.environ["NUMBA_CACHE_DIR"])
        return {"first": {"imports": 1.0, "image": 4.0 / len(folders), "volume": 2.0 / len(folders)}}

    monkeypatch.setenv("NUMBA_CACHE_DIR", "the user's own")
    monkeypatch.setattr(bench, "run_once", pretend)
    table = bench.measure_first_call()
    assert "| empty | 1.00 | 4.00 | 2.00 |\n| filled | 1.00 | 2.00 | 1.00 |" in table
    assert folders[0] == folders[1] != "the user's own"
    assert not Path(folders[0]).exists()
