"""`medseg.data.topology_phantoms`: the topology that was asked for, reproducible, and gaps in the image alone."""

from __future__ import annotations

import numpy as np
import pytest

from medseg.data import make_topology_phantom
from medseg.topology import betti_numbers


@pytest.mark.parametrize("seed", range(12))
def test_the_label_has_the_topology_that_was_asked_for(seed):
    _, label = make_topology_phantom((36, 34, 38), rings=2, balls=2, seed=seed)
    assert betti_numbers(label) == (4, 2, 2)


def test_the_same_seed_gives_the_same_voxels_and_another_seed_others():
    first, again, other = (make_topology_phantom(seed=seed)[0] for seed in (3, 3, 4))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_gaps_open_the_bright_part_of_the_image_but_not_the_label():
    image, label = make_topology_phantom(rings=2, balls=2, gaps=1, noise=0, seed=1)
    assert betti_numbers(label) == (4, 2, 2)
    assert betti_numbers(image > 0.5)[1:] == (0, 0)
    whole, label = make_topology_phantom(rings=2, balls=2, gaps=0, noise=0, seed=1)
    assert np.array_equal(whole > 0.5, label > 0)


def test_noise_has_the_asked_standard_deviation():
    image, _ = make_topology_phantom(rings=0, balls=0, noise=0.3)
    assert image.std() == pytest.approx(0.3, rel=1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shape": (20, 20)}, "shape must have 3 positive sizes"),
        ({"rings": -1}, "rings, balls and gaps must be 0 or more, got -1"),
        ({"noise": -0.1}, "noise must be 0 or more"),
        ({"shape": (16, 16, 16), "rings": 5}, r"7 objects do not fit into shape \(16, 16, 16\)"),
        ({"shape": (8, 40, 40)}, "do not fit"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_topology_phantom(**arguments)
