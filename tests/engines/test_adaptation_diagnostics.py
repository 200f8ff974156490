"""Tests of `medseg.engines.adaptation_diagnostics`."""

from __future__ import annotations

import json
import math

import pytest
import torch

from medseg.engines import AdaptationDiagnostics
from medseg.engines.adaptation_diagnostics import DiagnosticsMeter
from medseg.losses import ClassRatioKLLoss, SourceFreeAdaptationLoss


def maps(*shares: float, sure: float = 9.0) -> torch.Tensor:
    """Logits in which each image shows class 1 in this share of its 20 voxels."""
    logits = torch.zeros(len(shares), 2, 4, 5)
    for image, share in enumerate(shares):
        logits[image, 1] = -sure
        logits[image, 1].view(-1)[: round(20 * share)] = sure
    return logits


def test_decided_maps_have_equal_ratios_and_no_alarm():
    meter = DiagnosticsMeter(SourceFreeAdaptationLoss())
    meter.update(maps(0.1, 0.2), torch.tensor([[0.9, 0.1], [0.8, 0.2]]), loss=torch.tensor(2.0))
    meter.update(maps(0.3), torch.tensor([[0.7, 0.3]]), loss=torch.tensor(4.0))
    found = meter.compute()
    assert (found.images, found.loss, found.alarms, found.contradicted) == (3, 3.0, (), 0.0)
    for ratio in (found.expected_ratio, found.soft_ratio, found.hard_ratio):
        assert ratio == pytest.approx((0.8, 0.2), abs=1e-3)
    assert found.kl == pytest.approx(0, abs=1e-4)
    json.dumps(found.to_dict(), allow_nan=False)
    assert AdaptationDiagnostics.from_dict(found.to_dict()) == found


def test_every_voxel_at_the_expected_probability_raises_the_alarm():
    logits = torch.tensor([math.log(0.9), math.log(0.1)]).view(1, 2, 1, 1).expand(2, 2, 4, 4)
    meter = DiagnosticsMeter()
    meter.update(logits, torch.tensor([[0.9, 0.1]]).expand(2, 2))
    found = meter.compute()
    assert found.kl == pytest.approx(0, abs=1e-6)
    assert found.hard_ratio == (1.0, 0.0)
    assert found.alarms == (1,)
    assert found.contradicted == 1.0


def test_tags_are_contradicted_by_what_is_found_or_missed():
    meter = DiagnosticsMeter()
    expected = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.9, 0.1], [0.9, 0.1]])
    meter.update(maps(0.0, 0.1, 0.0, 0.1), expected)
    assert meter.compute().contradicted == 0.5


def test_the_divergence_is_that_of_the_loss():
    logits = torch.randn(3, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    ratio = torch.rand(3, 3, generator=torch.Generator().manual_seed(1)).softmax(1)
    for loss in (ClassRatioKLLoss(), ClassRatioKLLoss("prior_est"), ClassRatioKLLoss(softmax=False, sigmoid=True)):
        meter = DiagnosticsMeter(loss)
        meter.update(logits, ratio)
        assert meter.compute().kl == pytest.approx(loss(logits, ratio).item(), rel=1e-4)


def test_patches_of_a_case_count_as_one_image():
    meter = DiagnosticsMeter()
    ratio = torch.tensor([[0.8, 0.2]]).expand(3, 2)
    meter.update(maps(0.4, 0.0, 0.2), ratio, cases=["a", "a", "b"])
    found = meter.compute()
    assert (found.images, found.contradicted) == (2, 0.0)
    assert found.hard_ratio[1] == pytest.approx(0.2)


def test_voxels_outside_the_mask_do_not_count():
    logits, mask = maps(0.5), torch.zeros(1, 1, 4, 5)
    mask[..., 0, :] = 1
    meter = DiagnosticsMeter()
    meter.update(logits, torch.tensor([[0.5, 0.5]]), mask)
    assert meter.compute().hard_ratio == (0.0, 1.0)


def test_with_a_sigmoid_every_channel_has_a_ratio_of_its_own():
    meter = DiagnosticsMeter(ClassRatioKLLoss(softmax=False, sigmoid=True))
    meter.update(maps(0.2)[:, 1:], torch.tensor([[0.2]]))
    assert meter.compute().hard_ratio == pytest.approx((0.2,))
    with pytest.raises(ValueError, match="there is nothing to compute from"):
        DiagnosticsMeter().compute()
