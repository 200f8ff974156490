"""Grids of nnU-Net, against values of nnU-Net itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from medseg.inferers import StreamingSlidingWindowInferer
from medseg.nnunet.resampling import find_slice_axis, resample_image, resample_scores, scaled_shape

GOLDEN = np.load(Path(__file__).resolve().parents[1] / "golden" / "nnunet" / "inference.npz")
CASES = range(6)


@pytest.mark.parametrize("case", CASES)
def test_images_are_resampled_as_nnunet_does(case):
    spacing, target = GOLDEN[f"spacing_{case}"]
    wanted = GOLDEN[f"cubic_{case}"]
    shape = scaled_shape(GOLDEN["image"].shape[1:], spacing, target)
    assert shape == wanted.shape[1:]
    found = resample_image(GOLDEN["image"], shape, find_slice_axis(spacing, target))
    np.testing.assert_allclose(found, wanted, atol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_scores_are_resampled_as_nnunet_does(case):
    spacing, target = GOLDEN[f"spacing_{case}"]
    wanted = GOLDEN[f"linear_{case}"]
    axis = find_slice_axis(spacing, target)
    found = resample_scores(torch.from_numpy(GOLDEN["image"]), wanted.shape[1:], axis, nearest=False)
    np.testing.assert_allclose(found.numpy(), wanted, atol=1e-5)


def test_labels_stay_labels():
    labels = torch.arange(60, dtype=torch.uint8).view(1, 3, 4, 5)
    found = resample_scores(labels, (6, 2, 5), None, nearest=True)
    assert found.dtype == torch.uint8
    assert found[0, :, 0, 0].tolist() == [5, 5, 25, 25, 45, 45]


@pytest.mark.parametrize(
    ("spacing", "target", "force", "axis"),
    [
        ((5.0, 1.0, 1.0), (1.0, 1.0, 1.0), None, 0),
        ((1.0, 1.0, 1.0), (1.0, 1.0, 3.5), None, 2),
        ((3.0, 1.0, 1.0), (1.0, 1.0, 1.0), None, None),
        ((4.0, 4.0, 1.0), (1.0, 1.0, 1.0), None, None),
        ((2.0, 1.0, 1.0), (1.0, 1.0, 1.0), True, 0),
        ((9.0, 1.0, 1.0), (1.0, 1.0, 1.0), False, None),
    ],
)
def test_slices_are_resampled_by_themselves_only_across_one_coarse_axis(spacing, target, force, axis):
    assert find_slice_axis(spacing, target, force) == axis


@pytest.mark.parametrize("case", range(3))
def test_even_windows_lie_where_nnunet_puts_them(case):
    tile = GOLDEN["tile"].tolist()
    inferer = StreamingSlidingWindowInferer(tile, overlap=0.5, convention="nnunet")
    found = inferer.window_starts(GOLDEN["sizes"][case].tolist())
    assert found == [GOLDEN[f"starts_{case}_{axis}"].tolist() for axis in range(3)]


def test_windows_weigh_what_they_weigh_in_nnunet():
    wanted = GOLDEN["gaussian"]
    inferer = StreamingSlidingWindowInferer(list(wanted.shape), mode="gaussian", convention="nnunet")
    found = inferer._weigh(wanted.shape, torch.device("cpu")).numpy()
    # Theirs is cut off at four standard deviations, where this one is below 0.0004 of its peak.
    np.testing.assert_allclose(found, wanted / wanted.max(), atol=5e-4)


def test_even_windows_blend_to_the_same_answer_where_the_network_is_pointwise():
    volume = torch.rand(1, 1, 21, 13, 10, generator=torch.Generator().manual_seed(0))
    inferer = StreamingSlidingWindowInferer([8, 8, 8], 2, 0.5, "gaussian", convention="nnunet")
    torch.testing.assert_close(inferer(volume, torch.nn.Identity()), volume)
    with pytest.raises(ValueError, match="convention must be monai or nnunet, got 'odd'"):
        StreamingSlidingWindowInferer([8], convention="odd")
