"""Tests of `medseg.report.mip`."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from skimage.measure import label as find_pieces

from medseg.report import draw_mip_preview, label_colour
from medseg.report import mip as module

SHAPE = (24, 30, 18)


@pytest.fixture
def panels(monkeypatch, tmp_path):
    """Draw, and give the pictures of the two rows of panels as arrays."""
    caught = []

    def compose(rows, *others):
        caught.append(rows)
        return draw(rows, *others)

    draw = module.compose
    monkeypatch.setattr(module, "compose", compose)

    def run(image, mask, affine=None):
        draw_mip_preview(tmp_path / "p.png", image, mask, np.eye(4) if affine is None else affine, names={1: "vessel"})
        return [[np.asarray(panel.picture) for panel in row] for row in caught[-1]]

    return run


def vessels() -> np.ndarray:
    """Along x: far in front and low. Along y: far on the right (x is high) and high. Along z: left and behind."""
    mask = np.zeros(SHAPE, np.uint8)
    mask[:, 25:27, 3:5] = 1
    mask[19:21, :, 14:16] = 2
    mask[3:5, 3:5, :] = 3
    return mask


def bright(mask: np.ndarray) -> np.ndarray:
    return np.random.default_rng(0).normal(100, 10, mask.shape) + 400.0 * (mask > 0)


def box_of(picture: np.ndarray, label: int) -> tuple[float, float, float, float]:
    """Left, right, top and bottom of a label's outline as parts of the picture."""
    rows, columns = np.nonzero((picture == label_colour(label)).all(axis=-1))
    height, width = picture.shape[:2]
    return columns.min() / width, (columns.max() + 1) / width, rows.min() / height, (rows.max() + 1) / height


def count_pieces(image: np.ndarray, overlay: np.ndarray) -> int:
    pieces = find_pieces((image != overlay).any(axis=-1))
    return int(np.asarray(pieces).max())


PLACES = {
    1: [(0, 1, 3 / 30, 5 / 30), (0, 1, 13 / 18, 15 / 18), (3 / 30, 5 / 30, 13 / 18, 15 / 18)],
    2: [(3 / 24, 5 / 24, 0, 1), (3 / 24, 5 / 24, 2 / 18, 4 / 18), (0, 1, 2 / 18, 4 / 18)],
    3: [(19 / 24, 21 / 24, 25 / 30, 27 / 30), (19 / 24, 21 / 24, 0, 1), (25 / 30, 27 / 30, 0, 1)],
}


def test_a_vessel_along_each_axis_is_drawn_where_a_radiologist_expects_it(panels):
    _, overlays = panels(bright(vessels()), vessels())
    for label, places in PLACES.items():
        for overlay, place in zip(overlays, places, strict=True):
            assert box_of(overlay, label) == pytest.approx(place, abs=0.01)


def test_the_vessel_of_the_image_lies_under_that_of_the_mask(panels):
    mask = vessels()
    images, overlays = panels(bright(mask), mask)
    for image, overlay in zip(images, overlays, strict=True):
        assert (image == image[..., :1]).all(), "the upper row has no colour"
        coloured = (overlay != image).any(axis=-1)
        seen = image[..., 0] > 127
        assert np.count_nonzero(coloured & seen) > 0.9 * np.count_nonzero(coloured | seen)


def test_a_gap_in_the_mask_shows_from_the_side_and_not_along_the_vessel(panels):
    mask = np.zeros(SHAPE, np.uint8)
    mask[:, 15, 9] = 1
    whole = panels(bright(mask), mask)
    mask[11:13] = 0
    broken = panels(bright(mask), mask)
    assert [count_pieces(*pair) for pair in zip(*whole, strict=True)] == [1, 1, 1]
    assert [count_pieces(*pair) for pair in zip(*broken, strict=True)] == [2, 2, 1]


def test_the_picture_does_not_depend_on_the_order_of_the_voxels_in_the_file(tmp_path):
    mask = vessels()
    image = bright(mask)
    affine = np.array([[0.0, 0.0, -2.0, 30.0], [1.0, 0.0, 0.0, 0.0], [0.0, -1.5, 0.0, 20.0], [0, 0, 0, 1]])
    flip = np.diag([-1.0, 1, 1, 1])
    flip[0, 3] = SHAPE[0] - 1
    one = draw_mip_preview(tmp_path / "1.png", image, mask, affine, names={1: "vessel"})
    other = draw_mip_preview(tmp_path / "2.png", image[::-1], mask[::-1], affine @ flip, names={1: "vessel"})
    assert one.read_bytes() == other.read_bytes()


