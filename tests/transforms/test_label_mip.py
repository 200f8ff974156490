"""Tests of `medseg.transforms.label_mip`."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data.meta_tensor import MetaTensor
from monai.transforms import Compose, RandFlipd, RandSpatialCropd

from medseg.losses import MIPLoss
from medseg.transforms import LabelMIP, LabelMIPd


def make_label(classes: int = 2) -> torch.Tensor:
    return torch.randint(0, classes, (1, 6, 7, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def test_projections_survive_random_crops_and_flips():
    mips = [f"label_mip_{axis}" for axis in range(3)]
    crop = RandSpatialCropd(["label", *mips], (4, 5, 3), random_size=False)
    transform = Compose([LabelMIPd("label"), crop, RandFlipd(["label", *mips], prob=1, spatial_axis=1)])
    transform.set_random_state(seed=0)
    label = torch.zeros(1, 6, 7, 8)
    label[:, 0, 0, 0] = label[:, 5, 6, 7] = label[:, 3, 3, 3] = 1
    place = torch.arange(label.numel()).reshape(label.shape)
    patch = transform({"label": MetaTensor(label)})
    for axis, key in enumerate(mips):
        assert patch[key].shape == (1, 4, 5, 3)
        torch.testing.assert_close(patch[key].amax(axis + 1), patch[key].amin(axis + 1))
    place = transform.set_random_state(seed=0)({"label": MetaTensor(place)})["label"].long()
    for axis, key in enumerate(mips):
        whole = label.amax(axis + 1, keepdim=True).expand(label.shape)
        assert torch.equal(torch.as_tensor(patch[key]), whole.flatten()[torch.as_tensor(place)])


def test_the_loss_takes_what_the_transform_gives():
    label = make_label().float()
    mips = {axis: mip[None] for axis, mip in enumerate(LabelMIP()(label))}
    pred = torch.rand(1, 1, 6, 7, 8, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(MIPLoss()(pred, target_mips=mips), MIPLoss()(pred, label[None]))


def test_projections_are_views_that_keep_type_and_metadata():
    affine = torch.diag(torch.tensor([1.0, 2.0, 3.0, 1.0], dtype=torch.float64))
    for axis, mip in enumerate(LabelMIP()(MetaTensor(make_label(), affine=affine))):
        assert mip.stride(axis + 1) == 0
        assert mip.dtype == torch.uint8
        torch.testing.assert_close(mip.affine, affine)


def test_array_and_dictionary_form_agree_and_leave_the_label_alone():
    for label in (MetaTensor(make_label()), make_label().numpy()):
        data = {"label": label, "case": "one"}
        result = LabelMIPd("label", axes=[2, 0])(data)
        assert set(data) == {"label", "case"}
        assert result["label"] is label
        for key, expected in zip(("label_mip_2", "label_mip_0"), LabelMIP([2, 0])(label), strict=True):
            assert torch.equal(torch.as_tensor(result[key]), torch.as_tensor(expected))
        assert isinstance(result["label_mip_0"], MetaTensor) == isinstance(label, MetaTensor)
        np.testing.assert_array_equal(result["label_mip_0"][:, 0], np.asarray(label).max(1))


def test_class_ids_are_projected_a_class_at_a_time():
    label = make_label(3)
    for axis, mip in enumerate(LabelMIP(to_onehot=3)(label)):
        assert mip.shape == (3, 6, 7, 8)
        for k in range(3):
            assert torch.equal(mip[k].select(axis, 0).bool(), (label[0] == k).any(axis))
    with pytest.raises(ValueError, match="ids from 0 to 2, but to_onehot is 2"):
        LabelMIP(to_onehot=2)(label)
    with pytest.raises(ValueError, match="class ids in one channel"):
        LabelMIP(to_onehot=3)(label.expand(2, -1, -1, -1))


def test_wrong_options_are_named_and_missing_keys_passed_over_on_request():
    for wrong in ([0, 0], [3], []):
        with pytest.raises(ValueError, match="axes must be different"):
            LabelMIP(wrong)
    with pytest.raises(ValueError, match="to_onehot must be a number of classes"):
        LabelMIP(to_onehot=1)
    with pytest.raises(ValueError, match=r"axes \[2\] are not all there"):
        LabelMIP([2])(torch.zeros(1, 4, 4))
    assert LabelMIPd("label", allow_missing_keys=True)({}) == {}
    with pytest.raises(KeyError, match="label"):
        LabelMIPd("label")({})
