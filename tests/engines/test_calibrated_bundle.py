"""A bundle whose postprocessing calibrates: probabilities change, masks do not, whichever way the classes go back."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from typer.testing import CliRunner

from medseg.bundles import Bundle, check_bundle
from medseg.cli.app import app
from medseg.data import Volume, make_phantom, read_image
from medseg.engines import Predictor
from tests.factories import make_tiny_bundle, write_json

CALIBRATE = {"_target_": "medseg.transforms.TemperatureScaledd", "keys": "pred", "temperatures": [0.8, 2.5]}
LAMBDA = {"_target_": "Lambdad", "keys": "pred", "func": "$lambda x: x"}


def make_bundle(folder: Path, *inserted: tuple[int, dict[str, Any]]) -> Path:
    """A tiny bundle (softmax, Invertd, argmax, writing) with more transforms at these places."""
    make_tiny_bundle(folder)
    path = folder / "configs" / "inference.json"
    config = json.loads(path.read_text())
    for place, transform in inserted:
        config["postprocessing"]["transforms"].insert(place, transform)
    write_json(path, config)
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("plain") / "tiny")


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("calibrated") / "tiny", (2, CALIBRATE))


@pytest.fixture(params=[False, True], ids=["streamed", "classwise"])
def volume(request, tmp_path, oblique_affine) -> Volume:
    image, _ = make_phantom(shape=(20, 24, 18), spacing=(0.9, 1.1, 1.6), seed=1, noise=0.3)
    nib.save(nib.Nifti1Image(image, oblique_affine), tmp_path / "p.nii.gz")
    read = read_image(tmp_path / "p.nii.gz")
    if not request.param:
        return read
    affine = read.affine.copy()
    affine[:3, 1] += 0.2 * affine[:3, 0]
    return replace(read, affine=affine)


def expected(p: np.ndarray) -> np.ndarray:
    powers = [p ** (1 / t) for t in CALIBRATE["temperatures"]]
    return np.mean([q / q.sum(0) for q in powers], axis=0)


def test_masks_stay_and_probabilities_are_calibrated(plain, calibrated, volume, request):
    before = Predictor(str(plain), device="cpu").predict([volume], probabilities=True)
    after = Predictor(str(calibrated), device="cpu").predict([volume], probabilities=True)
    assert after.plan.way == before.plan.way == request.node.callspec.id
    assert np.array_equal(after.labels, before.labels)
    assert np.array_equal(after.probabilities.argmax(0), after.labels)
    np.testing.assert_allclose(after.probabilities, expected(before.probabilities), atol=1e-5)
    assert np.abs(after.probabilities - before.probabilities).max() > 0.05
    for memory in ("normal", "low"):
        masks = [Predictor(str(b), device="cpu", memory=memory).predict([volume]).labels for b in (plain, calibrated)]
        assert np.array_equal(*masks)


def test_the_whole_way_gives_the_same(calibrated, volume, tmp_path):
    fast = Predictor(str(calibrated), device="cpu").predict([volume], probabilities=True)
    folder = make_bundle(tmp_path / "tiny", (1, LAMBDA), (3, CALIBRATE))
    whole = Predictor(str(folder), device="cpu").predict([volume], probabilities=True)
    assert whole.plan.way == "whole"
    # The ways differ in the fifth decimal, and a root of a probability near 0 differs by more.
    differences = np.abs(whole.probabilities - fast.probabilities)
    assert differences.max() < 0.02
    assert differences.mean() < 1e-4
    assert np.array_equal(whole.probabilities.argmax(0), whole.labels)


def test_in_front_of_invertd_it_acts_too(plain, volume, tmp_path):
    folder = make_bundle(tmp_path / "tiny", (1, CALIBRATE))
    early = Predictor(str(folder), device="cpu").predict([volume], probabilities=True)
    before = Predictor(str(plain), device="cpu").predict([volume], probabilities=True)
    assert early.plan.way == "whole"
    assert np.abs(early.probabilities - before.probabilities).max() > 0.05
    assert (early.labels != before.labels).mean() < 0.02


def test_a_threshold_is_one_on_calibrated_probabilities(calibrated, volume):
    predictor = Predictor(str(calibrated), device="cpu")
    full = predictor.predict([volume], probabilities=True)
    strict = predictor.predict([volume], threshold=0.7)
    assert strict.plan.way == "whole"
    sure = full.probabilities.max(0) >= 0.7
    assert (~sure & (full.labels > 0)).any()
    assert ((strict.labels == full.labels * sure).mean()) > 0.999


def test_openvino_is_calibrated_alike(calibrated, volume):
    pytest.importorskip("openvino")
    torch_, openvino = (
        Predictor(str(calibrated), device="cpu", engine=engine).predict([volume], probabilities=True)
        for engine in ("torch", "openvino")
    )
    np.testing.assert_allclose(openvino.probabilities, torch_.probabilities, atol=1e-3)


def test_the_bundle_passes_the_check(calibrated):
    assert check_bundle(calibrated) == check_bundle(make_tiny_bundle(calibrated.parent / "plain"))


def test_a_calibration_for_other_weights_is_told_where_it_counts(volume, tmp_path):
    weights = Bundle.load(make_tiny_bundle(tmp_path / "tiny")).weights_sha256()
    for sha256, told in ((weights, False), ("0" * 64, True)):
        folder = make_bundle(tmp_path / sha256[:4], (2, CALIBRATE | {"network_sha256": sha256}))
        predictor = Predictor(str(folder), device="cpu")
        assert ("other weights" in str(predictor.predict([volume], probabilities=True).notes)) is told
        assert not predictor.predict([volume]).notes


def test_samples_are_refused(calibrated, monkeypatch):
    monkeypatch.setattr("medseg.engines.predictor.Sampler.build", lambda *_: object())
    with pytest.raises(ValueError, match="leave out samples"):
        Predictor(str(calibrated), device="cpu", samples=2)


def test_the_command_writes_calibrated_probabilities_and_the_same_mask(plain, calibrated, tmp_path, oblique_affine):
    image, _ = make_phantom(shape=(16, 20, 14), seed=2, noise=0.3)
    nib.save(nib.Nifti1Image(image, oblique_affine), tmp_path / "scan.nii.gz")
    found = {}
    for name, bundle in (("plain", plain), ("calibrated", calibrated)):
        arguments = ["predict", str(tmp_path / "scan.nii.gz"), "-o", str(tmp_path / name), "--bundle", str(bundle)]
        done = CliRunner().invoke(app, [*arguments, "--save-probabilities", "--device", "cpu"])
        assert done.exit_code == 0, done.output
        files = {path.name: np.asarray(nib.load(path).dataobj) for path in (tmp_path / name).rglob("*.nii.gz")}
        found[name] = files
    assert found["plain"].keys() == found["calibrated"].keys()
    masks = [name for name, array in found["plain"].items() if array.dtype == np.uint8 and array.max() > 1]
    assert masks
    for name in masks:
        assert np.array_equal(found["plain"][name], found["calibrated"][name])
    others = [name for name in found["plain"] if name not in masks]
    assert others
    assert any(np.abs(found["plain"][n] - found["calibrated"][n].astype(float)).max() > 0.05 for n in others)
