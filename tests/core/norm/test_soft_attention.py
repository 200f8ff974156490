"""Softmax-free attention, the tanh gate and multi-sample dropout."""

from __future__ import annotations

import pytest
import torch
from monai.networks.blocks import TransformerBlock
from torch import nn

from medseg.core.norm import (
    MixtureOfDepthsBlock,
    MultiSampleDropoutHead,
    SoftmaxFreeAttention,
    TanhGate,
    multi_sample_loss,
    soft_attention,
)
from medseg.core.norm.soft_attention import _NewtonInverse
from tests.core.norm.test_golden import close, of, read


@pytest.mark.parametrize("name", of("soft_attention/"))
def test_soft_attention_has_its_golden_values(name):
    golden = read(name)
    q, landmarks, v = (golden[key].requires_grad_() for key in ("q", "landmarks", "v"))
    iters = int(golden["iters"])
    y = soft_attention(q, landmarks, v, iters=iters, symmetric=False)
    close(y, golden["y_plain"], "plain")
    y.backward(golden["g"])
    for tensor, key in ((q, "gq"), (landmarks, "glandmarks"), (v, "gv")):
        close(tensor.grad, golden[key], key)
    close(soft_attention(q, landmarks, v, iters=iters), golden["y_symnorm"], "symmetric")
    damped = golden["k2"] + 0.01 * torch.eye(golden["k2"].shape[-1], dtype=torch.float64)
    close(_NewtonInverse.apply(damped, iters), golden["k2_inv_plain"], "inverse")
    close(_NewtonInverse.apply(golden["k2"], iters), golden["k2_inv_norm"], "inverse")


def test_the_newton_inverse_is_one_with_its_gradient():
    torch.manual_seed(0)
    a = torch.eye(5, dtype=torch.float64) + 0.1 * torch.rand(3, 5, 5, dtype=torch.float64)
    a = ((a + a.transpose(1, 2)) / 2).requires_grad_()
    inverse = _NewtonInverse.apply(a, 20)
    torch.testing.assert_close(inverse @ a, torch.eye(5, dtype=torch.float64).expand(3, 5, 5), rtol=0, atol=1e-6)
    assert torch.autograd.gradcheck(lambda a: _NewtonInverse.apply(a, 30), a)


def test_with_all_tokens_as_landmarks_it_is_kernel_attention():
    torch.manual_seed(0)
    q, v = 3 * torch.randn(1, 6, 4, dtype=torch.float64), torch.randn(1, 6, 2, dtype=torch.float64)
    scaled = q * 4**-0.25
    kernel = torch.exp(-torch.cdist(scaled, scaled).square() / 2)
    y = soft_attention(q, scaled, v, iters=40, symmetric=False, damping=0.0)
    torch.testing.assert_close(y, kernel @ v)


@pytest.mark.parametrize("symmetric", [True, False])
def test_the_layer_trains_in_three_dimensions_and_under_autocast(symmetric):
    torch.manual_seed(0)
    layer = SoftmaxFreeAttention(8, 2, landmark_stride=[2, 2, 1], symmetric_norm=symmetric, value_conv=3)
    x = torch.randn(2, 4 * 4 * 2, 8, requires_grad=True)
    layer(x, (4, 4, 2)).square().mean().backward()
    assert all(torch.isfinite(p.grad).all() for p in (x, *layer.parameters()))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = layer(x, (4, 4, 2))
    assert (half.float() - layer(x, (4, 4, 2))).abs().max() < 0.05


def test_tokens_that_do_not_fit_the_grid_are_refused():
    layer = SoftmaxFreeAttention(8, 2)
    with pytest.raises(ValueError, match=r"x must be \(B, 8, dim\) for the grid"):
        layer(torch.zeros(1, 9, 8), (2, 2, 2))
    with pytest.raises(ValueError, match="larger than the grid"):
        layer(torch.zeros(1, 8, 8), (8, 1, 1))
    for arguments in ((8, 3), (8, 2, 4)):
        with pytest.raises(ValueError, match="need num_heads that divide"):
            SoftmaxFreeAttention(*arguments)
    with pytest.raises(ValueError, match="iters must be at least 1"):
        soft_attention(torch.zeros(1, 2, 2), torch.zeros(1, 1, 2), torch.zeros(1, 2, 2), iters=0)


def test_a_gate_starts_at_its_bias_and_stays_within_its_scale():
    gate = TanhGate(4, scale=0.2, bias=1.0)
    assert torch.equal(gate(torch.randn(2, 3, 4)), torch.ones(2, 3, 1))
    nn.init.constant_(gate.router.weight, 100.0)
    weights = gate(torch.randn(2, 50, 4))
    assert weights.min() >= 0.8
    assert weights.max() <= 1.2


def test_a_block_that_all_tokens_pass_is_the_block_itself():
    torch.manual_seed(0)
    block = TransformerBlock(8, 16, 2)
    x = torch.randn(2, 6, 8)
    torch.testing.assert_close(MixtureOfDepthsBlock(block, ratio=1.0)(x), block(x))
    half = MixtureOfDepthsBlock(block, ratio=0.5)
    nn.init.normal_(half.gate.router.weight)
    y, weight = half(x), half.gate(x)
    kept = weight[..., 0].topk(3).indices
    for item in range(2):
        skipped = [t for t in range(6) if t not in kept[item].tolist()]
        torch.testing.assert_close(y[item, skipped], (x * weight)[item, skipped])
        assert not torch.allclose(y[item, kept[item]], (x * weight)[item, kept[item]])
    y.sum().backward()
    assert half.gate.router.weight.grad.abs().sum() > 0
    for arguments in ((nn.Identity(),), (block, 0.0)):
        with pytest.raises(ValueError, match="must be"):
            MixtureOfDepthsBlock(*arguments)


def test_multi_sample_dropout_averages_losses_of_masks_and_leaves_evaluation_alone():
    torch.manual_seed(0)
    head = MultiSampleDropoutHead(nn.Conv3d(64, 2, 1, bias=False), p=0.5, num_samples=5)
    x, target = torch.ones(1, 64, 2, 2, 2), torch.zeros(1, 2, 2, 2, 2)
    outputs = head(x)
    assert not torch.equal(outputs[0], outputs[1])
    assert outputs.flatten(3).std(-1).max() < 1e-6  # whole channels are dropped
    by_hand = torch.stack([nn.functional.mse_loss(o, target) for o in outputs]).mean()
    torch.testing.assert_close(multi_sample_loss(nn.MSELoss(), outputs, target), by_hand)
    assert torch.equal(head.eval()(x), head.head(x))
    with pytest.raises(ValueError, match="p must be"):
        MultiSampleDropoutHead(nn.Identity(), p=1.0)
    with pytest.raises(ValueError, match="need num_samples"):
        MultiSampleDropoutHead(nn.Identity(), num_samples=0)
    with pytest.raises(ValueError, match="at least one sample"):
        multi_sample_loss(nn.MSELoss(), outputs[:0], target)
