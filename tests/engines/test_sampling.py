"""Prediction with samples: maps and masks follow from single samples, whatever the groups they were drawn in."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from medseg.bundles import Bundle
from medseg.data import find_cases, make_phantom, read_image
from medseg.engines import InsufficientMemoryError, PredictionOptions, Predictor, predict_cases
from medseg.inferers import draw_noise
from tests.factories import make_tiny_bundle
from tests.sampling_bundle import make_sampling_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Bundle:
    return Bundle.load(make_sampling_bundle(tmp_path_factory.mktemp("bundles") / "sampling"))


@pytest.fixture
def scan(tmp_path) -> Path:
    return write_scan(tmp_path / "scan.nii.gz")


def write_scan(path: Path, shape: tuple[int, ...] = (16, 16, 16), spacing: float = 1.0) -> Path:
    image, _ = make_phantom(shape=shape, noise=0.1)
    nib.save(nib.Nifti1Image(image, np.diag([spacing, spacing, spacing, 1.0])), path)
    return path


def predict(bundle: Bundle, scan: Path, samples: int = 5, **options):
    predictor = Predictor(bundle, device="cpu", samples=samples, **options)
    return predictor, predictor.predict([read_image(scan)], probabilities=True)


def test_maps_are_those_of_the_networks_own_samples(bundle, scan):
    predictor, prediction = predict(bundle, scan, 5, seed=3)
    network, image = predictor.sampler.network, read_image(scan).array
    x = torch.from_numpy((image - image.mean()) / image.std())[None, None].float()
    with torch.no_grad():
        p = network.sample(x, 5, noise=draw_noise(network, 5, 3), return_logits=False)[0]
    mean = p.mean(0)
    np.testing.assert_allclose(prediction.probabilities, mean, atol=1e-5)
    np.testing.assert_allclose(prediction.samples.variance, p.var(0, correction=0).amax(0), atol=1e-5)
    np.testing.assert_allclose(prediction.samples.entropy, -(mean * mean.log2()).sum(0), atol=1e-4)
    assert (prediction.labels == mean.argmax(0).numpy()).mean() > 0.999
    assert (prediction.samples.masks == p.argmax(1).numpy()).mean() > 0.999
    assert prediction.samples.variance.max() > 1e-3


@pytest.mark.parametrize("dims", [2, 3])
def test_samples_come_on_the_grid_of_the_input_by_windows_of_volumes_and_of_slices(tmp_path, dims):
    bundle = Bundle.load(make_sampling_bundle(tmp_path / "bundle", dims))
    scan = write_scan(tmp_path / "scan.nii.gz", (20, 18, 12), spacing=1.2)
    _, prediction = predict(bundle, scan, 3)
    assert prediction.samples.masks.shape == (3, 20, 18, 12)
    assert prediction.samples.entropy.shape == (20, 18, 12)
    np.testing.assert_allclose(prediction.probabilities.sum(0), 1, atol=1e-4)


def test_the_seed_decides_and_groups_do_not(bundle, scan, monkeypatch):
    _, one = predict(bundle, scan)
    _, again = predict(bundle, scan)
    _, other = predict(bundle, scan, seed=1)
    np.testing.assert_array_equal(one.samples.masks, again.samples.masks)
    np.testing.assert_array_equal(one.probabilities, again.probabilities)
    assert (one.probabilities != other.probabilities).any()
    told = []
    monkeypatch.setattr("medseg.engines.sampling.Sampler.fit", lambda self, plan, task, first: (2, plan))
    predictor = Predictor(bundle, device="cpu", samples=5)
    prepared = predictor.prepare([read_image(scan)])
    grouped = predictor.run(prepared, probabilities=True, on_windows=lambda *at: told.append(at))
    np.testing.assert_allclose(grouped.probabilities, one.probabilities, atol=1e-6)
    assert told[-1][0] == told[-1][1]
    assert [done for done, _ in told] == sorted(done for done, _ in told)


@pytest.mark.parametrize("engine", ["torch", "auto"])
def test_without_samples_the_answer_is_that_at_the_priors_mean(bundle, scan, engine):
    predictor = Predictor(bundle, device="cpu", engine=engine, precision="fp32")
    prediction = predictor.predict([read_image(scan)], probabilities=True)
    _, drawn = predict(bundle, scan, 1)
    network = Predictor(bundle, device="cpu", samples=1).sampler.network
    image = read_image(scan).array
    with torch.no_grad():
        p = network(torch.from_numpy((image - image.mean()) / image.std())[None, None].float()).softmax(1)[0]
    np.testing.assert_allclose(prediction.probabilities, p, atol=1e-3)
    assert prediction.samples is None
    assert (prediction.probabilities != drawn.probabilities).any()


def test_a_threshold_holds_for_the_mean_and_for_every_sample(bundle, scan):
    predictor = Predictor(bundle, device="cpu", samples=3)
    prediction = predictor.predict([read_image(scan)], probabilities=True, threshold=0.9)
    assert not prediction.labels[prediction.probabilities.max(0) < 0.9].any()
    _, free = predict(bundle, scan, 3)
    assert (prediction.samples.masks > 0).sum() < (free.samples.masks > 0).sum()


def test_files_statistics_and_a_resumed_case_tell_the_same_volumes(bundle, scan, tmp_path):
    out = tmp_path / "out"
    options = PredictionOptions(save_uncertainty=True, save_samples=True, statistics=True)

    def run(resume: bool = False):
        predictor = Predictor(bundle, device="cpu", samples=3)
        return next(iter(predict_cases(predictor, find_cases([scan]), out, options, resume=resume)))

    result = run()
    names = [
        "scan_entropy",
        "scan_probabilities",
        "scan_sample-01",
        "scan_sample-02",
        "scan_sample-03",
        "scan_variance",
    ]
    assert result.status == "ok", result.reason
    files = {p.name.removesuffix(".nii.gz") for p in out.glob("*.nii.gz")}
    assert files == {*names, "scan_seg"}
    masks = [np.asarray(nib.load(out / f"{name}.nii.gz").dataobj) for name in names if "sample" in name]
    volumes = [(mask == 1).sum() for mask in masks]
    row = result.rows[0]
    assert row["samples"] == 3
    assert row["volume_mm3_mean"] == pytest.approx(np.mean(volumes))
    assert row["volume_mm3_sd"] == pytest.approx(np.std(volumes, ddof=1))
    assert [row[f"volume_mm3_p{q}"] for q in (5, 50, 95)] == pytest.approx(np.percentile(volumes, (5, 50, 95)))
    again = run(resume=True)
    assert again.status == "skipped"
    assert again.rows == result.rows
    assert json.loads((out / "scan_seg.json").read_text())["MadeFrom"]["predictor"]["samples"] == 3


def test_a_case_without_contrast_has_empty_samples(bundle, tmp_path):
    nib.save(nib.Nifti1Image(np.zeros((8, 8, 8), np.float32), np.eye(4)), tmp_path / "flat.nii.gz")
    _, prediction = predict(bundle, tmp_path / "flat.nii.gz", 2)
    assert prediction.samples.masks.shape == (2, 8, 8, 8)
    assert not prediction.samples.masks.any()
    assert not prediction.samples.variance.any()


def test_too_little_memory_is_noticed_before_the_network_runs(bundle, scan):
    with pytest.raises(InsufficientMemoryError, match=r"memory.*--max-memory"):
        predict(bundle, scan, max_memory=1000)


def test_what_cannot_draw_samples_is_refused(bundle, tmp_path):
    plain = Bundle.load(make_tiny_bundle(tmp_path / "plain"))
    with pytest.raises(ValueError, match="the network Conv3d cannot draw samples"):
        Predictor(plain, device="cpu", samples=3)
    with pytest.raises(ValueError, match="samples are drawn by PyTorch, but engine is openvino"):
        Predictor(bundle, device="cpu", samples=3, engine="openvino")
    with pytest.raises(ValueError, match="samples must be at least 1, got 0"):
        Predictor(bundle, device="cpu", samples=0)
