"""Every public transform meets the contract of transforms."""

from __future__ import annotations

import pytest
from monai.transforms.transform import MapTransform, Transform

from tests.batteries.common import public_classes
from tests.batteries.transforms import PROPERTIES
from tests.transforms.label_stand_ins import STAND_INS

# Arguments shared by the array and the dictionary form; transforms without an entry are built with their defaults.
ARGUMENTS: dict[str, dict[str, object]] = {"ShapeBasedResampleToMatch": {"smooth_variance": 0.0}}

# What a transform does not promise, with the reason.
SEVERAL = "gives one tensor for each axis, under new keys in the dictionary form; its own tests compare the forms"
EXEMPT: dict[tuple[str, str], str] = {
    ("LabelMIP", name): SEVERAL for name in ("agrees_as_array_and_dictionary", "is_reproducible")
} | {("ZoneDistance", "agrees_as_array_and_dictionary"): "the dictionary form keeps the label and adds a key"}


def find_pairs():
    """Array classes with their dictionary form, which bears the same name and a `d`."""
    classes = {cls.__name__: cls for cls in public_classes("medseg.transforms", Transform)}
    return [(cls, classes.get(f"{name}d")) for name, cls in classes.items() if not issubclass(cls, MapTransform)]


@pytest.mark.parametrize("pair", find_pairs(), ids=lambda p: p[0].__name__)
def test_every_public_transform_has_a_dictionary_form(pair):
    assert pair[1] is not None, f"{pair[0].__name__} has no {pair[0].__name__}d"


@pytest.mark.parametrize("check", PROPERTIES, ids=lambda p: p.__name__)
@pytest.mark.parametrize("pair", find_pairs(), ids=lambda p: p[0].__name__)
def test_every_public_transform(pair, check):
    if reason := EXEMPT.get((pair[0].__name__, check.__name__)):
        pytest.skip(reason)
    check(*STAND_INS.get(pair[0].__name__, pair), ARGUMENTS.get(pair[0].__name__, {}))
