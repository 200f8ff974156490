"""The loss of a Probabilistic U-Net is the weighted sum of its terms."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Normal

from medseg.losses import FocalTverskyLoss, ProbabilisticSegLoss, SampleSetLoss
from medseg.networks import ProbabilisticOutput
from tests.losses.sample_set_oracles import golden_files, make_sets, read_golden

KL = golden_files("kl_*.npz")


def make_output(n: int = 3) -> tuple[ProbabilisticOutput, torch.Tensor]:
    samples, annotations = make_sets(n, 4)
    ones = torch.ones(2, 3, dtype=torch.float64)
    return ProbabilisticOutput(samples.logit(), Normal(ones, ones), Normal(2 * ones, 0.5 * ones)), annotations


def read_gaussians(name: str) -> tuple[dict[str, torch.Tensor], Normal, Normal]:
    golden = read_golden(KL[name])
    return golden, *(Normal(golden[f"{k}_mean"], (golden[f"{k}_logvar"] / 2).exp()) for k in ("post", "prior"))


@pytest.mark.parametrize("name", sorted(KL))
def test_the_divergence_has_its_golden_values(name):
    golden, posterior, prior = read_gaussians(name)
    for reduction, key in (("batch_mean", "kl_sum_latent_mean_batch"), ("sum", "kl_sum")):
        value = ProbabilisticSegLoss(kl_reduction=reduction).divergence(posterior, prior)
        torch.testing.assert_close(value, golden[key])
    assert ProbabilisticSegLoss().divergence(prior, prior).abs() < 1e-12


def test_the_loss_is_the_weighted_sum_of_distance_single_loss_and_divergence():
    output, annotations = make_output()
    distance, single = SampleSetLoss(sigmoid=True), FocalTverskyLoss(sigmoid=True)
    loss = ProbabilisticSegLoss(distance, single, set_weight=2.0, seg_weight=0.5, kl_weight=0.1)
    mask = torch.tensor([[True, True, False, True], [True, True, True, True]])
    value = loss(output, annotations, annotations[:, 1], mask)
    expected = (
        2 * distance(output.samples, annotations, annotation_mask=mask)
        + 0.5 * single(output.samples[:, 0], annotations[:, 1])
        + 0.1 * loss.divergence(output.posterior, output.prior)
    )
    torch.testing.assert_close(value, expected)


def test_by_default_it_is_the_energy_distance_and_the_divergence():
    output, annotations = make_output()
    default = ProbabilisticSegLoss()
    expected = SampleSetLoss(sigmoid=True)(output.samples, annotations)
    torch.testing.assert_close(
        default(output, annotations), expected + default.divergence(output.posterior, output.prior)
    )
    assert ProbabilisticSegLoss(seg_loss=FocalTverskyLoss()).set_loss is None


def test_the_weight_of_the_divergence_does_not_depend_on_the_batch():
    output, _ = make_output()
    doubled = [Normal(d.loc.repeat(2, 1), d.scale.repeat(2, 1)) for d in (output.posterior, output.prior)]
    mean, total = ProbabilisticSegLoss(), ProbabilisticSegLoss(kl_reduction="sum")
    once = mean.divergence(output.posterior, output.prior)
    torch.testing.assert_close(mean.divergence(*doubled), once)
    torch.testing.assert_close(total.divergence(*doubled), 4 * once)


def test_what_does_not_fit_is_refused():
    output, annotations = make_output()
    with pytest.raises(ValueError, match="drawn is missing"):
        ProbabilisticSegLoss(seg_loss=FocalTverskyLoss(sigmoid=True))(output, annotations)
    with pytest.raises(ValueError, match="kl_weight must be a finite number, at least 0, got -1"):
        ProbabilisticSegLoss(kl_weight=-1)
    with pytest.raises(ValueError, match="kl_reduction must be batch_mean or sum, got 'mean'"):
        ProbabilisticSegLoss(kl_reduction="mean")
