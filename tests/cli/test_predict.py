"""`medseg predict` as a user types it."""

from __future__ import annotations

import gzip
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import psutil
import pytest
from typer.testing import CliRunner

from medseg.cli import app
from medseg.data import make_phantom
from tests.factories import make_tiny_bundle

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    return make_tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture
def scan(tmp_path) -> Path:
    return _write_scan(tmp_path / "scan.nii.gz")


def _write_scan(path: Path, seed: int = 0, shape: tuple[int, int, int] = (16, 18, 14)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image, _ = make_phantom(shape=shape, seed=seed, noise=0.02)
    nib.save(nib.Nifti1Image(image, np.diag([-1.0, 1.0, 1.0, 1.0])), path)
    return path


def _medseg(*arguments: object):
    return CliRunner().invoke(app, ["predict", *map(str, arguments)])


def _files(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []


def test_one_scan_gives_a_mask_and_prints_its_path_alone(bundle, scan, tmp_path):
    result = _medseg(scan, "-o", tmp_path / "out", "--bundle", bundle, "--device", "cpu")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.split() == [str(tmp_path / "out" / "scan_seg.nii.gz")]
    assert re.search(r"tiny 0\.1\.0 on cpu \(asked for\), (openvino|torch) (fp32|bf16)\n", result.stderr)


def test_all_kinds_of_results(bundle, scan, tmp_path):
    out = tmp_path / "out"
    result = _medseg(
        scan, "-o", out / "mask.nii", "--bundle", bundle, "--stats", out / "s.json", "--preview", out / "p.png",
        "--report", out / "r.json", "--save-probabilities", "--label-table", "--largest-component",
        "--remove-small", 5, "--labels", "ball,2", "--threshold", 0.5, "--tta", "none", "--memory", "normal",
        "--overlap", 0.25, "--roi-size", "16,16,16", "--sw-batch-size", 2, "--max-memory", "8GB",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert _files(out) == ["mask.json", "mask.nii", "mask_probabilities.nii.gz", "p.png", "r.json", "s.json"]
    report = json.loads((out / "r.json").read_text())
    assert report["cases"][0]["status"] == "ok"
    assert report["bundle"]["weights_sha256"]
    statistics = json.loads((out / "s.json").read_text())
    assert [row["name"] for row in statistics["cases"][0]["labels"]] == ["ball", "shell"]


def test_a_preview_of_projections_is_chosen_by_name(bundle, scan, tmp_path):
    drawn = []
    for preview in ("mip", f"mip={tmp_path / 'p' / 'one.png'}", tmp_path / "plain", f"slices={tmp_path / 'slices'}"):
        result = _medseg(
            scan, "-o", tmp_path / "out", "--bundle", bundle, "--json", "--overwrite", "--preview", preview
        )  # fmt: skip
        assert result.exit_code == 0, result.stderr
        (path,) = (Path(p) for p in json.loads(result.stdout)["outputs"] if p.endswith(".png"))
        drawn.append((path.relative_to(tmp_path).as_posix(), path.read_bytes()))
    assert [name for name, _ in drawn] == [
        "out/scan_seg_mip.png", "p/one.png", "plain/scan_seg.png", "slices/scan_seg.png",
    ]  # fmt: skip
    projections, again, plain, slices = (content for _, content in drawn)
    assert projections == again != plain == slices


def test_json_lines_carry_the_statistics(bundle, tmp_path):
    for seed in range(2):
        _write_scan(tmp_path / "scans" / f"c{seed}.nii.gz", seed)
    result = _medseg(tmp_path / "scans", "-o", tmp_path / "out", "--bundle", bundle, "--json", "-q")
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line["case"] for line in lines] == ["c0", "c1"]
    assert all(line["status"] == "ok" for line in lines)
    assert all(sum(row["volume_mm3"] for row in line["statistics"]) > 0 for line in lines)
    assert result.stderr == ""


def test_existing_outputs_are_not_replaced_unasked(bundle, scan, tmp_path):
    arguments = (scan, "-o", tmp_path / "out", "--bundle", bundle)
    assert _medseg(*arguments).exit_code == 0
    refused = _medseg(*arguments)
    assert refused.exit_code == 2
    assert "use --resume to skip, or --overwrite to replace" in refused.stderr
    assert "skipped" in _medseg(*arguments, "--resume").stderr
    assert _medseg(*arguments, "--overwrite").exit_code == 0


def test_channels_can_be_named(tmp_path):
    bundle = make_tiny_bundle(tmp_path / "two", channels_in=2)
    first, second = _write_scan(tmp_path / "a.nii.gz"), _write_scan(tmp_path / "b.nii.gz")
    arguments = ("-o", tmp_path / "out", "--bundle", bundle, "--channels", f"channel1={second}")
    assert _medseg(*arguments, "--channels", f"channel0={first}").exit_code == 0
    refused = _medseg(*arguments)
    assert refused.exit_code == 2
    assert "names every channel once" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["--labels", "liver"], "liver not known; bundle tiny has: 1 ball, 2 shell"),
        (["--roi-size", "big"], "--roi-size must be voxel counts"),
        (["--max-memory", "much"], "--max-memory must be a size"),
        (["--stats", "s.txt"], "--stats must end in .json or .csv"),
        (["--preview", "mip="], "--preview mip= lacks a path; give mip=PATH, or mip alone"),
        (["--bundle", "nonesuch"], "no bundle 'nonesuch'"),
    ],
)
def test_usage_errors_exit_with_2_and_a_remedy(bundle, scan, tmp_path, arguments, match):
    result = _medseg(scan, "-o", tmp_path / "out", "--bundle", bundle, *arguments)
    assert result.exit_code == 2
    assert match in " ".join(result.stderr.split())
    assert not list(tmp_path.glob("out/*"))


