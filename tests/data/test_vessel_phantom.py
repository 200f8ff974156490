"""`medseg.data.vessel_phantom`: connected trees by Murray's law, thin centrelines, and a Rician image of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.spatial.distance import cdist

from medseg.data import load_datalist, make_vessel_phantom, read_image, read_mask, write_vessel_phantoms
from medseg.data._vessel_trees import grow_trees, murray_angles

CORNERS = np.ones((3, 3, 3))
SMALL = {"shape": (32, 32, 32), "radii": (1.0, 3.0)}


def count_parts(mask, neighbours=None):
    return ndimage.label(mask, neighbours)[1]


@given(seed=st.integers(0, 10_000))
@settings(deadline=None, max_examples=15)
def test_every_tree_is_one_piece_and_so_is_its_centreline_for_every_seed(seed):
    phantom = make_vessel_phantom(**SMALL, num_trees=2, seed=seed)
    assert count_parts(phantom.label) == 2
    assert count_parts(phantom.centreline, CORNERS) == 2
    assert (phantom.centreline <= phantom.label).all()


def test_trees_stay_in_one_piece_where_slices_are_thicker_than_the_twigs():
    phantom = make_vessel_phantom((40, 40, 16), spacing=(0.5, 0.5, 1.5), num_trees=2, seed=2)
    assert count_parts(phantom.label) == count_parts(phantom.centreline, CORNERS) == 2
    assert phantom.spacing == (0.5, 0.5, 1.5)


def test_a_centreline_is_one_voxel_thin():
    line = make_vessel_phantom(seed=0).centreline.astype(bool)
    neighbours = ndimage.convolve(line.astype(int), CORNERS.astype(int), mode="constant")[line] - 1
    assert np.median(neighbours) == 2
    assert neighbours.max() <= 6


def test_types_and_the_share_of_vessel_are_as_in_an_angiography():
    phantom = make_vessel_phantom(seed=3)
    assert (phantom.image.dtype, phantom.label.dtype, phantom.centreline.dtype) == (np.float32, np.uint8, np.uint8)
    assert phantom.image.shape == phantom.label.shape == phantom.centreline.shape == (64, 64, 64)
    assert 0.003 < phantom.label.mean() < 0.06


def test_the_same_seed_gives_the_same_voxels_and_another_seed_others():
    first, again, other = (make_vessel_phantom(**SMALL, seed=seed) for seed in (3, np.random.default_rng(3), 4))
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(first.label, again.label)
    assert not np.array_equal(first.label, other.label)


@pytest.fixture(scope="module")
def vessels():
    return grow_trees((96, 96, 96), np.ones(3), 2, (1.0, 5.0), np.random.default_rng(1))


def children(vessels, parent):
    return [v for v in vessels if np.allclose(v.points[0], parent.points[-1])]


def test_vessels_divide_by_murrays_law(vessels):
    pairs = [(parent, *found) for parent in vessels if (found := children(vessels, parent))]
    assert len(pairs) > 10
    for parent, first, second in pairs:
        assert first.radius**3 + second.radius**3 == pytest.approx(parent.radius**3)
        assert min(first.radius, second.radius) >= 1.0 - 1e-9


def test_the_wider_branch_turns_less_and_even_ones_by_37_degrees(vessels):
    for parent in vessels:
        along = parent.points[-1] - parent.points[-2]
        found = sorted(children(vessels, parent), key=lambda v: v.radius)
        cosines = [float(along @ (v.points[1] - v.points[0])) for v in found]
        assert cosines == sorted(cosines)
    assert np.cos(murray_angles(2.0, 2 ** (2 / 3), 2 ** (2 / 3))) == pytest.approx([2 ** (-1 / 3)] * 2)


def test_vessels_of_different_trees_keep_apart(vessels):
    for one in (v for v in vessels if v.tree == 0):
        for other in (v for v in vessels if v.tree == 1):
            assert cdist(one.points, other.points).min() > one.radius + other.radius + 2


def test_without_noise_and_bias_wide_vessels_are_brighter_than_thin_ones_and_both_than_tissue():
    clean = {"noise": 0.0, "bias": 0.0, "seed": 5}
    with_vessels, without = (make_vessel_phantom(**SMALL, contrast=c, **clean) for c in (0.6, 0.0))
    added = with_vessels.image - without.image
    depth = ndimage.distance_transform_edt(with_vessels.label)
    thin, wide = (added[(with_vessels.centreline > 0) & chosen].mean() for chosen in (depth < 1.5, depth >= 2))
    assert 0.1 < thin < wide < 0.6
    assert added[ndimage.binary_dilation(with_vessels.label, iterations=2) == 0].max() == pytest.approx(0, abs=1e-6)


def test_voxels_at_the_wall_hold_part_of_the_signal():
    clean = {"noise": 0.0, "bias": 0.0, "seed": 5}
    with_vessels, without = (make_vessel_phantom(**SMALL, contrast=c, **clean) for c in (1.0, 0.0))
    added = with_vessels.image - without.image
    assert ((added > 0.05) & (added < 0.3)).sum() > 20
    assert np.median(added[with_vessels.label > 0]) > 2 * np.median(added[(added > 0.01) & (with_vessels.label == 0)])


def test_noise_is_rician_where_the_signal_is_far_above_it():
    quiet, noisy = (make_vessel_phantom(**SMALL, noise=noise, seed=1).image for noise in (0.0, 0.02))
    assert (noisy - quiet).std() == pytest.approx(0.02, rel=0.05)
    assert (noisy >= 0).all()
    loud = make_vessel_phantom(**SMALL, noise=5.0, seed=1).image
    assert loud.mean() == pytest.approx(5.0 * np.sqrt(np.pi / 2), rel=0.03)  # Rayleigh's mean


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shape": (64, 64)}, "shape must have 3 sizes"),
        ({"shape": (8, 64, 64)}, "at least 16 voxels"),
        ({"num_trees": 0}, "num_trees must be 1 or more, got 0"),
        ({"radii": (0.1, 3)}, "radii must be the thinnest and the widest"),
        ({"radii": (3, 1)}, "radii must be the thinnest and the widest"),
        ({"spacing": (1, 1)}, "spacing must have 3 positive sizes"),
        ({"spacing": (1, float("nan"), 1)}, "spacing must have 3 positive sizes"),
        ({"noise": -1}, "noise must be 0 or more, got -1"),
        ({"bias": float("nan")}, "bias must be 0 or more, got nan"),
        ({"shape": (16, 16, 16), "num_trees": 9}, "trees find no room; ask for fewer"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_vessel_phantom(**arguments)


def test_a_written_set_is_read_back_by_the_training_list(tmp_path):
    look = {"shape": (32, 32, 24), "num_trees": 1, "radii": (1.0, 3.0), "spacing": (0.5, 0.5, 0.8)}
    folder = write_vessel_phantoms(tmp_path / "set", 2, **look, seed=7)
    samples = load_datalist(str(folder))
    assert [s["sample_id"] for s in samples] == ["vessels_000", "vessels_001"]
    image, label = read_image(samples[1]["image"]), read_mask(samples[1]["label"])
    expected = make_vessel_phantom(**look, seed=8)
    assert image.spacing == pytest.approx((0.5, 0.5, 0.8))
    assert np.array_equal(image.array, expected.image)
    assert np.array_equal(label.array, expected.label)


def test_a_set_without_cases_is_refused(tmp_path):
    with pytest.raises(ValueError, match="cases must be at least 1, got 0"):
        write_vessel_phantoms(tmp_path, 0)
