"""Tests of `medseg.networks.feature_tap`."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from monai.bundle import ConfigParser
from monai.networks.nets import UNETR, BasicUNet, DynUNet, SwinUNETR, UNet

from medseg.networks import FeatureTap


def unet(dims=2):
    return UNet(dims, 1, 3, (4, 8, 16, 32), (2, 2, 2), num_res_units=1)


def dynunet(dims=2):
    return DynUNet(dims, 1, 3, [3] * 3, [1, 2, 2], [2, 2], filters=[4, 8, 16])


def unetr(dims=2):
    pytest.importorskip("einops", reason="MONAI's transformers need einops")
    size = (48, 32, 32)[:dims]
    return UNETR(1, 3, size, feature_size=4, hidden_size=24, mlp_dim=48, num_heads=4, spatial_dims=dims)


def swin_unetr(dims=2):
    pytest.importorskip("einops", reason="MONAI's transformers need einops")
    return SwinUNETR(1, 3, feature_size=12, depths=(1, 1, 1, 1), num_heads=(1, 2, 2, 2), spatial_dims=dims)


# The network, an input size, and the shape of the features at the end of its encoder.
NETWORKS = {
    "UNet": (unet, (48, 32, 32), (32, 6, 4, 4)),
    "DynUNet": (dynunet, (48, 32, 32), (16, 12, 8, 8)),
    "UNETR": (unetr, (48, 32, 32), (24, 3, 2, 2)),
    "SwinUNETR": (swin_unetr, (96, 64, 64), (192, 3, 2, 2)),
}


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", NETWORKS)
def test_output_and_deepest_features_come_together(name, dims):
    if name == "SwinUNETR" and dims == 3:
        pytest.skip("seconds for what 2D shows")
    build, size, features = NETWORKS[name]
    network = build(dims).eval()
    x = torch.randn(2, 1, *size[:dims])
    output, found = FeatureTap(network).eval()(x)
    assert torch.equal(output, network(x))
    assert found.shape == (2, *features[: dims + 1])


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_of_the_features_reach_the_encoder_and_not_the_decoder(name):
    build, size, _ = NETWORKS[name]
    tap = FeatureTap(build())
    _, features = tap(torch.randn(2, 1, *size[:2]))
    features.square().mean().backward()
    reached = {n for n, p in tap.model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert reached
    assert len(reached) < len(list(tap.model.parameters()))
    assert not any(n.startswith(("out", "decoder", "output_block", "model.2")) for n in reached)


def test_the_grid_of_the_tokens_is_that_of_the_image():
    network = unetr().eval()
    heard = []
    network.decoder5.register_forward_hook(lambda _, given, __: heard.append(given[0]))
    _, features = FeatureTap(network)(torch.randn(1, 1, 48, 32))
    assert torch.equal(features, heard[0])


@pytest.mark.parametrize("name", ["UNet", "DynUNet"])
def test_a_tap_can_be_exported_copied_and_pickled(name):
    build, size, _ = NETWORKS[name]
    tap, x = FeatureTap(build()).eval(), torch.randn(1, 1, *size[:2])
    expected = tap(x)
    exported = torch.export.export(tap, (x,)).module()
    for other in (exported, copy.deepcopy(tap), pickle.loads(pickle.dumps(tap))):
        for got, wanted in zip(other(x), expected, strict=True):
            torch.testing.assert_close(got, wanted)


def test_the_network_stays_as_it_was():
    network = unet()
    names = list(network.state_dict())
    tap = FeatureTap(network)
    tap(torch.randn(1, 1, 32, 32))
    assert list(network.state_dict()) == names
    assert list(tap.state_dict()) == [f"model.{name}" for name in names]
    assert not any(module._forward_hooks for module in network.modules())
    with pytest.raises(RuntimeError):
        tap(torch.randn(1, 2, 32, 32))
    assert not any(module._forward_hooks for module in network.modules()), "an error must not leave the hook"


def test_any_layer_can_be_named():
    network = BasicUNet(2, 1, 2, features=(4, 4, 8, 8, 8, 4))
    _, features = FeatureTap(network, "down_3")(torch.randn(1, 1, 32, 32))
    assert features.shape == (1, 8, 4, 4)
    with pytest.raises(ValueError, match="knows UNet, DynUNet, UNETR and SwinUNETR, not BasicUNet; name a layer"):
        FeatureTap(network)
    with pytest.raises(ValueError, match=r"layer 'down_9' is no part of BasicUNet.*conv_0, down_1"):
        FeatureTap(network, "down_9")


def test_layers_that_give_no_features_are_named_in_the_error():
    class Odd(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.pair, self.unused = torch.nn.LSTM(3, 4), torch.nn.Linear(3, 3)

        def forward(self, x):
            return self.pair(x)[0]

    with pytest.raises(ValueError, match=r"layer 'pair' must give one tensor .*got tuple"):
        FeatureTap(Odd(), "pair")(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="layer 'unused' was not run by Odd"):
        FeatureTap(Odd(), "unused")(torch.zeros(2, 3))


def test_a_bundle_taps_the_network_it_refers_to():
    network = {"_target_": "UNet", "spatial_dims": 2, "in_channels": 1, "out_channels": 2, "channels": [4, 8]}
    config = {
        "network": {**network, "strides": [2]},
        "tap": {"_target_": "medseg.networks.FeatureTap", "model": "@network"},
    }
    parser = ConfigParser(config)
    assert parser.get_parsed_content("tap").model is parser.get_parsed_content("network")
