"""Tests of `medseg.losses.deep_supervision`."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from medseg.losses import DeepSupervisionLoss, FocalTverskyLoss, MIPLoss, SegWithMIPLoss
from tests.losses.test_mip import FILES

PUBLISHED = [1, 0.66, 0.34]


@pytest.mark.skipif("deep_supervision.npz" not in FILES, reason="no golden values here")
def test_the_published_scales_have_the_golden_values():
    golden = np.load(FILES["deep_supervision.npz"])
    logits = [torch.from_numpy(golden[f"logits_level{level}"]) for level in range(3)]
    target = torch.from_numpy(golden["target"])
    voxels = FocalTverskyLoss(sigmoid=True, batch=True)
    single, summed = MIPLoss([0], sigmoid=True), MIPLoss(sigmoid=True, axis_reduction="sum")
    for key, loss in {
        "ds_voxel": voxels,
        "ds_mip_axis0": single,
        "ds_mip_sum_axes": summed,
        "total_axis0": SegWithMIPLoss(voxels, single),
        "total_sum_axes": SegWithMIPLoss(voxels, summed),
    }.items():
        found = DeepSupervisionLoss(loss, PUBLISHED)(logits, target)
        assert found.item() == pytest.approx(golden[key].item(), rel=1e-5)


def test_shrunk_labels_keep_a_line_one_voxel_thin():
    label = torch.zeros(1, 1, 8, 8, 8, dtype=torch.uint8)
    label[..., 3, 5, :] = 2
    seen = []
    loss = DeepSupervisionLoss(lambda p, y: seen.append(y) or p.sum(), resize="labels")
    loss([torch.zeros(1, 1, 8, 8, 8), torch.zeros(1, 1, 4, 4, 4), torch.zeros(1, 1, 2, 3, 2)], label)
    assert [tuple(y.shape[2:]) for y in seen] == [(8, 8, 8), (4, 4, 4), (2, 3, 2)]
    assert seen[1][0, 0, 1, 2].tolist() == [2, 2, 2, 2]
    assert all(y.dtype == torch.uint8 and y.any() for y in seen)


def test_weights_halve_by_default_and_a_lone_prediction_has_weight_one():
    loss, label = DeepSupervisionLoss(nn.L1Loss()), torch.zeros(1, 1, 4, 4)
    ones = [torch.ones(1, 1, size, size) for size in (4, 2, 1)]
    assert loss(ones, label) == 1.75
    assert loss(ones[0], label) == 1


def test_wrong_options_and_inputs_are_named():
    label, fine = torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 8, 8)
    with pytest.raises(ValueError, match="resize must be predictions, labels or strided_labels"):
        DeepSupervisionLoss(nn.L1Loss(), resize="both")
    with pytest.raises(TypeError, match="loss must be a loss object, got str"):
        DeepSupervisionLoss("dice")
    with pytest.raises(ValueError, match="weights must be finite numbers"):
        DeepSupervisionLoss(nn.L1Loss(), [])
    with pytest.raises(ValueError, match="as many predictions as there are weights, 2, got 1"):
        DeepSupervisionLoss(nn.L1Loss(), [1, 0.5])([label], label)
    with pytest.raises(ValueError, match=r"size \(8, 8\) for a target of size \(4, 4\)"):
        DeepSupervisionLoss(nn.L1Loss())([fine], label)


def test_strided_labels_are_the_first_voxel_of_each_step():
    label, seen = torch.arange(32.0).view(1, 1, 4, 8), []
    loss = DeepSupervisionLoss(lambda p, y: seen.append(y) or p.sum(), resize="strided_labels")
    loss([torch.zeros(1, 1, 4, 8), torch.zeros(1, 1, 2, 2)], label)
    assert torch.equal(seen[1], label[:, :, ::2, ::4])
    with pytest.raises(ValueError, match=r"size \(3, 2\), which does not divide"):
        loss([torch.zeros(1, 1, 3, 2)] * 2, label)
