"""Tests of quantising a bundle: the windows, the folder, and what prediction makes of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.networks.nets import UNet
from typer.testing import CliRunner

from medseg.bundles import Bundle
from medseg.cli import app
from medseg.data import find_cases, read_image, write_phantom_dataset
from medseg.engines import Predictor, bundle_quantization, quantize_bundle
from medseg.engines.bundle_quantization import _draw_windows
from tests.factories import make_tiny_bundle, write_json

NETWORK = {"spatial_dims": 3, "in_channels": 1, "out_channels": 3, "channels": [4, 8], "strides": [2]}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Bundle:
    folder = make_tiny_bundle(tmp_path_factory.mktemp("bundles") / "unet")
    path = folder / "configs" / "inference.json"
    config = json.loads(path.read_text())
    config["network_def"] = {"_target_": "UNet", **NETWORK}
    write_json(path, config)
    torch.manual_seed(0)
    torch.save(UNet(**NETWORK).state_dict(), folder / "models" / "model.pt")
    return Bundle.load(folder)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_phantom_dataset(folder, layout="decathlon", cases=4, seed=0)
    return folder / "imagesTr"


@pytest.fixture(scope="module")
def quantized(bundle, data, tmp_path_factory):
    pytest.importorskip("nncf", reason="needs NNCF, of the extra int8")
    output = tmp_path_factory.mktemp("out") / "unet_int8"
    arguments = ["bundle", "quantize", str(bundle.path), "--images", str(data), "-o", str(output), "--windows", "8"]
    result = CliRunner().invoke(app, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    return Bundle.load(output), json.loads(result.stdout)


def test_windows_are_those_of_prediction_and_as_many_of_each_image(bundle, data):
    cases = find_cases([data])
    predictor = Predictor(bundle, device="cpu", engine="torch", precision="fp32")
    drawn = _draw_windows(predictor, cases, 8, 0, lambda text: None)
    assert [tuple(window.shape) for window in drawn] == [(1, 16, 16, 16)] * 8
    again = _draw_windows(predictor, cases, 8, 0, lambda text: None)
    assert all(torch.equal(a, b) for a, b in zip(drawn, again, strict=True))
    other = _draw_windows(predictor, cases, 8, 1, lambda text: None)
    assert not all(torch.equal(a, b) for a, b in zip(drawn, other, strict=True))
    seen: list[torch.Tensor] = []
    network = predictor.backend

    def listen(x: torch.Tensor) -> torch.Tensor:
        seen.extend(x.clone())
        return network(x)

    predictor.backend = listen  # type: ignore[assignment]
    predictor.predict([read_image(cases[0].images[0])])
    assert any(torch.equal(drawn[0], window) for window in seen)


def test_windows_that_do_not_divide_leave_no_image_out(bundle, data, monkeypatch):
    shares: list[int] = []

    class Draw(bundle_quantization._WindowDraw):
        def __init__(self, count: int, classes: int, generator: torch.Generator) -> None:
            shares.append(count)
            super().__init__(count, classes, generator)

    monkeypatch.setattr(bundle_quantization, "_WindowDraw", Draw)
    predictor = Predictor(bundle, device="cpu", engine="torch", precision="fp32")
    assert len(_draw_windows(predictor, find_cases([data]), 5, 0, lambda text: None)) == 5
    assert shares == [2, 1, 1, 1]


def test_the_new_bundle_predicts_in_int8_nearly_what_it_predicts_in_float(quantized, data):
    bundle, facts = quantized
    assert (facts["int8_layers"], facts["float_layers"], facts["windows"]) == (1, 2, 8)
    volume = read_image(find_cases([data])[0].images[0])
    labels = {}
    for precision, engine in {"fp32": "torch", "int8": "auto"}.items():
        predictor = Predictor(bundle, device="cpu", precision=precision, engine=engine)  # type: ignore[arg-type]
        assert predictor.precision == precision
        labels[precision] = predictor.predict([volume]).labels
    assert (labels["fp32"] != labels["int8"]).mean() < 0.05
    assert len(np.unique(labels["int8"])) > 1


def test_the_new_bundle_says_how_it_was_made_and_keeps_the_weights(quantized, bundle):
    new, _ = quantized
    assert new.version == "0.1.0+int8"
    assert new.metadata["quantization"]["weights_sha256"] == bundle.weights_sha256() == new.weights_sha256()
    assert len(new.metadata["quantization"]["cases"]) == 4
    assert "LICENSE" in {p.name for p in new.path.iterdir()}
    assert not list(new.path.parent.glob(".*.part"))


def test_a_mask_records_which_int8_model_made_it(quantized, data, tmp_path):
    bundle, _ = quantized
    image = find_cases([data])[0].images[0]
    arguments = ["predict", str(image), "--bundle", str(bundle.path), "--precision", "int8", "--device", "cpu"]
    result = CliRunner().invoke(app, [*arguments, "-o", str(tmp_path), "--report", str(tmp_path / "report.json")])
    assert result.exit_code == 0, result.output
    assert "openvino int8" in result.stderr
    assert json.loads((tmp_path / "report.json").read_text())["precision"] == "int8"
    (sidecar,) = tmp_path.glob("*_seg.json")
    made = json.loads(sidecar.read_text())["MadeFrom"]["predictor"]
    assert made["precision"] == "int8"
    assert made["int8_model"] == json.loads((bundle.int8_path / "int8.json").read_text())["files"]


def test_other_windows_and_other_weights_are_refused(quantized, tmp_path):
    import shutil

    bundle, _ = quantized
    with pytest.raises(ValueError, match="its int8 model is for windows of"):
        Predictor(bundle, device="cpu", precision="int8", roi_size=(8, 8, 8))
    changed = Path(shutil.copytree(bundle.path, tmp_path / "changed"))
    torch.save(UNet(**NETWORK).state_dict(), changed / "models" / "model.pt")
    with pytest.raises(ValueError, match="was quantised from other weights"):
        Predictor(Bundle.load(changed), device="cpu", precision="int8")


def test_a_bundle_without_an_int8_model_says_how_to_make_one(bundle):
    with pytest.raises(ValueError, match="medseg bundle quantize unet --images DIR -o NEW_BUNDLE"):
        Predictor(bundle, device="cpu", precision="int8")
    with pytest.raises(ValueError, match="precision int8 runs on OpenVINO"):
        Predictor(bundle, device="cpu", precision="int8", engine="torch")


def test_too_few_images_or_windows_and_a_taken_folder_are_refused(bundle, data, tmp_path):
    cases = find_cases([data])
    with pytest.raises(ValueError, match="cases: got 3, expected at least 4"):
        quantize_bundle(bundle, cases[:3], tmp_path / "new")
    with pytest.raises(ValueError, match="windows must be at least 8"):
        quantize_bundle(bundle, cases, tmp_path / "new", windows=7)
    with pytest.raises(FileExistsError, match="give another folder, or --overwrite"):
        quantize_bundle(bundle, cases, tmp_path)
    for output in (bundle.path, bundle.path.parent, bundle.path / "models" / "new"):
        with pytest.raises(ValueError, match="the source stays untouched"):
            quantize_bundle(bundle, cases, output, overwrite=True)
    with pytest.raises(ValueError, match=r"holds the image .*\.nii\.gz; give another folder"):
        quantize_bundle(bundle, cases, data.parent, overwrite=True)
    (tmp_path / "note").write_text("kept")
    with pytest.raises(FileExistsError, match="note is a file; give a folder"):
        quantize_bundle(bundle, cases, tmp_path / "note", overwrite=True)
    (tmp_path / "note").unlink()
    assert list(tmp_path.iterdir()) == []