def test_an_oblique_acquisition_is_shown_along_its_nearest_axes(panels):
    mask = vessels()
    turn = np.eye(4)
    angle = np.deg2rad(30)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    straight, oblique = panels(bright(mask), mask), panels(bright(mask), mask, turn)
    for one, other in zip(straight[1], oblique[1], strict=True):
        np.testing.assert_array_equal(one, other)


def test_panels_keep_the_aspect_ratio_of_the_body(panels):
    mask = np.ones((20, 20, 10), np.uint8)
    images, overlays = panels(bright(mask), mask, np.diag([-1.0, 0.5, 4.0, 1.0]))
    ratios = [picture.shape[0] / picture.shape[1] for picture in (*images, *overlays)]
    assert ratios == pytest.approx([10 / 20, 40 / 20, 40 / 10] * 2, rel=0.02)


@pytest.mark.parametrize(("shape", "views"), [((20, 24, 1), 1), ((1, 24, 20), 1), ((20, 1, 1), 3), ((1, 1, 1), 3)])
def test_a_single_slice_is_drawn_once(panels, shape, views):
    mask = np.zeros(shape, np.int16)
    mask[: shape[0] // 2 + 1] = 1
    rows = panels(np.random.default_rng(0).normal(size=shape), mask)
    assert [len(row) for row in rows] == [views, views]


def test_a_small_label_is_seen_in_front_of_a_large_one_around_it(panels):
    mask = np.full(SHAPE, 300, np.int32)
    mask[8:14, 10:16, 6:12] = 2
    for picture in panels(bright(mask), mask)[1]:
        left, right, top, bottom = box_of(picture, 2)
        assert 0.1 < left < right < 0.9
        assert 0.1 < top < bottom < 0.9


def test_an_empty_mask_is_drawn_without_colour_and_says_so(panels, tmp_path):
    images, overlays = panels(bright(vessels()), np.zeros(SHAPE, np.uint8))
    for image, overlay in zip(images, overlays, strict=True):
        np.testing.assert_array_equal(image, overlay)
    picture = np.asarray(Image.open(tmp_path / "p.png"))
    assert (picture[-70:-42, :120] > 200).any(), "the text 'no label found' is expected under the panels"


def test_voxels_that_are_not_a_number_hide_no_vessel(panels):
    mask = vessels()
    image = bright(mask)
    image[10] = np.nan
    shown = panels(image, mask)[0][2]
    expected = panels(bright(mask), mask)[0][2]
    assert np.mean(np.abs(shown.astype(int) - expected) > 40) < 0.02


@pytest.mark.parametrize("value", [0.0, 5.0, np.nan, np.inf])
def test_constant_or_not_finite_images_are_drawn(panels, value):
    assert panels(np.full(SHAPE, value), vessels())[1][0].any()


def test_a_line_of_one_voxel_is_not_lost_where_the_picture_is_smaller_than_the_volume(panels):
    mask = np.zeros((1500, 50, 3), np.uint8)
    mask[:, 20, 1] = 1
    axial = panels(mask, mask)[1][0]
    assert axial.shape[1] < 1500 / 2
    assert (axial != axial[..., :1]).any(axis=(0, 2)).all()


def test_nothing_is_left_where_the_picture_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(OSError, match="file"):
        draw_mip_preview(tmp_path / "file" / "p.png", bright(vessels()), vessels(), np.eye(4), names={})

    def disk_full(self, path, **_):
        path.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(Image.Image, "save", disk_full)
    with pytest.raises(OSError, match="No space left"):
        draw_mip_preview(tmp_path / "p.png", bright(vessels()), vessels(), np.eye(4), names={})
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_another_ending_and_another_grid_are_refused(tmp_path):
    mask = vessels()
    with pytest.raises(ValueError, match=r"path must end in \.png, got 'p\.jpg'"):
        draw_mip_preview(tmp_path / "p.jpg", mask, mask, np.eye(4), names={})
    with pytest.raises(ValueError, match=r"image has shape \(2, 2, 2\) but mask has shape \(24, 30, 18\)"):
        draw_mip_preview(tmp_path / "p.png", np.zeros((2, 2, 2)), mask, np.eye(4), names={})
    assert list(tmp_path.iterdir()) == []
