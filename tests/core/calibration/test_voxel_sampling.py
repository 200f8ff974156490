"""Voxels near borders are found as a loop finds them, and drawn in the share asked for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from medseg.core.calibration import near_boundary, sample_voxels


def make_labels(shape: tuple[int, ...] = (12, 14, 10)) -> torch.Tensor:
    labels = torch.zeros(2, 1, *shape, dtype=torch.uint8)
    labels[0, 0, 3:8, 4:9] = 1
    labels[1, 0, 8:] = 2
    return labels


@pytest.mark.parametrize("width", [1, 2])
@pytest.mark.parametrize("shape", [(12, 14), (12, 14, 10)])
def test_borders_are_where_a_window_holds_two_labels(shape, width):
    labels = make_labels(shape)
    size = (1, 1, *[2 * width + 1] * len(shape))
    expected = ndimage.maximum_filter(labels.numpy(), size) != ndimage.minimum_filter(labels.numpy(), size)
    assert np.array_equal(near_boundary(labels, width), expected)
    assert np.array_equal(near_boundary(labels[:, 0].int(), width), expected[:, 0])


def test_half_of_the_voxels_lie_near_a_border():
    labels = make_labels()
    # The logits say where each voxel lies.
    place = torch.arange(labels.numel(), dtype=torch.float32).reshape(labels.shape)
    logits, ids = sample_voxels(torch.cat([place, place], 1), labels, 200)
    places = logits[:, 0].long()
    assert len(places.unique()) == 200
    assert near_boundary(labels).flatten()[places].sum() == 100
    assert torch.equal(labels.flatten()[places].long(), ids)


def test_the_draw_repeats_with_its_seed_alone():
    labels = make_labels()
    logits = torch.randn(2, 3, *labels.shape[2:], generator=torch.Generator().manual_seed(0))
    draws = [sample_voxels(logits, labels, 50, seed=seed)[0] for seed in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_a_mask_keeps_voxels_out_and_few_are_all_taken():
    labels = make_labels()
    mask = labels > 0
    _, ids = sample_voxels(torch.zeros(2, 3, *labels.shape[2:]), labels, 10**6, mask=mask)
    assert len(ids) == int(mask.sum())
    assert ids.min() == 1


def test_what_does_not_fit_is_refused():
    labels = make_labels()
    logits = torch.zeros(2, 3, *labels.shape[2:])
    with pytest.raises(ValueError, match=r"labels must have shape \(2, 1, 12, 14, 10\)"):
        sample_voxels(logits, labels[:, 0])
    with pytest.raises(ValueError, match="boundary_share in"):
        sample_voxels(logits, labels, boundary_share=1.5)
    with pytest.raises(ValueError, match="width must be 1"):
        near_boundary(labels, 0)
    with pytest.raises(ValueError, match="in 2D or 3D"):
        near_boundary(torch.zeros(4, 4, dtype=torch.int64))
