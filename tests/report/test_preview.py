"""Tests of `medseg.report.preview`."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from medseg.report import draw_preview, label_colour
from medseg.report._picture import to_ras, upright
from medseg.report.preview import _position

ORANGE = (230, 159, 0)


def ball(shape=(20, 24, 16), centre=(6, 12, 8), radius=4.0) -> np.ndarray:
    squares = [(axis - c) ** 2 for axis, c in zip(np.indices(shape), centre, strict=True)]
    return (sum(squares) < radius**2).astype(np.uint8)


def columns_of(picture: np.ndarray, colour: tuple[int, int, int], rows: slice) -> np.ndarray:
    return np.nonzero((picture[rows] == colour).all(axis=-1).any(axis=0))[0]


def draw(tmp_path, mask, image=None, affine=None, **kwargs) -> np.ndarray:
    image = np.random.default_rng(0).normal(size=mask.shape) if image is None else image
    affine = np.eye(4) if affine is None else affine
    path = draw_preview(tmp_path / "new" / "p.png", image, mask, affine, names={1: "ball"}, **kwargs)
    return np.asarray(Image.open(path))


def test_what_lies_on_the_patients_right_is_drawn_in_the_left_half_of_the_axial_panel(tmp_path):
    right = ball(centre=(16, 12, 8))
    picture = draw(tmp_path, right)
    axial = columns_of(picture, ORANGE, slice(40, 480))
    assert axial.min() < 16 + 440 * 20 / 24 / 2
    left = draw(tmp_path, ball(centre=(3, 12, 8), radius=3))
    assert columns_of(left, ORANGE, slice(40, 480)).min() > axial.min() + 100


def test_the_picture_does_not_depend_on_the_order_of_the_voxels_in_the_file(tmp_path):
    mask = ball()
    image = np.random.default_rng(0).normal(size=mask.shape)
    affine = np.array([[0.0, 0.0, -2.0, 30.0], [1.0, 0.0, 0.0, 0.0], [0.0, -1.5, 0.0, 20.0], [0, 0, 0, 1]])
    flipped = affine @ np.array([[-1, 0, 0, mask.shape[0] - 1], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    one = draw(tmp_path, mask, image, affine)
    other = draw(tmp_path, mask[::-1], image[::-1], flipped)
    np.testing.assert_array_equal(one, other)


def test_the_top_of_the_coronal_slice_is_superior_and_its_left_is_right():
    volume = np.arange(2 * 3 * 4).reshape(2, 3, 4)
    picture = upright(volume[:, 1])
    assert picture[0, 0] == volume[1, 1, 3]
    assert picture[-1, -1] == volume[0, 1, 0]


def test_axes_are_brought_to_ras_with_their_spacing():
    affine = np.array([[0.0, 0.1, -2.0, 0], [3.0, 0.0, 0.0, 0], [0.0, -1.5, 0.0, 0], [0, 0, 0, 1.0]])
    _, labels, spacing = to_ras(np.zeros((4, 5, 6)), np.zeros((4, 5, 6), int), affine)
    assert labels.shape == (6, 4, 5)
    assert spacing == pytest.approx([2.0, 3.0, np.hypot(0.1, 1.5)])


def test_panels_keep_the_aspect_ratio_of_the_body(tmp_path):
    mask = ball((10, 10, 10), (5, 5, 5), 3)
    picture = draw(tmp_path, mask, image=np.ones(mask.shape), affine=np.diag([1.0, 1.0, 3.0, 1.0]))
    outline = np.argwhere((picture == ORANGE).all(axis=-1))
    coronal = outline[(outline[:, 1] > 332) & (outline[:, 1] < 632) & (outline[:, 0] < 484)]
    height, width = np.ptp(coronal, axis=0)
    assert height == pytest.approx(3 * width, rel=0.05)


def test_every_panel_of_a_small_volume_has_at_least_300_points(tmp_path):
    picture = draw(tmp_path, ball((5, 6, 4), (2, 3, 2), 1.5))
    assert picture.shape[0] > 300
    assert picture.shape[1] >= 3 * 300


def test_the_slices_hold_the_largest_piece_where_the_centroid_lies_between_two():
    mask = ball(centre=(4, 12, 8), radius=3) | ball(centre=(15, 12, 8), radius=4)
    position = _position(mask, 1)
    assert position == [15, 12, 8]


def test_the_slices_hold_a_ring_although_its_centroid_is_empty():
    mask = ball(radius=6, centre=(10, 12, 8)) - ball(radius=4, centre=(10, 12, 8))
    x, y, z = _position(mask, 1)
    assert mask[x].any()
    assert mask[:, y].any()
    assert mask[:, :, z].any()


def test_an_empty_mask_is_drawn_without_colour_and_says_so(tmp_path):
    empty = draw(tmp_path, np.zeros((20, 24, 16), np.uint8))
    assert not (empty == ORANGE).all(axis=-1).any()
    bottom = empty[480:520, :200]
    assert (bottom > 200).any(), "the text 'no label found' is expected under the panels"


@pytest.mark.parametrize("shape", [(20, 24, 1), (1, 24, 20), (20, 1, 1), (1, 1, 1)])
def test_single_slice_volumes_are_drawn(tmp_path, shape):
    mask = np.ones(shape, np.int16)
    assert draw(tmp_path, mask, title="one slice").shape[2] == 3


@pytest.mark.parametrize("value", [0.0, 5.0, np.nan, np.inf])
def test_constant_or_not_finite_images_are_drawn(tmp_path, value):
    assert draw(tmp_path, ball(), image=np.full((20, 24, 16), value)).any()


def test_the_same_input_gives_the_same_bytes(tmp_path):
    args = (np.random.default_rng(1).normal(size=(20, 24, 16)), ball(), np.eye(4))
    one = draw_preview(tmp_path / "1.png", *args, names={1: "ball"}).read_bytes()
    assert draw_preview(tmp_path / "2.png", *args, names={1: "ball"}).read_bytes() == one


def test_a_hundred_labels_fit_in_the_legend(tmp_path):
    mask = np.zeros((20, 24, 16), np.uint16)
    mask.ravel()[:5000:10] = 300 + np.arange(500) % 100
    assert draw(tmp_path, mask).shape[0] < 1000


def test_another_ending_and_another_grid_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"path must end in \.png, got 'p\.jpg'"):
        draw_preview(tmp_path / "p.jpg", ball(), ball(), np.eye(4), names={})
    with pytest.raises(ValueError, match=r"image has shape \(2, 2, 2\) but mask has shape \(20, 24, 16\)"):
        draw_preview(tmp_path / "p.png", np.zeros((2, 2, 2)), ball(), np.eye(4), names={})
    assert list(tmp_path.iterdir()) == []


def test_every_label_has_its_own_colour():
    colours = [label_colour(label) for label in range(1, 41)]
    assert len(set(colours)) == 40
    assert all(0 <= part <= 255 for colour in colours for part in colour)
