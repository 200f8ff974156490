"""The comparison of training steps on sets: what it computes and writes, not how fast anything is."""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SMALL = "32^3, 4 x 4, 4 features"


@pytest.fixture
def bench(monkeypatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("sample_set")


def _run(contender: str, seconds: list[float], growth: int, loss: float) -> dict:
    times = {"seconds": seconds, "processor_seconds": [s / 2 for s in seconds]}
    return {"contender": contender, "case": SMALL, "threads": 1, **times, "growth_bytes": growth, "loss": loss}


def test_medians_over_processes_give_the_ratios(bench):
    runs = [_run("published energy", [s, s, 9.0], 6, 2.0) for s in (1.0, 2.0, 3.0)]
    runs += [_run("medseg energy", [s] * 3, 2, 2.002) for s in (0.5, 0.1, 0.7)]
    peer, ours = bench.summarise(runs)
    assert (peer["seconds"], peer.get("ratios")) == (2.0, None)
    assert ours["ratios"] == {"seconds": 0.25, "processor_seconds": 0.25, "growth_bytes": pytest.approx(1 / 3)}
    assert ours["loss_difference"] == pytest.approx(1e-3)
    assert "| 0.25 | 0.25 | 0.33 | 1e-03 |" in bench.markdown_table([peer, ours])


@pytest.mark.slow
def test_a_step_runs_in_a_process_of_its_own(bench, tmp_path):
    found = bench.run_once("medseg energy", SMALL, 1, 1, tmp_path)
    assert len(found["seconds"]) == 1
    assert found["growth_bytes"] > 0
    assert found["loss"] > 0
    with pytest.raises(RuntimeError, match="KeyError"):
        bench.run_once("medseg energy", "5^9", 1, 1, tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("geomloss") is None, reason="needs geomloss, which the published way uses")
@pytest.mark.parametrize("distance", ["energy", "sinkhorn"])
def test_both_ways_have_the_same_loss(bench, tmp_path, distance):
    ours, published = (bench.run_once(f"{n} {distance}", SMALL, 1, 1, tmp_path) for n in ("medseg", "published"))
    # The samples of an untrained network are nearly equal, where distances from a Gram matrix cancel.
    assert ours["loss"] == pytest.approx(published["loss"], rel=1e-3)
