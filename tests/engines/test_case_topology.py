"""Tests of `medseg.engines.case_topology` and of topological errors in an evaluation."""

from __future__ import annotations

import csv
import math

import numpy as np
import pytest

from medseg.engines.case_metrics import METRICS, measure_case
from medseg.engines.case_topology import TOPOLOGY, add_rim, draw_label, measure_topology
from medseg.engines.evaluation import compare, evaluate
from medseg.engines.evaluation_files import compared, write_evaluation
from medseg.metrics.empty import EmptyPolicy
from medseg.report.evaluation_tables import comparison_tables, evaluation_tables

SHAPE = (12, 11, 9)


def label_map(*, tunnel: bool = False, cavity: bool = False, speck: bool = False) -> np.ndarray:
    """Label 1 is a box, label 2 a smaller one; the box may have a tunnel or a cavity, and a speck beside it."""
    labels = np.zeros(SHAPE, np.uint8)
    labels[0:5, 1:6, 1:6] = 1
    labels[7:11, 6:10, 2:6] = 2
    if tunnel:
        labels[2, 3, 1:6] = 0
    if cavity:
        labels[2, 3, 3] = 0
    if speck:
        labels[11, 0, 8] = 1
    return labels


@pytest.fixture
def folders(make_nifti, tmp_path):
    """Three cases: right; a tunnel and a speck in label 1; label 2 missed."""
    missed = np.where(label_map() == 2, 0, label_map()).astype(np.uint8)
    for case, pred in {"a": label_map(), "b": label_map(tunnel=True, speck=True), "c": missed}.items():
        make_nifti(f"ref/{case}.nii.gz", label_map())
        make_nifti(f"pred/{case}_seg.nii.gz", pred)
    return tmp_path / "pred", tmp_path / "ref"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, [0, 0, 0, 0]),
        ({"tunnel": True}, [0, 1, 0, 1]),
        ({"cavity": True}, [0, 0, 1, 1]),
        ({"speck": True}, [1, 0, 0, 1]),
        ({"cavity": True, "speck": True}, [1, 0, 1, 2]),
    ],
)
def test_errors_of_a_box_by_hand(changes, expected):
    measured = measure_case(label_map(**changes), label_map(), (1.0, 1.0, 1.0), topology=True)
    assert [measured[1][name] for name in TOPOLOGY] == expected
    assert [measured[2][name] for name in TOPOLOGY] == [0, 0, 0, 0]


def test_cutting_to_the_structures_changes_nothing():
    rng = np.random.default_rng(0)
    for corner in ((0, 0, 0), (2, 3, 1), (6, 5, 3)):
        masks = np.zeros((2, *SHAPE), bool)
        box = (slice(None), *(slice(c, c + 6) for c in corner))
        masks[box] = rng.random((2, 6, 6, 6)) > 0.6
        labels = masks.astype(np.uint8)
        cut = measure_case(*labels, (1.0, 1.0, 1.0), topology=True)[1]
        whole = measure_topology(*masks, EmptyPolicy())
        assert {name: cut[name] for name in TOPOLOGY} == whole
    assert add_rim((slice(0, 12), slice(3, 4), slice(8, 9)), SHAPE) == (slice(0, 12), slice(2, 5), slice(7, 9))


def test_empty_masks_follow_the_policy():
    full, none = np.ones((3, 3), bool), np.zeros((3, 3), bool)
    assert measure_topology(none, full, EmptyPolicy())["BettiMatchingError"] == 1
    assert measure_topology(none, full, EmptyPolicy(missed=9))["BettiNumberError_0"] == 9
    assert math.isnan(measure_topology(full, none, EmptyPolicy(hallucinated="nan"))["BettiMatchingError"])
    assert math.isnan(measure_topology(none, none, EmptyPolicy())["BettiMatchingError"])
    for rule in ("best", "worst"):
        assert measure_topology(none, none, EmptyPolicy(both=rule))["BettiMatchingError"] == 0
    assert math.isnan(measure_topology(full, full, EmptyPolicy())["BettiNumberError_2"]), "an image has no cavities"


def test_an_evaluation_holds_topological_errors_when_asked(folders, tmp_path):
    plain = evaluate(*folders, resamples=0)
    assert plain.metric_names == METRICS
    found = evaluate(*folders, resamples=50, topology=True, names={7: "absent"})
    summary = found.summary()
    assert summary["settings"]["topology"] is True
    assert summary["mean"]["1"]["BettiNumberError_0"] == pytest.approx(1 / 3)
    assert summary["mean"]["1"]["BettiNumberError_1"] == pytest.approx(1 / 3)
    assert summary["mean"]["1"]["BettiMatchingError"] == pytest.approx(2 / 3)
    assert summary["worst"]["1"]["BettiMatchingError"] == {"value": 2.0, "case": "b"}
    assert summary["worst"]["2"]["BettiMatchingError"] == {"value": 1.0, "case": "c"}
    assert summary["mean"]["7"]["BettiMatchingError"] is None
    table = evaluation_tables(summary)
    assert "b1 error" in table
    assert "unmatched" in table
    assert "unmatched" not in evaluation_tables(plain.summary())
    with found.write(tmp_path / "m.csv").open() as file:
        rows = {(row["case"], row["label"]): row for row in csv.DictReader(file)}
    assert rows["b", "1"]["BettiMatchingError"] == "2.0"
    assert rows["b", "7"]["BettiMatchingError"] == ""


def test_two_methods_are_compared_in_topology_too(folders, tmp_path):
    found = compare(*folders, folders[1], topology=True, preview=tmp_path / "pictures", resamples=0)
    assert found.labels[1]["BettiMatchingError"].mean_difference == pytest.approx(2 / 3)
    assert "unmatched" in comparison_tables(compared(found))
    assert write_evaluation(found, tmp_path / "c.csv").read_text().count("BettiMatchingError") == 3
    assert len(list((tmp_path / "pictures").iterdir())) == 6


def test_a_picture_is_drawn_for_each_case_and_label(folders, tmp_path):
    evaluate(*folders, topology=True, preview=tmp_path / "p", names={1: "box"}, resamples=0)
    assert sorted(p.name for p in (tmp_path / "p").iterdir()) == [
        f"{case}_label-{label}_topology.png" for case in "abc" for label in (1, 2)
    ]
    path = draw_label(tmp_path, "sub-1/ses-1", 1, "1", label_map()[..., 3], label_map()[..., 3])
    assert path.name == "sub-1_ses-1_label-1_topology.png"


def test_pictures_without_topology_are_refused(folders, tmp_path):
    with pytest.raises(ValueError, match="topology=True"):
        evaluate(*folders, preview=tmp_path / "p")
