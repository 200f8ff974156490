"""Tests of `medseg.data.class_ratio_prior` and `medseg.data.class_sizes`."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.bundle import ConfigParser

from medseg.data import ClassRatioPrior

GRID = {"spatial_shape": (20, 30, 10), "spacing": (1.0, 1.0, 2.0)}  # 12000 mm3


@pytest.fixture
def write(tmp_path):
    def write_csv(text: str):
        path = tmp_path / "prior.csv"
        path.write_text(text)
        return path

    return write_csv


@settings(deadline=None, max_examples=25)
@given(st.lists(st.floats(0.0, 0.2), min_size=1, max_size=4), st.floats(0.5, 1.2), st.data())
def test_a_ratio_sums_to_one_and_holds_nothing_absent(foreground, scale, data):
    prior = ClassRatioPrior([None, *foreground], scale=scale)
    tags = [None, *(data.draw(st.sampled_from([None, False])) for _ in foreground)]
    ratio = prior.ratio(tags=tags)
    assert ratio.dtype == torch.float32
    assert ratio.sum().item() == pytest.approx(1, abs=1e-6)
    for share, size, tag in zip(ratio[1:].tolist(), foreground, tags[1:], strict=True):
        assert share == pytest.approx(0 if tag is False else size * scale, abs=1e-6)


def test_volumes_become_shares_by_the_voxel_size():
    prior = ClassRatioPrior.from_volumes_mm3({1: (600.0, 60.0), "2": 1200})
    assert prior.ratio(GRID).tolist() == pytest.approx([0.85, 0.05, 0.10])
    oblique = np.diag([-1.0, 1.0, 2.0, 1.0])
    assert prior.ratio({"spatial_shape": (20, 30, 10), "affine": oblique}).tolist() == pytest.approx([0.85, 0.05, 0.10])
    assert prior.ratio(GRID | {"voxels": 3000}).tolist() == pytest.approx(
        [0.70, 0.10, 0.20]
    )  # half of the image counts


def test_bounds_are_some_deviations_wide():
    prior = ClassRatioPrior.from_volumes_mm3({1: (600.0, 60.0)}, scale=2.0)
    lower, upper = prior.bounds(GRID, deviations=2)
    assert lower == pytest.approx([0, 0.1 - 0.01])
    assert upper == pytest.approx([1, 0.1 + 0.01])
    with pytest.raises(ValueError, match="bounds need standard deviations"):
        ClassRatioPrior([0.9, 0.1]).bounds(GRID)


def test_labels_give_the_mean_over_those_that_hold_a_class():
    first, second = np.zeros((4, 5), int), np.zeros((4, 5), int)
    first[0, :4] = 1
    second[0] = 2
    second[1, :2] = 1
    assert ClassRatioPrior.from_labels([first, second]).ratio().tolist() == pytest.approx([0.60, 0.15, 0.25])
    only = ClassRatioPrior.from_labels([first, np.zeros((4, 5), int)]).ratio()
    assert only.tolist() == pytest.approx([0.8, 0.2])  # not 0.1: images without the class do not count
    in_mm = ClassRatioPrior.from_labels([first, second], spacing=[2.0, 1.0])
    assert in_mm.ratio({"spatial_shape": (10, 10), "spacing": (1, 1)}).tolist() == pytest.approx([0.84, 0.06, 0.10])
    mask = np.zeros((4, 5), bool)
    mask[:2] = True
    assert ClassRatioPrior.from_labels([first], masks=[mask]).ratio().tolist() == pytest.approx([0.6, 0.4])


def test_labels_that_say_too_little_are_refused():
    label = np.ones((3, 3), int)
    with pytest.raises(ValueError, match=r"no label map holds class \[2\]"):
        ClassRatioPrior.from_labels([label], num_classes=3)
    with pytest.raises(ValueError, match="labels hold class id 1, but num_classes is 1"):
        ClassRatioPrior.from_labels([label], num_classes=1)
    with pytest.raises(ValueError, match="must hold class ids"):
        ClassRatioPrior.from_labels([label * 0.5])
    with pytest.raises(ValueError, match="at least one label map"):
        ClassRatioPrior.from_labels([])


def test_a_table_gives_sizes_units_and_tags(write):
    text = "image_id,class_0,class_1,class_2,unit,tag_1,tag_2\n"
    text += "a, 0.9,0.06,0.04,,yes,no\nb,,1200,600,mm3,,\n*,5000,600,400,voxel,,\n"
    prior = ClassRatioPrior.from_csv(write(text), num_classes=3)
    assert prior.ratio({"filename_or_obj": "scans/a.nii.gz"}).tolist() == pytest.approx([0.94, 0.06, 0.0])
    assert prior.ratio({"sample_id": "b", **GRID}).tolist() == pytest.approx([0.85, 0.10, 0.05])
    assert prior.ratio({"image_id": "other", **GRID}).tolist() == pytest.approx([5 / 6, 0.1, 1 / 15])
    assert prior.ratio("a", tags={2: True}).tolist() == pytest.approx([0.9, 0.06, 0.04])
    json.dumps(prior.to_dict(), allow_nan=False)


def test_tags_replace_those_of_the_table(write):
    prior = ClassRatioPrior.from_csv(write("image_id,class_0,class_1,tag_1\na,0.9,0.1,no\n"))
    assert prior.ratio("a").tolist() == [1, 0]
    assert prior.ratio("a", tags=[None, True]).tolist() == pytest.approx([0.9, 0.1])
    given = ClassRatioPrior([0.9, 0.1], tags={"x": [None, False]})
    assert given.ratio("x").tolist() == [1, 0]
    assert given.ratio("y").tolist() == pytest.approx([0.9, 0.1])


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("image_id;class_0;class_1\na;0.9;0.1\n", "separated by commas"),
        ("image_id,class_0,class_2\na,0.9,0.1\n", r"expected image_id, class_0, class_1, \.\.\. without gaps"),
        ("image_id,class_0,class_1\n", "has no rows"),
        (
            "image_id,class_0,class_1\na,0.9,__import__('os')\n",
            r"line 2 \(image 'a'\), column class_1: expected a number",
        ),
        ("image_id,class_0,class_1\na,0.9,\n", "column class_1: expected a number such as 0.05, got ''"),
        ("image_id,class_0,class_1\na,0.9\n", "line 2: has another number of cells"),
        ("image_id,class_0,class_1\na,0.9,0.1\na,0.9,0.1\n", "line 3: image_id 'a' is empty or was there before"),
        ("image_id,class_0,class_1,unit\na,0.9,0.1,cm3\n", "column unit: must be ratio, voxel, mm3, got 'cm3'"),
        ("image_id,class_0,class_1,tag_1\na,0.9,0.1,maybe\n", "column tag_1: expected yes, no or nothing, got 'maybe'"),
        ("image_id,class_0,class_1\na,0.9,0.2\n", r"sizes of image 'a' must sum to 1 as ratios, got a sum of 1.1"),
        ("image_id,class_0,class_1\na,1.1,-0.1\n", "must be finite numbers, at least 0"),
        ("image_id,class_0,class_1\na,0.9,nan\n", "must be finite numbers, at least 0"),
    ],
)
def test_a_bad_table_is_refused_with_the_place(write, text, match):
    with pytest.raises(ValueError, match=match):
        ClassRatioPrior.from_csv(write(text))


def test_what_does_not_fit_the_network_or_the_images_is_refused(write):
    path = write("image_id,class_0,class_1\na,0.9,0.1\n")
    with pytest.raises(ValueError, match=r"has 2 classes \(class_0 to class_1\), but the network gives 3"):
        ClassRatioPrior.from_csv(path, num_classes=3)
    with pytest.raises(ValueError, match="image 'b' has no row in the prior; it has 1: a"):
        ClassRatioPrior.from_csv(path).ratio("b")
    with pytest.raises(FileNotFoundError, match="does not exist; give a CSV file"):
        ClassRatioPrior.from_csv(path.with_name("none.csv"))


def test_sizes_that_do_not_fit_the_image_are_refused():
    voxels = ClassRatioPrior([139130, 8000], unit="voxel")
    with pytest.raises(ValueError, match="sum to 147130 voxel, but the image has 148225"):
        voxels.ratio({"spatial_shape": (385, 385)})
    assert voxels.ratio({"voxels": 147130})[1].item() == pytest.approx(8000 / 147130)
    volumes = ClassRatioPrior.from_volumes_mm3({1: 9000.0}, scale=1.5)
    with pytest.raises(ValueError, match=r"take up 1.125 of the image.*check the unit \(mm3\)"):
        volumes.ratio(GRID)
    with pytest.raises(ValueError, match="need the image's extent"):
        volumes.ratio()
    with pytest.raises(ValueError, match="need the voxel size"):
        volumes.ratio({"spatial_shape": (20, 30, 10)})


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"sizes": [0.5, 0.3]}, "sizes must sum to 1 as ratios, got a sum of 0.8"),
        ({"sizes": [1.0]}, "must hold one number for each of 2 classes, got 1"),
        ({"sizes": {}}, "sizes is empty"),
        ({"sizes": {"a": [0.9, 0.1], "b": [0.8, 0.1, 0.1]}}, "sizes of image 'b' must hold one number for each of 2"),
        ({"sizes": [0.9, None]}, "must be finite numbers"),
        ({"sizes": [0.9, 0.1], "unit": "ml"}, "unit must be one of ratio, voxel, mm3"),
        ({"sizes": [0.9, 0.1], "scale": 0.0}, "scale must be a finite number above 0"),
        ({"sizes": [0.9, 0.1], "tags": {"a": [True]}}, "tags of image 'a' must be one for each of 2 classes, got 1"),
        ({"sizes": [0.9, 0.1], "tags": {"a": [False, True]}}, "the background cannot be absent"),
    ],
)
def test_bad_arguments_are_refused(arguments, match):
    with pytest.raises(ValueError, match=match):
        ClassRatioPrior(**arguments)


def test_contradicting_tags_and_volumes_are_refused():
    with pytest.raises(ValueError, match="class 1 is tagged as present, but its size is 0"):
        ClassRatioPrior([1.0, 0.0]).ratio(tags=[None, True])
    with pytest.raises(ValueError, match=r"name the classes \[3\], the prior has 2"):
        ClassRatioPrior([0.9, 0.1]).ratio(tags={3: True})
    with pytest.raises(ValueError, match=r"must name the classes 1 to 2, got \[2\]"):
        ClassRatioPrior.from_volumes_mm3({2: 100.0})
    with pytest.raises(ValueError, match="the volume of class 1 must be mm3 above 0"):
        ClassRatioPrior.from_volumes_mm3({1: -5.0})


def test_entropy_weights_are_inverse_to_the_size_where_present():
    ratios = torch.tensor([[0.9, 0.1], [1.0, 0.0], [0.9, 0.1]])
    weight = ClassRatioPrior.class_weight(ratios)
    assert sum(weight) == pytest.approx(1)
    assert weight[1] / weight[0] == pytest.approx((2.8 / 3) / 0.1)
    with pytest.raises(ValueError, match="every class must be present in some image"):
        ClassRatioPrior.class_weight(torch.tensor([1.0, 0.0]))


def test_a_bundle_can_build_it_in_every_way(write):
    path = write("image_id,class_0,class_1\n*,0.9,0.1\n")
    for content in (
        {"_target_": "medseg.data.ClassRatioPrior", "sizes": [0.9, 0.1]},
        {"_target_": "medseg.data.ClassRatioPrior.from_csv", "path": str(path)},
        {"_target_": "medseg.data.ClassRatioPrior.from_volumes_mm3", "volumes": {"1": [1200, 100]}},
    ):
        prior = ConfigParser({"prior": content}).get_parsed_content("prior")
        assert prior.ratio(GRID).tolist() == pytest.approx([0.9, 0.1])
    assert ClassRatioPrior.uniform(4).ratio().tolist() == [0.25] * 4
