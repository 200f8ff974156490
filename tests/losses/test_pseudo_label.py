"""Tests of `medseg.losses.pseudo_label`."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from medseg.losses import PseudoLabelLoss
from tests.losses.test_class_ratio_kl import noise


def test_without_balance_and_threshold_it_is_cross_entropy_with_the_teachers_classes():
    logits, teacher = noise(2, 3, 4, 5), noise(2, 3, 4, 5, seed=1)
    expected = functional.cross_entropy(logits, teacher.argmax(1))
    torch.testing.assert_close(PseudoLabelLoss(0.0, balance=False)(logits, teacher), expected)


def test_with_balance_every_class_counts_the_same():
    logits = torch.zeros(1, 2, 1, 10, dtype=torch.float64)
    logits[0, 1] = 2.0
    teacher = torch.full_like(logits, 0.0)
    teacher[0, 0, 0, 1:], teacher[0, 1, 0, 0] = 9.0, 9.0  # one voxel of ten is class 1
    of_zero, of_one = math.log(1 + math.e**2), math.log(1 + math.e**-2)
    assert PseudoLabelLoss()(logits, teacher).item() == pytest.approx((of_zero + of_one) / 2)
    assert PseudoLabelLoss(balance=False)(logits, teacher).item() == pytest.approx(0.9 * of_zero + 0.1 * of_one)


def test_undecided_and_masked_voxels_do_not_count_and_the_teacher_gets_no_gradient():
    logits, teacher = noise(1, 2, 4, 6).requires_grad_(), noise(1, 2, 4, 6, seed=1)
    teacher[..., 3:] = 0
    teacher.requires_grad_()
    value = PseudoLabelLoss(0.6)(logits, teacher)
    value.backward()
    assert teacher.grad is None
    assert logits.grad is not None
    assert logits.grad[..., 3:].abs().max() == 0
    mask = torch.zeros(1, 1, 4, 6)
    mask[..., :3] = 1
    torch.testing.assert_close(PseudoLabelLoss(0.6)(logits, teacher, mask), value)
    assert PseudoLabelLoss()(logits, torch.zeros_like(teacher)) == 0


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match=r"threshold must be a probability in \[0, 1\), got 1"):
        PseudoLabelLoss(1.0)
    with pytest.raises(ValueError, match="softmax needs at least two channels"):
        PseudoLabelLoss()(noise(1, 1, 3, 3), noise(1, 1, 3, 3))
    with pytest.raises(ValueError, match="target must have shape"):
        PseudoLabelLoss()(noise(1, 2, 3, 3), noise(1, 2, 3, 4))
