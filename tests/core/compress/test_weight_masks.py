"""`WeightMasks`, `prune_magnitude`, `find_prunable`, `find_essential_sparsity`: the right layers, masks that hold."""

from __future__ import annotations

import copy

import pytest
import torch
from monai.networks.nets import DynUNet
from torch import nn
from torch.nn.utils import prune as torch_prune

from medseg.core.compress import WeightMasks, find_essential_sparsity, find_prunable, prune_magnitude
from medseg.core.optim import AdamP, FrugalAdamW, Lion

SHAPE = (1, 1, 8, 8)
OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
    "adamp": lambda p: AdamP(p, lr=0.01),
    "lion": lambda p: Lion(p, lr=0.01),
    "frugal": lambda p: FrugalAdamW(p, lr=0.01),
}


def make_network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.InstanceNorm2d(6, affine=True), nn.ReLU(),
        nn.Conv2d(6, 6, 3, padding=1), nn.InstanceNorm2d(6, affine=True), nn.ReLU(),
        nn.Conv2d(6, 2, 1),
    )  # fmt: skip


def train(model, optimizer, steps=4):
    for step in range(steps):
        torch.manual_seed(step)
        optimizer.zero_grad()
        model(torch.randn(2, *SHAPE[1:])).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_pruned_weights_stay_zero_while_the_others_learn(name):
    model = make_network()
    masks = prune_magnitude(model, 0.7, SHAPE)
    mask = masks.state_dict()["3.weight"]
    before = model[3].weight.detach().clone()
    optimizer = OPTIMIZERS[name](model.parameters())
    masks.attach(optimizer)
    train(model, optimizer)
    after = model[3].weight.detach()
    assert (after[~mask] == 0).all()
    assert (after[mask] != before[mask]).any()


def test_a_training_is_the_one_with_masks_of_torch():
    ours, theirs = make_network(), make_network()
    masks = prune_magnitude(ours, 0.7, SHAPE)
    torch_prune.custom_from_mask(theirs[3], "weight", masks.state_dict()["3.weight"])
    # Without decay: that of a pruned weight lives on in torch's `weight_orig`, where it has no effect either.
    optimizers = [torch.optim.Adam(model.parameters(), lr=0.01) for model in (ours, theirs)]
    masks.attach(optimizers[0])
    for model, optimizer in zip((ours, theirs), optimizers, strict=True):
        train(model, optimizer)
    x = torch.randn(SHAPE)
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=0)


def test_a_masked_network_can_be_copied_and_saved_under_its_usual_names():
    model = make_network()
    masks = prune_magnitude(model, 0.5, SHAPE)
    model(torch.randn(SHAPE))
    assert model.state_dict().keys() == make_network().state_dict().keys()
    other = copy.deepcopy(model)
    again = WeightMasks(other, {})
    again.load_state_dict(masks.state_dict())
    assert again.kept == masks.kept
    assert again.sparsity == pytest.approx(0.5, abs=0.01)


def test_taking_the_handles_away_ends_it():
    model = make_network()
    masks = prune_magnitude(model, 0.5, SHAPE)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for handle in masks.attach(optimizer):
        handle.remove()
    train(model, optimizer, 1)
    assert (model[3].weight[~masks.state_dict()["3.weight"]] != 0).any()


def test_masks_of_another_network_are_refused():
    with pytest.raises(ValueError, match=r"masks\['3.weight'\] has shape \(2,\), but the parameter has \(6, 6, 3, 3\)"):
        WeightMasks(make_network(), {"3.weight": torch.ones(2)})
    with pytest.raises(ValueError, match="None: there is none of this name"):
        WeightMasks(make_network(), {"9.weight": torch.ones(2)})


def test_scale_of_filters_does_not_decide_unless_asked():
    found = {}
    for aware in (True, False):
        model, scaled = make_network(), make_network()
        with torch.no_grad():
            scaled[3].weight[0] *= 100
        found[aware] = [
            prune_magnitude(m, 0.6, SHAPE, scale_aware=aware).state_dict()["3.weight"] for m in (model, scaled)
        ]
    assert torch.equal(*found[True])
    assert not torch.equal(*found[False])


def test_a_unet_keeps_its_first_convolution_its_heads_and_what_is_not_run():
    network = DynUNet(2, 1, 2, [3] * 3, [1, 2, 2], [2, 2], filters=[4, 4, 4], deep_supervision=True, deep_supr_num=1)
    names = list(find_prunable(network, (1, 1, 16, 16)))
    matrices = [name for name, p in network.named_parameters() if p.ndim > 1]
    left = set(matrices) - set(names)
    assert left == {
        "input_block.conv1.conv.weight", "output_block.conv.conv.weight", "deep_supervision_heads.0.conv.conv.weight",
    }  # fmt: skip
    assert any("transp_conv" in name for name in names)
    # The network under this one stands under two names, and is pruned once.
    assert len(names) == len(matrices) - 3
    chosen = find_prunable(network, (1, 1, 16, 16), include=["output_block"], exclude=["bottleneck"])
    assert "output_block.conv.conv.weight" in chosen
    assert not any(name.startswith("bottleneck") for name in chosen)
    with pytest.raises(ValueError, match=r"exclude holds \['encoder'\], which fit no convolution"):
        find_prunable(network, (1, 1, 16, 16), exclude=["encoder"])


def test_every_layer_that_reads_the_image_is_first_and_the_mode_stays():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.main, self.side = nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(1, 2, 1)
            self.body, self.heads = nn.Conv2d(2, 2, 1), nn.ModuleList([nn.Conv2d(2, 1, 1), nn.Conv2d(2, 1, 1)])

        def forward(self, x):
            x = self.body(self.main(x) + self.side(x))
            return {"out": [head(x) for head in self.heads]}

    model = Residual().train()
    assert list(find_prunable(model, SHAPE)) == ["body.weight"]
    assert model.training


def test_weights_that_are_standardised_first_are_not_pruned():
    model = make_network()
    nn.utils.parametrize.register_parametrization(model[3], "weight", Centre())
    assert find_prunable(model, SHAPE) == {}
    with pytest.raises(ValueError, match="found no layer to prune between the first one and the heads"):
        prune_magnitude(model, 0.5, SHAPE)


class Centre(nn.Module):
    def forward(self, weight):
        return weight - weight.mean((1, 2, 3), keepdim=True)


def test_essential_sparsity_is_the_largest_before_the_drop():
    model = nn.Linear(100, 1, bias=False)
    metric = {0.5: 0.9, 0.7: 0.895, 0.8: 0.88, 0.9: 0.3}
    seen = []

    def prune(network, sparsity):
        assert network is not model
        seen.append(sparsity)

    found = find_essential_sparsity(
        model, prune, lambda network: 0.9 if network is model else metric[seen[-1]], sparsities=list(metric)
    )
    assert found == (0.7, 0.9, metric)
    nothing = find_essential_sparsity(model, prune, lambda network: float(network is model), sparsities=[0.1])
    assert nothing.sparsity == 0
