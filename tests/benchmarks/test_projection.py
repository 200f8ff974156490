"""The comparison of the MIP loss with its eager formulation: what it computes and writes, not how fast anything is."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def bench(monkeypatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("projection")


@pytest.fixture
def contenders(bench) -> ModuleType:
    return importlib.import_module("projection_contenders")


def _run(contender: str, forward: list[float], backward: list[float], growth: int, value: float) -> dict:
    key = {"case": "2 x 1 x 64^3", "device": "cpu", "threads": 1, "contender": contender}
    return key | {"forward": forward, "backward": backward, "growth_bytes": growth, "value": value}


def test_medians_over_processes_give_the_ratios(bench):
    runs = [_run("eager loss", [s, s, 9.0], [3 * s] * 3, 6, 2.0) for s in (0.1, 0.2, 0.3)]
    runs += [_run("medseg loss", [s] * 3, [s] * 3, 3, 2.002) for s in (0.1, 0.4, 0.5)]
    (row,) = bench.summarise(runs)
    assert (row["eager"]["seconds"], row["medseg"]["seconds"]) == pytest.approx((0.8, 0.8))
    assert row["ratios"] == pytest.approx({"forward": 2.0, "backward": 0.4 / 0.6, "seconds": 1.0, "growth_bytes": 0.5})
    table = bench.markdown_table([row], {"GPU": "no CUDA device"})
    assert "| 800 | 800 | 0.0 | 0.0 | 2.00 | 0.67 | 1.00 | 0.50 | 1e-03 |" in table
    assert "- GPU: not measured (no CUDA device)" in table


@pytest.mark.parametrize("part", ["loss", "projections"])
def test_both_sides_compute_the_same_with_gradients(contenders, part):
    logits, label = contenders.make_case((1, 2, 9, 8, 7))
    found = []
    for side in ("eager", "medseg"):
        given = logits.clone().requires_grad_()
        outputs = contenders.CONTENDERS[f"{side} {part}"]()(given, label)
        sum(output.sum() for output in outputs).backward()
        found.append([*outputs, given.grad])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_a_stretch_of_several_calls_computes_what_one_call_does(contenders):
    run = contenders.CONTENDERS["medseg projections"]()
    once, often = (contenders._run_once(run, contenders.make_case((1, 1, 6, 5, 4)), loops) for loops in (1, 3))
    assert once[2] == often[2]
    assert min(*once[:2], *often[:2]) > 0


@pytest.mark.slow
def test_one_case_runs_in_a_process_of_its_own_and_without_a_gpu_the_report_says_so(bench, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    options = ["--cases", "2 x 1 x 64^3", "--threads", "1", "--repeats", "1", "--rounds", "1"]
    bench.main([*options, "-o", str(tmp_path)])
    content = json.loads((tmp_path / "projection.json").read_text())
    (row,) = content["summary"]
    assert row["value_difference"] < 1e-5
    assert 0 < row["medseg"]["growth_bytes"] < row["eager"]["growth_bytes"]
    assert "not measured (no CUDA device)" in (tmp_path / "projection.md").read_text()
    with pytest.raises(RuntimeError, match="KeyError"):
        bench.run_program(bench.PROGRAM, ["medseg loss", "5^9", "cpu", "1", "1"], tmp_path)
