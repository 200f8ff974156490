"""Evaluation of files and folders: numbers by hand, empty masks, files that do not fit, and what is written."""

from __future__ import annotations

import csv
import json
import math

import numpy as np
import pytest

from medseg.engines.case_metrics import measure_case
from medseg.engines.evaluation import compare, evaluate
from medseg.engines.evaluation_files import compared, write_evaluation

AFFINE = np.diag([1.0, 2.0, 3.0, 1.0])
SHAPE = (10, 9, 8)


def mask(**boxes) -> np.ndarray:
    """Label map with a 3 x 3 x 3 box for each label, e.g. `l1=2` starts label 1 at x = 2."""
    array = np.zeros(SHAPE, np.uint8)
    for name, start in boxes.items():
        y = 1 if name == "l1" else 5
        array[start : start + 3, y : y + 3, 2:5] = int(name[1:])
    return array


@pytest.fixture
def folders(make_nifti, tmp_path):
    """Three cases: exact; label 1 moved by 1 mm; label 2 missed in `c`."""
    for case, pred in {"a": mask(l1=2, l2=3), "b": mask(l1=3, l2=3), "c": mask(l1=2)}.items():
        make_nifti(f"ref/{case}.nii.gz", mask(l1=2, l2=3), AFFINE)
        make_nifti(f"pred/{case}_seg.nii.gz", pred, AFFINE)
    return tmp_path / "pred", tmp_path / "ref"


def test_metrics_of_a_shifted_box_by_hand(folders):
    found = evaluate(folders[0] / "b_seg.nii.gz", folders[1] / "b.nii.gz")
    (case,) = found.cases
    moved, exact = case.labels[1], case.labels[2]
    assert moved["Dice"] == pytest.approx(2 / 3)
    assert moved["IoU"] == pytest.approx(1 / 2)
    assert moved["HD95"] == pytest.approx(1.0)
    assert [moved[k] for k in ("TP", "FP", "FN", "n_pred", "n_ref")] == [18, 9, 9, 27, 27]
    assert moved["TN"] == math.prod(SHAPE) - 36
    assert moved["VolumeError_mm3"] == 0
    assert [exact[k] for k in ("Dice", "IoU", "HD95", "ASD", "NSD")] == [1, 1, 0, 0, 1]


def test_a_missed_structure_counts_as_the_worst_value(folders):
    found = evaluate(*folders, resamples=50)
    summary = found.summary()
    diagonal = math.sqrt(10**2 + 18**2 + 24**2)
    assert summary["mean"]["2"]["HD95"] == pytest.approx(diagonal / 3)
    assert summary["mean"]["2"]["Dice"] == pytest.approx(2 / 3)
    assert summary["mean"]["2"]["VolumeError_mm3"] == pytest.approx(-27 * 6 / 3)
    assert summary["counts"]["2"] == {"cases": 3, "present": 2, "both_empty": 0, "missed": 1, "hallucinated": 0}
    assert summary["worst"]["2"]["Dice"] == {"value": 0.0, "case": "c"}
    assert summary["worst"]["1"]["HD95"] == {"value": 1.0, "case": "b"}


def test_the_summary_holds_the_keys_that_nnunet_writes(folders):
    summary = evaluate(*folders, resamples=50).summary()
    wanted = {"Dice", "IoU", "TP", "FP", "FN", "TN", "n_pred", "n_ref"}
    assert wanted <= set(summary["foreground_mean"])
    assert wanted <= set(summary["mean"]["1"])
    first = summary["metric_per_case"][0]
    assert wanted <= set(first["metrics"]["1"])
    assert first["prediction_file"].endswith("a_seg.nii.gz")
    assert first["reference_file"].endswith("a.nii.gz")
    dice = [summary["mean"][label]["Dice"] for label in ("1", "2")]
    assert summary["foreground_mean"]["Dice"] == pytest.approx(np.mean(dice))
    low, high = summary["ci95"]["1"]["Dice"]
    assert low <= summary["mean"]["1"]["Dice"] <= high


def test_a_label_in_no_file_does_not_count_and_is_null_in_strict_json(folders, tmp_path):
    found = evaluate(*folders, names={1: "head", 7: "absent"}, resamples=50)
    assert found.labels == {1: "head", 2: "2", 7: "absent"}
    path = found.write(tmp_path / "m.json")

    def refuse(constant):
        raise AssertionError(f"{constant} is not strict JSON")

    summary = json.loads(path.read_text(), parse_constant=refuse)
    assert summary["mean"]["7"]["Dice"] is None
    assert summary["n"]["7"]["Dice"] == 0
    assert summary["counts"]["7"]["both_empty"] == 3
    assert summary["foreground_mean"]["Dice"] is not None
    assert summary["label_names"]["7"] == "absent"


def test_the_policy_decides_about_absent_labels(folders):
    best = evaluate(*folders, labels=[7], empty="both=best", resamples=0).summary()
    assert (best["mean"]["7"]["Dice"], best["mean"]["7"]["HD95"]) == (1.0, 0.0)
    assert best["settings"]["empty"]["both"] == "best"


def test_csv_has_a_row_for_each_case_and_label(folders, tmp_path):
    path = evaluate(*folders, resamples=0).write(tmp_path / "m.csv")
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6
    assert [row["kind"] for row in rows if row["case"] == "c"] == ["present", "missed"]
    assert float(rows[0]["Dice"]) == 1.0


def test_writing_keeps_existing_files_and_leaves_nothing_half(folders, tmp_path):
    found = evaluate(*folders, resamples=0)
    path = found.write(tmp_path / "m.json")
    with pytest.raises(FileExistsError, match="--overwrite"):
        found.write(path)
    found.write(path, overwrite=True)
    with pytest.raises(ValueError, match=r"\.json or \.csv"):
        found.write(tmp_path / "m.txt")
    with pytest.raises(FileNotFoundError, match="folder"):
        found.write(tmp_path / "absent" / "m.json")
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_file()) == ["m.json"]


