"""Tests of adapting a bundle: a whole new one comes out, the source stays, runs resume, and odd input is refused."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from medseg.bundles import Bundle, check_bundle
from medseg.data import Case, ClassRatioPrior, find_cases, make_phantom
from medseg.engines import AdaptationOptions, Predictor, adapt_bundle
from medseg.engines.adaptation_data import prepare_cases
from tests.factories import make_tiny_bundle, write_json

PRIOR = ClassRatioPrior([None, 0.10, 0.06])
QUICK = AdaptationOptions(epochs=2, learning_rate=0.01, batch_size=2, crops=2)


def write_scans(folder: Path, count: int = 3, shape: tuple[int, ...] = (18, 20, 16)) -> list[Case]:
    folder.mkdir(parents=True, exist_ok=True)
    for seed in range(count):
        image, _ = make_phantom(shape=shape, seed=seed, noise=0.05)
        nib.save(nib.Nifti1Image(image**1.5, np.diag([1.0] * 4)), folder / f"scan_{seed}.nii.gz")
    return find_cases([folder])


def flatten(bundle: Path) -> Path:
    """Turn the tiny bundle's convolution into a 2D one that sees axial slices."""
    config = bundle / "configs" / "inference.json"
    content = json.loads(config.read_text())
    content["network_def"]["_target_"] = "torch.nn.Conv2d"
    content["inferer"] = {"_target_": "SliceInferer", "roi_size": [16, 16], "spatial_dim": 2, "sw_batch_size": 4}
    write_json(config, content)
    weights = torch.load(bundle / "models" / "model.pt", weights_only=True)
    torch.save({"weight": weights["weight"][..., 0], "bias": weights["bias"]}, bundle / "models" / "model.pt")
    return bundle


def digest(folder: Path) -> dict[str, str]:
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*") if p.is_file()
    }


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Bundle:
    return Bundle.load(make_tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny"))


@pytest.fixture(scope="module")
def cases(tmp_path_factory) -> list[Case]:
    return write_scans(tmp_path_factory.mktemp("scans"))


@pytest.fixture(scope="module")
def finished(bundle, cases, tmp_path_factory):
    output = tmp_path_factory.mktemp("out") / "adapted"
    before = digest(bundle.path)
    seen: list[dict] = []
    result = adapt_bundle(bundle, cases, PRIOR, output, options=QUICK, device="cpu", progress=seen.append)
    assert digest(bundle.path) == before, "the source bundle was changed"
    return result, seen


def test_the_output_is_a_complete_bundle_that_predicts(finished, bundle, cases):
    result, _ = finished
    assert [f for f in check_bundle(result.path) if f.level == "error"] == []
    adapted = Bundle.load(result.path)
    assert adapted.weights_sha256() != bundle.weights_sha256()
    assert adapted.labels == bundle.labels
    from medseg.data import read_image

    assert Predictor(adapted, device="cpu").predict([read_image(cases[0].images[0])]).labels.any()


def test_the_metadata_tell_the_history(finished, bundle):
    metadata = Bundle.load(finished[0].path).metadata
    assert metadata["version"] == "0.1.0+adapted.1"
    assert "Adapted without labels (kl) to 3 images" in metadata["changelog"][metadata["version"]]
    (entry,) = metadata["adaptation_history"]
    assert entry["source"] == {"name": "tiny", "version": "0.1.0", "weights_sha256": bundle.weights_sha256()}
    assert entry["images"] == ["scan_0", "scan_1", "scan_2"]
    assert entry["options"]["epochs"] == 2
    assert entry["before"]["images"] == entry["after"]["images"] == 3
    assert "eval_metrics" not in metadata


def test_the_report_holds_the_diagnostics_and_pictures(finished):
    result, seen = finished
    folder = result.path / "adaptation"
    report = json.loads((folder / "report.json").read_text())
    assert [e["epoch"] for e in report["history"]] == [e["epoch"] for e in seen] == [1, 2]
    assert report["after"]["expected_ratio"] == pytest.approx([0.84, 0.10, 0.06])
    assert any("instance normalisation, remember none" in text for text in report["notes"])
    assert any("has no tags" in text for text in report["notes"])
    pictures = {f"scan_{i}_{when}.png" for i in range(3) for when in ("before", "after")} | {"report.png"}
    assert pictures <= {p.name for p in folder.iterdir()}
    assert not list(result.path.rglob("*.part*"))


def test_cases_larger_than_a_window_share_the_ratio_of_their_case(bundle, cases, tmp_path):
    predictor = Predictor(bundle, device="cpu", engine="torch", precision="fp32")
    large = prepare_cases(predictor, cases, PRIOR)
    assert (large.ratio_per, large.window) == ("case", (16, 16, 16))
    loader, _ = large.train_loader(batch_size=2, crops=3)
    batch = next(iter(loader))
    assert batch["image"].shape == (6, 1, 16, 16, 16)
    assert len(set(batch["sample_id"])) == 2
    small = prepare_cases(predictor, write_scans(tmp_path, shape=(14, 16, 12)), PRIOR)
    assert small.ratio_per == "image"
    loader, _ = small.train_loader(batch_size=2, crops=3)
    batch = next(iter(loader))
    assert batch["image"].shape == (2, 1, 16, 16, 16)
    assert batch["mask"].mean().item() == pytest.approx(14 * 16 * 12 / 16**3)


def test_volumes_become_ratios_by_the_grid_of_the_network(bundle, cases):
    predictor = Predictor(bundle, device="cpu", engine="torch", precision="fp32")
    prior = ClassRatioPrior.from_volumes_mm3({1: 576.0, 2: 288.0})
    found = prepare_cases(predictor, cases, prior)
    np.testing.assert_allclose(found.items[0]["class_ratio"], [0.85, 0.10, 0.05], rtol=1e-5)


def test_a_network_of_slices_adapts_and_predicts(tmp_path, cases):
    bundle = Bundle.load(flatten(make_tiny_bundle(tmp_path / "flat")))
    result = adapt_bundle(bundle, cases, PRIOR, tmp_path / "out", options=QUICK, device="cpu")
    assert result.after.images == 3
    from medseg.data import read_image

    labels = Predictor(Bundle.load(result.path), device="cpu").predict([read_image(cases[0].images[0])]).labels
    assert labels.shape == (18, 20, 16)


def test_a_stopped_run_goes_on_to_the_same_bundle(finished, bundle, cases, tmp_path):
    def stop(epoch) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        adapt_bundle(bundle, cases, PRIOR, tmp_path / "out", options=QUICK, device="cpu", progress=stop)
    assert not (tmp_path / "out" / "models" / "model.pt").exists()
    with pytest.raises(FileExistsError, match="use --resume to go on, or --overwrite"):
        adapt_bundle(bundle, cases, PRIOR, tmp_path / "out", options=QUICK, device="cpu")
    result = adapt_bundle(bundle, cases, PRIOR, tmp_path / "out", options=QUICK, device="cpu", resume=True)
    assert Bundle.load(result.path).weights_sha256() == Bundle.load(finished[0].path).weights_sha256()
    assert result.history == finished[0].history


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"cases": 2}, r"was begun with other images \(.*scan_2"),
        ({"prior": ClassRatioPrior([None, 0.2, 0.06])}, "was begun with other prior"),
        ({"options": AdaptationOptions(epochs=3)}, "was begun with other options"),
    ],
)
def test_a_run_is_not_resumed_with_other_settings(finished, bundle, cases, change, match):
    path, before = finished[0].path, digest(finished[0].path)
    arguments = {"prior": PRIOR, "options": QUICK} | {k: v for k, v in change.items() if k != "cases"}
    chosen = cases[: change.get("cases", 3)]
    with pytest.raises(ValueError, match=match):
        adapt_bundle(bundle, chosen, arguments["prior"], path, options=arguments["options"], device="cpu", resume=True)
    assert digest(path) == before


