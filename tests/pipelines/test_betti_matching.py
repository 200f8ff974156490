"""`pipelines/betti_matching.py --quick`: files, the table's structure and losses that fall; not that a method wins."""

from __future__ import annotations

import json

import numpy as np
import pytest


@pytest.mark.slow
@pytest.mark.timeout(900)  # half a minute on two idle cores; the limit is for busy ones
def test_a_quick_run_leaves_a_record_a_table_and_pictures(out, records):
    assert {(r["method"], r["seed"]) for r in records} == {(m, s) for m in ("dice", "cldice", "betti") for s in (0, 1)}
    extremes = {f"phantom-{word}-{method}.png" for word in ("gain", "loss") for method in ("dice", "betti")}
    assert extremes | {"results.json", "results.md"} <= {path.name for path in out.iterdir()}
    assert not list(out.rglob("*.part*"))


@pytest.mark.slow
def test_the_table_has_a_row_for_each_metric_and_method_with_a_paired_difference(out, pipeline):
    rows = json.loads((out / "results.json").read_text())["rows"]
    assert len(rows) == len(pipeline.METRICS) * len(pipeline.METHODS)
    for row in rows:
        assert np.isfinite(row["mean"])
        if row["method"] != "dice":
            assert row["pairs"] == 6
            assert row["better"] + row["worse"] <= 6
            assert row["ci95"][0] <= row["difference"] <= row["ci95"][1]
    lines = (out / "results.md").read_text().splitlines()
    assert sum(line.startswith("| ") for line in lines) == 1 + len(rows)
    assert {line.count("|") for line in lines if line.startswith("|")} == {7}


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


def test_methods_see_the_same_batches_and_other_seeds_others(pipeline):
    images = pipeline.load_phantoms(train=2, test=1, patch=24, objects=1)
    first, again, other = (next(pipeline.draw_batches(images, 1, 2, seed)) for seed in [(0, 1), (0, 1), (1, 1)])
    assert [part.shape for part in first] == [(2, 1, 24, 24, 24)] * 2
    assert all(a.equal(b) for a, b in zip(first, again, strict=True))
    assert not first[0].equal(other[0])


def test_training_images_and_masks_turn_together(pipeline):
    mask = np.zeros((8, 8), bool)
    mask[1, 2:5] = True
    sample = pipeline.Sample("bar", mask[None].astype(np.float32), mask)
    for seed in range(8):
        image, label = next(pipeline.draw_batches(pipeline.ImageSet([sample], [sample], patch=8), 1, 1, (seed,)))
        assert image.equal(label)


def test_centreline_dice_is_one_for_equal_masks_and_zero_for_an_empty_one(pipeline):
    bar = np.zeros((9, 9), bool)
    bar[3:6, 1:8] = True
    assert pipeline.centreline_dice(bar, bar) == 1
    assert pipeline.centreline_dice(np.zeros_like(bar), bar) == 0


def test_results_of_other_settings_are_not_taken_over(pipeline, tmp_path):
    path = tmp_path / "em-dice-0.json"
    path.write_text(json.dumps({"settings": {"steps": 1}}))
    assert pipeline.read_record(path, {"steps": 2}) is None
    assert pipeline.read_record(path, {"steps": 1}) == {"settings": {"steps": 1}}


def test_real_images_need_a_data_folder(pipeline, capsys):
    with pytest.raises(SystemExit):
        pipeline.main(["--out", "unused"])
    assert "--data is needed" in capsys.readouterr().err
