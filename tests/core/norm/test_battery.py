"""Every layer that `medseg.core.norm` adds to MONAI's factory keeps what the package promises."""

from __future__ import annotations

import copy

import pytest
import torch
from monai.networks.layers import get_norm_layer
from monai.networks.nets import DynUNet, SwinUNETR
from torch import nn

from medseg.core.norm.feature_norm import RunningNorm
from medseg.core.norm.register import NORMS
from tests.batteries.common import check_built_from_json

ARGUMENTS: dict[str, dict[str, object]] = {
    "bcn": {"num_groups": 2},
    "evo_s0": {"num_groups": 2},
    "group_act": {"num_groups": 2},
    "l1_group": {"num_groups": 2},
    "power": {"warmup_iters": 2},
    "region_learned": {"kernel_size": 3},
    "unified": {"window": 2, "warmup_iters": 2},
}
MORE = {"bcn_estimate": ("bcn", {"num_groups": 2, "mode": "estimate"}), "power_scaled": ("power", {"group_scaling": 2})}
LAYERS = {name: (name, ARGUMENTS.get(name, {})) for name in NORMS} | MORE
# Their backward pass is a published substitute for the derivative; in evaluation it is the derivative.
SUBSTITUTE = {"power", "power_scaled", "unified", "bcn_estimate"}
# These need no second voxel: they reduce over channels, or not at all.
ANY_COUNT = {"affine", "crms", "layer_channel", "rms"}
CHANNELS = 4
every_layer = pytest.mark.parametrize("name", LAYERS)


def build(name: str, spatial_dims: int = 3, channels: int = CHANNELS) -> nn.Module:
    torch.manual_seed(0)
    layer = get_norm_layer(LAYERS[name], spatial_dims, channels)
    with torch.no_grad():  # away from the start, where scales are 1 and shifts 0
        for parameter in layer.parameters():
            parameter.add_(0.1 * torch.rand_like(parameter))
    return layer