def test_a_run_is_begun_anew_only_when_all_is_well(finished, bundle, cases, tmp_path):
    output = tmp_path / "out"
    shutil.copytree(finished[0].path, output)
    before = digest(output)
    with pytest.raises(ValueError, match="prior has 2 classes"):
        adapt_bundle(bundle, cases, ClassRatioPrior([0.9, 0.1]), output, options=QUICK, device="cpu", overwrite=True)
    assert digest(output) == before
    other = AdaptationOptions(epochs=1, learning_rate=0.02)
    adapt_bundle(bundle, cases[:2], PRIOR, output, options=other, device="cpu", overwrite=True)
    assert not (output / "adaptation" / "scan_2_after.png").exists()
    assert len(Bundle.load(output).metadata["adaptation_history"]) == 1


def test_nothing_is_overwritten_that_is_no_adaptation(bundle, cases, tmp_path):
    with pytest.raises(ValueError, match="the source stays untouched"):
        adapt_bundle(bundle, cases, PRIOR, bundle.path / "new", options=QUICK)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="is not empty and holds no adaptation"):
        adapt_bundle(bundle, cases, PRIOR, tmp_path, options=QUICK, overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_bad_priors_and_images_write_nothing(bundle, cases, tmp_path):
    output = tmp_path / "out"
    with pytest.raises(ValueError, match="prior has 2 classes, the network of bundle tiny gives 3"):
        adapt_bundle(bundle, cases, ClassRatioPrior([0.9, 0.1]), output, options=QUICK, device="cpu")
    with pytest.raises(ValueError, match="image 'scan_1' has no row in the prior"):
        adapt_bundle(bundle, cases, ClassRatioPrior({"scan_0": [0.8, 0.1, 0.1]}), output, options=QUICK, device="cpu")
    flat = tmp_path / "flat.nii.gz"
    nib.save(nib.Nifti1Image(np.ones((16, 16, 16), np.float32), np.eye(4)), flat)
    with pytest.raises(ValueError, match="all voxels have the same value; leave it out"):
        adapt_bundle(bundle, find_cases([flat]), PRIOR, output, options=QUICK, device="cpu")
    with pytest.raises(ValueError, match="method batch_norm has nothing to adapt"):
        adapt_bundle(bundle, cases, PRIOR, output, options=AdaptationOptions("batch_norm"), device="cpu")
    assert not output.exists()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"method": "none"}, "method must be one of kl, kl_reverse, batch_norm"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"learning_rate": 0.0}, r"learning_rate must be in \(0, 1\)"),
    ],
)
def test_options_out_of_range_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        AdaptationOptions(**options)
