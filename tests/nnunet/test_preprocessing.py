"""nnU-Net's preprocessing and its inverse, against values of nnU-Net itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Invertd

from medseg.nnunet import NNUNetPreprocessd, RegionsToLabelsd
from tests.nnunet.test_resampling import GOLDEN

KNOWN = [
    {"mean": 1.0, "std": 0.7, "percentile_00_5": -1.0, "percentile_99_5": 2.5},
    {"mean": 0.3, "std": 0.5, "percentile_00_5": -1.5, "percentile_99_5": 1.5},
]


def make_transform(**changes) -> NNUNetPreprocessd:
    options = {
        "transpose": [1, 0, 2],
        "normalization": ["ZScoreNormalization", "CTNormalization"],
        "use_mask": [True, False],
        "intensities": KNOWN,
        **changes,
    }
    return NNUNetPreprocessd("image", [2.0, 1.1, 0.9], **options)


def make_image() -> MetaTensor:
    """The golden volume as NIfTI stores it: axes reversed, here with an oblique affine."""
    angle = np.deg2rad(30)
    rotation = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, -1]])
    affine = np.eye(4)
    affine[:3, :3] = rotation @ np.diag(GOLDEN["volume_spacing"][::-1])
    affine[:3, 3] = (4, -7, 3)
    return MetaTensor(torch.from_numpy(GOLDEN["volume"].transpose(0, 3, 2, 1).copy()), affine=affine)


def invert(transform, image, scores, nearest=False):
    chain = Compose([transform])
    done = chain({"image": image})
    back = Invertd("pred", chain, orig_keys="image", nearest_interp=nearest, to_tensor=True)
    return back({**done, "pred": MetaTensor(scores)})["pred"].numpy().transpose(0, 3, 2, 1)


def test_a_volume_is_prepared_as_nnunet_does():
    found = make_transform()({"image": make_image()})["image"]
    np.testing.assert_allclose(found.numpy(), GOLDEN["prepared"], atol=2e-5)


def test_scores_come_back_to_the_labels_and_probabilities_of_nnunet():
    scores = invert(make_transform(), make_image(), torch.from_numpy(GOLDEN["logits"]))
    assert np.array_equal(scores.argmax(0), GOLDEN["labels"])
    probabilities = torch.softmax(torch.from_numpy(scores.copy()), 0).numpy()
    np.testing.assert_allclose(probabilities, GOLDEN["probabilities"], atol=1e-5)


def test_one_class_at_a_time_gives_the_same_labels():
    scores = [invert(make_transform(), make_image(), torch.from_numpy(x[None].copy())) for x in GOLDEN["logits"]]
    assert np.array_equal(np.concatenate(scores).argmax(0), GOLDEN["labels"])


def test_labels_come_back_by_nearest_neighbour():
    labels = torch.from_numpy(GOLDEN["logits"].argmax(0)[None].astype(np.uint8))
    found = invert(make_transform(), make_image(), labels, nearest=True)
    assert found.dtype == np.uint8
    assert found.shape == (1, *GOLDEN["labels"].shape)
    assert (found[0] == GOLDEN["labels"]).mean() > 0.7


def test_regions_are_absent_outside_of_the_crop():
    scores = invert(make_transform(regions=True), make_image(), torch.full((2, *GOLDEN["logits"].shape[1:]), 3.0))
    assert (scores[:, :2] < -20).all()
    assert scores.max() > 2.9


@pytest.mark.parametrize(
    ("scheme", "expected"),
    [("NoNormalization", [-2, 6]), ("RescaleTo01Normalization", [0, 1]), ("RGBTo01Normalization", [-2 / 255, 6 / 255])],
)
def test_the_other_schemes_are_known(scheme, expected):
    image = MetaTensor(torch.linspace(-2, 6, 60).view(1, 3, 4, 5), affine=torch.eye(4))
    transform = NNUNetPreprocessd("image", [1, 1, 1], normalization=[scheme])
    found = transform({"image": image})["image"]
    assert [found.min().item(), found.max().item()] == pytest.approx(expected, abs=1e-6)


def test_a_2d_network_keeps_the_distance_between_slices():
    image = MetaTensor(torch.rand(1, 10, 12, 4) + 1, affine=torch.diag(torch.tensor([1.0, 1.0, 6.0, 1.0])))
    found = NNUNetPreprocessd("image", [2.0, 0.5])({"image": image})["image"]
    assert tuple(found.shape) == (1, 4, 6, 20)


def test_wrong_options_and_images_are_named():
    with pytest.raises(ValueError, match=r"normalization must be of .* got Other"):
        NNUNetPreprocessd("image", [1, 1, 1], normalization=["Other"])
    with pytest.raises(ValueError, match="CTNormalization needs intensities"):
        NNUNetPreprocessd("image", [1, 1, 1], normalization=["CTNormalization"])
    with pytest.raises(ValueError, match="an entry for each of 1 channels, got 2 and 0"):
        NNUNetPreprocessd("image", [1, 1, 1], use_mask=[True, False])
    with pytest.raises(ValueError, match="spacing must have 2 or 3 numbers"):
        NNUNetPreprocessd("image", [1])
    with pytest.raises(ValueError, match=r"image must have shape \(1, X, Y, Z\) for this network, got \(2, 4, 4, 4\)"):
        NNUNetPreprocessd("image", [1, 1, 1])({"image": MetaTensor(torch.ones(2, 4, 4, 4))})


def test_later_regions_are_written_over_earlier_ones():
    scores = torch.tensor([[0.9, 0.6, 0.2, 0.5], [0.7, 0.1, 0.8, 0.5]]).view(2, 4, 1, 1)
    found = RegionsToLabelsd("pred", [1, 300])({"pred": scores})["pred"]
    assert found.flatten().tolist() == [300, 1, 300, 0]
    with pytest.raises(ValueError, match=r"pred holds 2 regions for the labels \[1\]"):
        RegionsToLabelsd("pred", [1])({"pred": scores})
