"""Tests of `medseg.losses.source_free_adaptation`."""

from __future__ import annotations

import pytest
import torch
from monai.bundle import ConfigParser

from medseg.losses import ClassRatioKLLoss, SourceFreeAdaptationLoss, WeightedEntropyLoss
from tests.losses.sfda_golden import RATIO_CASES, REFERENCE_CASES, Golden
from tests.losses.test_class_ratio_kl import noise


@pytest.mark.parametrize("name", RATIO_CASES)
def test_the_gradient_of_the_sum_is_the_golden_one(name):
    golden = Golden(name, torch.float64)
    loss = SourceFreeAdaptationLoss(golden["class_weights"].tolist())
    golden["total"] = golden["f64_entropy_weighted"] + golden["f64_kl_est_prior"]
    golden.check(loss(golden.logits, golden.ratio), "total", "f64_grad_total", 1e-9)


@pytest.mark.parametrize("name", REFERENCE_CASES)
def test_the_published_code_is_met_with_its_estimator(name):
    golden = Golden(name, torch.float32)
    options = {"size_estimator": "max_normalized", "power": float(golden["power"])}
    loss = SourceFreeAdaptationLoss(golden["class_weights"].tolist(), **options)
    golden["total"] = golden["ref_entropy"] + golden["ref_kl"]
    golden.check(loss(golden.logits, golden.ratio), "total", "ref_grad_total", 1e-5)


@pytest.mark.parametrize("name", ["g_tta_centroid.npz", "g_tta_dist.npz"])
def test_the_test_time_variant_weighs_the_divergence(name):
    golden = Golden(name, torch.float32)
    loss = SourceFreeAdaptationLoss([0.1, 0.9], 1.0, float(golden["temp"]), size_estimator="max_normalized")
    golden.check(loss(golden.logits, golden.ratio), "loss_ent_plus_kl", "grad_base", 1e-5)


def test_terms_are_those_of_the_two_losses_and_carry_no_gradient():
    logits, ratio = noise(3, 2, 4, 5).requires_grad_(), torch.tensor([0.8, 0.2])
    mask = torch.rand(3, 1, 4, 5, generator=torch.Generator().manual_seed(0)) > 0.5
    loss = SourceFreeAdaptationLoss([0.1, 0.9], 0.5, 2.0, direction="prior_est", reduction="none")
    assert loss.last_terms == {}
    value = loss(logits, ratio, mask)
    entropy = WeightedEntropyLoss([0.1, 0.9], reduction="none")(logits, mask)
    kl = ClassRatioKLLoss("prior_est", reduction="none")(logits, ratio, mask)
    torch.testing.assert_close(value, 0.5 * entropy + 2 * kl)
    torch.testing.assert_close(loss.last_terms, {"entropy": entropy.detach(), "kl": kl.detach()})
    assert not any(term.requires_grad for term in loss.last_terms.values())


def test_a_bundle_can_build_it():
    parser = ConfigParser({"loss": {"_target_": "medseg.losses.SourceFreeAdaptationLoss", "class_weight": [0.1, 0.9]}})
    assert isinstance(parser.get_parsed_content("loss"), SourceFreeAdaptationLoss)


def test_weights_of_the_terms_must_not_be_negative():
    with pytest.raises(ValueError, match="lambda_prior must be a finite number, at least 0, got -1"):
        SourceFreeAdaptationLoss(lambda_prior=-1)
