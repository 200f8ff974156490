"""Tests of `medseg.report.statistics`."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from medseg.report import label_statistics, write_statistics

SHEARED = np.array([[2.0, 0.5, 0.0, -10.0], [0.0, 1.0, 0.3, 5.0], [0.0, 0.0, -3.0, 7.0], [0.0, 0.0, 0.0, 1.0]])


def two_boxes() -> np.ndarray:
    mask = np.zeros((8, 9, 10), np.uint8)
    mask[1:3, 1:4, 1:5] = 1
    mask[5:8, 6, 6] = 2
    return mask


def test_volume_on_a_sheared_grid_is_the_determinant_times_the_count():
    row = label_statistics(two_boxes(), SHEARED, names={1: "a"})[0]
    assert row["voxels"] == 24
    assert row["volume_mm3"] == pytest.approx(24 * 6.0)
    assert row["volume_ml"] == pytest.approx(0.144)


def test_the_centroid_is_the_world_point_of_the_mean_index():
    row = label_statistics(two_boxes(), SHEARED, names={1: "a"})[0]
    expected = SHEARED @ [1.5, 2.0, 2.5, 1.0]
    assert row["centroid_mm"] == pytest.approx(expected[:3].tolist())


def test_the_bounding_box_holds_first_and_last_index_and_the_extent_of_whole_voxels():
    row = label_statistics(two_boxes(), np.diag([2.0, 3.0, 4.0, 1.0]), names={1: "a"})[0]
    assert row["bbox_voxel"] == [[1, 2], [1, 3], [1, 4]]
    assert row["bbox_mm"] == [4.0, 9.0, 16.0]


def test_a_label_on_the_last_index_touches_the_border_and_an_inner_one_does_not():
    rows = label_statistics(two_boxes(), np.eye(4), names={1: "a", 2: "b"})
    assert [r["touches_border"] for r in rows] == [False, True]


def test_the_single_index_of_a_2d_image_is_no_border():
    mask = np.zeros((5, 5, 1), np.uint8)
    mask[2, 2, 0] = 1
    assert label_statistics(mask, np.eye(4), names={1: "a"})[0]["touches_border"] is False


def test_corner_neighbours_are_one_component_and_gaps_make_two():
    mask = np.zeros((6, 6, 6), np.uint8)
    mask[0, 0, 0] = mask[1, 1, 1] = mask[4, 4, 4] = 3
    assert label_statistics(mask, np.eye(4), names={3: "a"})[0]["components"] == 2


def test_intensities_are_those_of_the_label_alone():
    mask = two_boxes()
    image = np.full(mask.shape, 100.0, np.float32)
    image[5:8, 6, 6] = [1.0, 2.0, 6.0]
    row = label_statistics(mask, np.eye(4), names={1: "a", 2: "b"}, image=image)[1]
    assert (row["intensity_mean"], row["intensity_min"], row["intensity_max"]) == (3.0, 1.0, 6.0)
    assert row["intensity_sd"] == pytest.approx(np.sqrt(14 / 3))


def test_a_label_without_voxels_has_a_row_without_numbers():
    row = label_statistics(two_boxes(), np.eye(4), names={7: "lost"}, image=np.ones((8, 9, 10)))[-1]
    assert (row["label"], row["voxels"], row["volume_mm3"], row["components"]) == (7, 0, 0.0, 0)
    assert row["centroid_mm"] is row["bbox_voxel"] is row["bbox_mm"] is row["intensity_mean"] is None


def test_a_label_that_nobody_named_is_counted_too():
    rows = label_statistics(two_boxes(), np.eye(4), names={1: "a"})
    assert [(r["label"], r["name"]) for r in rows] == [(1, "a"), (2, "label_2")]


def test_an_empty_mask_without_names_has_no_rows():
    assert label_statistics(np.zeros((2, 2, 2), int), np.eye(4), names={}) == []


def test_large_label_values_cost_nothing_extra():
    mask = np.zeros((3, 3, 3), np.int64)
    mask[1, 1, 1] = 2_000_000_000
    assert label_statistics(mask, np.eye(4), names={})[0]["voxels"] == 1


def test_intensities_that_are_not_finite_are_left_out():
    image = np.full((8, 9, 10), np.nan)
    image[1, 1, 1] = 4.0
    rows = label_statistics(two_boxes(), np.eye(4), names={1: "a", 2: "b"}, image=image)
    assert (rows[0]["intensity_mean"], rows[1]["intensity_mean"]) == (4.0, None)


@settings(deadline=None, max_examples=25)
@given(hnp.arrays(np.uint8, (4, 5, 3), elements=st.integers(0, 4)))
def test_the_volumes_of_all_labels_and_the_background_fill_the_grid(mask):
    rows = label_statistics(mask, SHEARED, names={1: "a", 2: "b", 3: "c", 4: "d"})
    total = sum(r["volume_mm3"] for r in rows) + (mask == 0).sum() * 6.0
    assert total == pytest.approx(mask.size * 6.0)


@pytest.mark.parametrize(
    ("mask", "affine", "image", "text"),
    [
        (np.zeros((2, 2), int), np.eye(4), None, r"mask must be 3D, got shape \(2, 2\)"),
        (np.zeros((2, 2, 2)), np.eye(4), None, "mask must hold integer labels, got float64"),
        (np.zeros((2, 2, 2), int), np.zeros((4, 4)), None, "affine must be a finite, invertible"),
        (np.zeros((2, 2, 2), int), np.eye(4), np.zeros((2, 2, 3)), r"image has shape \(2, 2, 3\) but mask"),
    ],
)
def test_unusable_arguments_are_named(mask, affine, image, text):
    with pytest.raises(ValueError, match=text):
        label_statistics(mask, affine, names={1: "a"}, image=image)


def test_json_is_valid_without_nan_and_round_trips(tmp_path):
    rows = label_statistics(two_boxes(), np.eye(4), names={1: "a", 7: "lost"})
    rows[0]["intensity_mean"] = float("nan")
    path = write_statistics(tmp_path / "new" / "s.json", {"sub-01": rows})
    (content,) = json.loads(path.read_text(), parse_constant=lambda text: pytest.fail(text))["cases"]
    assert content["case"] == "sub-01"
    assert content["labels"][0]["intensity_mean"] is None
    assert content["labels"][0]["bbox_voxel"] == [[1, 2], [1, 3], [1, 4]]


def test_csv_spreads_vectors_over_columns_and_leaves_missing_numbers_empty(tmp_path):
    rows = label_statistics(two_boxes(), np.eye(4), names={1: "a, left", 7: "lost"})
    path = write_statistics(tmp_path / "s.csv", {"sub-01": rows})
    first, _, lost = list(csv.DictReader(path.read_text().splitlines()))
    assert (first["case"], first["name"], first["centroid_mm_y"]) == ("sub-01", "a, left", "2.0")
    assert (first["bbox_voxel_k_min"], first["bbox_voxel_k_max"]) == ("1", "4")
    assert (lost["centroid_mm_x"], lost["intensity_mean"], lost["voxels"]) == ("", "", "0")


def test_another_ending_is_refused_and_nothing_is_written(tmp_path):
    with pytest.raises(ValueError, match=r"path must end in \.json or \.csv, got 's\.txt'"):
        write_statistics(tmp_path / "s.txt", {"a": []})
    assert list(tmp_path.iterdir()) == []


def test_negative_labels_are_counted_as_they_are():
    mask = two_boxes().astype(np.int16) * -1
    assert [r["label"] for r in label_statistics(mask, np.eye(4), names={})] == [-2, -1]


def test_two_voxels_at_the_ends_of_a_line_are_two_components():
    mask = np.array([1, 0, 1], np.uint8).reshape(1, 3, 1)
    assert label_statistics(mask, np.eye(4), names={1: "a"})[0]["components"] == 2
