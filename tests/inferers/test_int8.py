"""Tests of int8 models: what is quantised, how far answers move, and what is refused."""

from __future__ import annotations

import json
import os
import sys

import numpy as np
import pytest
import torch
from torch import nn

from medseg.inferers import Int8Backend, quantize_int8
from medseg.inferers.int8_backend import FILES, MANIFEST, write_manifest
from medseg.inferers.int8_quantization import _split_convolutions
from medseg.inferers.openvino_conversion import convert

WINDOW = (1, 8, 8, 8)


def make_network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv3d(1, 8, 3, padding=1),
        nn.InstanceNorm3d(8, affine=True),
        nn.LeakyReLU(0.01),
        nn.Conv3d(8, 16, 3, stride=2, padding=1),
        nn.InstanceNorm3d(16, affine=True),
        nn.LeakyReLU(0.01),
        nn.ConvTranspose3d(16, 8, 2, stride=2),
        nn.Conv3d(8, 3, 1),
    ).eval()


def make_windows(count=8, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(WINDOW, generator=generator) for _ in range(count)]


@pytest.fixture(scope="module")
def quantized(tmp_path_factory):
    pytest.importorskip("nncf", reason="needs NNCF, of the extra int8")
    folder = tmp_path_factory.mktemp("int8")
    network = make_network()
    summary = quantize_int8(network, make_windows(), folder)
    write_manifest(folder, {"weights_sha256": "0" * 64, "window": list(WINDOW)})
    return network, summary, folder


def test_only_convolutions_between_the_first_and_the_head_are_chosen(tmp_path):
    openvino = pytest.importorskip("openvino")
    convert(make_network(), WINDOW, tmp_path)
    chosen, kept = _split_convolutions(openvino.Core().read_model(str(tmp_path / "model.xml")))
    assert [name.rsplit("/")[-1] for name in chosen] == ["Convolution", "ConvolutionBackpropData"]
    assert len(kept) == 2


def test_a_network_without_a_convolution_in_between_is_refused(tmp_path):
    openvino = pytest.importorskip("openvino")
    convert(nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv3d(4, 2, 1)).eval(), WINDOW, tmp_path)
    with pytest.raises(ValueError, match="has 2 convolutions, none of them between a first one and a head"):
        _split_convolutions(openvino.Core().read_model(str(tmp_path / "model.xml")))


def test_windows_of_several_shapes_or_none_are_refused(tmp_path):
    with pytest.raises(ValueError, match="windows must be one or more tensors of one shape"):
        quantize_int8(make_network(), [], tmp_path)
    with pytest.raises(ValueError, match=r"got the shapes \{.*\(1, 8, 8, 4\)"):
        quantize_int8(make_network(), [torch.zeros(1, 8, 8, 8), torch.zeros(1, 8, 8, 4)], tmp_path)


def test_without_nncf_the_error_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'medseg\[int8\]'"):
        quantize_int8(make_network(), make_windows(1), tmp_path)
    assert "NNCF_CI" not in os.environ


def test_the_weights_take_less_room_and_the_answers_barely_move(quantized):
    network, summary, folder = quantized
    assert (summary.int8_layers, summary.float_layers) == (2, 2)
    assert summary.int8_bytes == (folder / "model.bin").stat().st_size
    assert summary.int8_bytes < 0.5 * summary.float_bytes
    assert 0 < summary.mean_difference < 0.01
    assert summary.changed_voxels < 0.05
    unseen = torch.stack(make_windows(2, seed=5))
    expected = network(unseen).detach()
    difference = (Int8Backend(folder)(unseen).softmax(1) - expected.softmax(1)).abs()
    assert 0 < float(difference.mean()) < 0.01


def test_weights_are_int8_with_a_scale_for_each_output_channel_and_activations_have_one(quantized):
    import openvino

    operations = openvino.Core().read_model(str(quantized[2] / "model.xml")).get_ordered_ops()
    assert [op.get_element_type().get_type_name() for op in operations if _is_weight(op)] == ["i8", "i8"]
    scales = [op for op in operations if op.get_type_name() == "FakeQuantize"]
    assert len(scales) == 2
    assert all(np.prod(op.input(i).get_shape()) == 1 for op in scales for i in (1, 2, 3, 4))
    factors = [op for op in operations if op.get_type_name() == "Multiply" and "fq_weights" in op.get_friendly_name()]
    assert sorted(int(np.prod(op.input(1).get_shape())) for op in factors) == [8, 16]


def _is_weight(operation):
    return operation.get_type_name() == "Constant" and operation.get_element_type().get_type_name() in ("i8", "u8")


def test_the_same_windows_give_the_same_model(quantized, tmp_path):
    quantize_int8(make_network(), make_windows(), tmp_path)
    assert (tmp_path / "model.bin").read_bytes() == (quantized[2] / "model.bin").read_bytes()


def test_the_backend_says_what_it_is_and_refuses_other_windows(quantized):
    backend = Int8Backend(quantized[2])
    assert (backend.name, backend.precision, backend.notes, backend.window) == ("openvino", "int8", (), WINDOW)
    assert backend(torch.zeros(2, *WINDOW)).shape == (2, 3, 8, 8, 8)
    with pytest.raises(ValueError, match=r"takes windows of \(1, 8, 8, 8\) \(channels first\), got \(1, 8, 8, 4\)"):
        backend(torch.zeros(1, 1, 8, 8, 4))


@pytest.fixture
def folder(tmp_path):
    """A manifest and files that no model is in."""
    for name in FILES:
        (tmp_path / name).write_bytes(name.encode())
    write_manifest(tmp_path, {"weights_sha256": "0" * 64, "window": list(WINDOW)})
    return tmp_path


def test_a_model_of_other_weights_is_refused(folder):
    with pytest.raises(ValueError, match=r"quantised from other weights .* run 'medseg bundle quantize' again"):
        Int8Backend(folder, "1" * 64)


def test_a_damaged_or_incomplete_model_is_refused(folder):
    (folder / "model.bin").write_bytes(b"cut")
    with pytest.raises(ValueError, match=r"model\.bin is not what the quantisation wrote"):
        Int8Backend(folder)
    (folder / "model.bin").unlink()
    with pytest.raises(ValueError, match="holds no whole int8 model"):
        Int8Backend(folder)
    (folder / MANIFEST).write_text(json.dumps({"files": {}}))
    with pytest.raises(ValueError, match="holds no whole int8 model"):
        Int8Backend(folder)