def test_missing_predictions_stop_are_left_out_or_count_as_failed(folders):
    (folders[0] / "b_seg.nii.gz").unlink()
    with pytest.raises(ValueError, match=r"1 of 3 references have no prediction .*: b; .*'skip'"):
        evaluate(*folders)
    skipped = evaluate(*folders, missing="skip", resamples=0)
    assert [case.case for case in skipped.cases] == ["a", "c"]
    assert skipped.unmatched_references[0].endswith("b.nii.gz")
    failed = evaluate(*folders, missing="empty", resamples=0)
    assert failed.values("Dice")[1].tolist() == [0.0, 0.0]


def test_a_file_that_does_not_fit_is_listed_and_the_others_go_on(folders, make_nifti):
    make_nifti("pred/a_seg.nii.gz", mask(l1=2), np.diag([1.0, 2.0, 3.1, 1.0]))
    (folders[0] / "b_seg.nii.gz").write_bytes(b"nothing")
    found = evaluate(*folders, resamples=0)
    assert [case.case for case in found.cases] == ["c"]
    assert "one grid" in found.failures["a"]
    assert "b_seg.nii.gz" in found.failures["b"]
    assert [f["case"] for f in found.summary()["failures"]] == ["a", "b"]
    with pytest.raises(ValueError, match="one grid"):
        evaluate(folders[0] / "a_seg.nii.gz", folders[1] / "a.nii.gz")


def test_progress_and_surplus_predictions_are_reported(folders, make_nifti):
    make_nifti("pred/z_seg.nii.gz", mask(l1=2), AFFINE)
    seen = []
    found = evaluate(*folders, resamples=0, progress=lambda *step: seen.append(step))
    assert seen == [(1, 3, "a"), (2, 3, "b"), (3, 3, "c")]
    assert [p.endswith("z_seg.nii.gz") for p in found.unmatched_predictions] == [True]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": [0]}, "ids above 0"),
        ({"labels": []}, "ids above 0"),
        ({"nsd_tolerance_mm": -1}, "nsd_tolerance_mm"),
        ({"missing": "ignore"}, "'error', 'skip' or 'empty'"),
        ({"resamples": -1}, "resamples"),
        ({"empty": "both"}, "CASE=RULE"),
    ],
)
def test_wrong_options_are_named(folders, options, message):
    with pytest.raises(ValueError, match=message):
        evaluate(*folders, **options)


def test_masks_without_any_label_are_an_error(make_nifti):
    a, b = make_nifti("a.nii", np.zeros(SHAPE, np.uint8)), make_nifti("b.nii", np.zeros(SHAPE, np.uint8))
    with pytest.raises(ValueError, match="nothing to evaluate"):
        evaluate(a, b)
    assert math.isnan(evaluate(a, b, labels=[1], resamples=0).values("Dice").item())


def test_two_methods_are_compared_case_by_case(folders, tmp_path):
    found = compare(folders[1], folders[0], folders[1], resamples=200)
    assert found.labels[1]["Dice"].mean_difference == pytest.approx(1 / 9)
    assert found.labels[1]["Dice"].n_first_larger == 1
    assert found.labels[2]["Dice"].mean_difference == pytest.approx(1 / 3)
    assert found.foreground["Dice"].n == 3
    same = compare(folders[0], folders[0], folders[1], resamples=0)
    assert (same.labels[1]["HD95"].p_wilcoxon, same.labels[1]["HD95"].mean_difference) == (1.0, 0.0)
    json.dumps(compared(same), allow_nan=False)
    assert write_evaluation(found, tmp_path / "c.csv").read_text().count("\n") == 1 + 3 * 8


def test_a_flat_image_is_measured_in_2d():
    pred, ref = np.zeros((2, 12, 12, 1), np.uint8)
    ref[2:8, 2:8], pred[4:10, 2:8] = 1, 1
    solid = measure_case(pred, ref, (1.5, 1.0, 4.0))[1]
    flat = measure_case(pred[..., 0], ref[..., 0], (1.5, 1.0))[1]
    assert [solid[k] for k in ("HD95", "ASD", "NSD")] == [flat[k] for k in ("HD95", "ASD", "NSD")]
    assert solid["HD95"] == pytest.approx(3.0)


def test_sparse_and_large_label_ids_are_measured():
    ref = np.zeros((6, 6, 6), np.uint16)
    ref[1:3], ref[4:] = 17, 60000
    found = measure_case(ref, ref, (1.0, 1.0, 1.0))
    assert {label: m["Dice"] for label, m in found.items()} == {17: 1.0, 60000: 1.0}


def test_real_masks_against_themselves_are_perfect(shared_data):
    labels = shared_data / "hippocampus_msd" / "labels"
    path = next(iter(sorted(labels.glob("*.nii.gz"))))
    summary = evaluate(path, path, resamples=0).summary()
    assert [summary["foreground_mean"][k] for k in ("Dice", "HD95", "NSD")] == [1.0, 0.0, 1.0]


def test_volumes_on_a_sheared_grid_use_the_determinant(make_nifti):
    sheared = AFFINE.copy()
    sheared[0, 1] = 2.0  # the second axis leans: its step is longer than the 2 mm that it adds to the volume
    pred, ref = (make_nifti(f"{n}.nii.gz", m, sheared) for n, m in (("p", mask(l1=2, l2=3)), ("r", mask(l1=2))))
    (case,) = evaluate(pred, ref).cases
    assert case.spacing[1] > 2.8
    assert case.labels[2]["VolumeError_mm3"] == pytest.approx(27 * 6.0)
