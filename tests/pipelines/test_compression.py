"""`pipelines/compression.py --quick`: files, tables, sizes; not that a method wins."""

from __future__ import annotations

import json

import numpy as np


def test_a_quick_run_leaves_records_tables_and_no_parts(out, records, pipeline):
    assert {r["method"] for r in records} == set(pipeline.METHODS)
    assert {"layers.md", "results.json", "results.md"} <= {path.name for path in out.iterdir()}
    assert not list(out.rglob("*.part*"))
    rows = json.loads((out / "results.json").read_text())["rows"]
    assert len(rows) == len(pipeline.METRICS) * len(pipeline.METHODS)
    assert all(np.isfinite([r["time_ratio"] for r in records]))


def test_sparser_weights_need_less_room_and_keep_the_dense_network(records):
    size = {r["method"]: r["size"] for r in records}
    assert size["dense"] > size["plain-0.3"] > size["plain-0.5"] > size["plain-0.9"]
    assert size["dense"] == records[0]["settings"]["dense_size"]


def test_methods_prune_what_they_say_and_a_floor_keeps_some_of_each_layer(records):
    found = {r["method"]: r["notes"] for r in records}
    assert abs(found["plain-0.8"]["sparsity"] - 0.8) < 0.01
    assert abs(found["scale-aware-floor-0.8"]["sparsity"] - 0.8) < 0.01
    assert min(found["plain-floor-0.9"]["kept"].values()) > 0


def test_allocated_and_trained_networks_stay_within_what_they_may_keep(records):
    found = {r["method"]: r["notes"] for r in records}
    assert 0.9 <= found["allocated-0.9"]["sparsity"] < 0.98
    assert set(found["allocated-0.9"]["layers"]) == set(found["plain-0.9"]["kept"])
    for kind in ("plain", "scale-aware"):
        assert found[f"{kind}-trained-0.9"]["kept"] == found[f"{kind}-floor-0.9"]["kept"]


def test_a_second_call_reads_what_is_there(out, pipeline, monkeypatch):
    before = (out / "results.md").read_text()
    monkeypatch.setattr(pipeline, "run_method", None)  # calling it would fail
    pipeline.main(["--out", str(out), "--quick"])
    assert (out / "results.md").read_text() == before
