"""Tests of `medseg.transforms.paired_views`."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import CacheDataset, DataLoader, MetaTensor
from monai.transforms import (
    Compose,
    RandAffined,
    RandFlipd,
    RandGaussianNoised,
    Randomizable,
    RandRotate90d,
    RandSpatialCropd,
    RandSpatialCropSamplesd,
)
from torch.nn import functional

from medseg.transforms import PairedViewsd

KEYS = ["image", "label"]
OBLIQUE = torch.tensor([[0.0, -1.5, 0.0, 4.0], [0.9, 0.0, 0.2, -7.0], [0.1, 0.0, 2.0, 3.0], [0.0, 0.0, 0.0, 1.0]])


def make_data(dims=3, seed=0):
    """A smooth image, so that interpolation is close, and a label."""
    shape = (20, 16, 14)[:dims]
    random = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 1, *(5,) * dims, generator=random)
    image = functional.interpolate(coarse, shape, mode="bilinear" if dims == 2 else "trilinear")[0]
    affine = OBLIQUE if dims == 3 else torch.eye(4)
    return {"image": MetaTensor(image, affine=affine), "label": MetaTensor((image > 0.5).float(), affine=affine)}


def pipeline(dims=3):
    return Compose(
        [
            RandSpatialCropd(KEYS, (14, 12, 12)[:dims], random_size=False),
            RandRotate90d(KEYS, prob=0.5, spatial_axes=(0, 1)),
            RandFlipd(KEYS, prob=0.5, spatial_axis=1),
            RandAffined(
                KEYS,
                prob=1.0,
                rotate_range=(0.4,) * (1 if dims == 2 else 3),
                scale_range=(0.2,) * dims,
                shear_range=(0.1,) * (dims * (dims - 1)),
                translate_range=(2,) * dims,
                padding_mode="border",
            ),
        ]
    )


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("dims", [2, 3])
def test_the_matrices_make_the_views_again(dims, seed):
    data = make_data(dims)
    views = PairedViewsd(KEYS, pipeline(dims)).set_random_state(seed)(data)
    for ending in ("", "_view2"):
        view, affine = views[f"image{ending}"], views[f"view_affine{ending}"]
        assert affine.shape == (dims + 1, dims + 1)
        assert affine.dtype == torch.float32
        size = [1, 1, *view.shape[1:]]
        grid = functional.affine_grid(affine[None, :-1], size, align_corners=False)
        again = functional.grid_sample(data["image"][None].as_tensor(), grid, align_corners=False)[0]
        inside = (grid.abs() < 0.8).all(-1)
        assert inside.float().mean() > 0.2
        # The crop that comes first hides what lies beyond it, which the border fills: compare where the view is unhurt.
        close = (again - view.as_tensor()).abs()[0][inside[0]] < 0.03
        assert close.float().mean() > 0.75


def test_turning_and_mirroring_are_exact():
    data = make_data(2)
    data["image"], data["label"] = (data[k][:, :16] for k in KEYS)
    transform = Compose(
        [RandRotate90d(KEYS, prob=0.7, max_k=3, spatial_axes=(0, 1)), RandFlipd(KEYS, prob=0.5, spatial_axis=0)]
    )
    for seed in range(6):
        views = PairedViewsd(KEYS, transform).set_random_state(seed)(data)
        for ending in ("", "_view2"):
            grid = functional.affine_grid(views[f"view_affine{ending}"][None, :-1], [1, 1, 16, 16], align_corners=False)
            again = functional.grid_sample(data["image"][None].as_tensor(), grid, align_corners=False)[0]
            torch.testing.assert_close(again, views[f"image{ending}"].as_tensor(), rtol=0, atol=1e-5)


def test_views_differ_and_image_and_label_move_together():
    views = PairedViewsd(KEYS, pipeline()).set_random_state(1)({**make_data(), "case": "one"})
    assert not torch.equal(views["image"], views["image_view2"])
    assert views["case"] == "one"
    for ending in ("", "_view2"):
        torch.testing.assert_close(views[f"image{ending}"].affine, views[f"label{ending}"].affine)
        same = (views[f"image{ending}"] > 0.5).float() == views[f"label{ending}"].round()
        assert same.float().mean() > 0.9


def test_what_comes_in_is_left_alone_and_the_views_share_no_trace():
    data = make_data()
    before = data["image"].clone()
    views = PairedViewsd(KEYS, pipeline()).set_random_state(0)(data)
    assert set(data) == set(KEYS)
    assert torch.equal(data["image"], before)
    assert not data["image"].applied_operations
    assert [len(views[key].applied_operations) for key in ("image", "image_view2")] == [4, 4]


def test_a_seed_repeats_both_views_also_from_inside_a_pipeline():
    first, again, other = (
        Compose([PairedViewsd(KEYS, pipeline())]).set_random_state(seed)(make_data()) for seed in (5, 5, 6)
    )
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["image"], other["image"])
    assert isinstance(PairedViewsd(KEYS, pipeline()), Randomizable), "caching must stop before it"


def test_a_loader_stacks_views_and_matrices_of_cached_items():
    transform = Compose([PairedViewsd(KEYS, RandGaussianNoised("image", prob=1.0))])
    dataset = CacheDataset([make_data(seed=s) | {"sample_id": s} for s in range(4)], transform, progress=False)
    batch = next(iter(DataLoader(dataset, batch_size=4)))
    assert batch["image_view2"].shape == (4, 1, 20, 16, 14)
    torch.testing.assert_close(batch["view_affine"], torch.eye(4).expand(4, 4, 4))
    assert not torch.equal(batch["image"], batch["image_view2"])
    assert torch.equal(batch["label"], batch["label_view2"])


def test_plain_arrays_are_taken_as_images_without_a_place_in_the_world():
    image = np.arange(12.0).reshape(1, 3, 4)
    views = PairedViewsd("image", RandFlipd("image", prob=1.0, spatial_axis=1))({"image": image})
    np.testing.assert_array_equal(views["image"], image[..., ::-1])
    assert views["view_affine"].tolist() == [[-1, 0, 0], [0, 1, 0], [0, 0, 1]]


def test_transforms_that_give_patches_or_cannot_be_called_are_refused():
    patches = RandSpatialCropSamplesd(KEYS, (4, 4, 4), num_samples=2, random_size=False)
    with pytest.raises(ValueError, match="must give one dictionary for PairedViewsd, got list; take patches before"):
        PairedViewsd(KEYS, patches)(make_data())
    with pytest.raises(TypeError, match="must be a dictionary transform, got str"):
        PairedViewsd(KEYS, "flip")
    with pytest.raises(KeyError):
        PairedViewsd("mask", pipeline())(make_data())


def test_a_bundle_builds_it():
    flip = {"_target_": "RandFlipd", "keys": "image", "prob": 0.5, "spatial_axis": 0}
    config = {"views": {"_target_": "medseg.transforms.PairedViewsd", "keys": ["image"], "transform": flip}}
    views = ConfigParser(config).get_parsed_content("views")(make_data())
    assert "image_view2" in views
