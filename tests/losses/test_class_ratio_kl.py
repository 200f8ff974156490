"""Tests of `medseg.losses.class_ratio_kl`: golden values, limits, what tags cost, and ratios that are refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg.losses import ClassRatioKLLoss, WeightedEntropyLoss
from tests.losses.sfda_golden import RATIO_CASES, REFERENCE_CASES, Golden

DIRECTIONS = {"est_prior": "kl_est_prior", "prior_est": "kl_prior_est"}


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return 3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("name", RATIO_CASES)
def test_both_directions_have_the_golden_values_and_gradients(name, direction):
    golden = Golden(name, torch.float64)
    loss = ClassRatioKLLoss(direction)
    np.testing.assert_allclose(loss.estimate(golden.logits), golden["f64_size_mean"], atol=1e-8)
    key = DIRECTIONS[direction]
    golden.check(loss(golden.logits, golden.ratio), f"f64_{key}", f"f64_grad_{key}", 1e-9)


@pytest.mark.parametrize("name", REFERENCE_CASES)
def test_the_published_code_is_met_with_its_estimator(name):
    golden = Golden(name, torch.float32)
    loss = ClassRatioKLLoss(size_estimator="max_normalized", power=float(golden["power"]))
    np.testing.assert_allclose(loss.estimate(golden.logits), golden["ref_size"], rtol=1e-5)
    golden.check(loss(golden.logits, golden.ratio), "ref_kl", "ref_grad_kl", 1e-5)


@pytest.mark.parametrize("power", [1, 2, 8])
def test_normalised_sizes_are_the_golden_ones_for_other_powers(power):
    golden = Golden("f_2d_extras.npz", torch.float32)
    loss = ClassRatioKLLoss(size_estimator="max_normalized", power=power)
    np.testing.assert_allclose(loss.estimate(golden.logits), golden[f"norm_soft_size_p{power}"], rtol=1e-5)


def test_with_a_uniform_prior_entropy_and_kl_are_log_c_minus_mutual_information():
    logits = noise(3, 4, 5, 6)
    p = logits.softmax(1).flatten(2)
    entropy_of_mean = -(p.mean(-1) * p.mean(-1).log()).sum(1)
    mutual_information = entropy_of_mean + (p * p.log()).sum(1).mean(-1)
    loss = WeightedEntropyLoss(reduction="none")(logits) + ClassRatioKLLoss(reduction="none", eps=1e-300)(
        logits, torch.full((4,), 0.25)
    )
    torch.testing.assert_close(loss, math.log(4) - mutual_information, rtol=0, atol=1e-10)


def test_a_ratio_that_is_met_costs_nothing_and_pulls_nowhere():
    logits = noise(2, 3, 4, 5).requires_grad_()
    for direction in DIRECTIONS:
        loss = ClassRatioKLLoss(direction)
        value = loss(logits, loss.estimate(logits))
        (gradient,) = torch.autograd.grad(value, logits)
        assert abs(value.item()) < 1e-12
        assert gradient.abs().max() < 1e-10


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10**6), st.sampled_from(["mean", "max_normalized"]), st.floats(-50, 50))
def test_the_order_of_voxels_and_classes_and_a_constant_do_not_matter(seed, estimator, shift):
    logits, random = noise(2, 3, 4, 5, seed=seed), torch.Generator().manual_seed(seed)
    ratio = torch.rand(2, 3, generator=random).softmax(1)
    loss = ClassRatioKLLoss(size_estimator=estimator, power=2)
    value = loss(logits, ratio)
    voxels = torch.randperm(20, generator=random)
    torch.testing.assert_close(loss(logits.flatten(2)[..., voxels].reshape(logits.shape), ratio), value)
    classes = torch.randperm(3, generator=random)
    torch.testing.assert_close(loss(logits[:, classes], ratio[:, classes]), value)
    torch.testing.assert_close(loss(logits + shift, ratio), value)


@pytest.mark.parametrize("shape", [(2, 2, 3, 2), (1, 3, 2, 2, 2)])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("estimator", ["mean", "max_normalized"])
def test_the_gradient_is_exact(shape, direction, estimator):
    logits = noise(*shape).requires_grad_()
    ratio = torch.tensor([0.7, 0.3, 0.0][: shape[1]])
    loss = ClassRatioKLLoss(direction, estimator, power=1.5)
    assert torch.autograd.gradcheck(lambda x: loss(x, ratio), (logits,))


def test_decided_maps_and_large_powers_count_as_argmax_does():
    logits = noise(2, 3, 6, 7)
    share = torch.nn.functional.one_hot(logits.argmax(1), 3).double().mean((1, 2))
    torch.testing.assert_close(ClassRatioKLLoss().estimate(logits * 1e4), share)
    torch.testing.assert_close(ClassRatioKLLoss(size_estimator="max_normalized", power=1e4).estimate(logits), share)


def test_a_tag_for_absence_costs_minus_log_eps_times_the_share():
    logits = noise(1, 2, 8, 8)
    (background, share), values = ClassRatioKLLoss().estimate(logits)[0], []
    for eps in (1e-10, 1e-5):
        found = ClassRatioKLLoss(eps=eps)(logits, torch.tensor([1.0, 0.0]))
        values.append(found + (-background * background.log() - share * share.log()))
    assert values[0] == pytest.approx(23.0259 * share.item(), rel=1e-4)
    assert values[1] == pytest.approx(11.5129 * share.item(), rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_comes_near_to_float32_even_where_it_would_underflow(dtype):
    logits = noise(1, 2, 300, 300, dtype=torch.float32)  # sums above the largest float16
    logits[:, 1] -= 30
    ratio = torch.tensor([0.9, 0.1])
    expected = ClassRatioKLLoss()(logits, ratio)
    assert ClassRatioKLLoss()(logits.to(dtype), ratio).item() == pytest.approx(expected.item(), abs=1e-3)
    with torch.autocast("cpu", dtype=dtype):
        assert ClassRatioKLLoss()(logits, ratio).item() == expected.item()


def test_a_mask_counts_in_sums_and_in_the_number_of_voxels():
    logits, ratio = noise(2, 3, 4, 6), torch.tensor([0.5, 0.3, 0.2])
    mask = torch.zeros(2, 1, 4, 6, dtype=torch.bool)
    mask[..., :2] = True
    for estimator in ("mean", "max_normalized"):
        loss = ClassRatioKLLoss(size_estimator=estimator)
        torch.testing.assert_close(loss(logits, ratio, mask), loss(logits[..., :2], ratio))
        torch.testing.assert_close(loss.estimate(logits, mask), loss.estimate(logits[..., :2]))
    logits.requires_grad_()
    value = ClassRatioKLLoss("prior_est")(logits, ratio, torch.zeros_like(mask))
    (gradient,) = torch.autograd.grad(value, logits)
    assert torch.isfinite(value)
    assert gradient.abs().max() == 0
    with pytest.raises(ValueError, match=r"mask must have shape \(2, 1, 4, 6\)"):
        ClassRatioKLLoss()(logits, ratio, mask[:, 0])


def test_the_ratio_of_a_case_gives_the_value_and_the_patch_the_way_of_the_gradient():
    whole, ratio = noise(1, 2, 4, 8).requires_grad_(), torch.tensor([0.9, 0.1])
    loss = ClassRatioKLLoss()
    expected = loss(whole, ratio)
    (gradient,) = torch.autograd.grad(expected, whole)
    patch = whole[..., :4].detach().requires_grad_()
    found = loss(patch, ratio, case_ratio=loss.estimate(whole))
    torch.testing.assert_close(found, expected)
    (of_patch,) = torch.autograd.grad(found, patch)
    torch.testing.assert_close(of_patch, 2 * gradient[..., :4])  # twice: the patch stands for both halves


def test_with_a_sigmoid_every_channel_is_a_problem_of_two_classes():
    logits, ratio = noise(2, 3, 4, 5), torch.tensor([[0.9, 0.2, 0.6], [0.1, 0.0, 1.0]])
    loss = ClassRatioKLLoss(softmax=False, sigmoid=True, reduction="none")
    expected = torch.zeros(2, dtype=torch.float64)
    for c in range(3):
        pair = torch.stack((torch.zeros_like(logits[:, c]), logits[:, c]), dim=1)
        expected += ClassRatioKLLoss(reduction="none")(pair, torch.stack((1 - ratio[:, c], ratio[:, c]), dim=1))
    torch.testing.assert_close(loss(logits, ratio), expected)
    torch.testing.assert_close(loss.estimate(logits), logits.sigmoid().mean((2, 3)))
    single = ClassRatioKLLoss(softmax=False)(logits[:, :1].sigmoid(), torch.tensor([0.3]))
    torch.testing.assert_close(
        single, ClassRatioKLLoss(softmax=False, sigmoid=True)(logits[:, :1], torch.tensor([0.3]))
    )


def test_probabilities_and_other_activations_give_the_same_as_logits():
    logits, ratio = noise(2, 3, 4, 5), torch.tensor([0.5, 0.3, 0.2])
    expected = ClassRatioKLLoss()(logits, ratio)
    torch.testing.assert_close(ClassRatioKLLoss(softmax=False)(logits.softmax(1), ratio), expected)
    other = ClassRatioKLLoss(softmax=False, other_act=lambda x: x.softmax(1))
    torch.testing.assert_close(other(logits, ratio), expected)
    sure = torch.tensor([1.0, 0.0]).view(1, 2, 1, 1).expand(1, 2, 3, 3).clone().requires_grad_()
    (gradient,) = torch.autograd.grad(ClassRatioKLLoss(softmax=False)(sure, torch.tensor([0.5, 0.5])), sure)
    assert torch.isfinite(gradient).all()


def test_without_background_its_term_is_left_out():
    logits, ratio = noise(1, 2, 4, 5), torch.tensor([0.9, 0.1])
    share = ClassRatioKLLoss().estimate(logits)[0, 1]
    found = ClassRatioKLLoss(include_background=False)(logits, ratio)
    torch.testing.assert_close(found, share * (share / 0.1).log(), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("ratio", "match"),
    [
        ([0.9, 0.2], r"must sum to 1 over the classes, got a sum of 1.1 for \[0.9, 0.2\]"),
        ([1.2, -0.2], r"must hold shares from 0 to 1, got \[1.2, -0.2\]"),
        ([140000.0, 7130.0], "divide sizes by the voxel count"),
        ([float("nan"), 0.5], "must hold shares from 0 to 1"),
        ([0.5, 0.3, 0.2], r"class_ratio must have shape \(2,\) or \(1, 2\) for this input, got \(3,\)"),
    ],
)
def test_a_bad_ratio_is_refused(ratio, match):
    with pytest.raises(ValueError, match=match):
        ClassRatioKLLoss()(noise(1, 2, 3, 3), torch.tensor(ratio))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"direction": "both"}, "direction must be est_prior or prior_est, got 'both'"),
        ({"size_estimator": "median"}, "size_estimator must be mean or max_normalized"),
        ({"power": 0.0}, "power must be a finite number above 0, got 0"),
        ({"eps": 0.0}, "eps must be a finite number above 0"),
        ({"sigmoid": True}, "sigmoid and softmax are both set"),
        ({"reduction": "max"}, "reduction must be one of"),
    ],
)
def test_bad_options_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        ClassRatioKLLoss(**options)


def test_bad_inputs_are_refused():
    with pytest.raises(ValueError, match="softmax needs at least two channels"):
        ClassRatioKLLoss()(noise(1, 1, 3, 3), torch.tensor([1.0]))
    with pytest.raises(ValueError, match="input must hold logits"):
        ClassRatioKLLoss()(torch.ones(1, 2, 3, 3, dtype=torch.int64), torch.tensor([0.5, 0.5]))
    with pytest.raises(ValueError, match="input must have shape"):
        ClassRatioKLLoss()(noise(1, 2, 3), torch.tensor([0.5, 0.5]))
