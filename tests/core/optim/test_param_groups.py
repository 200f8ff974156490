"""Groups by decay, scale invariance and layer, and layers that are frozen one after another."""

from __future__ import annotations

import pytest
import torch
from monai.networks.nets import DynUNet, UNet, ViT
from torch import nn

from medseg.core.optim import (
    AdamP,
    ProgressiveFreezing,
    decay_groups,
    find_layers,
    find_scale_invariant,
    freezing_milestones,
    layerwise_param_groups,
    scale_invariant_param_groups,
)

SHAPE = (1, 1, 16, 16)


def small_unet(**options):
    return UNet(2, 1, 2, (4, 8, 16), (2, 2), **options)


def small_nnunet(norm="instance"):
    filters = [4, 8, 8]
    return DynUNet(2, 1, 2, [3, 3, 3], [1, 2, 2], [2, 2], filters=filters, norm_name=norm)


def names_in(model, groups):
    names = {id(p): name for name, p in model.named_parameters()}
    return [[names[id(p)] for p in group["params"]] for group in groups]


def test_matrices_of_layers_decay_and_nothing_else_does():
    model = nn.Sequential(nn.Conv3d(1, 4, 3), nn.GroupNorm(2, 4), nn.MultiheadAttention(4, 2), nn.Embedding(3, 4))
    groups = decay_groups(model, 0.1)
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    assert names_in(model, groups)[0] == ["0.weight", "2.in_proj_weight", "2.out_proj.weight"]
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    model.requires_grad_(False)
    assert decay_groups(model, 0.1) == []


def scales_have_no_effect(model, name, invariance):
    """Scaling each row of a weight by a factor of its own changes the output by nothing but rounding and eps."""
    image = torch.randn(2, *SHAPE[1:], generator=torch.Generator().manual_seed(0))
    weight = dict(model.named_parameters())[name]
    with torch.no_grad():
        before = model(image)
        rows = invariance.channel_groups or weight.shape[invariance.channel_dim]
        factors = torch.linspace(2.0, 3.0, rows).repeat_interleave(weight.shape[invariance.channel_dim] // rows)
        shape = [-1 if axis == invariance.channel_dim else 1 for axis in range(weight.ndim)]
        weight.mul_(factors.view(shape))
        after = model(image)
        weight.div_(factors.view(shape))
    return torch.allclose(before, after, atol=1e-2 * before.abs().max().item())


@pytest.mark.parametrize(
    "make", [small_unet, small_nnunet, lambda: small_nnunet(("group", {"num_groups": 4}))], ids=["UNet", "nn", "group"]
)
def test_weights_that_are_found_scale_invariant_are_and_the_others_are_not(make):
    torch.manual_seed(0)
    model = make().eval()
    found = find_scale_invariant(model, SHAPE)
    assert len(found) >= 4
    for name, invariance in found.items():
        assert scales_have_no_effect(model, name, invariance), name
    first = next(iter(found.values()))
    head = [name for name, p in model.named_parameters() if p.ndim > 1 and name not in found]
    assert head
    assert not any(scales_have_no_effect(model, name, first._replace(channel_groups=1)) for name in head[-1:])


def test_transposed_convolutions_are_found_along_their_second_axis():
    found = find_scale_invariant(small_unet(), SHAPE)
    assert {found[name].channel_dim for name in found if "2.0" in name or "submodule.2" in name} == {1}


def test_what_feeds_a_sum_or_has_a_bias_before_group_norm_is_not_counted():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(1, 4, 3, padding=1), nn.InstanceNorm2d(4)

        def forward(self, x):
            out = self.conv(x)
            return self.norm(out) + out.mean()

    assert find_scale_invariant(Residual(), SHAPE) == {}
    assert find_scale_invariant(nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4)), SHAPE) == {}
    linear = nn.Sequential(nn.Linear(16, 8, bias=False), nn.LayerNorm(8))
    assert find_scale_invariant(linear, SHAPE)["0.weight"].channel_groups == 1


def test_tracing_leaves_the_network_as_it_was():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)).train()
    model[0].eval()
    find_scale_invariant(model, SHAPE)
    assert [module.training for module in model] == [False, True]
    assert model[1].num_batches_tracked == 0


