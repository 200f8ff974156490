"""Weights instead of activations: standardisation, companding, self-normalisation, scaled residual branches."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from monai.networks.nets import DynUNet, SegResNet, SwinUNETR, UNet
from torch import nn
from torch.nn.utils import parametrize

from medseg.core.norm import (
    Affine,
    WeightCompander,
    WeightStandardization,
    activation_stats,
    compand_weights,
    fuse_weights,
    make_self_normalizing,
    scale_residuals,
    standardize_weights,
)
from tests.core.norm.test_golden import close, of, read


@pytest.mark.parametrize("name", of("bcn/wsconv"))
def test_weight_standardisation_has_its_golden_values(name):
    golden = read(name)
    size = golden["weight"].shape[-1]
    conv = nn.Conv2d(golden["weight"].shape[1], len(golden["weight"]), size, padding=size // 2).double()
    with torch.no_grad():
        conv.weight.copy_(golden["weight"])
        conv.bias.copy_(golden["bias"])
    assert standardize_weights(nn.Sequential(conv), unbiased=True) == 1
    x = golden["x"].requires_grad_()
    y = conv(x)
    close(y, golden["y"], "y")
    y.backward(golden["g"])
    close(x.grad, golden["gx"], "gx")
    close(conv.parametrizations.weight.original.grad, golden["gw"], "gw")
    close(conv.bias.grad, golden["gb"], "gb")


def test_a_single_weight_stays_and_the_published_form_is_not_a_number():
    weight = torch.full((2, 1, 1, 1, 1), 0.7)
    assert torch.equal(WeightStandardization()(weight), weight)
    with pytest.warns(UserWarning, match="degrees of freedom"):
        assert torch.isnan(WeightStandardization(unbiased=True)(weight)).all()


def test_transposed_weights_are_standardised_for_each_output_channel():
    conv = nn.ConvTranspose3d(4, 6, 2, groups=2)
    standardize_weights(nn.Sequential(conv))
    rows = conv.weight.reshape(2, 2, 3, 8)
    torch.testing.assert_close(rows.mean((1, 3)), torch.zeros(2, 3), rtol=0, atol=1e-6)
    torch.testing.assert_close(rows.var((1, 3), correction=0), torch.ones(2, 3), rtol=1e-3, atol=1e-3)
    plain = WeightStandardization()(torch.randn(5, 3, 3))
    torch.testing.assert_close(plain.var((1, 2), correction=0), torch.ones(5), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("change", [standardize_weights, compand_weights])
def test_parametrized_networks_train_fuse_and_keep_their_state(change):
    torch.manual_seed(0)
    network = UNet(3, 1, 2, channels=(4, 8), strides=(2,), norm=("bcn", {"mode": "estimate"}))
    before, x = copy.deepcopy(network), torch.randn(1, 1, 8, 8, 8)
    assert change(network, exclude=["model.2"]) == 2
    network(x).square().mean().backward()
    assert all(p.grad is not None for p in network.parameters())
    change(before, exclude=["model.2"])
    before.load_state_dict(network.state_dict())
    y = network.eval()(x)
    assert torch.equal(before.eval()(x), y)
    assert fuse_weights(network) == 2
    assert not any(parametrize.is_parametrized(m) for m in network.modules())
    torch.testing.assert_close(network(x), y)
    with pytest.raises(ValueError, match="has no convolution"):
        change(nn.Sequential(nn.ReLU()))


def test_companding_starts_at_the_weights_and_saturates():
    compand = WeightCompander(0.5, 0.2).double()
    v = torch.linspace(-30, 30, 61, dtype=torch.float64, requires_grad=True)
    w = compand(v)
    assert (w.diff() > 0).all()
    assert w.abs().max() < 0.5 * math.pi / 2
    (slope,) = torch.autograd.grad(w.sum(), v)
    torch.testing.assert_close(slope, (0.5 / 0.2) / (1 + (v / 0.2) ** 2), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(compand(compand.right_inverse(w.detach() * 0.9)), w.detach() * 0.9)
    with pytest.raises(ValueError, match="choose a larger a"):
        compand.right_inverse(torch.ones(1).double())
    with pytest.raises(ValueError, match="must be above 0"):
        WeightCompander(0.0)


def test_a_deep_self_normalising_stack_keeps_mean_and_variance():
    torch.manual_seed(0)
    network = nn.Sequential(*[nn.Sequential(nn.Linear(256, 256), nn.BatchNorm1d(256), nn.ReLU()) for _ in range(64)])
    counts = make_self_normalizing(network)
    assert counts == {"norms": 64, "activations": 64, "dropouts": 0, "weights": 64}
    stats = activation_stats(network, torch.randn(512, 256))
    mean, variance = stats["63.2"]
    assert abs(mean) < 0.1
    assert 0.8 < variance < 1.25


def test_self_normalising_networks_have_alpha_dropout_and_no_norm():
    network = UNet(3, 1, 2, channels=(4, 8), strides=(2,), dropout=0.2)
    make_self_normalizing(network, dropout=0.1)
    assert sum(isinstance(m, nn.FeatureAlphaDropout) and m.p == 0.1 for m in network.modules()) == 2
    assert torch.isfinite(network(torch.randn(1, 1, 8, 8, 8))).all()
    for arguments, text in (((nn.Sequential(nn.Linear(1, 1)),), "no activation"), ((network, 1.0), "dropout must be")):
        with pytest.raises(ValueError, match=text):
            make_self_normalizing(*arguments)


@pytest.mark.parametrize(
    ("network", "branches"),
    [
        (UNet(2, 1, 2, channels=(4, 8), strides=(2,), num_res_units=1, norm="affine"), 3),
        (SegResNet(2, 4, blocks_down=(1, 1), blocks_up=(1,), norm="affine"), 3),
        (DynUNet(2, 1, 2, [3] * 3, [1, 2, 2], [2, 2], filters=[4, 8, 8], res_block=True, norm_name="affine"), 3),
        (SwinUNETR(1, 2, depths=(1,) * 4, num_heads=(2,) * 4, window_size=2, feature_size=12, spatial_dims=2), 18),
    ],
    ids=["UNet", "SegResNet", "DynUNet", "SwinUNETR"],
)
def test_branches_of_residual_blocks_are_scaled(network, branches):
    network = copy.deepcopy(network)
    x = torch.randn(1, 1, 64, 64)
    plain = network.eval()(x)
    assert scale_residuals(network, 1.0) == branches
    torch.testing.assert_close(network(x), plain)
    with pytest.raises(ValueError, match="scaled already"):
        scale_residuals(network)


def test_skipinit_starts_at_the_shortcut_and_learns():
    network = SegResNet(2, 4, blocks_down=(1,), blocks_up=(), norm="affine")
    scale_residuals(network, "skipinit")
    block = network.down_layers[0][1]
    x = torch.randn(1, 4, 8, 8)
    assert torch.equal(block(x), x)
    block(x).square().sum().backward()
    assert block.conv2.branch_scale.grad.abs() > 0


@pytest.mark.parametrize("n", [4, 64])
def test_one_over_n_bounds_the_growth_by_e(n):
    from monai.networks.blocks.segresnet_block import ResBlock

    torch.manual_seed(0)
    blocks = nn.Sequential(*[ResBlock(1, 1, norm="affine", kernel_size=1) for _ in range(n)])
    with torch.no_grad():
        for block in blocks:
            block.conv1.conv.weight.fill_(1)
            block.conv2.conv.weight.fill_(1)
    assert isinstance(blocks[0].norm1, Affine)
    x = torch.ones(1, 1, 4)
    assert blocks(x).max() == 2.0**n
    scale_residuals(blocks, "1/n")
    assert blocks(x).max() <= math.e
    for mode in ("1/sqrt(n)", "1/sqrt(2)"):
        fresh = nn.Sequential(ResBlock(1, 1, norm="affine", kernel_size=1))
        assert scale_residuals(fresh, mode, n=4) == 1
        assert fresh[0].conv2.branch_scale == pytest.approx(0.5 if mode == "1/sqrt(n)" else 2**-0.5)


def test_unknown_modes_and_networks_without_blocks_are_refused():
    with pytest.raises(ValueError, match="mode must be one of 1/n"):
        scale_residuals(UNet(2, 1, 2, channels=(4, 8), strides=(2,), num_res_units=1), "2/n")
    with pytest.raises(ValueError, match="has no residual blocks"):
        scale_residuals(UNet(2, 1, 2, channels=(4, 8), strides=(2,)))
