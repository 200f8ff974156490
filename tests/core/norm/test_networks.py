"""Layers of `medseg.core.norm` in MONAI's networks: by name, by exchange, and folded away."""

from __future__ import annotations

import pytest
import torch
from monai.bundle import ConfigParser
from monai.networks.layers import Norm
from monai.networks.nets import UNETR, BasicUNet, DynUNet, SegResNet, SwinUNETR, UNet
from torch import nn

import medseg.core.norm as norms
from medseg.core.norm import LayerNormChannel, PowerNorm, RMSNorm, UnifiedNorm, convert_norm, fold_norm, fold_norms

POWER = ("power", {"warmup_iters": 3})


def dynunet(norm="instance", **more) -> DynUNet:
    return DynUNet(3, 1, 2, [3, 3, 3], [1, 2, 2], [2, 2], filters=[4, 8, 8], norm_name=norm, **more)


def swinunetr(norm="instance") -> SwinUNETR:
    return SwinUNETR(
        1, 2, depths=(1, 1, 1, 1), num_heads=(2, 2, 2, 2), window_size=2, feature_size=12, norm_name=norm,
        spatial_dims=2
    )  # fmt: skip


def unetr(norm="instance") -> UNETR:
    return UNETR(1, 2, 32, feature_size=4, hidden_size=12, mlp_dim=12, num_heads=2, norm_name=norm, spatial_dims=2)


BUILDERS = {
    "UNet": lambda: UNet(3, 1, 2, channels=(4, 8), strides=(2,), norm=POWER),
    "BasicUNet": lambda: BasicUNet(2, 1, 2, features=(4, 4, 4, 4, 4, 4), norm=POWER),
    "SegResNet": lambda: SegResNet(3, init_filters=4, blocks_down=(1, 1), blocks_up=(1,), norm=POWER),
    "DynUNet": lambda: dynunet(POWER),
    "UNETR": lambda: unetr(POWER),
    "SwinUNETR": lambda: swinunetr(POWER),
}


@pytest.mark.parametrize("name", BUILDERS)
def test_a_network_takes_a_norm_by_name(name):
    network = BUILDERS[name]()
    layers = [m for m in network.modules() if isinstance(m, PowerNorm)]
    assert layers
    assert all(layer.warmup_iters == 3 for layer in layers)
    assert not [m for m in network.modules() if isinstance(m, nn.modules.instancenorm._InstanceNorm)]


def test_a_bundle_builds_a_network_with_a_norm_by_name():
    config = {
        "imports": ["$import medseg.core.norm"],
        "network": {
            "_target_": "UNet", "spatial_dims": 2, "in_channels": 1, "out_channels": 2, "channels": [4, 8],
            "strides": [2], "norm": ["unified", {"window": 2}],
        },
    }  # fmt: skip
    network = ConfigParser(config).get_parsed_content("network")
    assert any(isinstance(m, UnifiedNorm) for m in network.modules())


def test_registering_twice_is_harmless_and_keeps_monais_names():
    before = dict(Norm.components)
    assert norms.register_norms() == norms.register_norms()
    assert dict(Norm.components) == before
    assert Norm["batch", 3] is nn.BatchNorm3d
    with pytest.raises(ValueError, match="POWER"):
        Norm["powers", 3]


def test_exchanged_layers_keep_scale_shift_and_statistics():
    network = UNet(3, 1, 2, channels=(4, 8), strides=(2,), norm="batch")
    old = next(m for m in network.modules() if isinstance(m, nn.BatchNorm3d))
    with torch.no_grad():
        old.weight.fill_(2)
        old.running_mean.fill_(3)
    assert convert_norm(network, "ghost_batch") == 2
    new = next(m for m in network.modules() if isinstance(m, norms.GhostBatchNorm))
    assert new.weight.unique().tolist() == [2]
    assert new.running_mean.unique().tolist() == [3]
    assert convert_norm(network, "instance", "ghost_batch") == 2


