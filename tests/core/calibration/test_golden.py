"""Objective, gradient, temperature and mixture against golden values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from medseg.core.calibration import TemperatureCalibrator, h_calibration_loss, mix_temperatures

ROOT = Path(__file__).resolve().parents[3]
FOLDERS = (ROOT / "tests" / "golden" / "calibration", ROOT.parent / "shared" / "golden" / "calibration")
FILES = sorted({path.name: path for folder in FOLDERS for path in folder.glob("*.npz")}.values())


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def golden(request) -> dict[str, np.ndarray]:
    with np.load(request.param) as file:
        return dict(file)


@pytest.fixture
def voxels(golden) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(golden["logits"]), torch.from_numpy(golden["labels"])


def test_golden_files_are_there():
    assert FILES


@pytest.mark.parametrize("left_out", [True, False])
@pytest.mark.parametrize(("bins", "name"), [("none", "unweighted"), ("equal", "aceweighted")])
def test_loss_and_gradient_of_h_calibration(golden, voxels, bins, name, left_out):
    logits, labels = voxels[0].requires_grad_(), voxels[1]
    loss = h_calibration_loss(
        logits.softmax(1), labels, window=int(golden["veclen"]), bins=bins, leave_one_class_out=left_out,
        eps=float(golden["eps"]),
    )  # fmt: skip
    name = f"{name}_{'loco' if left_out else 'all'}"
    assert loss.item() == pytest.approx(float(golden[name]), rel=1e-9)
    (gradient,) = torch.autograd.grad(loss, logits)
    np.testing.assert_allclose(gradient, golden[f"grad_{name}"], rtol=1e-9, atol=1e-15)


def test_temperature_and_its_likelihood(golden, voxels):
    logits, labels = voxels
    calibrator = TemperatureCalibrator().fit(logits, labels)
    assert calibrator.temperature == pytest.approx(float(golden["temperature_nll"]), rel=1e-6)
    for given, name in ((calibrator, "nll_at_T"), (TemperatureCalibrator(), "nll_at_1")):
        nll = torch.nn.functional.nll_loss(given.transform(logits), labels)
        assert nll.item() == pytest.approx(float(golden[name]), rel=1e-9)


def test_mixture_of_temperatures(golden, voxels):
    temperatures, weights = 1 / golden["ts_ensemble_inv_temps"], golden["ts_ensemble_weights"]
    mixed = mix_temperatures(voxels[0], temperatures.tolist(), weights.tolist())
    np.testing.assert_allclose(mixed, golden["ts_ensemble_probs"], rtol=1e-9)
