"""`pipelines/normalization_choice.py --quick`: files, tables, fair starts; not that a method wins."""

from __future__ import annotations

import json

import numpy as np
import torch


def test_a_quick_run_leaves_records_tables_and_no_parts(out, records, pipeline):
    assert {(r["method"], r["settings"]["batch"]) for r in records} == {
        (m, b) for m in pipeline.METHODS for b in (1, 2)
    }
    assert {"results.json", "results.md"} <= {path.name for path in out.iterdir()}
    assert not list(out.rglob("*.part*"))
    rows = json.loads((out / "results.json").read_text())["rows"]
    assert len(rows) == 2 * len(pipeline.METRICS) * len(pipeline.METHODS)
    assert all(np.isfinite(row["mean"]) for row in rows)
    assert all(row["pairs"] == 2 for row in rows if row["method"] != "instance")
    assert all(np.isfinite(r["losses"]).all() for r in records)
    assert {len(r["losses"]) for r in records} == {12, 6}


def test_a_second_call_reads_what_is_there(out, pipeline, monkeypatch):
    before = (out / "results.md").read_text()
    monkeypatch.setattr(pipeline, "run_method", None)  # calling it would fail
    pipeline.main(["--out", str(out), "--quick"])
    assert (out / "results.md").read_text() == before


def test_methods_start_from_the_same_convolutions_and_see_the_same_crops(pipeline):
    budget = pipeline.Budget(crops=2, patch=(16, 16, 16), channels=(4, 8, 8))
    starts = []
    for method in pipeline.METHODS:
        network = pipeline.build_network(method, 10, budget, seed=1)
        state = network.state_dict()
        starts.append({k.replace("parametrizations.weight.original", "weight"): v for k, v in state.items()})
    convolutions = [key for key, value in starts[0].items() if value.ndim == 5]
    assert len(convolutions) > 10
    assert all(torch.equal(start[key], starts[0][key]) for start in starts for key in convolutions)
    cohort = pipeline.load_phantoms(2, 1)
    first, again = (next(pipeline.draw_batches(cohort, budget, 2, 0)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert [tuple(part.shape) for part in first] == [(2, 1, 16, 16, 16)] * 2


def test_volumes_are_halved_by_means(pipeline):
    volume = np.arange(2 * 3 * 4 * 5, dtype=float).reshape(2, 3, 4, 5)
    half = pipeline._halve(volume)
    assert half.shape == (2, 2, 2, 3)
    assert half[1, 0, 1, 0] == volume[1, :2, 2:4, :2].mean()
    assert half[0, 1, 0, 2] == volume[0, 2, :2, 4].mean()
