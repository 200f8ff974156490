"""Tests of `medseg.losses.focal_tversky`."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.losses import TverskyLoss

from medseg.losses import FocalTverskyLoss
from tests.losses.test_mip import CASES, FILES, load


def make_pair() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(2, 3, 6, 7, generator=generator), (torch.rand(2, 3, 6, 7, generator=generator) > 0.6).float()


@pytest.mark.parametrize("name", CASES)
def test_one_index_for_the_batch_gives_the_golden_value(name):
    golden, logits, target = load(name, torch.float32)
    if "voxel_ftl_batch_flattened" not in golden:
        pytest.skip("no value of this loss in this file")
    loss = FocalTverskyLoss(sigmoid=True, batch=True)(logits, target)
    assert loss.item() == pytest.approx(golden["voxel_ftl_batch_flattened"].item(), rel=1e-5)


@pytest.mark.parametrize(
    ("case", "probability", "label"),
    [
        ("empty_both", 0.0, 0.0),
        ("empty_target_p0.1", 0.1, 0.0),
        ("full_both", 1.0, 1.0),
        ("empty_pred_full_target", 0.0, 1.0),
    ],
)
def test_empty_and_full_inputs_have_the_golden_loss_and_a_finite_gradient(case, probability, label):
    golden = np.load(FILES["edge_cases.npz"])
    p = torch.full((1, 1, 4, 4), probability, requires_grad=True)
    loss = FocalTverskyLoss()(p, torch.full_like(p, label).detach())
    (gradient,) = torch.autograd.grad(loss, p)
    assert loss.item() == pytest.approx(golden[f"{case}_loss"].item(), rel=1e-5, abs=1e-7)
    assert torch.isfinite(gradient).all()
    assert gradient.abs().max() < 32


def test_alpha_and_beta_mean_what_they_mean_in_monai():
    p, y = make_pair()
    for alpha, beta in [(0.3, 0.7), (0.9, 0.2)]:
        expected = TverskyLoss(alpha=alpha, beta=beta, smooth_nr=1, smooth_dr=1)(p, y)
        torch.testing.assert_close(FocalTverskyLoss(alpha=alpha, beta=beta, gamma=1.0)(p, y), expected)
    miss, surplus = torch.zeros_like(y), torch.ones_like(y)
    assert FocalTverskyLoss(alpha=0)(surplus, y) == 0
    assert FocalTverskyLoss(beta=0)(miss, y) == 0


def test_the_guarded_power_meets_the_plain_one_and_never_falls():
    p = torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    loss = FocalTverskyLoss(alpha=1.0)
    values = [loss(p + u / (1 - u), torch.zeros_like(p)).item() for u in (0.0, 5e-7, 9.99999e-7, 1.000001e-6, 0.5)]
    assert values == sorted(values)
    assert values[0] == 0
    assert values[2] == pytest.approx(values[3], rel=1e-5)
    assert values[4] == pytest.approx(0.5**0.75)


def test_the_background_is_left_out_on_request():
    p, y = make_pair()
    each = FocalTverskyLoss(reduction="none")(p, y)
    assert each.shape == (2, 3)
    torch.testing.assert_close(FocalTverskyLoss(include_background=False)(p, y), each[:, 1:].mean())
    assert FocalTverskyLoss(batch=True, reduction="none")(p, y).shape == (3,)


@pytest.mark.parametrize("confidence", [1.0, 30.0])
def test_class_ids_give_value_and_gradient_of_the_formula_on_masks(confidence):
    torch.manual_seed(0)
    ids = torch.randint(0, 3, (2, 1, 6, 7))
    y = torch.zeros(2, 3, 6, 7).scatter_(1, ids, 1)
    logits = (confidence * y + torch.randn(2, 3, 6, 7)).requires_grad_()
    p = logits.double().softmax(1)
    hit, wrong = (p * y).sum((2, 3)), (0.3 * p * (1 - y) + 0.7 * (1 - p) * y).sum((2, 3))
    u = wrong / (hit + wrong + 1)
    want = torch.where(u > 1e-6, u**0.75, u * 1e-6**-0.25).mean()
    got = FocalTverskyLoss(to_onehot_y=True, softmax=True)(logits, ids)
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)
    (left,), (right,) = (torch.autograd.grad(value, logits) for value in (got, want))
    torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-6)
    assert got >= 0


def test_wrong_options_and_inputs_are_named():
    for wrong in ({"alpha": -1}, {"beta": float("nan")}, {"gamma": 0}, {"smooth": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be a finite number"):
            FocalTverskyLoss(**wrong)
    p, y = make_pair()
    with pytest.raises(ValueError, match="input must hold logits or probabilities of a float type"):
        FocalTverskyLoss()(y.long(), y)
    with pytest.raises(ValueError, match="softmax needs at least two channels"):
        FocalTverskyLoss(softmax=True)(p[:, :1], y[:, :1])
    with pytest.raises(ValueError, match="class ids that are no whole numbers"):
        FocalTverskyLoss(to_onehot_y=True)(p, p[:, :1])
    with pytest.raises(ValueError, match="class id 3, but input has 3 channels"):
        FocalTverskyLoss(to_onehot_y=True)(p, torch.full_like(p[:, :1], 3))
    with pytest.warns(UserWarning, match="to_onehot_y=True ignored"):
        FocalTverskyLoss(to_onehot_y=True)(p[:, :1], y[:, :1])