def test_an_output_is_required(bundle, scan):
    assert _medseg(scan, "--bundle", bundle).exit_code == 2


def test_a_file_as_output_of_several_cases_is_refused(bundle, tmp_path):
    scans = [_write_scan(tmp_path / f"{n}.nii.gz") for n in "ab"]
    assert "there are 2 cases" in _medseg(*scans, "-o", tmp_path / "m.nii.gz", "--bundle", bundle).stderr


def test_an_absent_device_exits_with_3(bundle, scan, tmp_path):
    result = _medseg(scan, "-o", tmp_path / "out", "--bundle", bundle, "--device", "cuda:9")
    assert result.exit_code == 3
    assert "CUDA devices are present" in result.stderr


def test_an_empty_folder_exits_with_4(bundle, tmp_path):
    (tmp_path / "empty").mkdir()
    result = _medseg(tmp_path / "empty", "-o", tmp_path / "out", "--bundle", bundle)
    assert result.exit_code == 4
    assert "holds no .nii or .nii.gz file" in result.stderr


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write anywhere; Windows has no such mode")
def test_a_folder_that_cannot_be_written_is_found_out_first(bundle, scan, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    result = _medseg(scan, "-o", tmp_path / "locked" / "out", "--bundle", bundle)
    assert result.exit_code == 2
    assert "cannot write to" in result.stderr


def test_an_output_below_a_file_is_found_out_first(bundle, scan, tmp_path):
    (tmp_path / "file").write_text("")
    result = _medseg(scan, "-o", tmp_path / "file" / "out", "--bundle", bundle)
    assert result.exit_code == 2
    assert "cannot write to" in result.stderr


def test_all_zero_gives_an_empty_mask_and_exit_0(bundle, tmp_path):
    nib.save(nib.Nifti1Image(np.zeros((9, 8, 7), np.int16), np.eye(4)), tmp_path / "zero.nii.gz")
    result = _medseg(tmp_path / "zero.nii.gz", "-o", tmp_path / "out", "--bundle", bundle)
    assert result.exit_code == 0
    assert "nothing to find" in result.stderr
    assert not np.asarray(nib.load(tmp_path / "out" / "zero_seg.nii.gz").dataobj).any()


def test_the_same_input_gives_the_same_bytes(bundle, scan, tmp_path):
    for name in ("a", "b"):
        assert _medseg(scan, "-o", tmp_path / name, "--bundle", bundle).exit_code == 0
    for name in _files(tmp_path / "a"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def _damage(content: bytes, kind: int, rng: np.random.Generator) -> bytes:
    raw = bytearray(gzip.decompress(content))
    if kind == 0:  # cut off
        return content[: rng.integers(0, len(content) - 1)]
    if kind == 1:  # a bit of the compressed stream
        damaged = bytearray(content)
        damaged[rng.integers(0, len(damaged))] ^= 1 << rng.integers(0, 8)
        return bytes(damaged)
    if kind == 2:  # a bit of the header
        raw[rng.integers(0, 348)] ^= 1 << rng.integers(0, 8)
    elif kind == 3:  # several bytes of the header
        for position in rng.integers(0, 348, size=8):
            raw[position] = rng.integers(0, 256)
    else:  # the voxels end early
        raw = raw[: rng.integers(0, len(raw) - 1)]
    return gzip.compress(bytes(raw), mtime=0)


def test_100_damaged_files_are_named_and_every_good_one_is_written(bundle, tmp_path):
    rng = np.random.default_rng(20260101)
    good = _write_scan(tmp_path / "good.nii.gz", shape=(9, 8, 8)).read_bytes()
    scans, out = tmp_path / "scans", tmp_path / "out"
    scans.mkdir()
    for i in range(100):
        (scans / f"bad{i:03d}.nii.gz").write_bytes(_damage(good, i % 5, rng))
    for i in range(3):
        (scans / f"good{i}.nii.gz").write_bytes(good)
    # A header with a flipped bit may ask for terabytes; the limit counts what the process holds already.
    limit = f"{psutil.Process().memory_info().rss / 1e6 + 1000:.0f}MB"
    result = _medseg(scans, "-o", out, "--bundle", bundle, "--json", "--max-memory", limit)
    lines = {line["case"]: line for line in map(json.loads, result.stdout.splitlines())}
    assert result.exit_code == 1
    assert len(lines) == 103
    assert all(lines[f"good{i}"]["status"] == "ok" for i in range(3))
    failed = [line for line in lines.values() if line["status"] == "failed"]
    # A flipped bit may leave a valid file, such as one in the description; cut-off files never are.
    assert all(lines[f"bad{i:03d}"]["status"] == "failed" for i in range(100) if i % 5 in (0, 4))
    assert len(failed) >= 60
    for line in failed:
        assert line["reason"]
        assert line["case"] in result.stderr
    written = {line["case"] for line in lines.values() if line["status"] == "ok"}
    assert _files(out) == sorted(f"{case}_seg{e}" for case in written for e in (".json", ".nii.gz"))
    assert "Traceback" not in result.stderr
    for case in written:
        mask, source = nib.load(out / f"{case}_seg.nii.gz"), nib.load(scans / f"{case}.nii.gz")
        assert mask.shape == source.shape
        assert np.array_equal(mask.affine, source.affine)


def test_only_bad_files_exit_with_4(bundle, tmp_path):
    (tmp_path / "a.nii.gz").write_bytes(b"no")
    (tmp_path / "b.nii.gz").write_bytes(b"neither")
    result = _medseg(tmp_path, "-o", tmp_path / "out", "--bundle", bundle)
    assert result.exit_code == 4
    assert "2 of 2 cases failed" in result.stderr


def test_fail_fast_stops_at_the_first_failure(bundle, tmp_path):
    (tmp_path / "a.nii.gz").write_bytes(b"no")
    _write_scan(tmp_path / "b.nii.gz")
    result = _medseg(tmp_path, "-o", tmp_path / "out", "--bundle", bundle, "--fail-fast")
    assert result.exit_code == 1
    assert not list((tmp_path / "out").glob("*"))


def test_verbose_shows_where_a_failure_came_from(bundle, tmp_path):
    (tmp_path / "a.nii.gz").write_bytes(b"no")
    assert "Traceback" in _medseg(tmp_path, "-o", tmp_path / "out", "--bundle", bundle, "-v").stderr


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL is a POSIX signal")
def test_a_killed_run_resumes_to_the_same_bytes(bundle, tmp_path):
    for seed in range(8):
        _write_scan(tmp_path / "scans" / f"c{seed}.nii.gz", seed, shape=(48, 48, 48))
    command = [sys.executable, "-m", "medseg", "predict", str(tmp_path / "scans"), "--bundle", str(bundle), "-o"]
    killed = subprocess.Popen([*command, str(tmp_path / "parts")], cwd=ROOT, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "parts").glob("*_seg.nii.gz")) and time.monotonic() < deadline:
        time.sleep(0.005)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    done = len(list((tmp_path / "parts").glob("c?_seg.nii.gz")))
    assert 1 <= done < 8
    assert _medseg(tmp_path / "scans", "-o", tmp_path / "parts", "--bundle", bundle, "--resume").exit_code == 0
    assert _medseg(tmp_path / "scans", "-o", tmp_path / "whole", "--bundle", bundle).exit_code == 0
    for name in _files(tmp_path / "whole"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
