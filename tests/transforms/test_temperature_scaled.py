"""Probabilities are calibrated as logits are, masks stay, and what is no probability is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from monai.data.meta_tensor import MetaTensor

from medseg.core.calibration import TemperatureMixture, mix_temperatures
from medseg.transforms import TemperatureScaled, TemperatureScaledd

LOGITS = 3 * torch.randn(3, 4, 5, 6, generator=torch.Generator().manual_seed(0))
MIXTURE = {"temperatures": [0.7, 1.5, 4.0], "weights": [0.2, 0.5, 0.3]}


def test_probabilities_are_scaled_as_their_logits_are():
    expected = mix_temperatures(LOGITS[None], **MIXTURE)[0]
    torch.testing.assert_close(TemperatureScaled(**MIXTURE)(LOGITS.softmax(0)), expected)
    torch.testing.assert_close(TemperatureScaled(**MIXTURE, logits=True)(LOGITS), expected)


def test_a_calibrator_and_its_settings_give_the_same():
    calibrator = TemperatureMixture(**MIXTURE)
    torch.testing.assert_close(
        TemperatureScaled(**calibrator.settings())(LOGITS.softmax(0)), calibrator.transform(LOGITS[None])[0].exp()
    )


@settings(deadline=None, max_examples=25)
@given(
    values=arrays(np.float32, (3, 30), elements=st.floats(0, 1, width=32)),
    temperature=st.floats(0.05, 20),
)
def test_the_best_class_stays_even_at_the_last_bit(values, temperature):
    values[:, :10] = np.nextafter(values[:1, :10], np.arange(3, dtype=np.float32)[:, None])
    p = torch.from_numpy(values)
    p = p / p.sum(0, keepdim=True).clamp_min(1e-3)
    scaled = torch.as_tensor(TemperatureScaled([temperature])(p))
    assert torch.equal(scaled.argmax(0), p.argmax(0))


def test_a_temperature_of_one_changes_nothing():
    p = LOGITS.softmax(0)
    torch.testing.assert_close(TemperatureScaled()(p), p)


def test_a_single_channel_keeps_its_side_of_one_half():
    p = torch.rand(1, 200, generator=torch.Generator().manual_seed(0))
    scaled = torch.as_tensor(TemperatureScaled([3.0])(p))
    assert torch.equal(scaled > 0.5, p > 0.5)
    torch.testing.assert_close(scaled.logit(), p.logit() / 3, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(TemperatureScaled([3.0], logits=True)(p.logit()), scaled)


def test_voxels_without_any_class_stay_without():
    p = LOGITS.softmax(0)
    p[:, 0] = 0
    scaled = torch.as_tensor(TemperatureScaled([2.0])(p))
    assert not scaled[:, 0].any()
    torch.testing.assert_close(scaled[:, 1:].sum(0), torch.ones(3, 5, 6))


def test_numbers_may_stand_in_a_file(tmp_path):
    path = tmp_path / "calibration.json"
    scale = TemperatureScaledd(keys="pred", file=str(path))  # nothing is read yet
    with pytest.raises(FileNotFoundError, match="does not exist"):
        scale({"pred": LOGITS.softmax(0)})
    path.write_text(json.dumps(MIXTURE))
    expected = TemperatureScaled(**MIXTURE)(LOGITS.softmax(0))
    assert torch.equal(scale({"pred": LOGITS.softmax(0)})["pred"], expected)
    path.write_text('{"temperatures": "warm"}')
    with pytest.raises(ValueError, match="must hold"):
        TemperatureScaled(file=str(path))(LOGITS.softmax(0))


def test_geometry_is_kept():
    affine = torch.diag(torch.tensor([1.0, 2.0, 3.0, 1.0], dtype=torch.float64))
    scaled = TemperatureScaled([2.0])(MetaTensor(LOGITS.softmax(0), affine=affine))
    assert isinstance(scaled, MetaTensor)
    assert torch.equal(scaled.affine, affine)


@pytest.mark.parametrize(
    ("image", "match"),
    [
        (LOGITS, r"must hold probabilities .* behind the softmax, or set logits"),
        (LOGITS.sigmoid(), "sum to one over channels"),
        (LOGITS.softmax(0) * torch.nan, "must hold probabilities"),
    ],
)
def test_what_is_no_probability_is_refused(image, match):
    with pytest.raises(ValueError, match=match):
        TemperatureScaled([2.0])(image)
    with pytest.raises(ValueError, match="NaN or infinity"):
        TemperatureScaled([2.0], logits=True)(LOGITS * torch.inf)


def test_numbers_out_of_range_are_refused():
    with pytest.raises(ValueError, match="must be positive"):
        TemperatureScaled([0.0])
    with pytest.raises(ValueError, match="equally many"):
        TemperatureScaled([1.0], [0.5, 0.5])
    with pytest.raises(ValueError, match="give either the file"):
        TemperatureScaled([2.0], file="calibration.json")
