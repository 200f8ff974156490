"""Tests of `medseg.report.topology`."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from medseg.report import draw_topology
from medseg.report.topology import _busiest, _list_features
from medseg.topology import betti_matching

GREEN, VERMILION = (0, 158, 115), (213, 94, 0)
LEFT, RIGHT = slice(0, 400), slice(400, 808)


def pair(shape=(12, 12)) -> tuple[np.ndarray, np.ndarray]:
    """Two squares in both; the prediction fills the hole of one and has a third square."""
    pred, target = np.zeros((2, *shape), np.float32)
    for corner in ((1, 1), (1, 7)):
        part = tuple(slice(c, c + 3) for c in corner)
        pred[part], target[part] = 1, 1
    target[2, 2] = 0
    pred[8:10, 4:6] = 1
    return pred, target


def draw(tmp_path, *images, **kwargs) -> np.ndarray:
    return np.asarray(Image.open(draw_topology(tmp_path / "new" / "t.png", *images, **kwargs)))


def has(picture: np.ndarray, colour: tuple[int, int, int], columns: slice, rows: slice = slice(None, -60)) -> bool:
    return bool((picture[rows, columns] == colour).all(axis=-1).any())


def test_matched_features_carry_the_same_number_and_others_none():
    images = pair()
    pred, target = _list_features(betti_matching(*images, include_essential=True), images)
    assert [(f.dim, f.number > 0) for f in pred] == [(0, True), (0, True), (0, False)]
    assert [(f.dim, f.number > 0) for f in target] == [(0, True), (0, True), (1, False)]
    assert {f.number for f in pred if f.number} == {f.number for f in target if f.number} == {1, 2}
    assert target[2].place == (2, 2), "a loop is marked inside its hole"


def test_surplus_is_marked_left_and_what_is_missing_right(tmp_path):
    pred, target = pair()
    picture = draw(tmp_path, pred, target)
    assert all(has(picture, colour, side) for colour in (GREEN, VERMILION) for side in (LEFT, RIGHT))
    same = draw(tmp_path, target, target)
    assert has(same, GREEN, LEFT)
    assert not has(same, VERMILION, LEFT)
    assert not has(same, VERMILION, RIGHT)


def test_one_structure_that_an_empty_prediction_lacks_is_marked(tmp_path):
    target = np.zeros((9, 9))
    target[3:6, 3:6] = 1
    picture = draw(tmp_path, np.zeros((9, 9)), target)
    assert has(picture, VERMILION, RIGHT)
    assert not has(picture, VERMILION, LEFT)


def test_the_slices_with_most_unmatched_features_are_drawn(tmp_path):
    pred, target = np.zeros((2, 6, 9, 9), np.float32)
    pred[1, 1, 1] = target[1, 1, 1] = 1
    for place in ((4, 1, 1), (4, 1, 5), (2, 5, 5)):
        pred[place] = 1
    features = _list_features(betti_matching(pred, target, include_essential=True), (pred, target))
    assert _busiest(features, pred.shape, 0) == [2, 4]
    one, two = draw(tmp_path, pred, target, slices=[4]), draw(tmp_path, pred, target)
    assert two.shape[0] > one.shape[0] + 300
    assert _busiest(([], []), pred.shape, 0) == [3]


@pytest.mark.parametrize("shape", [(7, 5), (1, 1), (1, 9), (4, 1, 5), (3, 4, 1), (4, 5, 6)])
@pytest.mark.parametrize("kind", ["noise", "constant"])
def test_flat_uniform_and_noisy_images_are_drawn(tmp_path, shape, kind):
    rng = np.random.default_rng(0)
    pred = rng.random(shape) if kind == "noise" else np.full(shape, 0.5)
    for filtration in ("superlevel", "sublevel"):
        assert draw(tmp_path, pred, pred > 0.5, filtration=filtration, title="odd").shape[1] == 808


def test_the_same_input_gives_the_same_bytes(tmp_path):
    one, two = (draw_topology(tmp_path / f"{i}.png", *pair()).read_bytes() for i in range(2))
    assert one == two


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"filtration": "bothlevels"}, "filtration must be 'superlevel' or 'sublevel'"),
        ({"axis": 3}, "axis must be 0, 1 or 2"),
        ({"slices": [0, 4]}, r"slices must lie in 0 to 3 along axis 0, got \[4\]"),
        ({"image_bars": "strict"}, "image_bars"),
    ],
)
def test_wrong_options_are_refused_and_nothing_is_written(tmp_path, options, message):
    volume = np.zeros((4, 5, 6))
    with pytest.raises(ValueError, match=message):
        draw_topology(tmp_path / "t.png", volume, volume, **options)
    assert list(tmp_path.iterdir()) == []


def test_another_ending_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"path must end in \.png, got 't\.jpg'"):
        draw_topology(tmp_path / "t.jpg", *pair())
