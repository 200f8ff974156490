"""AdamP and SGDP: golden values, and what the projection promises."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from medseg.core.optim import SGDP, AdamP
from tests.core.optim.golden import find_golden, load_golden, replay

SETTINGS = {
    "adamp_default": (AdamP, {"lr": 1e-2}),
    "adamp_wd_nesterov": (AdamP, {"lr": 1e-2, "betas": (0.9, 0.99), "weight_decay": 0.05, "nesterov": True}),
    "sgdp_m09_wd_bufferkept": (SGDP, {"lr": 5e-2, "momentum": 0.9, "weight_decay": 1e-2}),
    "sgdp_nesterov_damp": (SGDP, {"lr": 5e-2, "momentum": 0.9, "dampening": 0.1, "nesterov": True}),
}
# The other files of these settings hold an accident of the published code: the projection ends up in the momentum.
SETTINGS["sgdp_m09_wd_rand_s10"] = SETTINGS["sgdp_m09_wd_bufferkept"]
FILES = [(key, path) for key in SETTINGS for path in find_golden(f"{key}*.npz")]


@pytest.mark.parametrize("foreach", [True, False])
@pytest.mark.parametrize(("key", "path"), FILES, ids=[path.stem for _, path in FILES])
def test_the_published_numbers_come_out(key, path, foreach):
    cls, options = SETTINGS[key]
    replay(lambda weights: cls(weights.values(), **options, foreach=foreach), load_golden(path))


def rows_of(weight, channel_dim):
    return weight.detach().movedim(channel_dim, 0).flatten(1)


@pytest.mark.parametrize(("cls", "more"), [(AdamP, {}), (SGDP, {"momentum": 0.9})])
@pytest.mark.parametrize(("shape", "channel_dim"), [((4, 3, 3, 3), 0), ((3, 5, 2, 2, 2), 1)])
@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 1000))
def test_steps_of_known_scale_invariant_weights_are_at_right_angles_to_every_channel(
    cls, more, shape, channel_dim, seed
):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64))
    optimizer = cls([weight], lr=0.05, scale_invariant=True, channel_dim=channel_dim, **more)
    for _ in range(3):
        before = rows_of(weight, channel_dim).clone()
        weight.grad = torch.randn(shape, generator=generator, dtype=torch.float64)
        optimizer.step()
        moved = rows_of(weight, channel_dim) - before
        lengths = before.norm(dim=1) * moved.norm(dim=1)
        assert ((before * moved).sum(1).abs() / lengths).max() < 1e-7
        grown = rows_of(weight, channel_dim).square().sum(1)
        torch.testing.assert_close(grown, before.square().sum(1) + moved.square().sum(1))


@pytest.mark.parametrize(("cls", "plain"), [(AdamP, {}), (SGDP, {"momentum": 0.9})])
def test_scale_invariant_weights_grow_less_than_without_the_projection(cls, plain):
    """A convolution under instance norm: the norm grows at every step, and much more so with momentum alone."""
    image, target = torch.randn(2, 2, 1, 8, 8, generator=torch.Generator().manual_seed(0)).unbind()
    norms = {}
    for mode in (True, "cosine", False):
        torch.manual_seed(1)
        conv = torch.nn.Conv2d(1, 4, 3, padding=1, bias=False)
        optimizer = cls([conv.weight], lr=0.1, scale_invariant=mode, **plain)
        for _ in range(30):
            optimizer.zero_grad()
            (functional.instance_norm(conv(image)).mean(1, keepdim=True) - target).square().mean().backward()
            optimizer.step()
        norms[mode] = conv.weight.norm().item()
    assert norms[True] < 0.9 * norms[False]
    assert norms["cosine"] == pytest.approx(norms[True], rel=0.01)


def test_without_projection_and_decay_it_is_adamw():
    ours, theirs = (torch.nn.Parameter(torch.linspace(-1, 1, 24).reshape(4, 6)) for _ in range(2))
    a, b = AdamP([ours], lr=0.01, delta=0.0), torch.optim.AdamW([theirs], lr=0.01, weight_decay=0.0)
    for step in range(5):
        ours.grad = theirs.grad = torch.sin(torch.arange(24.0) * (step + 1)).reshape(4, 6)
        a.step()
        b.step()
    torch.testing.assert_close(ours, theirs)


def test_weights_of_one_axis_are_decayed_in_full_and_never_projected():
    bias = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    optimizer = AdamP([bias], lr=0.1, weight_decay=0.5, scale_invariant=True)
    bias.grad = torch.tensor([1.0, -1.0])
    optimizer.step()
    torch.testing.assert_close(bias.detach(), torch.tensor([3.0, 4.0]) * 0.95 - torch.tensor([0.1, -0.1]))


def test_groups_of_channels_are_projected_together():
    """Under group norm only the joint scale of a group's channels has no effect."""
    weight = torch.nn.Parameter(torch.randn(6, 5, generator=torch.Generator().manual_seed(0)))
    before = weight.detach().clone()
    optimizer = SGDP([weight], lr=0.1, scale_invariant=True, channel_groups=2)
    weight.grad = torch.randn(6, 5, generator=torch.Generator().manual_seed(1))
    optimizer.step()
    moved = weight.detach() - before
    along = (moved * before).view(2, -1).sum(1)
    torch.testing.assert_close(along, torch.zeros(2), rtol=0, atol=1e-6)
    assert (moved * before).sum(1).abs().max() > 1e-3


