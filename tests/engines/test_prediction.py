"""Cases in, complete sets of files out; one bad case costs nothing but itself."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from multiprocessing.process import BaseProcess
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medseg.data import find_cases, make_phantom, read_mask
from medseg.engines import PredictionOptions, Predictor, predict_cases
from tests.factories import make_tiny_bundle


@pytest.fixture(scope="module")
def predictor(tmp_path_factory) -> Predictor:
    return Predictor(str(make_tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny")), device="cpu")


@pytest.fixture
def scans(tmp_path) -> Path:
    folder = tmp_path / "scans"
    folder.mkdir()
    for seed in range(3):
        image, _ = make_phantom(shape=(16, 18, 14), seed=seed, noise=0.02)
        nib.save(nib.Nifti1Image(image, np.diag([-1.0, 1.0, 1.0, 1.0])), folder / f"case{seed}.nii.gz")
    return folder


def _run(predictor, scans, out, options=None, **keywords):
    return list(predict_cases(predictor, find_cases([scans]), out, options, **keywords))


def test_every_case_gets_a_mask_and_a_sidecar(predictor, scans, tmp_path):
    results = _run(predictor, scans, tmp_path / "out")
    assert [r.status for r in results] == ["ok"] * 3
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(
        f"case{i}_seg{e}" for i in range(3) for e in (".json", ".nii.gz")
    )
    sidecar = json.loads((tmp_path / "out" / "case0_seg.json").read_text())
    assert sidecar["Labels"] == {"1": "ball", "2": "shell"}
    assert sidecar["MadeFrom"]["weights_sha256"] == predictor.bundle.weights_sha256()


def test_a_bad_case_is_named_and_the_others_go_on(predictor, scans, tmp_path):
    (scans / "case1.nii.gz").write_bytes((scans / "case1.nii.gz").read_bytes()[:200])
    results = _run(predictor, scans, tmp_path / "out")
    assert [r.status for r in results] == ["ok", "failed", "ok"]
    assert "case1.nii.gz" in results[1].reason
    assert results[1].bad_input
    assert not list((tmp_path / "out").glob("case1*"))
    assert not list((tmp_path / "out").glob("*part*"))


def test_resume_skips_what_is_complete_and_gives_the_same_bytes(predictor, scans, tmp_path):
    _run(predictor, scans, tmp_path / "whole")
    _run(predictor, scans, tmp_path / "parts")
    (tmp_path / "parts" / "case1_seg.nii.gz").unlink()
    stamp = (tmp_path / "parts" / "case0_seg.nii.gz").stat().st_mtime_ns
    results = _run(predictor, scans, tmp_path / "parts", resume=True)
    assert [r.status for r in results] == ["skipped", "ok", "skipped"]
    assert (tmp_path / "parts" / "case0_seg.nii.gz").stat().st_mtime_ns == stamp
    for path in (tmp_path / "whole").iterdir():
        assert (tmp_path / "parts" / path.name).read_bytes() == path.read_bytes()


def test_resume_does_not_trust_a_mask_made_otherwise(predictor, scans, tmp_path):
    _run(predictor, scans, tmp_path / "out")
    results = _run(predictor, scans, tmp_path / "out", PredictionOptions(largest_component=True), resume=True)
    assert [r.status for r in results] == ["ok"] * 3
    image, _ = make_phantom(shape=(16, 18, 14), seed=9)
    nib.save(nib.Nifti1Image(image, np.eye(4)), scans / "case2.nii.gz")
    results = _run(predictor, scans, tmp_path / "out", PredictionOptions(largest_component=True), resume=True)
    assert [r.status for r in results] == ["skipped", "skipped", "ok"]


def test_statistics_of_skipped_cases_equal_those_of_the_first_run(predictor, scans, tmp_path):
    for split in (False, True):
        options = PredictionOptions(statistics=True, split=split)
        first = _run(predictor, scans, tmp_path / f"out{split}", options)
        again = _run(predictor, scans, tmp_path / f"out{split}", options, resume=True)
        assert {r.status for r in again} == {"skipped"}
        assert [r.rows for r in again] == [r.rows for r in first]


def test_split_writes_a_mask_a_label(predictor, scans, tmp_path):
    whole = _run(predictor, scans, tmp_path / "whole")[0]
    parts = _run(predictor, scans, tmp_path / "parts", PredictionOptions(split=True))[0]
    assert [p.name for p in parts.outputs[:2]] == ["case0_seg_ball.nii.gz", "case0_seg_shell.nii.gz"]
    labels = read_mask(whole.outputs[0]).array
    for value, path in enumerate(parts.outputs[:2], start=1):
        assert np.array_equal(read_mask(path).array > 0, labels == value)


def test_labels_can_be_restricted(predictor, scans, tmp_path):
    result = _run(predictor, scans, tmp_path / "out", PredictionOptions(labels=(2,), statistics=True))[0]
    assert set(np.unique(read_mask(result.outputs[0]).array)) == {0, 2}
    assert [r["name"] for r in result.rows] == ["shell"]


def test_probabilities_preview_and_label_table_are_written_when_asked_for(predictor, scans, tmp_path):
    options = PredictionOptions(save_probabilities=True, preview=tmp_path / "pictures", label_table=True)
    result = _run(predictor, scans, tmp_path / "out", options)[0]
    assert nib.load(tmp_path / "out" / "case0_probabilities.nii.gz").shape == (16, 18, 14, 3)
    assert (tmp_path / "pictures" / "case0_seg.png").read_bytes().startswith(b"\x89PNG")
    assert len(nib.load(result.outputs[0]).header.extensions) == 1


def test_the_kind_of_preview_decides_neither_the_mask_nor_whether_a_run_is_resumed(predictor, scans, tmp_path):
    options = PredictionOptions(preview=tmp_path / "out", preview_kind="mip")
    first = _run(predictor, scans, tmp_path / "out", options)[0]
    assert "case0_seg_mip.png" in {path.name for path in first.outputs}
    again = _run(predictor, scans, tmp_path / "out", PredictionOptions(), resume=True)
    assert {result.status for result in again} == {"skipped"}
    with pytest.raises(ValueError, match="preview_kind must be one of slices, mip, got 'mips'"):
        PredictionOptions(preview_kind="mips")


def test_bids_derivatives_are_complete(predictor, tmp_path):
    image, _ = make_phantom(shape=(16, 18, 14), seed=0)
    folder = tmp_path / "bids" / "sub-01" / "anat"
    folder.mkdir(parents=True)
    (tmp_path / "bids" / "dataset_description.json").write_text("{}")
    nib.save(nib.Nifti1Image(image, np.eye(4)), folder / "sub-01_T1w.nii.gz")
    cases = find_cases([tmp_path / "bids"], channel_names=["T1w"])
    (result,) = predict_cases(
        predictor, cases, tmp_path / "bids", PredictionOptions(preview=tmp_path, preview_kind="mip")
    )
    assert result.status == "ok", result.reason
    root = tmp_path / "bids" / "derivatives" / "medseg"
    assert sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()) == [
        "dataset_description.json",
        "sub-01/anat/sub-01_desc-medseg_dseg.json",
        "sub-01/anat/sub-01_desc-medseg_dseg.nii.gz",
        "sub-01/anat/sub-01_desc-medseg_dseg.tsv",
        "sub-01/anat/sub-01_desc-medsegmip_dseg.png",
    ]
    assert json.loads((root / "dataset_description.json").read_text())["DatasetType"] == "derivative"
    table = (root / "sub-01" / "anat" / "sub-01_desc-medseg_dseg.tsv").read_text().splitlines()
    assert table[0] == "index\tname\tcolor"
    assert [row.split("\t")[:2] for row in table[1:]] == [["0", "background"], ["1", "ball"], ["2", "shell"]]


def test_channels_in_files_and_in_one_4d_file_agree(tmp_path):
    predictor = Predictor(str(make_tiny_bundle(tmp_path / "two", channels_in=2)), device="cpu")
    image, _ = make_phantom(shape=(16, 18, 14), seed=0)
    for channel in range(2):
        nib.save(nib.Nifti1Image(image + channel, np.eye(4)), tmp_path / f"a_{channel:04d}.nii.gz")
    nib.save(nib.Nifti1Image(np.stack([image, image + 1], axis=-1), np.eye(4)), tmp_path / "b.nii.gz")
    names = ["channel0", "channel1"]
    files, whole = find_cases([tmp_path], channel_names=names)
    results = list(predict_cases(predictor, [files, whole], tmp_path / "out"))
    assert [r.status for r in results] == ["ok", "ok"], [r.reason for r in results]
    first, second = (read_mask(r.outputs[0]) for r in results)
    assert np.array_equal(first.array, second.array)
    assert nib.load(results[1].outputs[0]).shape == (16, 18, 14)


@pytest.mark.parametrize("wrong", ["shape", "count"])
def test_channels_that_do_not_fit_fail_as_bad_input(tmp_path, wrong):
    predictor = Predictor(str(make_tiny_bundle(tmp_path / "two", channels_in=2)), device="cpu")
    image, _ = make_phantom(shape=(16, 18, 14), seed=0)
    nib.save(nib.Nifti1Image(image, np.eye(4)), tmp_path / "a_0000.nii.gz")
    if wrong == "shape":
        nib.save(nib.Nifti1Image(image[:-1], np.eye(4)), tmp_path / "a_0001.nii.gz")
        inputs = tmp_path / "a_0000.nii.gz"
    else:
        inputs = tmp_path / "single.nii.gz"
        nib.save(nib.Nifti1Image(image, np.eye(4)), inputs)
    cases = find_cases([inputs], channel_names=["channel0", "channel1"])
    (result,) = predict_cases(predictor, cases, tmp_path / "out")
    assert result.status == "failed"
    assert result.bad_input
    assert not (tmp_path / "out").exists()


def test_a_case_whose_mask_cannot_be_written_leaves_nothing_behind(predictor, scans, tmp_path, monkeypatch):
    def disk_full(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("medseg.engines.prediction_files.write_mask", disk_full)
    options = PredictionOptions(save_probabilities=True, preview=tmp_path / "out")
    results = _run(predictor, scans, tmp_path / "out", options)
    assert [r.reason for r in results] == ["No space left on device"] * 3
    assert not any(r.bad_input for r in results)
    assert list((tmp_path / "out").iterdir()) == []


def test_the_next_case_is_read_while_the_network_runs(predictor, scans, tmp_path, monkeypatch):
    read_next, seen = threading.Event(), []
    prepare, run = Predictor.prepare, Predictor.run

    def note_reading(self, channels):
        seen.append((channels[0].path.name, threading.current_thread() is threading.main_thread()))
        if channels[0].path.name == "case1.nii.gz":
            read_next.set()
        return prepare(self, channels)

    def wait_for_reading(self, case, **keywords):
        assert read_next.wait(timeout=60), "case1 was not read while case0 was in the network"
        return run(self, case, **keywords)

    monkeypatch.setattr(Predictor, "prepare", note_reading)
    monkeypatch.setattr(Predictor, "run", wait_for_reading)
    results = _run(predictor, scans, tmp_path / "out")
    assert [r.status for r in results] == ["ok"] * 3
    assert seen == [("case0.nii.gz", True), ("case1.nii.gz", False), ("case2.nii.gz", False)]


def test_large_cases_are_not_read_ahead(predictor, scans, tmp_path, monkeypatch):
    monkeypatch.setattr("medseg.engines.prediction.available_memory", lambda limit: 1000)
    threads = []
    prepare = Predictor.prepare
    monkeypatch.setattr(
        Predictor, "prepare", lambda self, c: threads.append(threading.current_thread()) or prepare(self, c)
    )
    assert [r.status for r in _run(predictor, scans, tmp_path / "out")] == ["ok"] * 3
    assert set(threads) == {threading.main_thread()}


def test_results_come_in_order_and_only_once_their_files_are_there(predictor, scans, tmp_path, monkeypatch):
    (scans / "case1.nii.gz").write_bytes(b"not an image")
    finished = []
    for result in predict_cases(predictor, find_cases([scans]), tmp_path / "out"):
        finished.append(result.case.case_id)
        assert all(path.is_file() for path in result.outputs)
    assert finished == ["case0", "case1", "case2"]


def test_stopping_early_leaves_only_whole_files(predictor, scans, tmp_path):
    results = predict_cases(predictor, find_cases([scans]), tmp_path / "out")
    next(results)
    results.close()
    assert not list((tmp_path / "out").glob("*part*"))
    for mask in (tmp_path / "out").glob("*.nii.gz"):
        assert read_mask(mask).array.any()
    rest = _run(predictor, scans, tmp_path / "out", resume=True)
    assert rest[0].status == "skipped"
    assert all(r.status in ("ok", "skipped") for r in rest)


def test_windows_are_reported_with_their_case(predictor, scans, tmp_path):
    seen = {}

    def note(case, done, total):
        seen[case.case_id] = (done, total)

    _run(predictor, scans, tmp_path / "out", on_windows=note)
    assert sorted(seen) == ["case0", "case1", "case2"]
    assert all(done == total > 0 for done, total in seen.values())


def test_no_process_is_started_so_that_a_script_needs_no_main_guard(predictor, scans, tmp_path, monkeypatch):
    def refuse(*arguments, **keywords):
        raise AssertionError("a process was started")

    monkeypatch.setattr(BaseProcess, "start", refuse)
    monkeypatch.setattr(subprocess, "Popen", refuse)
    monkeypatch.setattr(os, "fork", refuse, raising=False)
    assert [r.status for r in _run(predictor, scans, tmp_path / "out")] == ["ok"] * 3
