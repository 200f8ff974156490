from __future__ import annotations

import copy

import pytest
import torch
from monai.networks.nets import DynUNet, SegResNet, UNet
from torch import nn

from medseg.core.norm import GroupNormAct, InstanceNormAct, fuse_norm_act
from medseg.core.norm.fuse_act import FusedResBlock

LEAKY = ("leakyrelu", {"inplace": True, "negative_slope": 0.1})
GROUP = ("group", {"num_groups": 2})


def build_dynunet(**options) -> nn.Module:
    return DynUNet(
        3, 1, 2, [3, 3, 3], [1, 2, 2], [2, 2], filters=[4, 8, 8], norm_name=("instance", {"affine": True}),
        act_name=LEAKY, **options
    )  # fmt: skip


def build_plain_conv_unet() -> nn.Module:
    module = pytest.importorskip("dynamic_network_architectures.architectures.unet")
    return module.PlainConvUNet(
        1, 2, [4, 8], nn.Conv3d, 3, [1, 2], 1, 2, 1, norm_op=nn.InstanceNorm3d, norm_op_kwargs={"affine": True},
        nonlin=nn.LeakyReLU, nonlin_kwargs={"inplace": True}
    )  # fmt: skip


# Network, and how many of its norms have an activation behind them (or a sum, in residual blocks).
NETWORKS = {
    "DynUNet": (build_dynunet, 10),
    "DynUNet, residual": (lambda: build_dynunet(res_block=True), 13),
    "DynUNet, deep supervision": (lambda: build_dynunet(deep_supervision=True, deep_supr_num=1), 10),
    "UNet": (lambda: UNet(3, 1, 2, (4, 8), (2,), act="relu", norm=GROUP, num_res_units=2), 5),
    "SegResNet": (lambda: SegResNet(3, 4, 1, 2, blocks_down=(1, 1), blocks_up=(1,), norm=GROUP), 7),
    "PlainConvUNet": (build_plain_conv_unet, 3),
}  # fmt: skip


@pytest.fixture(params=NETWORKS)
def pair(request) -> tuple[nn.Module, nn.Module, int]:
    torch.manual_seed(0)
    build, count = NETWORKS[request.param]
    network = build()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.rand_like(parameter))
    return network, copy.deepcopy(network), count


def test_a_network_with_fused_layers_computes_the_same_with_the_same_gradients(pair):
    network, fused, count = pair
    assert fuse_norm_act(fused) == count
    assert list(fused.state_dict()) == list(network.state_dict())
    fused.load_state_dict(network.state_dict())
    x = torch.randn(1, 1, 8, 8, 8)
    for training in (True, False):
        found = []
        for model in (network, fused):
            y = model.train(training)(x)
            gradients = torch.autograd.grad(y.square().mean(), list(model.parameters()), allow_unused=True)
            found.append((y, *[g for g in gradients if g is not None]))
        for got, want in zip(found[1], found[0], strict=True):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6 + 1e-4 * float(want.detach().abs().max()))


def test_an_optimizer_made_before_still_holds_the_parameters():
    network = build_dynunet()
    before = {id(p) for p in network.parameters()}
    fuse_norm_act(network)
    assert {id(p) for p in network.parameters()} == before


def test_channels_last_goes_through_a_residual_block():
    network = build_dynunet(res_block=True)
    fuse_norm_act(network)
    block = next(m for m in network.modules() if isinstance(m, FusedResBlock))
    x = torch.randn(1, 1, 8, 8, 8).to(memory_format=torch.channels_last_3d)
    layer = InstanceNormAct(4)
    assert block.to(memory_format=torch.channels_last_3d)(x).shape[1] == 4
    assert layer(torch.randn(1, 4, 8, 8, 8).to(memory_format=torch.channels_last_3d)).is_contiguous(
        memory_format=torch.channels_last_3d
    )


def test_an_activation_that_serves_elsewhere_stays_there():
    act = nn.ReLU()
    network = nn.Sequential(nn.Sequential(nn.InstanceNorm2d(2), act), nn.Sequential(nn.Conv2d(2, 2, 1), act))
    assert fuse_norm_act(network) == 1
    assert network[1][1] is act
    assert isinstance(network[0][0], InstanceNormAct)


def test_norms_with_hooks_remembered_statistics_or_other_activations_stay():
    hooked = nn.InstanceNorm2d(2)
    hooked.register_forward_hook(lambda module, inputs, output: 2 * output)
    for norm, act in (
        (hooked, nn.ReLU()),
        (nn.InstanceNorm2d(2, track_running_stats=True), nn.ReLU()),
        (nn.BatchNorm2d(2), nn.ReLU()),
        (nn.InstanceNorm2d(2), nn.PReLU()),
    ):
        with pytest.raises(ValueError, match="found no instance or group norm with a ReLU"):
            fuse_norm_act(nn.Sequential(norm, act))


@pytest.mark.parametrize(
    ("act", "function"), [("relu", torch.relu), ("silu", nn.functional.silu), ("none", nn.Identity())]
)
def test_the_layers_are_norm_residual_and_activation(act, function):
    x, residual = torch.randn(2, 4, 3, 5), torch.randn(2, 4, 3, 5)
    got = GroupNormAct(4, 2, act=act)(x, residual)
    torch.testing.assert_close(got, function(nn.functional.group_norm(x, 2) + residual))


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="act must be one of none, relu, leaky_relu, silu, got 'tanh'"):
        InstanceNormAct(4, act="tanh")
    with pytest.raises(ValueError, match="num_groups must divide"):
        GroupNormAct(4, 3)
    with pytest.raises(ValueError, match="the network that holds it"):
        fuse_norm_act(next(m for m in build_dynunet(res_block=True).modules() if type(m).__name__ == "UnetResBlock"))
