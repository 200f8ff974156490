"""Calibrators find the temperature that was put in, keep every best class, and say what they cannot do."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from monai.bundle import ConfigParser

from medseg.core.calibration import (
    CalibrationWarning,
    TemperatureCalibrator,
    TemperatureMixture,
    mix_temperatures,
)


def make_voxels(temperature: float = 2.0, count: int = 20000, classes: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits that are too sure by a known factor."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(count, classes, generator=generator)
    return logits, torch.multinomial((logits / temperature).softmax(1), 1, generator=generator)[:, 0]


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_one_temperature_is_found_again(temperature):
    calibrator = TemperatureCalibrator().fit(*make_voxels(temperature))
    assert calibrator.temperature == pytest.approx(temperature, rel=0.04)


@pytest.mark.parametrize("objective", ["nll", "h_calibration", "correctness"])
def test_a_mixture_comes_near_the_temperature_that_was_put_in(objective):
    logits, labels = make_voxels(1.5, 6000)
    mixture = TemperatureMixture(2, objective, steps=60, batch_size=2000, learning_rate=0.05).fit(logits, labels)
    settings_ = mixture.settings()
    assert np.dot(settings_["temperatures"], settings_["weights"]) == pytest.approx(1.5, rel=0.1)


def test_a_mixture_is_no_worse_than_one_temperature():
    logits, labels = make_voxels(1.0, 8000)
    logits = torch.where(torch.arange(8000)[:, None] % 2 == 0, logits, 4 * logits)  # every second one is far too sure
    one, many = (c.fit(logits, labels) for c in (TemperatureCalibrator(), TemperatureMixture(4)))
    likelihoods = [torch.nn.functional.nll_loss(c.transform(logits), labels).item() for c in (one, many)]
    assert likelihoods[1] < likelihoods[0] - 0.01


@settings(deadline=None, max_examples=25)
@given(
    logits=arrays(np.float32, (40, 4), elements=st.floats(-40, 40, width=32)),
    temperatures=st.lists(st.floats(0.05, 20), min_size=1, max_size=3),
)
def test_the_best_class_of_every_voxel_stays(logits, temperatures):
    given_ = torch.from_numpy(logits)
    given_ = torch.cat([given_, torch.nextafter(given_[:, [0, 0, 0, 0]], torch.ones(4)).cumsum(1) * 0.25])
    calibrated = TemperatureMixture(temperatures=temperatures).transform(given_)
    assert torch.equal(calibrated.argmax(1), given_.argmax(1))
    np.testing.assert_allclose(calibrated.exp().sum(1), 1, atol=1e-5)


def test_classes_that_rounding_makes_equal_keep_their_order():
    low = torch.tensor(0.3)
    logits = torch.stack([low, torch.nextafter(low, torch.tensor(1.0))])[None]
    assert mix_temperatures(logits, [20.0], [1.0]).argmax(1) == 0  # what the calibrator must not do
    assert TemperatureCalibrator(20.0).transform(logits).argmax(1) == 1


def test_volumes_are_calibrated_as_lists_of_voxels_are():
    logits, labels = make_voxels(count=240)
    volume = logits.reshape(2, 4, 5, 6, 3).movedim(-1, 1)
    calibrator = TemperatureCalibrator().fit(volume, labels.reshape(2, 1, 4, 5, 6))
    assert calibrator.temperature == TemperatureCalibrator().fit(logits, labels).temperature
    expected = calibrator.transform(logits).reshape(2, 4, 5, 6, 3).movedim(-1, 1)
    torch.testing.assert_close(calibrator.transform(volume), expected)


def test_half_precision_gives_single():
    assert TemperatureCalibrator(2.0).transform(torch.zeros(3, 2, dtype=torch.float16)).dtype == torch.float32


@pytest.mark.parametrize("name", ["TemperatureCalibrator", "TemperatureMixture"])
def test_json_builds_it_and_both_kinds_of_state_bring_it_back(name):
    config = {"_target_": f"medseg.core.calibration.{name}"}
    calibrator = ConfigParser({"c": config}).get_parsed_content("c")
    logits, labels = make_voxels(count=2000)
    calibrator.fit(logits, labels)
    expected = calibrator.transform(logits)
    fresh = type(calibrator)()
    fresh.load_state_dict(calibrator.state_dict())
    assert torch.equal(fresh.transform(logits), expected)
    plain = json.loads(json.dumps(calibrator.settings()))
    torch.testing.assert_close(TemperatureMixture(**plain).transform(logits), expected, atol=1e-5, rtol=1e-5)


def test_the_same_seed_gives_the_same_mixture():
    logits, labels = make_voxels(count=3000)
    fits = [TemperatureMixture(3, "correctness", steps=30, seed=s).fit(logits, labels).settings() for s in (1, 1, 2)]
    assert fits[0] == fits[1] != fits[2]


def test_labels_from_which_nothing_can_be_learned_are_refused():
    logits, labels = make_voxels()
    for calibrator in (TemperatureCalibrator(), TemperatureMixture()):
        with pytest.raises(ValueError, match=r"one class only \(0\)"):
            calibrator.fit(logits, torch.zeros_like(labels))
        with pytest.raises(ValueError, match="NaN or infinity"):
            calibrator.fit(logits * torch.nan, labels)
        with pytest.raises(ValueError, match="hold NaN"):
            calibrator.transform(logits * torch.nan)
        with pytest.raises(ValueError, match="stack 0 and its logit"):
            calibrator.fit(logits[:, :1], labels)


def test_few_voxels_and_perfect_ones_are_told():
    logits, labels = make_voxels()
    with pytest.warns(CalibrationWarning, match="50 voxels determine"):
        TemperatureCalibrator().fit(logits[:50], labels[:50])
    with pytest.warns(CalibrationWarning, match=r"beyond 0\.05"):
        assert TemperatureCalibrator().fit(logits, logits.argmax(1)).temperature == pytest.approx(0.05)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        TemperatureCalibrator().fit(logits, labels)


@pytest.mark.parametrize(
    ("build", "match"),
    [
        (lambda: TemperatureCalibrator(0.0), "must be positive"),
        (lambda: TemperatureMixture(0), "must be 1 or more"),
        (lambda: TemperatureMixture(objective="ece"), "got 'ece'"),
        (lambda: TemperatureMixture(temperatures=[1.0], weights=[0.5, 0.5]), "equally many"),
        (lambda: mix_temperatures(torch.zeros(1, 2), [1.0], [0.0]), "positive sum"),
    ],
)
def test_options_that_make_no_calibrator_are_refused(build, match):
    with pytest.raises(ValueError, match=match):
        build()
