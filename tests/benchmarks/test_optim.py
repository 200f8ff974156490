"""The comparison of optimizers: what it computes and writes, not how fast anything is."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def bench(monkeypatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("optim")


def _run(contender: str, seconds: float, state: dict[str, int]) -> dict:
    found = {"seconds": [seconds, seconds, 9.0], "growth_bytes": 5_000_000, "state": state, "weights": 100}
    return {"contender": contender, "case": "0.1 M", "threads": 1, **found}


def test_medians_over_processes_give_the_ratios(bench):
    runs = [_run("pytorch_optimizer AdamP, loop", s, {"m": 400, "v": 400}) for s in (1.0, 2.0, 3.0)]
    runs += [_run("medseg AdamP", s, {"m": 400, "v": 400, "step": 4}) for s in (0.5, 0.1, 0.7)]
    runs += [_run("torch AdamW, fused", 0.25, {"m": 400, "v": 400})]
    peer, ours, fused = bench.summarise(runs)
    assert (peer["seconds"], peer["to_peer"], peer["to_fused"]) == (2.0, None, 8.0)
    assert (ours["to_peer"], ours["to_fused"], ours["bytes_per_weight"]) == (0.25, 2.0, 8.04)
    assert fused["to_fused"] == 1
    assert "| 1 | medseg AdamP | 500 | 0.25 | 2.00 | 8.04 | 5 |" in bench.markdown_table([peer, ours, fused])


def test_the_weights_are_those_of_a_unet_of_31_million(bench):
    contenders = importlib.import_module("optim_contenders")
    shapes = contenders.unet_shapes(contenders.CASES["31 M"])
    sizes = [_product(shape) for kind in shapes.values() for shape in kind]
    assert 30e6 < sum(sizes) < 32e6
    assert len(shapes["normed"]) == 22
    assert (320, 320, 2, 2, 2) in shapes["others"]


def _product(shape: tuple[int, ...]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total


@pytest.mark.parametrize(
    ("name", "least", "most"),
    [
        ("medseg AdamP, known", 8, 8.1),
        ("medseg Lion", 4, 4.1),
        ("medseg Lion, bfloat16", 2, 2.1),
        ("medseg FRUGAL, columns", 1.9, 2.2),
    ],
)
def test_states_have_the_bytes_that_the_methods_promise(bench, name, least, most):
    contenders = importlib.import_module("optim_contenders")
    optimizer = contenders.CONTENDERS[name](
        contenders.make_groups(contenders.CASES["0.1 M"], known=name.endswith("known"))
    )
    optimizer.step()
    weights = sum(p.numel() for group in optimizer.param_groups for p in group["params"])
    assert least <= sum(contenders.state_bytes(optimizer).values()) / weights <= most
