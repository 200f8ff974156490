"""`pipelines/annotation_budget.py --quick`: files, nested subsets, and a truth that no fit has seen."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest


def test_a_quick_run_leaves_records_tables_and_no_parts(out, records, pipeline):
    assert sorted(r["size"] for r in records) == [1, 2, 3, 4, 6, 8]
    assert {"runs.csv", "results.json", "results.md"} <= {path.name for path in out.iterdir()}
    assert not list(out.rglob("*.part*"))
    rows = json.loads((out / "results.json").read_text())["comparison"]
    assert [row["from_at_most"] for row in rows] == [4, 6]
    for row in rows:
        assert row["interval"][0] <= row["interval"][1]
    text = (out / "results.md").read_text()
    assert "| from at most | predicted for 8 |" in text


def test_the_table_for_the_command_leaves_out_the_truth(out):
    with (out / "runs.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {int(row["cases"]) for row in rows} == {1, 2, 3, 4, 6}


def test_a_second_call_reads_what_is_there(out, pipeline, monkeypatch):
    before = (out / "results.md").read_text()
    monkeypatch.setattr(pipeline, "run", None)  # calling it would fail
    pipeline.main(["--out", str(out), "--quick"])
    assert (out / "results.md").read_text() == before


def test_every_beginning_of_a_draw_holds_the_groups_in_their_shares(pipeline):
    groups = ["a"] * 38 + ["b"] * 107
    orders = [pipeline.order_cases(groups, draw) for draw in range(3)]
    assert len({tuple(order) for order in orders}) == 3
    for order in orders:
        assert sorted(order) == list(range(145))
        for size in (5, 10, 20, 40, 80):
            share = np.mean([groups[i] == "a" for i in order[:size]])
            assert abs(share - 38 / 145) <= 1.01 / size


def test_runs_that_follow_a_law_predict_the_largest(pipeline):
    random = np.random.default_rng(1)
    plan = pipeline.Plan()
    records = [
        {"size": n, "draw": d, "cases": {"x": {"dice": 1 - (0.12 + 0.5 * n**-0.6) * np.exp(0.01 * random.normal())}}}
        for n in (*plan.sizes, 145)
        for d in range(3)
    ]
    found = pipeline.compare(records, plan, 80)
    assert found["inside"]
    assert found["predicted"] == pytest.approx(1 - (0.12 + 0.5 * 145**-0.6), abs=0.005)
    one = found["interval_of_one_run"]
    assert one[0] < found["interval"][0] < found["interval"][1] < one[1]
    # Other values at the largest size change nothing but the truth.
    for record in records[-3:]:
        record["cases"]["x"]["dice"] = 0.1
    other = pipeline.compare(records, plan, 80)
    assert other["params"] == found["params"]
    assert not other["inside"]


def test_real_images_need_a_data_folder(pipeline, capsys):
    with pytest.raises(SystemExit):
        pipeline.main(["--out", "unused"])
    assert "--data is needed" in capsys.readouterr().err
