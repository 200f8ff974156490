"""What single layers of `medseg.core.norm` promise beyond the battery."""

from __future__ import annotations

import math

import pytest
import torch
import torch.distributed as dist
from torch import nn

from medseg.core.norm import (
    AdaBatchNorm,
    BatchChannelNorm,
    EvoNormS0,
    GhostBatchNorm,
    L1BatchNorm,
    L1InstanceNorm,
    LayerNormChannel,
    PowerNorm,
    RegionNorm,
    RMSNorm,
    UnifiedNorm,
    adaptive_regularization,
    region_mask,
    task_ids,
)


def features(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gradient(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    leaf = x.clone().requires_grad_()
    (layer(leaf) * features(*x.shape, seed=9)).sum().backward()
    return leaf.grad


def test_powernorm_of_the_paper_and_of_the_code_differ_by_the_denominator():
    layers = [PowerNorm(3, warmup_iters=0, grad_denominator=kind).double() for kind in ("batch", "running")]
    for layer in layers:
        layer.running_phi.fill_(4.0)
    x = features(2, 3, 4, 4)
    of_code, of_paper = (gradient(layer, x) for layer in layers)
    q = x.square().mean((0, 2, 3), keepdim=True)
    torch.testing.assert_close(of_code * (q + 1e-5).sqrt(), of_paper * (4 + 1e-5) ** 0.5)


def test_powernorm_moves_its_state_once_for_each_forward_pass():
    layer = PowerNorm(3, warmup_iters=0).double()
    x = features(2, 3, 4, 4).requires_grad_()
    y = layer(x).square().sum()
    y.backward(retain_graph=True)
    after = layer.grad_stat.clone()
    first = x.grad.clone()
    y.backward()
    assert torch.equal(layer.grad_stat, after)
    torch.testing.assert_close(x.grad, 2 * first)


@pytest.mark.parametrize("layer", [PowerNorm(3), UnifiedNorm(3)])
def test_second_derivatives_of_a_substitute_are_refused(layer):
    x = features(2, 3, 4).requires_grad_()
    (grad,) = torch.autograd.grad(layer.double()(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_powernorm_counts_only_masked_voxels():
    layer = PowerNorm(2, warmup_iters=10, alpha_fwd=0.0).double()
    x = features(2, 2, 5, 5)
    mask = torch.zeros(2, 1, 5, 5)
    mask[..., :2] = 1
    layer(x, mask)
    torch.testing.assert_close(layer.running_phi, x[..., :2].square().mean((0, 2, 3)))
    with pytest.raises(ValueError, match="mask must be"):
        layer(x, mask[:1])
    for arguments in ({"alpha_fwd": 2.0}, {"grad_denominator": "mean"}, {"group_scaling": 3}):
        with pytest.raises(
            ValueError, match=f"{'num_groups' if 'group_scaling' in arguments else next(iter(arguments))}"
        ):
            PowerNorm(2, **arguments)


def test_synchronised_statistics_weigh_ranks_by_their_voxels(monkeypatch):
    mine, other = features(1, 2, 3, 3), features(2, 2, 3, 3, seed=1)

    def all_reduce(total: torch.Tensor) -> None:
        total += torch.cat([other.square().sum((0, 2, 3)), total.new_tensor([18.0])])

    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "all_reduce", all_reduce)
    layer = PowerNorm(2, alpha_fwd=0.0, sync=True).double()
    layer(mine)
    torch.testing.assert_close(layer.running_phi, torch.cat([mine, other]).square().mean((0, 2, 3)))


@pytest.mark.parametrize("layer", [PowerNorm(3, affine=False), UnifiedNorm(3, affine=False), RMSNorm(3, affine=False)])
def test_activations_may_work_in_place_behind_a_layer_without_scale(layer):
    x = features(2, 3, 4, 4).requires_grad_()
    nn.functional.relu_(layer.double()(x)).sum().backward()
    assert torch.isfinite(x.grad).all()


def test_an_outlier_step_of_unified_norm_is_set_aside():
    for per_channel in (False, True):
        layer = UnifiedNorm(2, window=2, warmup_iters=2, per_channel_filter=per_channel).double()
        for step in range(4):
            layer(features(2, 2, 8, 8, seed=step))
        before = int(layer.skipped_steps)
        x = features(2, 2, 8, 8, seed=5)
        x[:, 0] *= 100
        layer(x)
        assert int(layer.skipped_steps) == before + 1
        assert layer.window_forward[:, 0].max() < 10


def test_one_ghost_batch_is_batch_norm_and_several_are_a_loop():
    x = features(5, 3, 4, 4)
    ghost, batch = GhostBatchNorm(3, ghost_size=5).double(), nn.BatchNorm2d(3).double()
    torch.testing.assert_close(ghost(x), batch(x))
    torch.testing.assert_close(ghost.running_var, batch.running_var)
    ghost, batch = GhostBatchNorm(3, ghost_size=2).double(), nn.BatchNorm2d(3).double()
    torch.testing.assert_close(ghost(x), torch.cat([batch(x[:2]), batch(x[2:])]))  # the last item joins the second
    torch.testing.assert_close(ghost.running_mean, batch.running_mean)


def test_statistics_are_sound_far_from_zero():
    x = (1e4 + torch.randn(2, 4, 8, 8, 8, generator=torch.Generator().manual_seed(0))).requires_grad_()
    for layer in (L1InstanceNorm(4), BatchChannelNorm(4, num_groups=2), GhostBatchNorm(4), RegionNorm(4)):
        y = layer(x)
        assert abs(float(y.detach().std()) - 1) < 0.01, type(layer).__name__
        assert y.detach().mean().abs() < 1e-2
    shifted = LayerNormChannel(4)(x.detach() + 5)
    torch.testing.assert_close(shifted, LayerNormChannel(4)(x.detach()), rtol=0, atol=5e-3)


def test_l1_norm_matches_the_standard_deviation_of_normal_values():
    x = 3 * features(4, 2, 40, 40)
    y = L1BatchNorm(2).double()(x)
    torch.testing.assert_close(y.std((0, 2, 3)), torch.ones(2).double(), rtol=0.02, atol=0.02)
    plain = L1BatchNorm(2, gaussian_correction=False).double()(x)
    torch.testing.assert_close(plain, y * math.sqrt(math.pi / 2), rtol=1e-4, atol=1e-4)


def test_groups_that_do_not_divide_the_channels():
    with pytest.warns(UserWarning, match="does not divide 6 channels: 3 groups"):
        assert BatchChannelNorm(6, num_groups=4).num_groups == 3
    assert BatchChannelNorm(6).num_groups == 6
    assert EvoNormS0(12).num_groups == 3
    with pytest.raises(ValueError, match=r"num_groups must divide num_features 6, got 4; choose from \[1, 2, 3, 6\]"):
        EvoNormS0(6, num_groups=4)


def test_adab2n_is_batch_norm_in_its_first_task_and_balances_later():
    x = features(4, 3, 5, 5)
    x[3] += 4
    layer, batch = AdaBatchNorm(3, num_tasks=2, kappa=1.0).double(), nn.BatchNorm2d(3).double()
    with task_ids([0, 0, 0, 0]):
        torch.testing.assert_close(layer(x), batch(x))
    torch.testing.assert_close(layer.running_mean, batch.running_mean)
    layer.end_task()
    with torch.no_grad():
        layer.task_logits.copy_(torch.tensor([0.0, 8.0]))  # the second task counts for almost all
    with task_ids(torch.tensor([0, 0, 0, 1])):
        y = layer(x)
    assert y[3].mean().abs() < 0.01
    assert adaptive_regularization(nn.Sequential(layer)) > 0
    with pytest.raises(ValueError, match="all 2 tasks are begun"):
        layer.end_task()
    with task_ids([0, 2, 0, 0]), pytest.raises(ValueError, match="below num_tasks 2"):
        layer(x)
    with pytest.raises(ValueError, match="has no AdaBatchNorm"):
        adaptive_regularization(batch)


@pytest.mark.parametrize("stats", ["instance", "batch"])
def test_regions_do_not_see_each_other(stats):
    layer = RegionNorm(3, stats=stats).double()
    x = features(2, 3, 6, 6)
    mask = torch.zeros(2, 1, 6, 6)
    mask[..., :3] = 1
    with region_mask(mask):
        y = layer(x)
        changed = x.clone()
        changed[..., 3:] *= 100
        torch.testing.assert_close(layer(changed)[..., :3], y[..., :3])
    alone = RegionNorm(3, stats=stats).double()(x[..., :3])
    torch.testing.assert_close(y[..., :3], alone)
    instance = nn.InstanceNorm2d(3) if stats == "instance" else nn.BatchNorm2d(3).double()
    torch.testing.assert_close(layer(x), instance(x))


def test_masks_of_regions_are_resized_checked_and_may_be_empty():
    layer = RegionNorm(3).double()
    x = features(2, 3, 4, 4)
    mask = torch.zeros(2, 1, 8, 8)
    mask[0, :, :4, :4] = 1
    mask[1, :, 0, 0] = 1
    with region_mask(mask):
        y = layer(x)
    assert torch.isfinite(y).all()
    assert y[1, :, 0, 0].abs().max() == 0  # a region of one voxel has no spread
    with region_mask(mask[:1]), pytest.raises(ValueError, match="give one mask for each item"):
        layer(x)
    with pytest.raises(ValueError, match=r"mask must be \(B, 1, spatial"), region_mask(mask[:, 0, 0]):
        pass
    for arguments, text in (
        ({"regions": 1}, "regions must"),
        ({"stats": "layer"}, "stats must"),
        ({"affine": "x"}, "affine"),
    ):
        with pytest.raises(ValueError, match=text):
            RegionNorm(3, **arguments)
