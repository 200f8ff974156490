"""Losses get what nnU-Net 2.8 was seen to give them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from medseg.losses import BettiMatchingLoss, DiceCELoss, FocalTverskyLoss, SegWithMIPLoss
from medseg.nnunet import NNUNetLoss, find_level_weights

CLASSES = {"softmax": True, "to_onehot_y": True, "include_background": False}
REGIONS = {"sigmoid": True}
LOSSES = {"focal Tversky": FocalTverskyLoss, "MIP": SegWithMIPLoss, "Dice and entropy": DiceCELoss}
SIZES = [(8, 12, 8), (4, 6, 4), (2, 3, 2)]


def make_outputs(channels: int, dtype: torch.dtype) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    return [torch.randn(2, channels, *size, generator=random).to(dtype).requires_grad_() for size in SIZES]


def make_labels(classes: int) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(1)
    return [torch.randint(classes, (2, 1, *size), generator=random, dtype=torch.int16) for size in SIZES]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", LOSSES)
def test_lists_of_logits_and_whole_number_labels_give_a_loss_and_gradients_where_weights_are(name, dtype):
    outputs = make_outputs(3, dtype)
    loss = NNUNetLoss(LOSSES[name](**CLASSES), find_level_weights(3))(outputs, make_labels(3))
    loss.backward()
    assert loss.ndim == 0
    assert math.isfinite(loss.item())
    assert all(torch.isfinite(x.grad).all() and x.grad.any() for x in outputs[:2])
    assert outputs[2].grad is None


@pytest.mark.parametrize("name", LOSSES)
def test_boolean_masks_of_regions_give_a_loss(name):
    outputs = make_outputs(2, torch.float32)
    random = torch.Generator().manual_seed(2)
    masks = [torch.rand(2, 2, *size, generator=random) > 0.6 for size in SIZES]
    loss = NNUNetLoss(LOSSES[name](**REGIONS), find_level_weights(3))(outputs, masks)
    loss.backward()
    assert math.isfinite(loss.item())
    assert outputs[0].grad.any()


def test_the_label_to_ignore_leaves_its_voxels_without_gradient():
    outputs, labels = make_outputs(3, torch.float32), make_labels(3)
    labels[0][:, :, :4] = 3
    NNUNetLoss(DiceCELoss(**CLASSES, ignore_index=3), find_level_weights(3))(outputs, labels).backward()
    assert not outputs[0].grad[:, :, :4].any()
    assert outputs[0].grad[:, :, 4:].any()


def test_weights_halve_leave_the_coarsest_out_and_add_up_to_one():
    assert find_level_weights(4) == pytest.approx([4 / 7, 2 / 7, 1 / 7, 0])
    assert 0 < find_level_weights(3, keep_coarsest=True)[-1] < 1e-6
    assert sum(find_level_weights(3, keep_coarsest=True)) == pytest.approx(1)
    with pytest.raises(ValueError, match="levels must be at least 1, got 0"):
        find_level_weights(0)


def test_a_single_level_has_weight_one_where_nnunet_divides_zero_by_zero():
    output, label = make_outputs(3, torch.float32)[:1], make_labels(3)[:1]
    loss = FocalTverskyLoss(**CLASSES)
    assert NNUNetLoss(loss, find_level_weights(1))(output, label).equal(loss(output[0], label[0]))


@pytest.mark.parametrize("weights", [None, [1.0, 0.0, 0.0]])
def test_without_deep_supervision_tensors_or_the_finest_level_count(weights):
    outputs, labels = make_outputs(3, torch.float32), make_labels(3)
    loss = FocalTverskyLoss(**CLASSES)
    alone = loss(outputs[0], labels[0])
    assert NNUNetLoss(loss, weights)(outputs[0], labels[0]).equal(alone)
    assert NNUNetLoss(loss, weights)(outputs, labels).equal(alone)


def test_the_dear_loss_sees_the_finest_level_alone_and_nothing_at_weight_zero():
    seen = []
    loss = NNUNetLoss(
        nn.L1Loss(),
        [0.75, 0.25, 0],
        finest=lambda output, target: seen.append(output.shape) or output.sum() * 0 + 4,
        finest_weight=0.5,
    )
    outputs = [torch.ones(1, 1, *size) for size in SIZES]
    targets = [torch.zeros(1, 1, *size) for size in SIZES]
    assert loss(outputs, targets) == 3
    assert seen == [(1, 1, *SIZES[0])]
    loss.finest_weight = 0.0
    assert loss(outputs, targets) == 1
    assert len(seen) == 1


def test_betti_matching_takes_labels_beside_an_overlap():
    outputs, labels = make_outputs(3, torch.float16), make_labels(3)
    loss = NNUNetLoss(
        FocalTverskyLoss(**CLASSES), find_level_weights(3), finest=BettiMatchingLoss(**CLASSES), finest_weight=0.1
    )
    loss(outputs, labels).backward()
    assert torch.isfinite(outputs[0].grad).all()


def test_lists_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="a tensor for each of the 3 predictions, got 2"):
        NNUNetLoss(FocalTverskyLoss(**CLASSES), [1, 1, 1])(make_outputs(3, torch.float32), make_labels(3)[:2])
    with pytest.raises(ValueError, match="finest_weight must be a finite number, at least 0, got -1"):
        NNUNetLoss(nn.L1Loss(), finest_weight=-1)
    with pytest.raises(ValueError, match="class id 3, but input has 3 channels"):
        NNUNetLoss(FocalTverskyLoss(**CLASSES))(make_outputs(3, torch.float32), [make_labels(3)[0] + 3])
