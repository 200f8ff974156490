"""`medseg.data.phantoms`: exact shapes, reproducible, in every folder layout that training reads."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from medseg.data import load_datalist, make_phantom, read_image, read_mask, write_phantom_dataset

KINDS = ["ball", "balls", "nested", "torus", "tube"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_voxels_and_another_seed_others(kind):
    image, label = make_phantom(kind, seed=3)
    again, label_again = make_phantom(kind, seed=3)
    other, _ = make_phantom(kind, seed=4)
    assert np.array_equal(image, again)
    assert np.array_equal(label, label_again)
    assert not np.array_equal(image, other)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(24, 28, 20), (32, 24)])
def test_every_kind_draws_its_labels_without_touching_most_of_the_background(kind, shape):
    image, label = make_phantom(kind, shape=shape, spacing=(1.0,) * len(shape))
    labels = {0, 1, 2} if kind in ("balls", "nested") else {0, 1}
    assert image.shape == label.shape == shape
    assert image.dtype == np.float32
    assert label.dtype == np.uint8
    assert set(np.unique(label)) == labels
    assert 0.5 < (label == 0).mean() < 0.99


@given(seed=st.integers(0, 10_000))
@settings(deadline=None, max_examples=25)
def test_a_ball_is_one_piece_away_from_the_border_for_every_seed(seed):
    _, label = make_phantom("ball", shape=(16, 16, 16), seed=seed)
    assert ndimage.label(label)[1] == 1
    assert not any(np.take(label, [0, -1], axis=axis).any() for axis in range(3))


def test_two_balls_stay_apart_and_the_core_lies_inside_the_shell():
    _, balls = make_phantom("balls")
    assert ndimage.label(balls)[1] == 2
    _, nested = make_phantom("nested")
    grown = ndimage.binary_dilation(nested == 2)
    assert not (grown & (nested == 0)).any()


def test_a_torus_keeps_its_hole():
    _, label = make_phantom("torus", shape=(32, 32, 24))
    euler_of_middle_slice = ndimage.label(label[:, :, 12])[1] - (ndimage.label(label[:, :, 12] == 0)[1] - 1)
    assert euler_of_middle_slice == 0


def test_an_anisotropic_grid_shows_the_same_volume_in_millimetres():
    _, fine = make_phantom("ball", shape=(32, 32, 32))
    _, coarse = make_phantom("ball", shape=(32, 32, 8), spacing=(1.0, 1.0, 4.0))
    assert int(coarse.sum()) * 4 == pytest.approx(int(fine.sum()), rel=0.1)


def test_without_noise_the_image_tells_the_label():
    image, label = make_phantom("nested", noise=0.0)
    assert np.array_equal(image, 100.0 * (1 + label))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "cube"}, "kind must be one of 'ball'"),
        ({"shape": (4, 16, 16)}, "at least 8 voxels"),
        ({"shape": (16, 16), "spacing": (1.0, 1.0, 1.0)}, "spacing must have 2 positive sizes"),
        ({"spacing": (1.0, 0.0, 1.0)}, "spacing must have 3 positive sizes"),
        ({"noise": -1.0}, "noise must be 0 or more"),
    ],
)
def test_arguments_out_of_range_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_phantom(**arguments)


@pytest.mark.parametrize("layout", ["plain", "decathlon", "nnunet"])
def test_every_layout_is_read_back_by_the_training_list(tmp_path, layout):
    folder = write_phantom_dataset(
        tmp_path / layout, layout, cases=3, shape=(8, 9, 10), spacing=(1.0, 1.5, 2.0), seed=5
    )
    samples = load_datalist(str(folder))
    assert [s["sample_id"] for s in samples] == ["phantom_000", "phantom_001", "phantom_002"]
    image, label = read_image(samples[0]["image"]), read_mask(samples[0]["label"])
    expected_image, expected_label = make_phantom("nested", shape=(8, 9, 10), spacing=(1.0, 1.5, 2.0), seed=5)
    assert image.spacing == pytest.approx((1.0, 1.5, 2.0))
    assert np.array_equal(image.array, expected_image)
    assert np.array_equal(label.array, expected_label)


def test_a_dataset_written_twice_has_the_same_bytes(tmp_path):
    first, second = (write_phantom_dataset(tmp_path / name, "decathlon", cases=2, shape=(8, 8, 8)) for name in "ab")
    files = sorted(p.relative_to(first) for p in first.rglob("*") if p.is_file())
    assert len(files) == 5
    assert all((first / f).read_bytes() == (second / f).read_bytes() for f in files)


@pytest.mark.parametrize(
    ("arguments", "message"), [({"layout": "zip"}, "layout must be"), ({"cases": 0}, "cases must")]
)
def test_a_dataset_that_cannot_be_written_is_refused(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        write_phantom_dataset(tmp_path, **arguments)
