"""Channel groups and weight matching: a shuffle changes nothing, and is undone exactly."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.networks.nets import BasicUNet, DynUNet, UNet
from torch import nn

from medseg.core.merge import (
    find_channel_groups,
    interpolate_weights,
    loss_barrier,
    match_weights,
    permute_channels,
)


def sequential():
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.PReLU(6), nn.Conv2d(6, 6, 3, padding=1, groups=6),
        nn.Conv2d(6, 5, 1), nn.GroupNorm(1, 5), nn.ReLU(inplace=True), nn.Conv2d(5, 2, 1),
    )  # fmt: skip


NETWORKS = {
    "sequential": (sequential, (1, 1, 8, 8)),
    "UNet": (lambda: UNet(2, 1, 3, (4, 6, 8), (2, 2), num_res_units=2), (1, 1, 16, 16)),
    "UNet without residuals": (lambda: UNet(3, 2, 2, (3, 4, 5), (2, 2), norm="batch"), (1, 2, 8, 8, 8)),
    "BasicUNet": (lambda: BasicUNet(2, 1, 2, (4, 4, 6, 6, 8, 4)), (1, 1, 32, 32)),
    "DynUNet": (
        lambda: DynUNet(3, 1, 3, [3, 3, 3], [1, 2, 2], [2, 2], filters=[4, 6, 8], res_block=True), (1, 1, 8, 8, 8)
    ),
}  # fmt: skip


def make(name, seed=0):
    torch.manual_seed(seed)
    build, shape = NETWORKS[name]
    model = build().eval()
    for module in model.modules():  # all that may differ between channels shall
        for key in ("weight", "bias", "running_mean", "running_var"):
            tensor = getattr(module, key, None)
            if isinstance(tensor, torch.Tensor) and tensor.ndim == 1:
                tensor.data.uniform_(0.5, 1.5)
    return model, shape


def shuffles(groups, seed):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randperm(group.size, generator=generator) for group in groups]


@pytest.mark.parametrize("name", NETWORKS)
def test_a_shuffle_changes_no_output_and_is_undone_exactly(name):
    model, shape = make(name)
    groups = find_channel_groups(model, shape)
    state = copy.deepcopy(model.state_dict())
    moved = permute_channels(state, groups, shuffles(groups, 1))
    changed = [key for key in state if not torch.equal(state[key], moved[key])]
    assert len(changed) > len(groups)
    other = copy.deepcopy(model)
    other.load_state_dict(moved)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(other(x), model(x), rtol=1e-4, atol=1e-5)
    back = permute_channels(moved, groups, match_weights(state, moved, groups))
    assert all(torch.equal(back[key], state[key]) for key in state)


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 999))
def test_a_shuffle_of_any_seed_is_undone_even_under_noise(seed):
    model, shape = make("UNet", seed)
    groups = find_channel_groups(model, shape)
    state = model.state_dict()
    generator = torch.Generator().manual_seed(seed)
    noisy = {
        key: value + 0.05 * value.std() * torch.randn(value.shape, generator=generator) if value.ndim > 1 else value
        for key, value in state.items()
    }
    orders = shuffles(groups, seed)
    found = match_weights(state, permute_channels(noisy, groups, orders), groups)
    for shuffle, order in zip(orders, found, strict=True):
        assert torch.equal(shuffle[order], torch.arange(len(order)))


def test_matching_brings_networks_trained_apart_closer_and_never_farther():
    (one, shape), (other, _) = make("UNet", 1), make("UNet", 2)
    groups = find_channel_groups(one, shape)
    matched = permute_channels(other.state_dict(), groups, match_weights(one.state_dict(), other.state_dict(), groups))

    def distance(state):
        return sum(float((a.detach() - state[key]).square().sum()) for key, a in one.named_parameters())

    assert distance(matched) < distance(other.state_dict())


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_that_agree_are_left_alone(name):
    model, shape = make(name)
    groups = find_channel_groups(model, shape)
    generator = torch.Generator().manual_seed(0)
    state = model.state_dict()
    near = {k: v + 0.02 * torch.randn(v.shape, generator=generator) if v.ndim > 1 else v for k, v in state.items()}
    for order in match_weights(state, near, groups):
        assert torch.equal(order, torch.arange(len(order)))


def test_channels_of_input_and_output_stay_and_residual_sums_move_together():
    model, shape = make("UNet")
    groups = find_channel_groups(model, shape)
    state = model.state_dict()
    first = next(key for key in state if key.endswith("conv.unit0.conv.weight"))
    assert (first, 1, 0) not in [member for group in groups for member in group.members]
    block = nn.Sequential(nn.Conv2d(1, 4, 1), _Residual(4), nn.Conv2d(4, 1, 1))
    (group,) = find_channel_groups(block, (1, 1, 4, 4))
    assert {name for name, _, _ in group.members} == {"0.weight", "0.bias", "1.conv.weight", "1.conv.bias", "2.weight"}
    assert find_channel_groups(_Residual(4), (1, 4, 4, 4)) == []


class _Residual(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x):
        return x + self.conv(x).relu()


def test_between_a_network_and_its_shuffle_there_is_a_barrier_that_matching_takes_away():
    model, shape = make("sequential")
    groups = find_channel_groups(model, shape)
    state = copy.deepcopy(model.state_dict())
    moved = permute_channels(state, groups, shuffles(groups, 3))
    x = torch.randn(4, *shape[1:], generator=torch.Generator().manual_seed(0))
    y = model(x).detach()

    def evaluate(weights):
        model.load_state_dict(weights)
        return (model(x) - y).square().mean().item()

    barrier, losses = loss_barrier(evaluate, state, moved, points=5)
    assert barrier == pytest.approx(max(losses))
    assert barrier > 1e-3
    back = permute_channels(moved, groups, match_weights(state, moved, groups))
    assert loss_barrier(evaluate, state, back, points=5)[0] == pytest.approx(0, abs=1e-9)


def test_the_middle_of_two_states_keeps_counters():
    one, other = {"w": torch.zeros(2), "n": torch.tensor(3)}, {"w": torch.ones(2), "n": torch.tensor(5)}
    middle = interpolate_weights(one, other)
    assert middle["w"].tolist() == [0.5, 0.5]
    assert middle["n"] == 3


class _Shuffle(nn.Module):
    def forward(self, x):
        return x.flip(1)


@pytest.mark.parametrize(
    ("layers", "match"),
    [
        ([nn.Conv2d(1, 4, 1), nn.GroupNorm(2, 4), nn.Conv2d(4, 1, 1)], "treats channels in a way that is not followed"),
        ([nn.Conv2d(1, 4, 1), _Shuffle(), nn.Conv2d(4, 1, 1)], "treats channels in a way that is not followed"),
        ([nn.Conv2d(1, 4, 1), nn.Conv2d(4, 4, 1, groups=2)], "2 groups of several channels is not followed"),
        ([nn.Conv2d(1, 4, 1), nn.Flatten(), nn.Linear(64, 2)], "flatten changes channels in a way"),
    ],
)
def test_what_cannot_be_followed_is_refused(layers, match):
    torch.manual_seed(0)
    with pytest.raises(ValueError, match=match):
        find_channel_groups(nn.Sequential(*layers), (1, 1, 4, 4))


def test_states_and_orders_that_do_not_fit_are_refused():
    model, shape = make("sequential")
    groups = find_channel_groups(model, shape)
    state = model.state_dict()
    with pytest.raises(ValueError, match="orders must hold a permutation for each of the 2 groups"):
        permute_channels(state, groups, [torch.zeros(6).long(), torch.arange(5)])
    with pytest.raises(ValueError, match=r"differ in 0\.weight"):
        match_weights(state, {**state, "0.weight": torch.zeros(1)}, groups)
    with pytest.raises(ValueError, match="points must be at least 3"):
        loss_barrier(lambda _: 0.0, state, state, points=2)