def features(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (0.3 + 1.5 * x).to(dtype)


@every_layer
def test_gradients_are_derivatives(name):
    layer = build(name, spatial_dims=2).double()
    x = features(2, CHANNELS, 2, 3, dtype=torch.float64)
    layer(x)
    for training in (True, False) if name not in SUBSTITUTE else (False,):
        layer.train(training)
        x = features(2, CHANNELS, 2, 3, seed=1, dtype=torch.float64).requires_grad_()
        parameters = tuple(layer.parameters())
        assert torch.autograd.gradcheck(lambda x, *_: layer(x), (x, *parameters), fast_mode=True)


@every_layer
def test_training_learns_statistics_and_evaluation_leaves_them(name):
    layer = build(name)
    x = features(2, CHANNELS, 3, 3, 3)
    running = isinstance(layer, RunningNorm)
    start = copy.deepcopy(layer.state_dict())
    layer(x).sum().backward()
    moved = any(not torch.equal(v, start[k]) for k, v in layer.state_dict().items())
    assert moved is running
    after = copy.deepcopy(layer.state_dict())
    layer.eval()
    assert torch.equal(layer(x), layer(x))
    if running:
        frozen = layer.train()
        frozen.freeze_stats()
        assert torch.equal(frozen(x), layer.eval()(x))
        assert all(torch.equal(v, after[k]) for k, v in layer.state_dict().items())
        layer.reset_running_stats()
        buffers = dict(layer.named_buffers())
        assert all(torch.equal(start[k], v) for k, v in buffers.items())


@every_layer
def test_the_state_dict_holds_everything(name):
    layer, other = build(name), build(name)
    for step in range(3):
        layer(features(2, CHANNELS, 3, 3, 3, seed=step)).square().sum().backward()
    other.load_state_dict(layer.state_dict())
    x = features(2, CHANNELS, 3, 3, 3, seed=9)
    assert torch.equal(layer.eval()(x), other.eval()(x))
    assert torch.equal(layer.train()(x), other.train()(x))


@every_layer
def test_half_precision_is_normalised_in_full(name):
    layer, reference = build(name), build(name)
    x = features(2, CHANNELS, 4, 4, 4).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    assert all(b.dtype in (torch.float32, torch.float64, torch.int64) for b in layer.buffers())
    expected = reference(x.float())
    assert (y.float() - expected).abs().max() <= 2**-7 * expected.abs().max()


@every_layer
def test_a_batch_of_one_trains(name):
    layer = build(name)
    x = features(1, CHANNELS, 2, 2, 2).requires_grad_()
    layer(x).square().sum().backward()
    assert torch.isfinite(x.grad).all()
    assert all(torch.isfinite(p.grad).all() for p in layer.parameters() if p.grad is not None)


@every_layer
def test_a_single_value_is_refused_in_training_and_passes_in_evaluation(name):
    layer = build(name)
    x = features(1, CHANNELS, 1, 1, 1)
    grouped = name in {"bcn", "bcn_estimate", "evo_s0", "group_act", "l1_group"}
    if name in ANY_COUNT or grouped:
        assert torch.isfinite(layer(x)).all()
    else:
        with pytest.raises(ValueError, match="needs more than one value for each statistic in training, got 1 over"):
            layer(x)
    assert torch.isfinite(layer.eval()(x)).all()


@pytest.mark.parametrize("name", ["bcn", "evo_s0", "group_act", "l1_group"])
def test_a_group_of_a_single_value_is_refused_in_training(name):
    layer = get_norm_layer((name, {"num_groups": CHANNELS}), 3, CHANNELS)
    with pytest.raises(ValueError, match="needs more than one value"):
        layer(features(1, CHANNELS, 1, 1, 1))
    lenient = get_norm_layer((name, {"num_groups": CHANNELS, "allow_single_value": True}), 3, CHANNELS)
    assert torch.isfinite(lenient(features(1, CHANNELS, 1, 1, 1))).all()


@every_layer
def test_channels_last_stays_and_gives_the_same(name):
    layer, other = build(name), build(name)
    x = features(2, CHANNELS, 3, 4, 5)
    last = x.to(memory_format=torch.channels_last_3d)
    for training in (True, False):
        y = other.train(training)(last)
        assert y.is_contiguous(memory_format=torch.channels_last_3d)
        torch.testing.assert_close(y, layer.train(training)(x), rtol=1e-4, atol=1e-5)


@every_layer
def test_voxels_and_items_may_be_permuted_and_axes_added(name):
    layer = build(name, spatial_dims=3 if name != "region_learned" else 2)
    x = features(3, CHANNELS, 2, 3)
    y = layer.eval()(x) if name == "region_learned" else layer.eval()(x[..., None])[..., 0]
    permuted = layer(x.flip(0)) if name == "region_learned" else layer(x.flip(0)[..., None])[..., 0]
    torch.testing.assert_close(permuted, y.flip(0))
    if name != "region_learned":  # its convolutions know where a voxel is
        torch.testing.assert_close(layer(x.flip(-1)), y.flip(-1))
        torch.testing.assert_close(layer(x), y)


@every_layer
def test_a_wrong_shape_is_refused_with_what_was_got(name):
    layer = build(name)
    for shape in ((2, CHANNELS + 1, 3, 3, 3), (2, CHANNELS)):
        with pytest.raises(ValueError, match=f"got \\({shape[0]}, {shape[1]}"):
            layer(torch.zeros(shape))
    with pytest.raises(ValueError, match="num_features must be at least"):
        get_norm_layer(LAYERS[name], 3, 0)


@every_layer
def test_json_builds_it(name):
    cls, arguments = NORMS[LAYERS[name][0]], {"num_features": CHANNELS, **LAYERS[name][1]}
    check_built_from_json(cls, arguments)


@pytest.mark.parametrize("name", [n for n in LAYERS if isinstance(build(n), RunningNorm)])
def test_a_value_that_is_not_a_number_does_not_poison_statistics(name):
    layer = build(name)
    x = features(2, CHANNELS, 3, 3, 3)
    layer(x)
    bad = x.clone().requires_grad_()
    with torch.no_grad():
        bad[0, 1, 0, 0, 0] = float("nan")
    y = layer(bad)
    assert torch.isnan(y).any()
    y.sum().backward()
    assert int(layer.skipped_updates) > 0
    assert all(torch.isfinite(b).all() for b in layer.buffers())
    if name != "power_scaled":
        assert torch.isfinite(layer(x)).all()


class Everything(nn.Module):
    """All layers side by side, so that one export tests all."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({name: build(name) for name in LAYERS})

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {name: layer(x) for name, layer in self.layers.items()}


@pytest.fixture(scope="module")
def exported():
    network = Everything()
    network(features(2, CHANNELS, 4, 4, 4))
    network.eval()
    batch = torch.export.Dim("batch", min=1, max=8)
    program = torch.export.export(network, (features(2, CHANNELS, 4, 4, 4),), dynamic_shapes={"x": {0: batch}})
    x = features(3, CHANNELS, 4, 4, 4, seed=3)
    return network(x), program.module()(x)


@every_layer
def test_export_gives_the_same(name, exported):
    torch.testing.assert_close(exported[1][name], exported[0][name], rtol=1e-5, atol=1e-5)


@pytest.mark.slow  # seconds for each layer
@every_layer
def test_training_compiles_into_one_graph_and_gives_the_same(name):
    torch._dynamo.reset()
    layer, reference = build(name), build(name)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = features(2, CHANNELS, 3, 3, 3)
    for run in (compiled, reference):
        for _ in range(2):
            run(x).square().sum().backward()
    for found, expected in zip(layer.state_dict().values(), reference.state_dict().values(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    for p, q in zip(layer.parameters(), reference.parameters(), strict=True):
        if p.grad is not None:
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-3, atol=1e-3)


def step_lowers_the_loss(network: nn.Module, x: torch.Tensor, rate: float) -> None:
    target = (x > 0.5).float()

    def loss() -> torch.Tensor:
        return nn.functional.binary_cross_entropy_with_logits(network(x), target)

    before = loss()
    before.backward()
    parameters = [p for p in network.parameters() if p.grad is not None]
    size = torch.stack([p.grad.square().sum() for p in parameters]).sum().sqrt()
    with torch.no_grad():
        for p in parameters:
            p -= rate * p.grad / size
    assert loss() < before


@every_layer
def test_a_step_of_a_dynunet_lowers_its_loss(name):
    torch.manual_seed(0)
    own = name.startswith("evo") or name.endswith("_act")
    act = "" if own else ("leakyrelu", {"inplace": True, "negative_slope": 0.01})
    network = DynUNet(
        3, 1, 1, [3, 3, 3], [1, 2, 2], [2, 2], filters=[CHANNELS, 8, 8], norm_name=LAYERS[name], act_name=act
    )  # fmt: skip
    step_lowers_the_loss(network, features(1, 1, 8, 8, 8), 0.03)


@every_layer
def test_a_step_of_a_swinunetr_lowers_its_loss(name):
    torch.manual_seed(0)
    network = SwinUNETR(
        1, 1, depths=(1, 1, 1, 1), num_heads=(2, 2, 2, 2), window_size=2, feature_size=12, norm_name=LAYERS[name],
        spatial_dims=2,
    )  # fmt: skip
    step_lowers_the_loss(network, features(1, 1, 64, 64), 0.03)
