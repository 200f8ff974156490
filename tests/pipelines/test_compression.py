"""`pipelines/compression.py --quick`: files, tables, sizes; not that a method wins."""

from __future__ import annotations

import importlib
import json

import numpy as np
import pytest


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


def test_int8_takes_less_room_and_prunes_before_where_it_says_so(records, pipeline):
    if "int8" not in pipeline.METHODS:
        pytest.skip("needs NNCF, of the extra int8")
    found = {r["method"]: r for r in records}
    assert found["int8"]["notes"]["int8_layers"] > 0
    assert found["int8"]["notes"]["int8_bytes"] < found["int8"]["notes"]["float_bytes"]
    assert found["int8-0.5"]["size"] < found["int8"]["size"]
    for name in ("openvino", "int8"):
        assert abs(pipeline.mean_dice(found[name]) - pipeline.mean_dice(found["dense"])) < 0.02


def test_calibration_windows_lie_in_the_volumes_and_small_volumes_are_padded(pipeline):
    windows = importlib.import_module("compression_int8").draw_windows([np.ones((6, 9, 4))], (4, 8, 8), 3)
    assert [tuple(window.shape) for window in windows] == [(1, 4, 8, 8)] * 3
    assert all(window[..., :4].min() == 1 and window[..., 4:].max() == 0 for window in windows)


def test_a_second_call_reads_what_is_there(out, pipeline, monkeypatch):
    before = (out / "results.md").read_text()
    monkeypatch.setattr(pipeline, "run_method", None)  # calling it would fail
    pipeline.main(["--out", str(out), "--quick"])
    assert (out / "results.md").read_text() == before
