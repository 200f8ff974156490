"""The comparison of float32 and int8: what it computes and writes, not how fast anything is."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def bench(monkeypatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("int8")


def test_models_take_turns_and_the_first_window_is_not_counted(bench):
    calls: list[str] = []
    models = {"fp32": lambda x: calls.append("fp32"), "int8": lambda x: calls.append("int8")}
    assert set(bench.time_in_turn(models, None, 2)) == set(models)
    assert calls == ["fp32", "int8"] * 3


def test_the_table_gives_ratios_to_float32(bench):
    found = {
        "features": [4, 8],
        "window": 16,
        "seconds": {"fp32": 2.0, "int8": 1.0},
        "bytes": {"fp32": 8e6, "int8": 2e6},
    }
    assert bench.write_table(found).splitlines()[-1] == "| 4, 8 | 16 | 2.00 | 1.00 | 0.50 | 8.0 | 2.0 | 0.25 |"


def test_a_small_run_leaves_a_record_and_a_table(bench, tmp_path):
    pytest.importorskip("nncf", reason="needs NNCF, of the extra int8")
    bench.main(["--features", "4", "8", "8", "--window", "16", "--repeats", "1", "-o", str(tmp_path)])
    found = json.loads((tmp_path / "int8.json").read_text())
    assert found["bytes"]["int8"] < found["bytes"]["fp32"]
    assert found["machine"]["packages"]["openvino"]
    assert (tmp_path / "int8.md").read_text() == bench.write_table(found)
