"""Simulated raters disagree in the way their names say, and folders with several annotations are read whole."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from monai.data import list_data_collate
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged
from scipy import ndimage

from medseg.data import load_datalist, make_rater_phantom, write_rater_phantoms
from medseg.data.rater_phantom import RATERS


@pytest.mark.parametrize("shape", [(40, 44), (32, 30, 34)])
def test_raters_disagree_as_they_are_named(shape):
    for seed in range(3):
        image, annotations = make_rater_phantom(shape, seed=seed, small_lesions=2)
        over, under, misses, first, second = annotations.astype(bool)
        assert image.shape == shape
        assert over.sum() > max(first.sum(), second.sum()) > under.sum() > 0
        assert (over & ~under).sum() > 0.99 * (over.sum() - under.sum())
        assert ndimage.label(misses)[1] < ndimage.label(over)[1]
        assert (first & ~second).sum() > 10
        assert (second & ~first).sum() > 10


def test_the_lesion_is_brighter_than_its_lobes_and_these_than_the_rest():
    image, annotations = make_rater_phantom((48, 48), noise=0.0, small_lesions=0)
    over, under, _, first, second = annotations.astype(bool)
    lobes = (first ^ second) & ~under
    assert image[under].mean() > 0.85
    assert 0.2 < image[lobes].mean() < 0.7
    assert image[~ndimage.binary_dilation(over, iterations=3)].mean() < 0.05


def test_the_same_seed_draws_the_same_and_another_one_something_else():
    one, again, other = (make_rater_phantom((32, 32), seed=s) for s in (1, 1, 2))
    np.testing.assert_array_equal(one[0], again[0])
    np.testing.assert_array_equal(one[1], again[1])
    assert (one[1] != other[1]).any()


def test_a_rater_listed_twice_draws_twice():
    _, (one, two) = make_rater_phantom((32, 32), raters=("over", "over"))
    assert 0 < (one != two).sum() < 0.3 * one.sum()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shape": (16, 32)}, r"shape must have 2 or 3 sizes of at least 24 voxels, got \(16, 32\)"),
        ({"raters": ("over", "nobody")}, r"raters must be some of over, .*got \['over', 'nobody'\]"),
        ({"noise": -1}, "small_lesions and noise must be 0 or more"),
        ({"shape": (24, 24), "small_lesions": 60}, "60 small lesions do not fit"),
    ],
)
def test_arguments_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make_rater_phantom(**options)


@pytest.mark.parametrize("layout", ["decathlon", "nnunet"])
def test_several_label_files_are_read_with_the_missing_ones_masked(tmp_path, layout):
    write_rater_phantoms(tmp_path, layout, cases=4, shape=(24, 24, 24), missing=0.5, seed=3)
    samples = load_datalist(str(tmp_path))
    masks = np.stack([s["annotation_mask"] for s in samples])
    assert masks.shape == (4, len(RATERS))
    assert masks.any(1).all()
    assert not masks.all()
    batch = list_data_collate(
        [Compose([LoadImaged(["image", "label"]), EnsureChannelFirstd(["image", "label"])])(s) for s in samples]
    )
    assert batch["label"].shape == (4, len(RATERS), 24, 24, 24)
    assert batch["image"].shape == (4, 1, 24, 24, 24)
    assert torch.equal(batch["annotation_mask"], torch.from_numpy(masks))
    for index, (labels, mask) in enumerate(zip(batch["label"], masks, strict=True)):
        _, drawn = make_rater_phantom((24, 24, 24), seed=3 + index)
        np.testing.assert_array_equal(labels.numpy()[mask], drawn[mask])


def test_single_and_several_annotations_may_be_mixed(tmp_path):
    write_rater_phantoms(tmp_path, cases=2, shape=(24, 24, 24), raters=("over", "under"))
    path = tmp_path / "dataset.json"
    content = json.loads(path.read_text())
    content["training"][0]["label"] = content["training"][0]["label"][0]
    path.write_text(json.dumps(content))
    first, second = load_datalist(str(tmp_path))
    assert [s["annotation_mask"].tolist() for s in (first, second)] == [[True, False], [True, True]]
    assert first["label"][0] == first["label"][1]


def test_folders_with_missing_files_or_without_any_annotation_are_refused(tmp_path):
    write_rater_phantoms(tmp_path, cases=2, shape=(24, 24, 24), raters=("over", "under"))
    path = tmp_path / "dataset.json"
    content = json.loads(path.read_text())
    content["training"][1]["label"] = [None, None]
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="sample 'phantom_001' has no annotation at all"):
        load_datalist(str(tmp_path))
    content["training"][1]["label"] = ["labelsTr/ghost.nii.gz", None]
    path.write_text(json.dumps(content))
    with pytest.raises(FileNotFoundError, match=r"'phantom_001': .*ghost.nii.gz does not exist"):
        load_datalist(str(tmp_path))


def test_a_folder_needs_a_known_layout_and_sensible_numbers(tmp_path):
    with pytest.raises(ValueError, match="layout must be 'decathlon' or 'nnunet', got 'plain'"):
        write_rater_phantoms(tmp_path, "plain")
    with pytest.raises(ValueError, match=r"missing lie in \[0, 1\), got .*missing=1"):
        write_rater_phantoms(tmp_path, missing=1.0)
