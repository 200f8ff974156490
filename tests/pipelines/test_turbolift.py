"""`pipelines/turbolift.py --quick`: files, the table's structure, equal budgets; not that a method wins."""

from __future__ import annotations

import json
import sys
from types import ModuleType

import numpy as np
import pytest
import torch


@pytest.fixture(scope="module")
def sets(pipeline) -> ModuleType:
    return sys.modules["abdomen_sets"]


@pytest.fixture(scope="module")
def tiny(pipeline):
    return pipeline.Budget((3, 2, 1), 1, 2, 1, 2, features=(4, 4, 4, 4, 4), up_features=(4, 4, 4, 4))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_quick_run_leaves_a_record_for_each_method_and_a_table(out, pipeline, records):
    assert {(r["method"], r["seed"]) for r in records} == {(m, s) for m in pipeline.METHODS for s in (0, 1)}
    rows = json.loads((out / "results.json").read_text())["rows"]
    assert {row["set"] for row in rows} == {"target", "metal", "truncated"}
    assert all(np.isfinite(row["mean"]) for row in rows)
    assert [s["name"] for r in records if r["method"] == "serial" for s in r["stages"]] == [
        "ct",
        "cone_beam",
        "tst",
    ] * 2
    assert not list(out.rglob("*.part*"))


@pytest.mark.slow
def test_a_second_call_reads_what_is_there(out, pipeline, monkeypatch):
    before = (out / "results.md").read_text()
    monkeypatch.setattr(pipeline, "run_method", None)  # calling it would fail
    pipeline.main(["--out", str(out), "--quick"])
    assert (out / "results.md").read_text() == before


@pytest.mark.timeout(300)
def test_every_method_has_as_many_steps_and_the_same_start_and_tests_on_nobody_it_knows(pipeline, tiny, tmp_path):
    steps = {}
    for method in pipeline.METHODS:
        stages = pipeline.plan_stages(method, tiny, tmp_path)
        steps[method] = sum(len(s.train_data) // tiny.batch * s.max_epochs for s in stages)
        used = {item["subject"] for s in stages for item in [*s.train_data, *s.val_data]}
        assert not used & {f"phantom{seed}" for seed in pipeline.test_seeds(tiny)}
    assert set(steps.values()) == {3 * tiny.epochs * tiny.steps}
    first, again = (pipeline.build_network(tiny, 1).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_a_subject_has_the_same_liver_in_every_modality_and_flaws_show(sets, tmp_path):
    (ct,), (tst,) = (sets.load_phantoms(tmp_path, m, [5]) for m in ("ct", "tst"))
    (metal,), (cut,) = (sets.load_phantoms(tmp_path, "tst", [5], **{flaw: True}) for flaw in ("metal", "truncated"))
    for other in (tst, metal, cut):
        assert other.name == ct.name
        assert np.array_equal(other.mask, ct.mask)
        assert not np.array_equal(other.image, ct.image)
        assert other.image.min() >= 0
        assert other.image.max() <= 1
    assert np.abs(metal.image - tst.image).mean() > 0.005
    assert np.abs(cut.image - tst.image).mean() > 0.02
    (again,) = sets.load_phantoms(tmp_path, "tst", [5])
    assert np.array_equal(again.image, tst.image)


def test_slices_are_handed_on_with_their_subject_and_repeated_to_a_count(sets, tmp_path):
    subjects = sets.load_phantoms(tmp_path, "ct", [5, 6])
    items = sets.all_items(subjects, 20)
    assert len(items) == 20
    assert {item["subject"] for item in items} == {"phantom005", "phantom006"}
    assert items[0]["image"].shape == items[0]["label"].shape == (1, 32, 32)
    assert torch.equal(items[16]["image"], items[0]["image"])


def test_the_real_ct_is_scanned_too(shared_data, sets, tmp_path):
    subject = sets.load_subject(tmp_path, "real", lambda: sets.read_anatomy(shared_data / "abdomen_ct_mr"), "tst", 0)
    assert subject.image.shape == (1, 32, 32, 9)
    voxels = subject.mask.sum() * sets.SPACING**2 * 15
    assert voxels == pytest.approx(41692 * 27, rel=0.15)


def test_the_table_needs_the_baseline(pipeline, capsys):
    with pytest.raises(SystemExit):
        pipeline.main(["--out", "unused", "--methods", "serial"])
    assert "must hold target" in capsys.readouterr().err
