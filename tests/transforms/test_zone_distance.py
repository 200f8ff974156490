"""Signed distance maps of zones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy import ndimage

from medseg.transforms import ZoneDistance, ZoneDistanced


def make_label(seed: int = 0) -> np.ndarray:
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal((10, 12, 6)), 1.5)
    return np.digitize(noise, [0.0, 0.1])[None].astype(np.uint8)


def test_distances_are_exact_in_mm_and_cut():
    label, spacing = make_label(), (0.5, 0.5, 3.0)
    found = ZoneDistance(zones=["a", "b"], truncation_mm=2.0, spacing=spacing)(label).numpy()
    for value in (1, 2):
        mask = label[0] == value
        exact = [ndimage.distance_transform_edt(part, sampling=spacing) for part in (~mask, mask)]
        np.testing.assert_allclose(found[value - 1], np.clip((exact[0] - exact[1]) / 2, -1, 1), atol=1e-6)


def test_the_affine_gives_the_spacing_unless_told_otherwise():
    label = MetaTensor(torch.from_numpy(make_label()), affine=torch.diag(torch.tensor([0.5, 0.5, 3.0, 1.0])))
    by_affine = ZoneDistanced("label")({"label": label})["label_distance"]
    torch.testing.assert_close(by_affine.as_tensor(), ZoneDistance(spacing=(0.5, 0.5, 3))(make_label()))
    assert torch.equal(by_affine.affine, label.affine)
    assert not torch.equal(by_affine.as_tensor(), ZoneDistance()(make_label()))


def test_a_zone_that_is_not_there_is_far_everywhere_and_one_that_fills_all_is_deep():
    found = ZoneDistance(zones=["a", "b"])(np.ones((1, 4, 4), np.uint8))
    assert found[0].unique().tolist() == [-1]
    assert found[1].unique().tolist() == [1]


def test_odd_options_are_refused():
    with pytest.raises(ValueError, match="zones must name at least one"):
        ZoneDistance(zones=[])
    with pytest.raises(ValueError, match="truncation_mm must be positive, got 0"):
        ZoneDistance(truncation_mm=0)
    with pytest.raises(ValueError, match="spacing must be 3 positive voxel edges"):
        ZoneDistance(spacing=(1.0, 1.0))(make_label())
    with pytest.raises(ValueError, match=r"label must be a label map \(1, spatial...\)"):
        ZoneDistance()(np.ones((2, 4, 4)))
