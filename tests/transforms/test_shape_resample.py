"""Shape-based resampling: golden values, the border, and thin tubes that stay whole."""

from __future__ import annotations

import cc3d
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy import stats

from medseg.transforms import ShapeBasedResampleToMatch, ShapeBasedResampleToMatchd
from medseg.transforms.shape_resample import depth_inside, discrete_gaussian, sample_linearly
from tests.transforms.zone_golden import GOLDEN


def on_grid(array: np.ndarray, spacing) -> MetaTensor:
    return MetaTensor(torch.from_numpy(array)[None], affine=torch.diag(torch.tensor([*map(float, spacing), 1.0])))


@pytest.mark.parametrize(("variance", "key"), [(0.0, "labels_out"), (1.0, "labels_out_smoothed")])
def test_golden_labels_are_met(variance, key):
    golden = np.load(GOLDEN / "shape_interp_a.npz")
    label = on_grid(golden["labels_in"], golden["spacing_in_xyz"][::-1])
    target = on_grid(np.zeros(golden["size_out_xyz"][::-1], np.float32), golden["spacing_out_xyz"][::-1])
    found = ShapeBasedResampleToMatch(variance)(label, target)
    assert (found[0].numpy() == golden[key]).mean() >= 0.995
    assert found.dtype == torch.uint8
    torch.testing.assert_close(found.affine, target.affine)


def test_the_same_grid_changes_nothing_without_smoothing():
    label = on_grid(np.random.default_rng(0).integers(0, 4, (6, 7, 8)), (1, 1, 2))
    assert torch.equal(ShapeBasedResampleToMatch(0.0)(label, label).as_tensor(), label.as_tensor())


def test_a_thin_slanted_tube_stays_in_one_piece_on_a_turned_grid():
    x, y, z = np.meshgrid(np.arange(40), np.arange(40), np.arange(10), indexing="ij")
    tube = (np.hypot(x - 8 - 2.2 * z, y - 20) < 1.6).astype(np.uint8)
    label = on_grid(tube, (1, 1, 4))
    angle = np.deg2rad(25)
    affine = np.eye(4)
    affine[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    affine[:2, 3] = (4, -8)
    target = MetaTensor(torch.zeros(1, 48, 48, 37), affine=torch.from_numpy(affine))
    found = ShapeBasedResampleToMatch(0.0, num_classes=2)(label, target)[0].numpy()
    assert cc3d.connected_components(found, connectivity=26).max() == 1
    assert 0.6 * 4 * tube.sum() < found.sum() < 1.1 * 4 * tube.sum()


def test_what_lies_outside_the_old_grid_is_background():
    label = on_grid(np.ones((4, 4, 4), np.uint8), (1, 1, 1))
    wide = MetaTensor(torch.zeros(1, 8, 4, 4), affine=torch.eye(4))
    found = ShapeBasedResampleToMatchd("pred", key_dst="image")({"pred": label, "image": wide})["pred"]
    assert found[0, :, 0, 0].tolist() == [1, 1, 1, 1, 0, 0, 0, 0]


def test_depth_is_zero_on_the_border_and_an_object_cut_off_has_none_there():
    mask = np.zeros((7, 7), bool)
    mask[2:, 2:5] = True
    depth = depth_inside(mask, (1.0, 1.0))
    assert depth[2].tolist() == [-2, -1, 0, 0, 0, -1, -2]
    assert depth[6, 3] == 1
    assert (depth_inside(np.zeros((3, 3), bool), (1, 1)) < -1000).all()
    assert (depth_inside(np.ones((3, 3), bool), (1, 1)) > 1000).all()


def test_sampling_is_linear_inside_and_says_where_it_is():
    maps = torch.arange(5.0)[None, :, None].expand(1, 5, 3)
    matrix = np.diag([0.5, 1.0, 1.0])
    matrix[0, 2] = -1
    found, inside = sample_linearly(maps, matrix, (14, 3))
    assert found[0, 2:11, 1].tolist() == pytest.approx([0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5, 4])
    assert inside[:, 1].tolist() == [False] + [True] * 11 + [False] * 2


@pytest.mark.parametrize("variance", [0.1, 1.0, 4.0])
def test_the_kernel_has_the_variance_asked_for(variance):
    kernel = discrete_gaussian(variance)
    places = np.arange(len(kernel)) - len(kernel) // 2
    assert kernel.sum() == pytest.approx(1)
    assert (kernel * places**2).sum() == pytest.approx(variance, rel=0.15)
    if variance == 4.0:
        np.testing.assert_allclose(kernel, stats.norm.pdf(places, scale=2), atol=0.01)


def test_odd_options_and_shapes_are_refused():
    with pytest.raises(ValueError, match="smooth_variance must be 0 or more"):
        ShapeBasedResampleToMatch(-1)
    with pytest.raises(ValueError, match="num_classes must lie in 2 to 255"):
        ShapeBasedResampleToMatch(num_classes=1)
    with pytest.raises(ValueError, match="img_dst must have 4 axes"):
        ShapeBasedResampleToMatch()(torch.zeros(1, 4, 4, 4), torch.zeros(1, 4, 4))
