"""`pipelines/vessel_mip.py --quick`: files, the table's structure and losses that fall; not that a method wins."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch


@pytest.mark.slow
@pytest.mark.timeout(900)  # a minute on two idle cores; the limit is for busy ones
def test_a_quick_run_leaves_a_record_a_table_and_figures(out, records, pipeline):
    assert {(r["method"], r["seed"]) for r in records} == {(m, s) for m in pipeline.METHODS for s in (0, 1)}
    names = {path.name for path in out.iterdir()}
    assert names == {"runs", "results.json", "results.md", "differences.png", "projections.png"}
    assert not list(out.rglob("*.part*"))


@pytest.mark.slow
def test_the_table_has_a_row_for_each_metric_and_method_with_a_paired_difference(out, pipeline):
    rows = json.loads((out / "results.json").read_text())["rows"]
    assert len(rows) == len(pipeline.METRICS) * len(pipeline.METHODS)
    for row in rows:
        assert np.isfinite(row["mean"])
        if row["method"] != "none":
            assert row["pairs"] == 6
            assert row["ci95"][0] <= row["difference"] <= row["ci95"][1]
    lines = (out / "results.md").read_text().splitlines()
    assert sum(line.startswith("| ") for line in lines) == 1 + len(rows)


@pytest.mark.slow
def test_every_loss_goes_down(records):
    for record in records:
        first, last = np.mean(record["losses"][:20]), np.mean(record["losses"][-20:])
        assert last < first, record["method"]


@pytest.mark.slow
def test_a_second_call_reads_what_is_there(out, pipeline, monkeypatch):
    before = (out / "results.md").read_text()
    monkeypatch.setattr(pipeline, "run_method", None)  # calling it would fail
    pipeline.main(["--out", str(out), "--quick"])
    assert (out / "results.md").read_text() == before


@pytest.fixture(scope="module")
def images(pipeline):
    return pipeline.load_vessels(train=2, test=2, size=32, patch=24)


def test_training_and_test_phantoms_differ(images):
    assert not {s.name for s in images.train} & {s.name for s in images.test}
    assert not np.array_equal(images.train[0].mask, images.test[0].mask)


def test_a_perfect_prediction_costs_every_loss_nothing_and_a_gap_the_mip_losses_more(pipeline, images):
    mask = torch.from_numpy(images.train[0].mask)[None, None].float()
    line = torch.zeros_like(mask)
    line[..., 16, 16, :] = 1
    broken = line.clone()
    broken[..., 15:17] = 0
    shares = {}
    for method in pipeline.METHODS:
        loss = pipeline.build_loss(method, patch=24)
        assert loss(200 * (mask - 0.5), mask).item() == pytest.approx(0, abs=1e-4)
        shares[method] = loss(200 * (broken - 0.5), line).item()
    # Along the line itself (the last axis) the gap does not show, so one axis cannot help here; three can.
    assert shares["single"] < shares["none"]
    assert shares["multi"] > shares["single"]
    assert shares["slabs"] > shares["single"]


def test_a_perfect_prediction_measures_perfectly_and_an_empty_one_lacks_everything(pipeline, images):
    sample = images.test[0]
    best = pipeline.measure(sample.mask, sample)
    assert best == {metric: float(larger) for metric, larger in pipeline.LARGER_IS_BETTER.items()}
    worst = pipeline.measure(np.zeros_like(sample.mask), sample)
    assert worst["gap_mm"] > 10
    assert (worst["gap_fraction"], worst["b0_error"], worst["dice"]) == (1, 2, 0)


def test_components_on_the_trees_and_beside_them_are_told_apart(pipeline):
    target, pred = np.zeros((2, 8, 8, 8), bool)
    target[4, 4] = pred[4, 4] = True
    pred[4, 4, 3] = False
    pred[1, 1, 1] = True
    assert pipeline.count_pieces(pred, target) == (2, 1)
    assert pipeline.count_pieces(np.zeros_like(pred), target) == (0, 0)


def test_the_figure_shows_the_phantom_in_the_middle_and_marks_what_is_missed(pipeline):
    cases = {name: {"gap_mm": gap} for name, gap in {"a": 3.0, "b": 9.0, "c": 5.0}.items()}
    assert pipeline.choose_shown([{"method": "multi", "cases": {}}, {"method": "none", "cases": cases}]) == "c"
    target, pred = np.zeros((2, 3, 4, 5), bool)
    target[1, 1, :], pred[1, 2, :] = True, True
    picture = pipeline.paint(pred, target)
    assert picture.shape == (4, 3, 3)
    red, blue = picture[1, 1], picture[2, 1]
    assert red[0] > red[2]
    assert blue[2] > blue[0]
