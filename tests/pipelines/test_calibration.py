"""`pipelines/calibration.py --quick`: files, halves that share no case, and masks that stay."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from medseg.transforms import TemperatureScaled


def test_a_quick_run_leaves_records_tables_and_no_parts(out, records, pipeline):
    assert sorted(r["method"] for r in records) == sorted(pipeline.METHODS)
    assert {"runs", "results.json", "results.md", "calibration.json"} <= {path.name for path in out.iterdir()}
    assert not list(out.rglob("*.part*"))
    text = (out / "results.md").read_text()
    assert all(f"| {title} | none |" in text for title, _, _ in pipeline.METRICS.values())


def test_every_case_is_measured_once_and_by_a_fit_that_has_not_seen_it(records):
    for record in records:
        first, second = map(set, record["halves"])
        assert not first & second
        assert first | second == set(record["cases"])
        assert len(record["fitted"]) == 2
        assert record["halves"] == records[0]["halves"]


def test_a_fit_does_not_look_at_the_other_half(pipeline):
    cases = pipeline.draw_cases()
    names, budget = sorted(cases), pipeline.Budget(voxels=2000)
    broken = dict(cases) | {name: (cases[name][0].flip(0), cases[name][1]) for name in names[2:]}
    fits = [pipeline.fit(c, names[:2], "temperature", budget).settings() for c in (cases, broken)]
    assert fits[0] == fits[1]


def test_no_method_changes_a_mask_and_the_likelihood_gains(records):
    means = {}
    for record in records:
        assert all(case["mask_changed"] == 0 for case in record["cases"].values())
        means[record["method"]] = np.mean([case["nll_all"] for case in record["cases"].values()])
    assert means["temperature"] < 0.9 * means["none"]
    assert means["mixture"] < 0.9 * means["none"]


def test_the_temperature_that_was_put_in_is_found_and_a_bundle_can_read_it(out):
    found = json.loads((out / "calibration.json").read_text())
    assert found["temperatures"] == [pytest.approx(2, rel=0.1)]
    p = torch.tensor([0.9, 0.1])[:, None]
    scaled = TemperatureScaled(file=str(out / "calibration.json"))(p)
    assert 0.5 < float(scaled[0]) < 0.9


def test_a_second_call_reads_what_is_there(out, pipeline, monkeypatch):
    before = (out / "results.md").read_text()
    monkeypatch.setattr(pipeline, "run", None)  # calling it would fail
    pipeline.main(["--out", str(out), "--quick"])
    assert (out / "results.md").read_text() == before


def test_real_images_need_a_data_folder(pipeline, capsys):
    with pytest.raises(SystemExit):
        pipeline.main(["--out", "unused"])
    assert "--data is needed" in capsys.readouterr().err
