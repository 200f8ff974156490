"""`pipelines/pirads_dual_path.py --quick`: files, the tables' structure and fair starts; not that a method wins."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

DUAL = ("dual", "dual-aux", "cot", "cot-aux")


@pytest.mark.slow
@pytest.mark.timeout(900)  # half a minute on two idle cores; the limit is for busy ones
def test_a_quick_run_leaves_a_record_tables_and_figures(out, records, pipeline):
    assert {(r["method"], r["seed"]) for r in records} == {(m, s) for m in pipeline.METHODS for s in (0, 1)}
    names = {path.name for path in out.iterdir()}
    assert names == {"runs", "results.json", "results.md", "differences.png", "zones.png"}
    tables = json.loads((out / "results.json").read_text())["tables"]
    assert set(tables) == set(pipeline.QUESTIONS)
    for question, rows in tables.items():
        baseline, methods = pipeline.QUESTIONS[question]
        assert len(rows) == len(methods) * 2 * 4  # Dice and distance of four zones
        assert all(row["pairs"] <= 4 for row in rows if row["method"] != baseline)


@pytest.mark.slow
def test_methods_that_share_the_first_stage_have_its_losses_in_common(records, pipeline):
    found = {(r["method"], r["seed"]): r for r in records}
    first = pipeline.Budget(steps=30).first
    for seed in (0, 1):
        for plain, helped in (("dual", "cot"), ("dual-aux", "cot-aux")):
            a, b = (found[method, seed] for method in (plain, helped))
            assert a["losses"][:first] == b["losses"][:first]
            assert a["losses"][first:] != b["losses"][first:]
            assert a["disagreement_after_stage_1"] == b["disagreement_after_stage_1"]


@pytest.mark.slow
def test_a_second_call_reads_what_is_there(out, pipeline, monkeypatch):
    before = (out / "results.md").read_text()
    monkeypatch.setattr(pipeline, "run_method", None)  # calling it would fail
    pipeline.main(["--out", str(out), "--quick"])
    assert (out / "results.md").read_text() == before


def test_dual_methods_start_from_the_same_weights_and_the_wide_path_has_as_many(pipeline):
    budget = pipeline.Budget()
    networks = {method: pipeline.build_network(method, budget, 3) for method in pipeline.METHODS}
    reference = networks["dual-aux"].state_dict()
    for method in DUAL:
        assert all(torch.equal(w, reference[name]) for name, w in networks[method].state_dict().items())
    wide, dual = (sum(p.numel() for p in networks[m].parameters()) for m in ("wide", "dual"))
    assert abs(wide - dual) < 0.03 * dual


def test_every_method_sees_the_same_batches(pipeline):
    budget = pipeline.Budget(shape=(24, 24, 8), spacing=(2.5, 2.5, 6.0), cases=3)
    samples = [pipeline.draw_sample(seed, budget) for seed in range(3)]
    one, two, other = (list(pipeline.draw_batches(samples, 3, 2, (0, 0, s))) for s in (0, 0, 1))
    assert all(torch.equal(a["image"], b["image"]) for a, b in zip(one, two, strict=True))
    assert not all(torch.equal(a["image"], b["image"]) for a, b in zip(one, other, strict=True))
    assert one[0]["label_distance"].shape == (2, 4, 8, 24, 24)


def test_a_perfect_answer_scores_best_and_an_empty_one_worst(pipeline):
    budget = pipeline.Budget(shape=(24, 24, 8), spacing=(2.5, 2.5, 6.0))
    sample = pipeline.draw_sample(0, budget)
    label = sample.label[0].numpy()
    best, worst = (pipeline.measure(found, sample, budget) for found in (label, 0 * label))
    diagonal = np.linalg.norm(np.multiply(budget.shape, budget.spacing))
    for metric in best:
        dice = metric.startswith("dice")
        assert best[metric] == (1 if dice else 0)
        assert worst[metric] == pytest.approx(0 if dice else diagonal)


def test_the_rate_falls_to_zero_in_the_second_stage_only(pipeline):
    budget = pipeline.Budget()
    assert (budget.first, budget.second) == (200, 100)
    assert pipeline.rate_at(150, budget, 1) == budget.learning_rate
    assert pipeline.rate_at(0, budget, 2) == budget.second_rate > pipeline.rate_at(99, budget, 2)