def test_rows_of_zeros_take_a_step_and_no_nan():
    weight = torch.nn.Parameter(torch.zeros(3, 4))
    for mode in ("cosine", True):
        optimizer = AdamP([weight], lr=0.1, scale_invariant=mode)
        weight.grad = torch.ones(3, 4)
        optimizer.step()
        assert torch.isfinite(weight).all()


@pytest.mark.parametrize("foreach", [True, False])
@pytest.mark.parametrize("mode", ["cosine", True])
def test_a_large_weight_with_one_channel_is_projected_as_a_whole(monkeypatch, mode, foreach):
    """Its one row lies in several pieces, which the projection must see together."""
    monkeypatch.setattr("medseg.core.optim._blocks.BLOCK", 10)
    weight = torch.nn.Parameter(torch.randn(1, 7, 3, generator=torch.Generator().manual_seed(0)))
    before = weight.detach().clone()
    grad = torch.randn(1, 7, 3, generator=torch.Generator().manual_seed(1))
    weight.grad = grad - before * (grad * before).sum() / before.square().sum()
    SGDP([weight], lr=0.1, scale_invariant=mode, foreach=foreach).step()
    torch.testing.assert_close(weight.norm() ** 2, before.norm() ** 2 + (weight - before).norm() ** 2)


@pytest.mark.parametrize("cls", [AdamP, SGDP])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale_invariant": "always"}, "scale_invariant must be one of True, False, 'cosine', got 'always'"),
        ({"wd_ratio": 1.5}, r"wd_ratio must be in \[0, 1\], got 1.5"),
        ({"delta": -1}, "delta must be a finite number of at least 0, got -1"),
        ({"channel_dim": 2}, "channel_dim must be one of 0, 1, got 2"),
        ({"channel_groups": 0}, "channel_groups must be at least 1"),
    ],
)
def test_options_out_of_range_are_named(cls, options, message):
    with pytest.raises(ValueError, match=message):
        cls([torch.nn.Parameter(torch.ones(2, 2))], **options)


def test_groups_that_do_not_divide_the_channels_are_named():
    weight = torch.nn.Parameter(torch.ones(5, 2))
    weight.grad = torch.ones(5, 2)
    with pytest.raises(ValueError, match=r"channel_groups must divide the 5 channels .* got 2"):
        AdamP([weight], scale_invariant=True, channel_groups=2).step()


def test_betas_and_momentum_out_of_range_are_named():
    weight = [torch.nn.Parameter(torch.ones(2))]
    with pytest.raises(ValueError, match=r"betas\[1\] must be in \[0, 1\), got 1"):
        AdamP(weight, betas=(0.9, 1.0))
    with pytest.raises(ValueError, match="momentum must be"):
        SGDP(weight, momentum=1.0)


def test_counting_steps_on_the_device_changes_nothing():
    weights = [torch.nn.Parameter(torch.linspace(-1, 1, 24).reshape(4, 6)) for _ in range(2)]
    optimizers = [AdamP([w], lr=0.01, capturable=flag) for w, flag in zip(weights, (True, False), strict=True)]
    for step in range(3):
        for weight, optimizer in zip(weights, optimizers, strict=True):
            weight.grad = torch.sin(torch.arange(24.0) * (step + 1)).reshape(4, 6)
            optimizer.step()
    assert torch.equal(*weights)
