"""Norms of transformers: exact conversion to RMS and CRMS, where norms stand, and how they are removed."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from monai.networks.blocks import TransformerBlock
from monai.networks.nets import UNETR, SwinUNETR, UNet, ViT
from torch import nn

from medseg.core.norm import (
    CRMSNorm,
    FrozenScaleLayerNorm,
    NormRemovalSchedule,
    RMSNorm,
    convert_norm,
    convert_preln,
    fold_frozen_norms,
    place_norms,
    uniform_std_loss,
)
from tests.core.norm.test_golden import close, of, read


def vit(layers: int = 4, **more) -> ViT:
    torch.manual_seed(0)
    network = ViT(1, 16, 8, 16, 24, layers, 2, spatial_dims=2, **more)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.LayerNorm):
                module.weight.uniform_(0.5, 2)
                module.bias.normal_()
    return network


def swinunetr(**more) -> SwinUNETR:
    size = {"depths": (2, 1, 1, 1), "num_heads": (2, 2, 2, 2), "window_size": 2, "feature_size": 12}
    return SwinUNETR(1, 2, **(size | more), spatial_dims=2)


IMAGE = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))


class StoredTransformer(nn.Module):
    """The transformer of the golden values."""

    def __init__(self, golden) -> None:
        super().__init__()
        size = golden["pb"].numel()
        self.embed = nn.Linear(golden["pw"].shape[1], size)
        self.pos = nn.Parameter(golden["pos"])
        depth = len(golden["in_w"])
        self.blocks = nn.ModuleList(
            TransformerBlock(size, golden["m1_b"].shape[1], int(golden["heads"]), qkv_bias=True) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(size)
        self.head = nn.Linear(size, golden["hb"].numel())
        self.double()
        parts = [(self.embed, golden["pw"], golden["pb"]), (self.head, golden["hw"], golden["hb"])]
        for i, block in enumerate(self.blocks):
            parts.append((block.attn.qkv, golden["in_w"][i], golden["in_b"][i]))
            parts.append((block.attn.out_proj, golden["out_w"][i], golden["out_b"][i]))
            parts.append((block.mlp.linear1, golden["m1_w"][i], golden["m1_b"][i]))
            parts.append((block.mlp.linear2, golden["m2_w"][i], golden["m2_b"][i]))
        for layer, weight, bias in parts:
            layer.weight.data, layer.bias.data = weight.clone(), bias.clone()

    def forward(self, x):
        x = self.embed(x) + self.pos
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))

    def plan(self):
        readers, writers = {"norm": ["head"]}, ["embed", "pos"]
        for i in range(len(self.blocks)):
            readers |= {f"blocks.{i}.norm1": [f"blocks.{i}.attn.qkv"], f"blocks.{i}.norm2": [f"blocks.{i}.mlp.linear1"]}
            writers += [f"blocks.{i}.attn.out_proj", f"blocks.{i}.mlp.linear2"]
        return {"readers": readers, "writers": writers}


@pytest.mark.parametrize("name", of("rms_norm/preln"))
def test_conversion_has_its_golden_values(name):
    golden = read(name)
    model = StoredTransformer(golden)
    close(model(golden["x"]), golden["y_preln"], "layer norm")
    for target in ("rms", "crms"):
        close(convert_preln(model, target, model.plan())(golden["x"]), golden[f"y_pre{target}"], target)


@pytest.mark.parametrize("target", ["rms", "crms"])
@pytest.mark.parametrize("more", [{}, {"qkv_bias": True, "proj_type": "perceptron"}])
def test_a_vit_is_converted_exactly(target, more):
    network = vit(classification=True, **more).double().eval()
    converted = convert_preln(network, target, check_input=IMAGE.double(), atol=1e-12)
    kind = {"rms": RMSNorm, "crms": CRMSNorm}[target]
    assert sum(isinstance(m, kind) for m in converted.modules()) == 9
    assert isinstance(network.blocks[0].norm1, nn.LayerNorm)  # the original stays


def test_a_vit_without_a_head_keeps_its_last_norm_and_refuses_crms():
    network = vit().eval()
    converted = convert_preln(network, check_input=IMAGE)
    assert isinstance(converted.norm, nn.LayerNorm)
    with pytest.raises(ValueError, match="no linear layer reads norm"):
        convert_preln(network, "crms")


def test_trainable_conversion_keeps_the_means_at_zero():
    converted = convert_preln(vit(), trainable=True)
    optimiser = torch.optim.SGD(converted.parameters(), 0.1)
    converted(IMAGE)[0].square().mean().backward()
    optimiser.step()
    assert converted.blocks[0].mlp.linear2.weight.mean(0).abs().max() < 1e-6


def test_what_would_change_is_not_converted():
    unetr = UNETR(1, 2, 16, feature_size=4, hidden_size=8, mlp_dim=8, num_heads=2, spatial_dims=2)
    with pytest.raises(ValueError, match="decoder reads the residual stream without a norm"):
        convert_preln(unetr)
    with pytest.raises(ValueError, match="depends on their means"):
        convert_preln(swinunetr())
    with pytest.raises(ValueError, match="no plan is known for UNet"):
        convert_preln(UNet(2, 1, 2, channels=(4, 8), strides=(2,)))
    plan = {"readers": {"blocks.0.norm1": ["blocks.0.attn.qkv"]}, "writers": ["blocks.0.mlp.linear2"]}
    with pytest.raises(ValueError, match="the new network differs by"):
        convert_preln(vit(), plan=plan, check_input=IMAGE)


def test_mix_ln_and_post_ln_are_their_formulas():
    network = vit()
    assert convert_norm(network, ["mix_ln", {"alpha": 0.5}]) == 4
    kinds = [type(block).__name__ for block in network.blocks]
    assert kinds == ["PostNormTransformerBlock"] * 2 + ["TransformerBlock"] * 2
    block, x = network.blocks[0], torch.randn(2, 4, 16)
    after = block.norm1_behind(x + block.attn(x))
    torch.testing.assert_close(block(x), block.norm2_behind(after + block.mlp(after)))
    assert place_norms(vit(), "mix_ln", alpha=0.2) == 4  # floor(0.8) = 0 blocks


def test_peri_ln_is_its_formula():
    network = vit()
    x = torch.randn(2, 4, 16)
    block = network.blocks[1]
    place_norms(network, "peri_ln")
    behind = nn.functional.layer_norm(block.attn.forward(block.norm1(x)), (16,))
    middle = x + behind
    expected = middle + nn.functional.layer_norm(block.mlp.forward(block.norm2(middle)), (16,))
    torch.testing.assert_close(block(x), expected)
    embedded = network.patch_embedding(IMAGE)
    assert embedded.mean(-1).abs().max() < 1e-5
    with pytest.raises(ValueError, match="applied already"):
        place_norms(network, "peri_ln")


def test_layernorm_scaling_divides_by_the_root_of_the_block_number():
    plain, scaled = vit(), vit()
    place_norms(scaled, "layernorm_scaling")
    x = torch.randn(2, 4, 16)
    torch.testing.assert_close(scaled.blocks[0](x), plain.blocks[0](x))
    for number, (a, b) in enumerate(zip(plain.blocks, scaled.blocks, strict=True), 1):
        torch.testing.assert_close(b.norm2(x), a.norm2(x) / math.sqrt(number))
    torch.testing.assert_close(scaled.norm(x), plain.norm(x))


@pytest.mark.parametrize("placement", ["post_ln", "mix_ln", "peri_ln", "layernorm_scaling"])
def test_placements_train_in_monais_transformers(placement):
    torch.manual_seed(0)
    unetr = UNETR(1, 2, 32, feature_size=4, hidden_size=8, mlp_dim=8, num_heads=2, spatial_dims=2)
    for network, x, blocks in ((unetr, torch.randn(1, 1, 32, 32), 12), (swinunetr(), torch.randn(1, 1, 64, 64), 5)):
        assert convert_norm(network, placement) == blocks
        network(x).square().mean().backward()
        unused = {n for n, p in network.named_parameters() if p.grad is None}
        # The last norm of UNETR's ViT is read; MONAI's unused norm of cross attention is not.
        assert all("norm_cross_attn" in name for name in unused)
        again = pickle.loads(pickle.dumps(copy.deepcopy(network)))
        assert torch.equal(again.eval()(x), network.eval()(x))


def test_stages_count_their_blocks_anew_unless_told_otherwise():
    for restart, last in ((True, 1.0), (False, 1 / math.sqrt(5))):
        network = swinunetr()
        place_norms(network, "layernorm_scaling", restart_per_stage=restart)
        assert network.swinViT.layers1[0].blocks[1].norm1.output_scale == pytest.approx(1 / math.sqrt(2))
        assert network.swinViT.layers4[0].blocks[0].norm1.output_scale == pytest.approx(last)


def test_variance_grows_less_with_scaled_and_peri_norms():
    torch.manual_seed(0)
    x = torch.randn(8, 16, 32)

    def grow(placement: str | None) -> float:
        torch.manual_seed(1)
        network = nn.Module()
        network.blocks = nn.ModuleList(TransformerBlock(32, 64, 2) for _ in range(24))
        with torch.no_grad():
            for p in network.parameters():
                if p.ndim > 1:
                    p.mul_(3)
        if placement:
            place_norms(network, placement)
        y = x
        for block in network.blocks:
            y = block(y)
        return float((y.var() / x.var()).detach())

    plain, scaled, peri = grow(None), grow("layernorm_scaling"), grow("peri_ln")
    assert scaled < 0.5 * plain
    assert 1 + 24 < peri < 1 + 3 * 24  # two branches of variance one a block


def test_unknown_placements_and_networks_are_refused():
    with pytest.raises(ValueError, match="placement must be one of post_ln"):
        place_norms(vit(), "sandwich")
    with pytest.raises(ValueError, match="has no transformer blocks"):
        convert_norm(UNet(2, 1, 2, channels=(4, 8), strides=(2,)), "peri_ln")
    with pytest.raises(ValueError, match="alpha must be from 0 to 1"):
        place_norms(vit(), "mix_ln", alpha=2)
    network = vit()
    place_norms(network, "post_ln")
    with pytest.raises(ValueError, match="cannot make a PostNormTransformerBlock"):
        place_norms(network, "post_ln")
    with pytest.raises(ValueError, match="do not checkpoint"):
        place_norms(swinunetr(use_checkpoint=True), "post_ln")


def test_norms_leave_in_order_and_fold_away():
    network = vit(layers=2)
    schedule = NormRemovalSchedule(network, start=2, gap=1)
    gone = []
    for step in range(8):
        network(IMAGE + step)
        gone += schedule.step(step)
    assert gone == ["blocks.0.norm2", "blocks.1.norm2", "blocks.0.norm1", "blocks.1.norm1"]
    folded, count = fold_frozen_norms(network, IMAGE)
    assert count == 4
    assert [type(m).__name__ for m in folded.modules() if isinstance(m, (nn.LayerNorm, FrozenScaleLayerNorm))] == [
        "LayerNorm", "LayerNorm", "LayerNorm",
    ]  # fmt: skip  # the final norm and MONAI's two unused ones


def test_a_frozen_norm_divides_by_the_average_deviation():
    layer = FrozenScaleLayerNorm(4, momentum=0.5)
    with pytest.raises(ValueError, match="no deviation was seen"):
        layer.freeze()
    first, second = torch.tensor([[3.0, -3, 3, -3]]), torch.tensor([[1.0, -1, 1, -1]])
    torch.testing.assert_close(layer(first), nn.functional.layer_norm(first, (4,)))
    layer(second)
    layer.freeze()
    torch.testing.assert_close(layer(second), second / 2, rtol=1e-4, atol=1e-4)
    assert layer.sigma.item() == pytest.approx(2, rel=1e-4)
    with pytest.raises(ValueError, match="must be a LayerNorm over features, got Linear"):
        NormRemovalSchedule(vit(), ["blocks.0.mlp.linear1"])


def test_the_deviation_loss_leaves_masked_tokens_out_of_the_average():
    h = torch.tensor([[[1.0, -1.0], [3.0, -3.0]]], requires_grad=True)
    mask = torch.tensor([[True, False]])
    assert uniform_std_loss(h, mask).item() == pytest.approx(2, rel=1e-3)
    with pytest.raises(ValueError, match="mask must be"):
        uniform_std_loss(h, ~torch.ones(1, 2, dtype=torch.bool))
