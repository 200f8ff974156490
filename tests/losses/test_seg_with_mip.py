"""Tests of `medseg.losses.seg_with_mip`."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medseg.losses import FocalTverskyLoss, MIPLoss, SegWithMIPLoss
from tests.losses.test_mip import CASES, given_mips, load, options


@pytest.mark.parametrize("name", CASES)
def test_the_published_sum_has_the_golden_value_and_gradient(name):
    golden, logits, target = load(name, torch.float32)
    if "total_0p7_0p3_axis0" not in golden or "whole_volume" in name:
        pytest.skip("no totals with this target in this file")
    voxels = FocalTverskyLoss(sigmoid=True, batch=True)
    single = SegWithMIPLoss(voxels, MIPLoss([0], **options(golden)))(logits, target)
    assert single.item() == pytest.approx(golden["total_0p7_0p3_axis0"].item(), rel=1e-5)
    if "grad_total_sum_axes" in golden:
        loss = SegWithMIPLoss(voxels, MIPLoss(**options(golden), axis_reduction="sum"))(logits, target)
        (gradient,) = torch.autograd.grad(loss, logits)
        expected = golden["grad_total_sum_axes"]
        assert loss.item() == pytest.approx(golden["total_0p7_0p3_sum_axes"].item(), rel=1e-5)
        np.testing.assert_allclose(gradient, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_given_projections_reach_the_loss_on_projections():
    golden, logits, target = load("ftl_3d_whole_volume_target.npz", torch.float32)
    loss = SegWithMIPLoss(FocalTverskyLoss(sigmoid=True, batch=True), MIPLoss(sigmoid=True, axis_reduction="sum"))
    found = loss(logits, target, given_mips(golden, [0, 1, 2]))
    assert found.item() == pytest.approx(golden["total_0p7_0p3_sum_axes"].item(), rel=1e-5)


def test_flags_are_for_the_default_losses_alone():
    logits, ids = torch.randn(1, 3, 4, 5, 6, generator=torch.Generator().manual_seed(0)), torch.ones(1, 1, 4, 5, 6)
    flags = {"softmax": True, "to_onehot_y": True, "include_background": False}
    expected = 0.5 * FocalTverskyLoss(**flags)(logits, ids) + 2 * MIPLoss(**flags)(logits, ids)
    torch.testing.assert_close(SegWithMIPLoss(lambda_seg=0.5, lambda_mip=2, **flags)(logits, ids), expected)
    with pytest.raises(ValueError, match="flags have no effect"):
        SegWithMIPLoss(FocalTverskyLoss(), MIPLoss(), sigmoid=True)
    with pytest.raises(ValueError, match="lambda_mip must be a finite number"):
        SegWithMIPLoss(lambda_mip=-1)
