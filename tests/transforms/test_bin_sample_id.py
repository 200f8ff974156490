"""Tests of `medseg.transforms.bin_sample_id`."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, Orientationd, RandSpatialCropd, Spacingd

from medseg.transforms import BinSampleIdd


def load_then(path, *more):
    chain = [LoadImaged("image"), EnsureChannelFirstd("image"), Orientationd("image", "RAS", labels=None), *more]
    return Compose(chain)({"image": str(path), "sample_id": 2})


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_the_bin_is_that_of_the_patch_centre_whatever_the_files_orientation(make_nifti, oblique_affine, axis):
    """The image holds the place along the axis of the patch: its mean over the patch is the centre."""
    shape = np.array([20, 18, 24])
    places = []
    for affine in (np.eye(4), np.diag([-1.0, 1.0, -2.0, 1.0])):
        ras = np.indices(shape)[axis if axis >= 0 else 2].astype(np.float32)
        flips = [a for a in range(3) if affine[a, a] < 0]
        path = make_nifti(f"image{len(places)}.nii.gz", np.flip(ras, flips).copy(), affine)
        crop = RandSpatialCropd("image", (6, 6, 6), random_size=False)
        spaced = Spacingd("image", (1.0, 1.0, 1.0))
        for seed in range(5):
            crop.set_random_state(seed)
            # Not within the composition, which would seed it anew where an earlier test has set MONAI's global seed.
            patch = crop(load_then(path, spaced))
            place = float(patch["image"].mean() + 0.5) / shape[axis]
            places.append(place)
            found = BinSampleIdd("image", bins=5, axis=axis)(patch)["sample_id"]
            assert abs(found - (2 * 5 + int(5 * place))) <= (abs(5 * place - round(5 * place)) < 0.15)
    assert max(places) - min(places) > 0.2


def test_every_bin_belongs_to_one_case_and_the_ends_stay_inside():
    meta = {"spatial_shape": [4, 4, 10], "original_affine": torch.eye(4)}
    found = []
    for start in range(-3, 13):
        affine = torch.eye(4)
        affine[2, 3] = start
        patch = MetaTensor(torch.zeros(1, 4, 4, 1), affine=affine, meta=dict(meta))
        data = {"image": patch, "sample_id": np.int64(1)}
        found.append(BinSampleIdd("image", bins=5)(data)["sample_id"])
        assert data["sample_id"] == 1
    assert found == [5, 5, 5, 5, 5, 6, 6, 7, 7, 8, 8, 9, 9, 9, 9, 9]


def test_patches_without_a_volume_and_odd_options_are_refused():
    with pytest.raises(ValueError, match="no metadata of its volume"):
        BinSampleIdd("image")({"image": torch.zeros(1, 4, 4, 4), "sample_id": 0})
    with pytest.raises(ValueError, match=r"sample_id must be a whole number, got 'case'.*with_sample_ids"):
        BinSampleIdd("image")({"image": torch.zeros(1, 4, 4, 4), "sample_id": "case"})
    for options, match in (({"bins": 0}, "bins must"), ({"axis": 3}, "axis must"), ({"keys": ["a", "b"]}, "one key")):
        with pytest.raises(ValueError, match=match):
            BinSampleIdd(**{"keys": "image", **options})
