"""What a faster back end may change in the hippocampus bundle's answers: next to nothing, on real cases."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from medseg.data import load_datalist, read_image
from medseg.engines import Predictor

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


class Compared:
    """A back end that notes how far its probabilities are from another's, window by window."""

    def __init__(self, backend, reference) -> None:
        self.backend, self.reference, self.largest = backend, reference, 0.0

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        answer = self.backend(x)
        difference = (answer.softmax(1) - self.reference(x).softmax(1)).abs().max()
        self.largest = max(self.largest, float(difference))
        return answer

    def __getattr__(self, name: str):
        return getattr(self.backend, name)


@pytest.fixture(scope="module")
def eager() -> Predictor:
    return Predictor("hippocampus_segmentation", device="cpu", engine="torch", precision="fp32")


@pytest.fixture
def cases(shared_data) -> list:
    items = load_datalist(str(shared_data / "hippocampus_msd"), "validation")
    assert len(items) == 37
    return items


def pairs(cases, first: Predictor, second: Predictor) -> Iterator[np.ndarray]:
    """Dice of every case, labels 1 and 2, of both predictors: shape (2, 2)."""
    for case in cases:
        image = read_image(case["image"])
        truth = read_image(case["label"]).array
        yield np.array([_dice(p.predict([image]).labels, truth) for p in (first, second)])


def _dice(labels: np.ndarray, truth: np.ndarray) -> list[float]:
    return [2 * ((labels == k) & (truth == k)).sum() / ((labels == k).sum() + (truth == k).sum()) for k in (1, 2)]


def test_openvino_in_fp32_is_within_1e_4_of_torch_on_every_window(cases, eager):
    pytest.importorskip("openvino")
    predictor = Predictor("hippocampus_segmentation", device="cpu", engine="openvino", precision="fp32")
    assert (predictor.backend.name, predictor.backend.notes) == ("openvino", ())
    predictor.backend = Compared(predictor.backend, eager.backend)  # type: ignore[assignment]
    dice = np.array(list(pairs(cases, eager, predictor)))
    print(f"fp32 openvino: max |dp| {predictor.backend.largest:.2e}, {_summary(dice)}")
    assert 0 < predictor.backend.largest <= 1e-4
    assert np.abs(np.diff(dice, axis=1)).max() < 0.001


def test_bf16_of_openvino_keeps_the_contract(cases, eager):
    pytest.importorskip("openvino")
    from medseg.inferers.openvino_backend import has_bf16_units

    if not has_bf16_units():
        pytest.skip("needs a processor with bf16 units")
    predictor = Predictor("hippocampus_segmentation", device="cpu", engine="openvino", precision="bf16")
    assert (predictor.backend.name, predictor.backend.precision) == ("openvino", "bf16")
    _assert_bf16_contract("openvino", list(pairs(cases, eager, predictor)))


def test_rounding_to_bf16_everywhere_keeps_the_contract(cases, eager):
    """What units for bf16 do, on any processor: weights and answers of every layer rounded, sums in float32."""
    predictor = Predictor("hippocampus_segmentation", device="cpu", engine="torch", precision="fp32")
    network = predictor.backend.network  # type: ignore[attr-defined]

    def rounded(_, inputs, answer):
        return answer.bfloat16().float()

    network.register_forward_pre_hook(lambda _, inputs: tuple(x.bfloat16().float() for x in inputs))
    for module in network.modules():
        if not list(module.children()):
            module.register_forward_hook(rounded)
    with torch.no_grad():
        for weight in network.parameters():
            weight.copy_(weight.bfloat16().float())
    _assert_bf16_contract("rounded", list(pairs(cases, eager, predictor)))


def _assert_bf16_contract(name: str, dice: list[np.ndarray]) -> None:
    print(f"bf16 {name}: {_summary(np.array(dice))}")
    change = np.diff(np.array(dice).mean(axis=2), axis=1)
    assert 0 < np.abs(change).max() <= 0.01
    assert abs(change.mean()) < 0.002


def _summary(dice: np.ndarray) -> str:
    change = np.diff(dice.mean(axis=2), axis=1)
    means = dice.mean(axis=(0, 2))
    return f"mean Dice {means[0]:.5f} -> {means[1]:.5f}, largest change of a case {np.abs(change).max():.5f}"
