"""Mirroring, shifting and rotating: one at a time, image and label alike."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from medseg.transforms import RandFlipShiftRotate, RandFlipShiftRotated


def draw(kind: int, **options) -> RandFlipShiftRotate:
    """A transform whose next draw is of the kind asked for."""
    for seed in range(200):
        transform = RandFlipShiftRotate(prob=1.0, flip_prob=1.0, **options).set_random_state(seed=seed)
        transform.randomize()
        if transform._kind == kind:
            return transform.set_random_state(seed=seed)
    raise AssertionError(f"kind {kind} is never drawn")


def image(*size: int) -> torch.Tensor:
    return torch.rand(1, *size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", [0, 1])
def test_mirroring_is_along_one_of_the_first_two_axes(kind):
    assert torch.equal(draw(kind)(image(8, 6)), image(8, 6).flip(kind + 1))


def test_a_shift_is_by_whole_pixels_with_reflected_borders():
    transform = draw(2, max_shift=3)
    shifted = np.asarray(transform(image(16, 12)))[0]
    down, along = transform._shift
    padded = np.pad(np.asarray(image(16, 12))[0], 3, mode="symmetric")
    expected = padded[3 + down : 19 + down, 3 + along : 15 + along]
    assert (down, along) != (0, 0)
    np.testing.assert_array_equal(shifted, expected)


def test_a_rotation_keeps_the_middle_and_stays_within_its_angle():
    transform = draw(3, max_angle=20)
    spot = torch.zeros(1, 33, 33)
    spot[0, 16, 16] = spot[0, 16, 30] = 1
    turned = np.asarray(transform(spot, mode="nearest"))[0]
    assert turned[16, 16] == 1
    x, y = np.argwhere(turned)[np.argmax(np.abs(np.argwhere(turned) - 16).sum(1))] - 16
    assert abs(np.degrees(np.arctan2(abs(x), abs(y))) - abs(np.degrees(transform._angle))) < 5
    assert abs(transform._angle) <= np.deg2rad(20)


def test_the_first_two_axes_of_a_volume_turn_and_the_third_stays():
    volume = torch.zeros(1, 16, 16, 3)
    volume[..., 1] = image(16, 16)
    for kind in range(4):
        changed = draw(kind)(volume)
        assert not changed[..., 0].any()
        assert not changed[..., 2].any()
        assert changed[..., 1].any()


def test_each_of_the_four_and_nothing_happen_as_often_as_asked_for():
    transform = RandFlipShiftRotate(prob=0.6, flip_prob=0.5).set_random_state(seed=0)
    happened = np.zeros(5)
    for _ in range(4000):
        transform.randomize()
        happened[transform._kind if transform._do_transform else 4] += 1 / 4000
    np.testing.assert_allclose(happened, [0.075, 0.075, 0.15, 0.15, 0.55], atol=0.03)


def test_labels_keep_their_ids_and_follow_the_image():
    label = (image(24, 24) > 0.5).float() * 3
    augment = RandFlipShiftRotated(["image", "label"], prob=1.0, mode=["bilinear", "nearest"]).set_random_state(seed=0)
    for _ in range(20):
        result = augment({"image": label, "label": label})
        assert set(np.unique(result["label"])) <= {0, 3}
        assert ((result["image"] - result["label"]).abs() < 1.6).float().mean() > 0.7


@pytest.mark.parametrize("kind", [0, 1, 2, 3])
def test_the_inverse_brings_the_middle_back(kind):
    values = torch.nn.functional.avg_pool2d(image(48, 48), 9, 1, 4)
    transform = draw(kind, max_shift=6)
    back = transform.inverse(transform(MetaTensor(values)))
    tolerance = 0.05 if kind == 3 else 1e-6
    torch.testing.assert_close(back.as_tensor()[:, 14:34, 14:34], values[:, 14:34, 14:34], rtol=0, atol=tolerance)
    assert not back.applied_operations


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prob": 1.5}, r"prob and flip_prob must lie in \[0, 1\], got 1.5"),
        ({"max_shift": -1}, "max_shift and max_angle must be 0 or more, got -1"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        RandFlipShiftRotate(**options)
