"""The box around the prostate: centre, padding, a point in mm, and the way back."""

from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, EnsureChannelFirstd, Invertd

from medseg.transforms import ProstateROI, ProstateROId

AFFINE = torch.diag(torch.tensor([-0.5, 0.5, 3.0, 1.0]))
AFFINE[:3, 3] = torch.tensor([40.0, -30.0, 10.0])


def make_image(*shape: int) -> MetaTensor:
    values = torch.rand(1, *shape, generator=torch.Generator().manual_seed(0)) + 2
    return MetaTensor(values, affine=AFFINE)


def test_a_large_image_is_cut_around_its_centre_and_a_small_one_padded_with_its_minimum():
    image = make_image(20, 10, 4)
    box = ProstateROI((10, 10, 8))(image)
    assert box.shape == (1, 10, 10, 8)
    assert torch.equal(box[..., 2:6].as_tensor(), image[:, 5:15].as_tensor())
    assert box[..., :2].unique().tolist() == [image.min().item()]


def test_a_point_in_mm_is_the_centre_of_the_box_and_keeps_its_place_in_the_world():
    image = make_image(40, 40, 12)
    voxel = torch.tensor([30.0, 8.0, 2.0, 1.0], dtype=torch.float64)
    point = (image.affine @ voxel)[:3].tolist()
    box = ProstateROI((11, 21, 5))(image, point)
    middle = torch.tensor([5.0, 10.0, 2.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(box.affine @ middle, image.affine @ voxel)
    assert box[0, 5, 10, 2] == image[0, 30, 8, 2]
    assert torch.equal(ProstateROId("image", (11, 21, 5), center_key="c")({"image": image, "c": point})["image"], box)


def test_the_way_back_puts_a_box_where_it_was():
    preparation = Compose([EnsureChannelFirstd("image"), ProstateROId("image", (10, 12, 8), roi_center=(35, -28, 16))])
    image = make_image(20, 10, 6)[0]
    data = preparation(
        {"image": MetaTensor(image.as_tensor(), affine=AFFINE, meta={"original_channel_dim": "no_channel"})}
    )
    data["pred"] = MetaTensor(torch.ones_like(data["image"].as_tensor()))
    back = Invertd("pred", preparation, orig_keys="image")(data)["pred"]
    assert back.shape[-3:] == (20, 10, 6)
    assert 0 < back.sum() < back.numel()


def test_a_point_far_from_the_image_is_refused():
    with pytest.raises(ValueError, match=r"roi_center \[900, 0, 0\] lies at voxel .* give a point in mm inside it"):
        ProstateROI((4, 4, 4), roi_center=[900, 0, 0])(make_image(8, 8, 8))


def test_odd_sizes_are_refused():
    with pytest.raises(ValueError, match="roi_size must be positive"):
        ProstateROI((0, 4, 4))
    with pytest.raises(ValueError, match="img must have 3 axes after the channel"):
        ProstateROI()(torch.zeros(1, 4, 4))
