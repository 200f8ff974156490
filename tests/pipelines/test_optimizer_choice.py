"""`pipelines/optimizer_choice.py --quick`: files, tables, fair tuning; not that an optimizer wins."""

from __future__ import annotations

import json

import numpy as np


def test_a_quick_run_leaves_records_tables_and_no_parts(out, records, pipeline):
    tuned = [r for r in records if r["seed"] == 1000]
    compared = [r for r in records if r["seed"] != 1000]
    assert len(tuned) == sum(len(method.rates) for method in pipeline.METHODS.values())
    assert [r["method"] for r in compared] == sorted(pipeline.METHODS)
    assert {"results.json", "results.md"} <= {path.name for path in out.iterdir()}
    assert not list(out.rglob("*.part*"))
    rows = json.loads((out / "results.json").read_text())["rows"]
    assert len(rows) == len(pipeline.METRICS) * len(pipeline.METHODS)
    assert all(np.isfinite(r["losses"]).all() for r in records)
    assert {len(r["losses"]) for r in records} == {4}


def test_rates_are_chosen_without_the_test_volumes_and_by_the_best(records, pipeline):
    for method in pipeline.METHODS:
        tuned = [r for r in records if r["method"] == method and r["seed"] == 1000]
        (compared,) = [r for r in records if r["method"] == method and r["seed"] == 0]
        assert all(not set(r["cases"]) & set(compared["cases"]) for r in tuned)
        assert all(not set(r["cases"]) & set(r["settings"]["train"]) for r in tuned)
        best = max(tuned, key=lambda r: pipeline.mean_dice([r]))
        assert compared["settings"]["rate"] == best["settings"]["rate"]


def test_the_table_shows_what_each_state_costs(out, records):
    bytes_of = {r["method"]: r["state_bytes_per_weight"] for r in records}
    assert bytes_of["lion"] < 0.55 * bytes_of["adamw"]
    assert bytes_of["frugal"] < 0.5 * bytes_of["adamw"]
    assert "| FRUGAL |" in (out / "results.md").read_text()


def test_a_second_call_reads_what_is_there(out, pipeline, monkeypatch):
    before = (out / "results.md").read_text()
    monkeypatch.setattr(pipeline, "run_once", None)  # calling it would fail
    pipeline.main(["--out", str(out), "--quick"])
    assert (out / "results.md").read_text() == before
