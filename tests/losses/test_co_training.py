"""Disagreement of two branches: values by hand, symmetry, gradients."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.losses import DiceLoss

from medseg.losses import CoTrainingDisagreementLoss

KINDS = ("dice", "mse", "js")


def make_maps(seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(2, 2, 3, 4, 5, 2, generator=torch.Generator().manual_seed(seed), dtype=dtype).unbind(-1)


@settings(deadline=None, max_examples=25)
@given(kind=st.sampled_from(KINDS), region=st.sampled_from([None, "union"]), seed=st.integers(0, 99))
def test_it_is_zero_for_equal_maps_symmetric_and_bounded(kind, region, seed):
    a, b = make_maps(seed)
    loss = CoTrainingDisagreementLoss(kind, region)
    assert loss(a, a) == 0
    torch.testing.assert_close(loss(a, b), loss(b, a))
    assert 0 < loss(a, b) < {"dice": 1, "mse": 1, "js": math.log(2)}[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_voxels_does_not_matter(kind):
    a, b = make_maps()
    order = torch.randperm(60, generator=torch.Generator().manual_seed(1))
    mixed = [maps.flatten(2)[..., order].view(maps.shape) for maps in (a, b)]
    torch.testing.assert_close(CoTrainingDisagreementLoss(kind)(*mixed), CoTrainingDisagreementLoss(kind)(a, b))


def test_the_dice_form_is_one_minus_dice_with_squares():
    a, b = make_maps()
    each = CoTrainingDisagreementLoss(reduction="none")(a, b)
    squares = DiceLoss(squared_pred=True, smooth_nr=0, smooth_dr=1e-5, reduction="none")(a, b)
    torch.testing.assert_close(each, squares.view(2, 2), atol=1e-6, rtol=0)


@pytest.mark.parametrize("target", ["mutual", "mean"])
@pytest.mark.parametrize("kind", KINDS)
def test_its_gradient_is_exact(kind, target):
    a, b = (0.1 + 0.8 * maps[:1, :, :2, :2, :2] for maps in make_maps(dtype=torch.float64))
    loss = CoTrainingDisagreementLoss(kind, target=target)
    if target == "mutual":
        assert torch.autograd.gradcheck(loss, (a.requires_grad_(), b.requires_grad_()))
    else:  # the mean is held fixed, so the gradient is that against a constant
        mean = (a + b) / 2
        loss(a.requires_grad_(), b.requires_grad_()).backward()
        fixed = a.detach().clone().requires_grad_()
        (CoTrainingDisagreementLoss(kind)(fixed, mean) / 2).backward()
        torch.testing.assert_close(a.grad, fixed.grad)


def test_the_mean_squares_have_the_gradient_of_both_branches_against_the_other_held_fixed():
    a, b = (maps.requires_grad_() for maps in make_maps(dtype=torch.float64))
    CoTrainingDisagreementLoss("mse")(a, b).backward()
    p, q = (maps.detach().clone().requires_grad_() for maps in (a, b))
    ((p - q.detach()).square().mean() + (p.detach() - q).square().mean()).backward()
    for mutual, crossed in ((a.grad, p.grad), (b.grad, q.grad)):
        torch.testing.assert_close(mutual, crossed)


@pytest.mark.parametrize("kind", KINDS)
def test_maps_of_zeros_cost_nothing_and_have_a_finite_gradient(kind):
    a, b = torch.zeros(2, 1, 1, 4, 4, requires_grad=True)
    for region in (None, "union"):
        value = CoTrainingDisagreementLoss(kind, region)(a, b)
        assert value == 0
        assert torch.isfinite(torch.autograd.grad(value, a)[0]).all()


def test_opposite_certainties_differ_by_the_logarithm_of_two():
    ones = torch.ones(1, 1, 4, 4)
    assert CoTrainingDisagreementLoss("js")(ones, 0 * ones).item() == pytest.approx(math.log(2), abs=1e-5)


def test_the_union_leaves_out_where_neither_sees_anything():
    a, b = torch.zeros(2, 1, 1, 4, 4)
    a[..., 0, 0], b[..., 0, 1] = 1, 0.04
    found = CoTrainingDisagreementLoss("mse", "union", reduction="none")(a, b)
    assert found.item() == pytest.approx(1.0)
    assert CoTrainingDisagreementLoss("mse")(a, b).item() == pytest.approx((1 + 0.04**2) / 16)


def test_logits_are_taken_with_an_activation():
    a, b = make_maps()
    expected = CoTrainingDisagreementLoss()(a.sigmoid(), b.sigmoid())
    torch.testing.assert_close(CoTrainingDisagreementLoss(sigmoid=True)(a, b), expected)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"kind": "kl"}, "kind must be one of dice, mse, js, got 'kl'"),
        ({"region": "gland"}, "region must be 'union' or None"),
        ({"target": "first"}, "target must be mutual or mean"),
        ({"eps": 0.0}, "eps must be a positive number"),
        ({"reduction": "median"}, "reduction must be one of mean, sum, none"),
    ],
)
def test_odd_options_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        CoTrainingDisagreementLoss(**wrong)


def test_values_that_are_no_probabilities_and_shapes_that_differ_are_refused():
    a, b = make_maps()
    with pytest.raises(ValueError, match=r"target must hold probabilities in \[0, 1\].*sigmoid=True"):
        CoTrainingDisagreementLoss()(a, 3 * b)
    with pytest.raises(ValueError, match="input and target must both have shape"):
        CoTrainingDisagreementLoss()(a, b[:1])
