"""The battery of transforms tells a good pair from a bad one, for every property."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.transforms import Flip, Flipd, MapTransform, ScaleIntensity, ScaleIntensityd, Transform

from tests.batteries import transforms as battery

FLIP = {"spatial_axis": 1}


class Double(Transform):
    """Twice the input: the good array form that the broken ones below derive from."""

    def __call__(self, image):
        return image * 2


class Doubled(MapTransform):
    """Dictionary form of whatever `array` is."""

    array = Double

    def __init__(self, keys, allow_missing_keys=False):
        super().__init__(keys, allow_missing_keys)
        self.transform = self.array()

    def __call__(self, data):
        return {**data, **{key: self.transform(data[key]) for key in self.key_iterator(data)}}


class Tripled(Doubled):
    def __call__(self, data):
        return {key: value * 1.5 if key in self.keys else value for key, value in super().__call__(data).items()}


class AddNoise(Transform):
    def __call__(self, image):
        return image + torch.rand_like(torch.as_tensor(image))


class AddNoised(Doubled):
    array = AddNoise


class DoubleInPlace(Transform):
    def __call__(self, image):
        image *= 2
        return image


class DoubleInPlaced(Doubled):
    array = DoubleInPlace


class DoubleTensorsOnly(Transform):
    def __call__(self, image):
        return image if isinstance(image, np.ndarray) else image * 2


class DoubleTensorsOnlyd(Doubled):
    array = DoubleTensorsOnly


class FlipForgottend(Flipd):
    def inverse(self, data):
        return dict(data)


class SwallowsTypos(Double):
    def __init__(self, **kwargs):
        super().__init__()


BROKEN = {
    battery.agrees_as_array_and_dictionary: (Double, Tripled, {}),
    battery.is_reproducible: (AddNoise, AddNoised, {}),
    battery.leaves_inputs_alone: (DoubleInPlace, DoubleInPlaced, {}),
    battery.accepts_arrays_of_numpy: (DoubleTensorsOnly, DoubleTensorsOnlyd, {}),
    battery.is_undone_by_its_inverse: (Flip, FlipForgottend, FLIP),
    battery.is_built_from_json: (SwallowsTypos, Doubled, {}),
}
GOOD = [(Double, Doubled, {}), (Flip, Flipd, FLIP), (ScaleIntensity, ScaleIntensityd, {"minv": 0.0, "maxv": 2.0})]


def test_every_property_has_a_transform_that_breaks_it():
    assert set(BROKEN) == set(battery.PROPERTIES)


@pytest.mark.parametrize("pair", GOOD, ids=lambda p: p[0].__name__)
@pytest.mark.parametrize("check", battery.PROPERTIES, ids=lambda p: p.__name__)
def test_a_good_transform_passes(check, pair):
    check(*pair)


@pytest.mark.parametrize("check", battery.PROPERTIES, ids=lambda p: p.__name__)
def test_a_transform_broken_in_one_way_is_caught(check):
    with pytest.raises(AssertionError):
        check(*BROKEN[check])
