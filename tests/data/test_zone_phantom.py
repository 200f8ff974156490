"""Prostate phantoms: the same seed the same prostate, zones where they belong, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest

from medseg.data import load_datalist, make_zone_phantom, read_mask, write_zone_phantoms
from medseg.data.zone_phantom import PROSTATE_ZONES
from medseg.networks.dual_path import ZONES

SMALL = {"shape": (40, 40, 12), "spacing": (1.5, 1.5, 4.0)}


def centre(mask: np.ndarray) -> np.ndarray:
    return np.argwhere(mask).mean(axis=0)


def test_the_same_seed_gives_the_same_prostate_and_another_another():
    first, again, other = (make_zone_phantom(**SMALL, seed=seed) for seed in (3, 3, 4))
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(first.label, again.label)
    assert not np.array_equal(first.label, other.label)
    assert np.array_equal(first.image, make_zone_phantom(**SMALL, seed=np.random.default_rng(3)).image)


@pytest.mark.parametrize("seed", range(5))
def test_zones_lie_where_anatomy_has_them_and_are_missing_in_some_slices(seed):
    phantom = make_zone_phantom(**SMALL, seed=seed)
    masks = {zone: phantom.label == value for value, zone in enumerate(PROSTATE_ZONES, 1)}
    gland = centre(phantom.label > 0)
    assert centre(masks["AFS"])[1] > gland[1] + 3  # in front
    assert centre(masks["DPU"])[2] < gland[2] - 1  # in the lower half
    assert abs(centre(masks["DPU"])[0] - gland[0]) < 3  # near the midline
    slices = {zone: mask.any(axis=(0, 1)) for zone, mask in masks.items()}
    inside = np.flatnonzero((phantom.label > 0).any(axis=(0, 1)))
    for zone in ("TZ", "DPU", "AFS"):
        assert not slices[zone][inside].all(), f"{zone} is in every slice"
    assert masks["DPU"].sum() < masks["AFS"].sum() < masks["TZ"].sum() < masks["PZ"].sum()


def test_the_image_shows_the_zones_and_noise_and_bias_can_be_turned_off():
    clean = make_zone_phantom(**SMALL, noise=0, bias=0, blur=0)
    noisy = make_zone_phantom(**SMALL, noise=0.2, bias=0, blur=0)
    assert np.array_equal(clean.label, noisy.label)
    assert noisy.image.std() > clean.image.std()
    means = [clean.image[clean.label == value].mean() for value in range(1, 5)]
    assert means[0] > means[1] > means[3]


def test_a_written_folder_can_be_read_for_training(tmp_path):
    write_zone_phantoms(tmp_path, 2, **SMALL, seed=7)
    samples = load_datalist(str(tmp_path))
    assert [s["sample_id"] for s in samples] == ["prostate_000", "prostate_001"]
    assert np.array_equal(read_mask(samples[1]["label"]).array, make_zone_phantom(**SMALL, seed=8).label)
    assert json.loads((tmp_path / "dataset.json").read_text())["labels"]["3"] == "DPU"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"shape": (40, 40)}, "shape must have 3 sizes of at least 8"),
        ({"spacing": (1.0, 1.0, 0.0)}, "spacing must have 3 positive sizes"),
        ({"noise": -0.1}, "noise must be 0 or more"),
        ({"shape": (8, 8, 8), "spacing": (1, 1, 1)}, "shape and spacing show 8 x 8 x 8 mm, in which .* is not seen"),
    ],
)
def test_odd_options_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        make_zone_phantom(**{**SMALL, **wrong})


def test_labels_are_those_of_the_network():
    assert PROSTATE_ZONES == ZONES


def test_at_least_one_case_is_written(tmp_path):
    with pytest.raises(ValueError, match="cases must be at least 1, got 0"):
        write_zone_phantoms(tmp_path, 0)
