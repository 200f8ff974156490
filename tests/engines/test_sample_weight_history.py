"""Tests of `medseg.engines.sample_weight_history`."""

from __future__ import annotations

import csv
import json
import logging
import sys
from pathlib import Path

import pytest
import torch

from medseg.engines import SampleWeightHistory
from tests.engines.adawac_ranks import SAMPLES, make_trainer


def make_batches():
    """Even samples are half foreground, odd ones nearly empty; the last never comes."""
    batches = []
    for start in range(0, SAMPLES - 1, 4):
        ids = torch.arange(start, min(start + 4, SAMPLES - 1))
        label = torch.zeros(len(ids), 1, 8, 8)
        label[ids % 2 == 0, :, :4] = 1
        image = label + 0.1 * torch.rand(label.shape, generator=torch.Generator().manual_seed(start))
        views = {"image": image, "image_view2": image.flip(2), "label": label, "label_view2": label.flip(2)}
        batches.append({**views, "sample_id": ids})
    return batches


def run(folder, epochs, state=None, **options):
    trainer = make_trainer(make_batches(), epochs)
    handler = SampleWeightHistory(trainer.adaptive_loss, str(folder), **options)
    handler.attach(trainer)
    if state is not None:
        trainer.load_state_dict(state)
    trainer.run()
    return trainer


def read(folder: Path) -> list[dict[str, str]]:
    with (folder / "sample_weights.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_epoch_leaves_a_line_with_both_kinds_of_samples(tmp_path):
    trainer = run(tmp_path, 3, plot=False)
    rows = read(tmp_path)
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert {(row["dense_samples"], row["sparse_samples"]) for row in rows} == {("6", "5")}
    weights = trainer.adaptive_loss.sample_weights()[:, 0]
    assert float(rows[-1]["dense_mean"]) == pytest.approx(weights[:12:2].mean().item())
    assert float(rows[-1]["sparse_mean"]) == pytest.approx(weights[1:11:2].mean().item())
    assert 0 <= float(rows[-1]["auc"]) <= 1
    content = json.loads((tmp_path / "sample_weights.json").read_text())
    assert content["samples"]["label_share"] == [0.5, 0.0] * 5 + [0.5, None]
    assert content["samples"]["visits"] == [3] * 11 + [0]
    assert len(content["history"]) == 3
    assert sorted(p.name for p in tmp_path.iterdir()) == ["sample_weights.csv", "sample_weights.json"]


def test_what_counts_as_dense_can_be_chosen_and_nothing_to_compare_is_not_a_number(tmp_path):
    run(tmp_path, 1, dense_share=0.6, plot=False)
    (row,) = read(tmp_path)
    assert (row["dense_samples"], row["auc"]) == ("0", "nan")
    assert json.loads((tmp_path / "sample_weights.json").read_text())["history"][0]["auc"] is None
    with pytest.raises(ValueError, match="dense_share must be above 0"):
        SampleWeightHistory(make_trainer([], 1).adaptive_loss, "unused", dense_share=0.0)


def test_a_resumed_run_goes_on_with_the_lines_and_a_new_one_starts_over(tmp_path):
    run(tmp_path / "whole", 3, plot=False)
    state = run(tmp_path / "parts", 2, plot=False).state_dict()
    state["max_epochs"] = 3
    run(tmp_path / "parts", 3, state, plot=False)
    assert [float(row["epoch"]) for row in read(tmp_path / "parts")] == [1, 2, 3]
    run(tmp_path / "parts", 1, plot=False)
    assert len(read(tmp_path / "parts")) == 1


def test_the_picture_needs_matplotlib_and_its_absence_stops_nothing(tmp_path, monkeypatch, caplog):
    pytest.importorskip("matplotlib")
    run(tmp_path / "with", 1)
    assert (tmp_path / "with" / "sample_weights.png").is_file()
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with caplog.at_level(logging.WARNING):
        run(tmp_path / "without", 2)
    assert len(read(tmp_path / "without")) == 2
    assert not (tmp_path / "without" / "sample_weights.png").exists()
    said = [record.message for record in caplog.records if "medseg[plot]" in record.message]
    assert len(said) == 1
