"""Contours of samples stand beside those of the raters, brighter where more agree."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from medseg.data import make_rater_phantom
from medseg.report import draw_sample_contours, label_colour


def count_colour(picture: np.ndarray, label: int) -> int:
    """Pixels near a label's colour."""
    return int((np.abs(picture.astype(int) - label_colour(label)).max(-1) < 60).sum())


def draw(path, shape=(40, 40, 1), affine=None, raters=True, **options) -> np.ndarray:
    flat = tuple(n for n in shape if n > 1)
    image, masks = make_rater_phantom(flat, seed=1)
    image, masks = image.reshape(shape), masks.reshape(-1, *shape)
    annotations = masks[:3] if raters else masks[:0]
    draw_sample_contours(path, image, masks, annotations, np.eye(4) if affine is None else affine, **options)
    return np.asarray(Image.open(path))


def test_a_slice_shows_samples_and_raters_side_by_side(tmp_path):
    picture = draw(tmp_path / "deep" / "c.png", title="case 1")
    left, right = np.array_split(picture, 2, axis=1)
    assert count_colour(left, 1) > 100
    assert count_colour(right, 2) > 100
    assert count_colour(left[:450], 2) == count_colour(right[:450], 1) == 0


def test_a_volume_shows_three_views_and_an_oblique_grid_is_drawn_too(tmp_path):
    flat = draw(tmp_path / "flat.png")
    affine = np.array([[0, 2.0, 0, 3], [-1, 0.1, 0, 1], [0, 0, 1.5, 0], [0, 0, 0, 1]])
    volume = draw(tmp_path / "volume.png", (28, 26, 30), affine)
    assert volume.shape[0] > 2 * flat.shape[0]


def test_without_raters_the_samples_stand_alone(tmp_path):
    picture = draw(tmp_path / "c.png", raters=False)
    assert count_colour(picture, 1) > 100
    assert count_colour(picture, 2) == 0


def test_lines_on_which_more_samples_agree_are_brighter(tmp_path):
    image = np.zeros((30, 30, 1))
    masks = np.zeros((4, 30, 30, 1), np.uint8)
    masks[:, 5:12, 5:25], masks[0, 18:25, 5:25] = 1, 1
    draw_sample_contours(tmp_path / "c.png", image, masks, [], np.eye(4))
    picture = np.asarray(Image.open(tmp_path / "c.png"))[30:460].astype(int)
    one, four = np.round(0.55 * label_colour(1)[0]), np.round((1 - 0.45**4) * label_colour(1)[0])
    reds = [int((np.abs(picture[..., 0] - value) <= 1).sum()) for value in (one, four)]
    assert min(reds) > 100


def test_what_does_not_fit_is_refused(tmp_path):
    image, masks = np.zeros((8, 8, 1)), np.zeros((2, 8, 8, 1), np.uint8)
    with pytest.raises(ValueError, match=r"must end in .png"):
        draw_sample_contours(tmp_path / "c.jpg", image, masks, masks, np.eye(4))
    with pytest.raises(ValueError, match="samples must hold at least one mask"):
        draw_sample_contours(tmp_path / "c.png", image, [], masks, np.eye(4))
    with pytest.raises(ValueError, match=r"image has shape \(8, 8, 2\)"):
        draw_sample_contours(tmp_path / "c.png", np.zeros((8, 8, 2)), masks, masks, np.eye(4))
