"""The Probabilistic U-Net gives the published network's numbers, and ways out of its limits."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.distributions import Normal

from medseg.networks import ProbabilisticUNet

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = [ROOT / "tests/golden/pulaski", ROOT.parent / "shared/golden/pulaski"]
GOLDEN = {path.stem: path for folder in FOLDERS for path in sorted(folder.glob("probunet_tiny_*.npz"))}


def tiny(dims: int = 2, **options) -> ProbabilisticUNet:
    torch.manual_seed(0)
    return ProbabilisticUNet(dims, features=4, depth=3, **options)


def image_of(dims: int = 2, batch: int = 2, side: int = 16) -> torch.Tensor:
    return torch.randn(batch, 1, *(side,) * dims, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_the_published_networks_numbers_come_out(name):
    with np.load(GOLDEN[name]) as file:
        golden = {key: torch.from_numpy(value) if value.dtype.kind != "U" else value for key, value in file.items()}
    network = tiny(int(name[-2]), head_activation=False).double().eval()
    shapes = [shape for _, shape in json.loads(str(golden["names"]))]
    with torch.no_grad():
        for i, (parameter, shape) in enumerate(zip(network.parameters(), shapes, strict=True)):
            assert list(parameter.shape) == shape
            parameter.copy_(golden[f"w{i:03d}"])
        prior, posterior = network.encode(golden["image"], golden["seg"])
        z = Normal(golden["z"].flatten(1), torch.ones(()).double())
        found = {
            "prior_mean": prior.loc,
            "prior_std": prior.scale,
            "post_mean": posterior.loc,
            "post_std": posterior.scale,
            "prob": network.sample(golden["image"], 1, z, torch.zeros(1, 3), return_logits=False)[:, 0],
        }
    for key, value in found.items():
        torch.testing.assert_close(value, golden[key].reshape(value.shape), rtol=0, atol=1e-8)


@pytest.mark.parametrize(
    ("dims", "task", "prior", "posterior", "total"),
    [
        (2, 4_856_548, 2_653_032, 2_653_248, 10_162_828),
        (3, 14_561_428, 7_951_512, 7_952_160, 30_465_100),
    ],
)
def test_the_defaults_have_as_many_parameters_as_the_published_weights(dims, task, prior, posterior, total):
    with torch.device("meta"):
        network = ProbabilisticUNet(dims)
    parts = [(network.unet, network.head), (network.prior,), (network.posterior,), (network,)]
    counts = [sum(p.numel() for module in part for p in module.parameters()) for part in parts]
    assert counts == [task, prior, posterior, total]


@pytest.mark.parametrize("dims", [2, 3])
def test_without_head_activation_two_samples_differ_by_one_number_and_with_it_by_more(dims):
    for activation, nested in ((False, True), (True, False)):
        network = tiny(dims, head_activation=activation).double().eval()
        # Biases of 0 put every unit of the untrained head on its kink; any others do.
        for layer in (network.head.first, *network.head.rest):
            torch.nn.init.normal_(layer.bias)
        with torch.no_grad():
            one, two = network.sample(image_of(dims).double(), 2).unbind(1)
        deviation = (one - two).flatten(1).std(1)
        assert (deviation < 1e-6).all() == nested


def test_samples_share_features_but_are_those_of_single_runs():
    network, image = tiny().eval(), image_of()
    noise = torch.randn(2, 4, 3)
    with torch.no_grad():
        together = network.sample(image, 4, noise=noise)
        alone = [network.sample(image, 1, noise=noise[:, k : k + 1]) for k in range(4)]
    torch.testing.assert_close(together, torch.cat(alone, dim=1))


def test_the_features_run_once_however_many_samples_are_drawn():
    network, calls = tiny().eval(), []
    network.unet.encoders[0].register_forward_hook(lambda *_: calls.append(1))
    network.sample(image_of(), 7)
    assert len(calls) == 1


def test_one_noise_serves_all_images_alike_and_makes_sampling_repeatable():
    network, image = tiny().eval(), image_of(batch=1).repeat(2, 1, 1, 1)
    with torch.no_grad():
        samples = network.sample(image, 3, noise=torch.randn(3, 3))
        torch.manual_seed(4)
        first = network.sample(image, 3)
        torch.manual_seed(4)
        again = network.sample(image, 3)
    torch.testing.assert_close(samples[0], samples[1])
    assert torch.equal(first, again)
    assert not torch.equal(first[:, 0], first[:, 1])


def test_called_with_an_image_it_answers_at_the_priors_mean():
    network, image = tiny().eval(), image_of()
    with torch.no_grad():
        torch.testing.assert_close(network(image), network.sample(image, 1, noise=torch.zeros(1, 3))[:, 0])


@pytest.mark.parametrize("inject", ["end", "bottom"])
def test_a_training_step_reaches_every_parameter(inject):
    network = tiny(inject=inject, out_channels=2).train()
    seg = torch.zeros(2, 2, 16, 16)
    seg[:, 1] = 1
    output = network(image_of(), seg, n=3)
    assert output.samples.shape == (2, 3, 2, 16, 16)
    divergence = torch.distributions.kl_divergence(output.posterior, output.prior).sum()
    (output.samples.square().mean() + divergence).backward()
    missing = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert missing == []


def test_samples_from_the_bottom_differ_over_space():
    with torch.no_grad():
        one, two = tiny(inject="bottom", head_activation=False).eval().sample(image_of(), 2).unbind(1)
    assert ((one - two).flatten(1).std(1) > 1e-4).all()


def test_distributions_stay_in_float32_under_autocast_and_finite_for_wild_images():
    network = tiny()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        prior, posterior = network.encode(1e4 * image_of(), torch.zeros(2, 1, 16, 16))
        samples = network.sample(image_of(), 2)
    for distribution in (prior, posterior):
        assert distribution.loc.dtype == distribution.scale.dtype == torch.float32
        assert distribution.scale.isfinite().all()
    assert samples.isfinite().all()


def test_probabilities_are_a_sigmoid_of_one_channel_and_a_softmax_of_several():
    noise = torch.zeros(1, 3)
    with torch.no_grad():
        one, three = (tiny(out_channels=c).eval().sample(image_of(), 1, None, noise, False) for c in (1, 3))
        logits = tiny().eval().sample(image_of(), 1, None, noise)
    torch.testing.assert_close(one, logits.sigmoid())
    torch.testing.assert_close(three.sum(2), torch.ones(2, 1, 16, 16))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda n: n(torch.zeros(1, 1, 16, 18)), r"image must have sides that are multiples of 4.*\(16, 18\)"),
        (lambda n: n(torch.zeros(1, 1, 4, 4)), r"at least one of them larger, got \(4, 4\)"),
        (lambda n: n(torch.zeros(1, 2, 16, 16)), r"image must have shape \(B, 1, H, W\), got \(1, 2, 16, 16\)"),
        (lambda n: n(torch.zeros(1, 1, 16, 16), torch.zeros(1, 16, 16)), r"seg must have shape \(1, 1, 16, 16\)"),
        (lambda n: n.sample(torch.zeros(1, 1, 16, 16), 0), "n must be at least 1, got 0"),
        (lambda n: n.sample(torch.zeros(1, 1, 16, 16), 2, noise=torch.zeros(3, 3)), "noise must have shape"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(tiny())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"spatial_dims": 1}, "spatial_dims must be 2 or 3, got 1"),
        ({"spatial_dims": 2, "inject": "middle"}, "inject must be end or bottom, got 'middle'"),
        ({"spatial_dims": 2, "depth": 1}, "depth must be at least 2, got 1"),
        ({"spatial_dims": 2, "latent_dim": 0}, "latent_dim must be at least 1, got 0"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ProbabilisticUNet(**options)
