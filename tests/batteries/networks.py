"""The contract of every public network: one function a property, each taking the class and its JSON arguments.

A network takes `spatial_dims, in_channels, out_channels` as MONAI's do, besides `kwargs`. In evaluation it returns one
tensor (B, out_channels, spatial...); in training with deep supervision a list, finest first.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import torch

from tests.batteries.common import check_built_from_json

IN_CHANNELS, OUT_CHANNELS = 2, 3
SIZES = {2: (32, 48), 3: (32, 48, 32)}
Network = type[torch.nn.Module]


def build(cls: Network, kwargs: dict[str, Any], dims: int = 3) -> torch.nn.Module:
    """A network with reproducible weights."""
    torch.manual_seed(0)
    return cls(spatial_dims=dims, in_channels=IN_CHANNELS, out_channels=OUT_CHANNELS, **kwargs)


def make_input(dims: int = 3, batch: int = 1) -> torch.Tensor:
    """Seeded noise (B, C, spatial...)."""
    return torch.randn(batch, IN_CHANNELS, *SIZES[dims], generator=torch.Generator().manual_seed(0))


def _all_outputs(output: Any) -> list[torch.Tensor]:
    return list(output) if isinstance(output, list | tuple) else [output]


@torch.no_grad()
def keeps_the_shape_in_2d_and_3d(cls: Network, kwargs: dict[str, Any]) -> None:
    """Evaluation gives one tensor on the input's grid with `out_channels`; training gives it first of a list."""
    for dims, size in SIZES.items():
        expected = (1, OUT_CHANNELS, *size)
        network, image = build(cls, kwargs, dims), make_input(dims)
        output = network.eval()(image)
        assert isinstance(output, torch.Tensor), f"evaluation gave {type(output).__name__}, expected one tensor"
        assert tuple(output.shape) == expected, f"{dims}D: got {tuple(output.shape)}, expected {expected}"
        finest = _all_outputs(network.train()(make_input(dims, batch=2)))[0]
        assert tuple(finest.shape[1:]) == expected[1:], f"{dims}D training: the first output is {tuple(finest.shape)}"


def trains_every_parameter(cls: Network, kwargs: dict[str, Any]) -> None:
    """A backward pass gives every parameter a finite gradient."""
    network = build(cls, kwargs).train()
    sum(output.square().mean() for output in _all_outputs(network(make_input(batch=2)))).backward()
    named = [(name, p.grad) for name, p in network.named_parameters() if p.requires_grad]
    unused = [name for name, gradient in named if gradient is None]
    assert not unused, f"no gradient reaches {unused}"
    odd = [name for name, gradient in named if gradient is not None and not torch.isfinite(gradient).all()]
    assert not odd, f"the gradient of {odd} is not finite"


@torch.no_grad()
def can_be_exported(cls: Network, kwargs: dict[str, Any]) -> None:
    """`torch.export` captures the network, and the captured program computes the same."""
    network, image = build(cls, kwargs).eval(), make_input()
    program = torch.export.export(network, (image,))
    torch.testing.assert_close(program.module()(image), network(image))


@torch.no_grad()
def treats_samples_alone(cls: Network, kwargs: dict[str, Any]) -> None:
    """In evaluation a sample's result does not depend on the others of its batch."""
    network, batch = build(cls, kwargs).eval(), make_input(batch=2)
    alone = torch.cat([network(sample) for sample in batch.split(1)])
    torch.testing.assert_close(network(batch), alone, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def is_restored_from_its_weights(cls: Network, kwargs: dict[str, Any]) -> None:
    """A flat state dict read with `weights_only=True` restores the outputs bit for bit."""
    network, image = build(cls, kwargs).eval(), make_input()
    file = io.BytesIO()
    torch.save(network.state_dict(), file)
    file.seek(0)
    torch.manual_seed(1)
    other = cls(spatial_dims=3, in_channels=IN_CHANNELS, out_channels=OUT_CHANNELS, **kwargs).eval()
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other(image), network(image)), "the restored network computes something else"


def sets_no_seed(cls: Network, kwargs: dict[str, Any]) -> None:
    """Building draws from the global random state but does not reset it."""
    states = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        cls(spatial_dims=3, in_channels=IN_CHANNELS, out_channels=OUT_CHANNELS, **kwargs)
        states.append(torch.get_rng_state())
    assert not torch.equal(*states), "building the network reset the global random state"


def is_built_from_json(cls: Network, kwargs: dict[str, Any]) -> None:
    """A bundle's JSON can build the network, and a misspelt argument is refused."""
    check_built_from_json(cls, {"spatial_dims": 3, "in_channels": IN_CHANNELS, "out_channels": OUT_CHANNELS, **kwargs})


PROPERTIES: tuple[Callable[[Network, dict[str, Any]], None], ...] = (
    keeps_the_shape_in_2d_and_3d,
    trains_every_parameter,
    can_be_exported,
    treats_samples_alone,
    is_restored_from_its_weights,
    sets_no_seed,
    is_built_from_json,
)
