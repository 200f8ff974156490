"""Statistics of new images, training norms alone, and signs of divergence."""

from __future__ import annotations

import copy
import logging
import math

import pytest
import torch
from monai.engines import SupervisedTrainer
from monai.networks.nets import SwinUNETR, UNet, ViT
from torch import nn

from medseg.core.norm import (
    StabilityProbe,
    adapt_batch_stats,
    add_qk_norm,
    freeze_except_norm,
    lr_sensitivity,
    norm_state_dict,
    small_scale_fraction,
    z_loss,
)
from medseg.engines import StabilityMonitor


def unet(norm="batch") -> UNet:
    torch.manual_seed(0)
    return UNet(3, 1, 2, channels=(4, 8), strides=(2,), norm=norm, dropout=0.3)


def images(count: int = 3, shift: float = 2.0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [shift + torch.randn(2, 1, 8, 8, 8, generator=generator) for _ in range(count)]


def test_replaced_statistics_are_those_of_all_voxels():
    network = nn.Sequential(nn.BatchNorm3d(1))
    batches = images()
    assert adapt_batch_stats(network, [{"image": x} for x in batches], prior=0) == 1
    whole = torch.cat(batches)
    assert network[0].running_mean.item() == pytest.approx(whole.mean().item(), rel=1e-6)
    assert network[0].running_var.item() == pytest.approx(whole.var(correction=0).item(), rel=1e-6)


@pytest.mark.parametrize("pooled", [False, True])
def test_old_statistics_count_as_prior_images(pooled):
    network = nn.Sequential(nn.BatchNorm3d(1))
    batches = [(x,) for x in images()]
    adapt_batch_stats(network, batches, prior=18, pooled_variance=pooled)
    whole = torch.cat([x for (x,) in batches])
    mean, variance = whole.mean().item(), whole.var(correction=0).item()
    assert network[0].running_mean.item() == pytest.approx(mean * 6 / 24, rel=1e-6)
    expected = (18 * 1 + 6 * variance) / 24 + (18 * 6 / 24**2 * mean**2 if pooled else 0)
    assert network[0].running_var.item() == pytest.approx(expected, rel=1e-6)


def test_only_the_foreground_counts_where_asked():
    network = nn.Sequential(nn.BatchNorm3d(1))
    x = images(1)[0]
    adapt_batch_stats(network, [x], prior=0, foreground_fn=lambda image: (image > 2).float())
    assert network[0].running_mean.item() == pytest.approx(x[x > 2].mean().item(), rel=1e-6)


@pytest.mark.parametrize("norm", ["batch", "bcn", "ghost_batch", "adab2n", "evo_b0", "power", "unified"])
def test_every_norm_that_remembers_is_adapted_and_modes_stay(norm):
    network = unet(norm).eval()
    before = copy.deepcopy(network.state_dict())
    assert adapt_batch_stats(network, images()) == 2
    assert not any(m.training for m in network.modules())
    moved = {k for k, v in network.state_dict().items() if not torch.equal(v, before[k])}
    assert moved
    assert all("running" in key for key in moved)


def test_a_failure_leaves_the_network_untouched():
    network = unet()
    before = copy.deepcopy(network.state_dict())
    with pytest.raises(RuntimeError):
        adapt_batch_stats(network, [images(1)[0], torch.zeros(1, 3, 8, 8, 8)])
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    assert not any(m._forward_pre_hooks for m in network.modules())
    for loader, prior, text in (([], 1.0, "loader gave no images"), (images(), -1.0, "prior must not be negative")):
        with pytest.raises(ValueError, match=text):
            adapt_batch_stats(network, loader, prior)
    with pytest.raises(ValueError, match="no layer tracks statistics"):
        adapt_batch_stats(unet("instance"), images())


def test_only_norms_train_and_their_state_is_small():
    network = unet("power")
    names = freeze_except_norm(network, include=["model.2"], reinit=True, seed=3)
    assert {name for name, p in network.named_parameters() if p.requires_grad} == set(names)
    assert any("model.2" in name for name in names)
    scale = next(p for n, p in network.named_parameters() if n.endswith("N.weight"))
    assert 0 <= scale.min() < scale.max() <= 1
    other = unet("power")
    other.load_state_dict(norm_state_dict(network), strict=False)
    assert torch.equal(next(p for n, p in other.named_parameters() if n.endswith("N.weight")), scale)
    with torch.no_grad():
        scale[0] = 0
    assert small_scale_fraction(network) >= 1 / 12
    assert math.isnan(small_scale_fraction(unet("instance")))
    with pytest.raises(ValueError, match="needs affine=True"):
        freeze_except_norm(unet("instance"))


def test_the_z_loss_is_its_formula_and_masks_voxels():
    logits = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    expected = 0.5 * logits.logsumexp(1).square()
    torch.testing.assert_close(z_loss(logits, 0.5), expected.mean())
    mask = torch.zeros(2, 4, 4, dtype=torch.bool)
    mask[0, 0, 0] = True
    torch.testing.assert_close(z_loss(logits, 0.5, mask=mask), expected[0, 0, 0])
    assert torch.autograd.gradcheck(z_loss, logits)
    with pytest.raises(ValueError, match="mask must be"):
        z_loss(logits, mask=mask[:1])


def test_sensitivity_counts_diverged_runs_as_no_training():
    assert lr_sensitivity([0.5, 0.5], 2.0) == 0
    assert lr_sensitivity([0.5, float("nan"), 9.0], 2.0) == pytest.approx(1.0)
    with pytest.raises(ValueError, match="one number for each learning rate"):
        lr_sensitivity([], 1.0)


def test_normalised_queries_and_keys_bound_the_logits():
    torch.manual_seed(0)
    vit = ViT(1, 16, 8, 16, 16, 2, 2, spatial_dims=2)
    swin = SwinUNETR(1, 2, depths=(1,) * 4, num_heads=(2,) * 4, window_size=2, feature_size=12, spatial_dims=2)
    for network, x, layers in ((vit, torch.randn(1, 1, 16, 16), 2), (swin, torch.randn(1, 1, 64, 64), 4)):
        with torch.no_grad():
            for name, p in network.named_parameters():
                if "qkv.weight" in name:
                    p.mul_(1000)
        before = largest_logit(network, x)
        assert add_qk_norm(network) == layers
        after = largest_logit(network, x)
        assert before > 1e4
        assert after < 10  # at most the root of the head's features, by Cauchy and Schwarz
        first = network(x)
        (first[0] if isinstance(first, tuple) else first).sum().backward()
        with pytest.raises(ValueError, match="normalised already"):
            add_qk_norm(network)
    with pytest.raises(ValueError, match="has no SABlock"):
        add_qk_norm(unet())


def largest_logit(network: nn.Module, x: torch.Tensor) -> float:
    with StabilityProbe(network) as probe:
        network(x)
    return max(probe.read()["max_logit"].values())


def test_a_probe_reads_root_mean_squares_of_each_layer():
    layer = nn.Linear(2, 1, bias=False)
    nn.init.constant_(layer.weight, 3.0)
    network = nn.Sequential(layer)
    with StabilityProbe(network) as probe:
        network(torch.tensor([[1.0, 1.0]])).sum().backward()
        found = probe.read()
    assert found == {
        "activation_rms": {"0": 6.0}, "gradient_rms": {"0": 1.0}, "weight_rms": {"0": 3.0}, "max_logit": {},
    }  # fmt: skip
    assert not layer._forward_hooks


def test_the_monitor_looks_now_and_then_and_warns_once(caplog):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    monitor = StabilityMonitor(network, every=2, min_gradient=1e3)
    trainer = SupervisedTrainer(
        device=torch.device("cpu"), max_epochs=1, network=network, loss_function=nn.MSELoss(),
        train_data_loader=[{"image": torch.ones(1, 2), "label": torch.zeros(1, 2)}] * 5,
        optimizer=torch.optim.SGD(network.parameters(), 0.1),
    )  # fmt: skip
    monitor.attach(trainer)
    with caplog.at_level(logging.WARNING, logger="medseg.engines.stability_monitor"):
        trainer.run()
    assert [iteration for iteration, _ in monitor.history] == [2, 4]
    assert trainer.state.stability is monitor.history[-1][1]
    assert set(monitor.history[0][1]["gradient_rms"]) == {"0", "1"}
    assert len(caplog.records) == 2
    assert "gradient_rms of 0 is" in caplog.text
    assert not any(m._forward_hooks for m in network.modules())
    with pytest.raises(ValueError, match="every must be at least 1"):
        StabilityMonitor(network, every=0)