def test_layer_norms_of_tokens_are_exchanged_with_the_same_function():
    torch.manual_seed(0)
    for network, count, x in ((unetr(), 37, torch.randn(1, 1, 32, 32)), (swinunetr(), 12, torch.randn(1, 1, 64, 64))):
        network.eval()
        before = network(x)
        assert convert_norm(network, ["layer_channel", {"eps": 1e-5}], "layer") == count
        assert sum(isinstance(m, LayerNormChannel) and m.channels_last for m in network.modules()) == count
        torch.testing.assert_close(network(x), before, rtol=1e-4, atol=1e-4)
        assert convert_norm(network, "rms", "layer_channel") == count
        assert any(isinstance(m, RMSNorm) for m in network.modules())
        assert torch.isfinite(network(x)).all()


def test_a_part_of_a_network_can_be_exchanged():
    network = swinunetr()
    all_of_it = sum(isinstance(m, nn.LayerNorm) for m in network.modules())
    assert convert_norm(network, "rms", "layer", within="swinViT.layers1") < all_of_it


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((nn.Sequential(nn.Conv2d(1, 1, 1)), "power"), "which has no normalisation at all"),
        ((nn.Sequential(nn.LayerNorm(4)), "power"), "which has LayerNorm"),
        ((nn.Sequential(nn.LayerNorm(4)), "power", "layer"), "use layer_channel, rms or crms"),
        ((nn.Sequential(nn.LayerNorm((4, 4))), "rms", "layer"), "only over channels alone"),
        ((nn.BatchNorm2d(4), "power"), "model is itself"),
        ((nn.Sequential(nn.LayerNorm(4)), "rms", "tokens"), "source must be of batch, instance"),
    ],
)
def test_what_cannot_be_exchanged_is_refused(arguments, text):
    with pytest.raises(ValueError, match=text):
        convert_norm(*arguments)


@pytest.mark.parametrize(
    "norm", ["batch", POWER, ("unified", {"warmup_iters": 1}), "l1_batch", "ghost_batch", "adab2n"]
)
@pytest.mark.parametrize("build", [dynunet, lambda norm: UNet(3, 1, 2, channels=(4, 8), strides=(2,), norm=norm)])
def test_folding_removes_norms_and_changes_nothing(norm, build):
    torch.manual_seed(0)
    network = build(norm)
    for _ in range(3):
        network(1 + torch.randn(2, 1, 8, 8, 8))
    kinds = sum(norms.is_norm(m) for m in network.modules())
    folded, count = fold_norms(network, torch.randn(1, 1, 8, 8, 8))
    assert count == kinds
    assert not any(norms.is_norm(m) for m in folded.modules())
    x = torch.randn(1, 1, 16, 16, 16)
    torch.testing.assert_close(folded(x), network.eval()(x), rtol=1e-4, atol=1e-4)


def test_folding_into_a_grouped_transposed_convolution():
    torch.manual_seed(0)
    conv, norm = nn.ConvTranspose2d(4, 6, 2, groups=2, bias=False), nn.BatchNorm2d(6)
    x = torch.randn(2, 4, 5, 5)
    norm(conv(x))
    with torch.no_grad():
        norm.weight.uniform_()
    expected = norm.eval()(conv(x))
    fold_norm(conv, norm)
    torch.testing.assert_close(conv(x), expected)


class UsedTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2)
        self.norm.running_mean.fill_(1)

    def forward(self, x):
        y = self.conv(x)
        return y + self.norm(y)


def test_folding_refuses_what_would_change_the_function():
    with pytest.raises(ValueError, match=r"differs by .* used beside its norm"):
        fold_norms(UsedTwice(), torch.randn(1, 1, 4, 4))
    with pytest.raises(ValueError, match="no norm with fixed statistics"):
        fold_norms(UNet(2, 1, 2, channels=(4, 8), strides=(2,)), torch.randn(1, 1, 8, 8))
    with pytest.raises(ValueError, match="cannot fold InstanceNorm2d into Conv2d"):
        fold_norm(nn.Conv2d(1, 1, 1), nn.InstanceNorm2d(1))