def test_groups_for_adamp_hold_every_parameter_once_and_train():
    model = small_unet()
    groups = scale_invariant_param_groups(model, SHAPE, weight_decay=0.01)
    modes = [group["scale_invariant"] for group in groups]
    assert modes == sorted(modes, key=(True, "cosine", False).index)
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    assert all(group["weight_decay"] == (0.0 if group["scale_invariant"] is False else 0.01) for group in groups)
    optimizer = AdamP(groups, lr=0.01)
    model(torch.randn(1, *SHAPE[1:])).square().mean().backward()
    optimizer.step()
    assert all(torch.isfinite(p).all() for p in model.parameters())


@pytest.mark.parametrize(
    ("make", "first", "last"),
    [
        (small_nnunet, "input_block.conv1.conv.weight", "output_block.conv.conv.weight"),
        (
            lambda: ViT(1, (16, 16), (8, 8), hidden_size=8, mlp_dim=8, num_layers=3, num_heads=2, spatial_dims=2),
            "patch_embedding.patch_embeddings.weight",
            "norm.weight",
        ),
    ],
    ids=["U-Net", "transformer"],
)
def test_layers_run_from_the_stem_to_the_head_and_hold_everything(make, first, last):
    model = make()
    layers = find_layers(model, SHAPE, count=5)
    assert len(layers) == 5
    assert first in layers[0]
    assert last in layers[-1]
    assert sorted(name for names in layers for name in names) == sorted(name for name, _ in model.named_parameters())
    groups = layerwise_param_groups(model, layers, lr=1.0, decay=0.5, weight_decay=0.1)
    assert {group["lr"] for group in groups} == {0.5**k for k in range(5)}
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


def test_the_longest_beginning_of_a_name_decides_on_its_layer():
    model = nn.Sequential(nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)))
    groups = layerwise_param_groups(model, [["0"], ["0.1"]], lr=1.0)
    assert [(group["layer"], group["lr"]) for group in groups] == [(0, 0.5), (1, 1.0)]
    with pytest.raises(ValueError, match=r"layers must hold every parameter, but \['0.0.weight'\] of 1"):
        layerwise_param_groups(model, [["0.1"]], lr=1.0)
    with pytest.raises(ValueError, match=r"\['head'\], which name no parameter"):
        layerwise_param_groups(model, [["0"], ["head"]], lr=1.0)
    with pytest.raises(ValueError, match="decay must be above 0, got 0"):
        layerwise_param_groups(model, [["0"]], lr=1.0, decay=0)


def three_layers():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 1)), [["0"], ["1"], ["2"]]


def test_frozen_layers_stay_and_lose_their_state_while_the_head_learns():
    model, layers = three_layers()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    freezing = ProgressiveFreezing(model, layers, [2, 4], optimizer)
    weights, frozen = [], []
    for count in range(6):
        model.train()
        frozen.append(freezing.step(count))
        optimizer.zero_grad()
        model(torch.randn(4, 2)).square().mean().backward()
        optimizer.step()
        weights.append([p.detach().clone() for p in (model[0].weight, model[1].running_mean, model[2].weight)])
    assert frozen == [[], [], [0], [0], [0, 1], [0, 1]]
    assert torch.equal(weights[1][0], weights[5][0])
    assert torch.equal(weights[3][1], weights[5][1])
    assert not torch.equal(weights[4][2], weights[5][2])
    assert not any(p in optimizer.state for p in model[0].parameters())
    assert not model[1].training


def test_thawing_goes_from_the_head_to_the_stem():
    model, layers = three_layers()
    frozen_before = nn.Parameter(torch.ones(1), requires_grad=False)
    model[2].register_parameter("never", frozen_before)
    thawing = ProgressiveFreezing(model, layers, [4, 2], unfreeze=True)
    assert [thawing.step(count) for count in (0, 2, 4)] == [[0, 1], [0], []]
    assert not frozen_before.requires_grad
    assert model[0].weight.requires_grad


def test_milestones_are_even_and_wrong_ones_are_named():
    assert freezing_milestones(3, 100, 0.1, 0.5) == [10, 50]
    assert freezing_milestones(2, 100) == [20]
    with pytest.raises(ValueError, match="layers >= 2"):
        freezing_milestones(1, 100)
    model, layers = three_layers()
    with pytest.raises(ValueError, match=r"each of the 2 layers below the head.* \[1\]"):
        ProgressiveFreezing(model, layers, [1])
