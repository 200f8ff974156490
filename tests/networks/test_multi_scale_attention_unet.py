"""The multi-scale attention U-Net gives the published numbers, and leaves out what evaluation does not need."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg.losses import DeepSupervisionLoss, FocalTverskyLoss
from medseg.networks import MultiScaleAttentionUNet

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = [ROOT / "tests/golden/turbolift", ROOT.parent / "shared/golden/turbolift"]
GOLDEN = {path.stem: path for folder in FOLDERS for path in sorted(folder.glob("*.npz"))}
NETWORKS, LOSSES = ([name for name in sorted(GOLDEN) if name.startswith(start)] for start in ("network", "ftl"))


def fill(network: torch.nn.Module, seed: int) -> None:
    """Give every entry the value of the recipe, by its position in the published state."""
    order = json.loads((FOLDERS[0] / "parameter_order.json").read_text())
    for (i, name, shape), value in zip(order, network.state_dict().values(), strict=True):
        assert list(value.shape) == shape, (i, name)
        if not shape:
            continue
        noise = torch.from_numpy(np.random.default_rng([seed, i]).standard_normal(shape))
        value.copy_(_scale(name, shape, noise))


def _scale(name: str, shape: list[int], noise: torch.Tensor) -> torch.Tensor:
    if len(shape) > 1:
        return noise * np.sqrt(2 / np.prod(shape[1:]))
    if "act" in name:
        return torch.full_like(noise, 0.25)
    if name.endswith("running_var"):
        return 1 + 0.1 * noise.abs()
    return 1 + 0.1 * noise if ".bn" in name and name.endswith("weight") else 0.1 * noise


def published_loss() -> DeepSupervisionLoss:
    loss = FocalTverskyLoss(sigmoid=True, batch=True, reduction="sum")
    return DeepSupervisionLoss(loss, [0.25] * 4, resize="strided_labels")


def small(dims: int = 2, **options) -> MultiScaleAttentionUNet:
    torch.manual_seed(0)
    return MultiScaleAttentionUNet(dims, features=[4, 4, 4, 4, 8], up_features=[4, 4, 4, 4], **options)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-4)])
@torch.no_grad()
def test_the_published_outputs_and_losses_come_out(name, dtype, tolerance):
    golden = np.load(GOLDEN[name])
    network = MultiScaleAttentionUNet().to(dtype)
    fill(network, int(name[-2:]))
    image, target = torch.from_numpy(golden["image"]).to(dtype), torch.from_numpy(golden["target"])
    outputs = network.eval()(image, all_scales=True)
    for output, scale in zip(outputs, ("full", "div2", "div4", "div8"), strict=True):
        np.testing.assert_allclose(output.sigmoid(), golden[f"out_{scale}"], rtol=0, atol=tolerance)
    assert published_loss()(outputs, target).item() == pytest.approx(golden["loss_mean_of_4"].item(), abs=tolerance)
    outputs = network.train()(image)
    np.testing.assert_allclose(outputs[0].sigmoid(), golden["train_mode_out_full"], rtol=0, atol=tolerance)
    assert published_loss()(outputs, target).item() == pytest.approx(golden["train_mode_loss"].item(), abs=tolerance)


@pytest.mark.parametrize("name", LOSSES)
def test_the_published_loss_and_its_gradient_come_out(name):
    golden = np.load(GOLDEN[name])
    p = torch.from_numpy(golden["prob"]).requires_grad_()
    loss = FocalTverskyLoss(batch=True, reduction="sum")(p, torch.from_numpy(golden["target"]))
    loss.backward()
    assert loss.item() == pytest.approx(golden["focal_tversky_sum_over_classes"].item(), abs=1e-6)
    np.testing.assert_allclose(p.grad, golden["grad"], rtol=0, atol=1e-6)


@pytest.mark.parametrize(("act", "count"), [("PRELU", 8_155_591), ("RELU", 8_150_823)])
def test_the_defaults_have_as_many_weights_as_the_published_network(act, count):
    with torch.device("meta"):
        network = MultiScaleAttentionUNet(act=act)
    assert sum(p.numel() for p in network.parameters()) == count
    assert sum(b.numel() for b in network.buffers()) == 8_792


@pytest.mark.parametrize("size", [(64, 64), (48, 80), (512, 512)])
def test_training_gives_four_sizes_finest_first_and_evaluation_the_finest(size):
    with torch.device("meta"):
        network, image = MultiScaleAttentionUNet(out_channels=3), torch.zeros(2, 1, *size)
    outputs = network(image)
    assert [tuple(o.shape) for o in outputs] == [(2, 3, size[0] // k, size[1] // k) for k in (1, 2, 4, 8)]
    assert network.eval()(image).shape == (2, 3, *size)


def test_evaluation_runs_one_of_the_four_blocks_and_computes_the_same():
    network, calls = small().eval(), []
    for i, block in enumerate(network.refine):
        block.register_forward_hook(lambda *_, i=i: calls.append(i))
    image = torch.randn(1, 1, 32, 48)
    with torch.no_grad():
        alone = network(image)
        assert calls == [3]
        torch.testing.assert_close(network(image, all_scales=True)[0], alone)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 1000), scale=st.floats(0.01, 100))
def test_attention_weights_lie_between_0_and_1(seed, scale):
    gate = small().decoders[1]
    generator = torch.Generator().manual_seed(seed)
    skip, signal = (scale * torch.randn(1, c, *n, generator=generator) for c, n in ((4, (8, 6)), (8, (4, 3))))
    weights = gate.weigh(skip, signal)
    assert weights.shape == (1, 1, 8, 6)
    assert weights.min() >= 0
    assert weights.max() <= 1


def test_a_gate_without_weights_lets_half_of_everything_through():
    gate = small().decoders[1]
    torch.nn.init.zeros_(gate.score.weight)
    torch.nn.init.zeros_(gate.score.bias)
    weights = gate.weigh(torch.randn(1, 4, 8, 6), torch.randn(1, 8, 4, 3))
    assert torch.equal(weights, torch.full_like(weights, 0.5))


@pytest.mark.parametrize("norm", [None, "instance", ["group", {"num_groups": 2}]])
def test_other_norms_can_be_built(norm):
    kinds = {type(m).__name__ for m in small(norm=norm).modules() if "Norm" in type(m).__name__}
    expected = {None: "BatchNorm2d", "instance": "InstanceNorm2d"}.get(norm if norm is None else str(norm), "GroupNorm")
    assert kinds == {expected}


def test_without_deep_supervision_there_is_one_output_and_no_idle_weight():
    network = small(deep_supervision=False)
    image = torch.randn(2, 1, 16, 32)
    assert network.train()(image).shape == (2, 1, 16, 32)
    assert len(network.refine) == 1
    with pytest.raises(ValueError, match="all_scales needs a network with deep_supervision=True"):
        network(image, all_scales=True)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.zeros(1, 1, 48, 50), r"multiples of 16, got \(48, 50\); pad it"),
        (torch.zeros(1, 2, 32, 32), r"image must have shape \(B, 1, H, W\), got \(1, 2, 32, 32\)"),
        (torch.zeros(1, 1, 16, 16, 16), r"image must have shape \(B, 1, H, W\)"),
    ],
)
def test_images_that_do_not_fit_are_refused(image, message):
    with pytest.raises(ValueError, match=message):
        small()(image)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"spatial_dims": 1}, "spatial_dims must be 2 or 3, got 1"),
        ({"out_channels": 0}, "must be at least 1, got 1 and 0"),
        ({"features": [4, 8]}, r"features must be 5 numbers of channels.*\[4, 8\]"),
        ({"up_features": [4, 8, 4, 0]}, "up_features must be 4 numbers of channels"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        MultiScaleAttentionUNet(**options)


def test_a_miss_costs_seven_thirds_of_a_false_positive_in_the_index():
    y = torch.zeros(1, 1, 10, 10, dtype=torch.float64)
    y[..., :5] = 1
    miss, surplus = y.clone(), y.clone()
    miss[..., 0, 0], surplus[..., 9, 9] = 0, 1
    costs = []
    for p in (miss, surplus):
        index = 1 - FocalTverskyLoss(gamma=1.0)(p, y)
        assert FocalTverskyLoss()(p, y).item() == pytest.approx((1 - index.item()) ** (1 / (4 / 3)), rel=1e-5)
        hits = (p * y).sum() + 1
        costs.append((hits / index - hits).item())
    assert costs[0] / costs[1] == pytest.approx(7 / 3, rel=1e-4)
    assert FocalTverskyLoss()(y, y).item() == 0
