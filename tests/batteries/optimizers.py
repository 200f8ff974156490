"""The contract of every public optimizer: one function a property, each taking the class and its JSON arguments.

An optimizer is built as `cls(params, **kwargs)`. The weights it is tried on are those of a U-Net's layers: a
convolution, a grouped and a transposed one, a linear layer, their biases, and one weight with a single output channel.
"""

from __future__ import annotations

import inspect
import io
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser

Optimizer = Callable[..., torch.optim.Optimizer]
SHAPES = {
    "conv": (6, 4, 3, 3, 3),
    "grouped": (6, 2, 3, 3),
    "transposed": (4, 6, 2, 2, 2),
    "linear": (5, 7),
    "bias": (6,),
    "head": (1, 4, 1, 1, 1),
    "scale": (),
}
STEPS = 4


def make_weights(dtype: torch.dtype = torch.float32, seed: int = 0) -> dict[str, torch.nn.Parameter]:
    """Seeded weights of every kind of layer."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.nn.Parameter((0.3 * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype))
        for name, shape in SHAPES.items()
    }


def make_gradients(dtype: torch.dtype = torch.float32, steps: int = STEPS) -> Iterator[dict[str, torch.Tensor]]:
    """Seeded gradients for some steps."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        yield {
            name: torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
            for name, shape in SHAPES.items()
        }


def run(
    optimizer: torch.optim.Optimizer,
    weights: dict[str, torch.nn.Parameter],
    gradients: Iterator[dict[str, torch.Tensor]] | list[dict[str, torch.Tensor]],
    *,
    sign: float = 1.0,
) -> dict[str, torch.Tensor]:
    """Do a step with every set of gradients, and give the weights."""
    for grads in gradients:
        for name, weight in weights.items():
            weight.grad = sign * grads[name].to(weight.dtype)
        optimizer.step()
    return {name: weight.detach().clone() for name, weight in weights.items()}


def trained(
    cls: Optimizer, kwargs: dict[str, Any], dtype: torch.dtype = torch.float32, sign: float = 1.0, **more: Any
) -> dict[str, torch.Tensor]:
    """Weights after some steps of a fresh optimizer."""
    weights = make_weights(dtype)
    return run(cls(weights.values(), **kwargs, **more), weights, make_gradients(dtype), sign=sign)


def assert_same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor], **tolerance: float) -> None:
    """Weights agree by name; by default to the usual precision of their type."""
    for name in left:
        torch.testing.assert_close(left[name], right[name], **tolerance, msg=lambda text, n=name: f"{n}: {text}")


def saved(state: Any) -> Any:
    """What `torch.load` gives after `torch.save`, with nothing but tensors and plain values allowed."""
    stream = io.BytesIO()
    torch.save(state, stream)
    stream.seek(0)
    return torch.load(stream, weights_only=True)


def takes_every_kind_of_weight(cls: Optimizer, kwargs: dict[str, Any]) -> None:
    """Every weight moves and stays finite."""
    before, after = make_weights(), trained(cls, kwargs)
    for name, weight in after.items():
        assert torch.isfinite(weight).all(), f"{name} is not finite"
        assert not torch.equal(weight, before[name]), f"{name} did not move"


def agrees_at_once_and_piece_by_piece(cls: Optimizer, kwargs: dict[str, Any]) -> None:
    """All parameters at once, and cut into small pieces, give the same weights."""
    at_once = trained(cls, kwargs, foreach=True)
    assert_same(trained(cls, kwargs, foreach=False), at_once, rtol=1e-6, atol=1e-7)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("medseg.core.optim._blocks.BLOCK", 40)
        assert_same(trained(cls, kwargs, foreach=False), at_once, rtol=1e-6, atol=1e-7)


def does_not_depend_on_the_order_in_memory(cls: Optimizer, kwargs: dict[str, Any]) -> None:
    """Weights in channels_last order, or with gaps in memory, take the same steps; gradients may lie otherwise."""
    expected = trained(cls, kwargs)
    for foreach in (True, False):
        weights = make_weights()
        for name, order in (("conv", torch.channels_last_3d), ("transposed", torch.channels_last_3d)):
            weights[name].data = weights[name].data.to(memory_format=order)
        weights["grouped"].data = weights["grouped"].data.to(memory_format=torch.channels_last)
        weights["linear"].data = torch.stack([weights["linear"].data] * 2, dim=-1)[..., 0]
        strides = {name: weight.stride() for name, weight in weights.items()}
        found = run(cls(weights.values(), **kwargs, foreach=foreach), weights, make_gradients())
        assert_same(found, expected)
        assert strides == {name: weight.stride() for name, weight in weights.items()}


def goes_on_from_its_state(cls: Optimizer, kwargs: dict[str, Any]) -> None:
    """A state that was saved and loaded, with tensors and plain values only, continues the same run."""
    gradients = list(make_gradients(steps=2 * STEPS))
    weights = make_weights()
    expected = run(cls(weights.values(), **kwargs), weights, gradients)
    first = make_weights()
    optimizer = cls(first.values(), **kwargs)
    run(optimizer, first, gradients[:STEPS])
    second = {name: torch.nn.Parameter(weight.detach().clone()) for name, weight in first.items()}
    other = cls(second.values(), **kwargs)
    other.load_state_dict(saved(optimizer.state_dict()))
    assert_same(run(other, second, gradients[STEPS:]), expected, rtol=0, atol=0)


def keeps_full_precision_beside_half(cls: Optimizer, kwargs: dict[str, Any]) -> None:
    """Half-precision weights have float32 moments, also after loading, and steps that are float32 steps rounded."""
    for dtype in (torch.bfloat16, torch.float16):
        weights = make_weights(dtype)
        optimizer = cls(weights.values(), **kwargs)
        run(optimizer, weights, make_gradients(dtype))
        other = cls(make_weights(dtype).values(), **kwargs)
        other.load_state_dict(saved(optimizer.state_dict()))
        for one in (optimizer, other):
            tensors = [v for state in one.state.values() for v in state.values() if torch.is_tensor(v)]
            assert {t.dtype for t in tensors if t.is_floating_point()} == {torch.float32}
        full = {n: torch.nn.Parameter(w.detach().float()) for n, w in make_weights(dtype).items()}
        expected = run(cls(full.values(), **kwargs), full, list(make_gradients(dtype, steps=1)))
        half = make_weights(dtype)
        found = run(cls(half.values(), **kwargs), half, list(make_gradients(dtype, steps=1)))
        assert_same(found, {n: w.to(dtype) for n, w in expected.items()}, rtol=1e-2, atol=1e-3)


def takes_mixed_types_in_a_group(cls: Optimizer, kwargs: dict[str, Any]) -> None:
    """Weights of several types in one group each take the step they take alone."""
    weights = make_weights() | {"half": torch.nn.Parameter(torch.ones(3, 4, dtype=torch.bfloat16))}
    gradients = [grads | {"half": torch.full((3, 4), 0.5)} for grads in make_gradients()]
    for foreach in (True, False):
        found = run(cls(weights.values(), **kwargs, foreach=foreach), weights, gradients)
        assert found["half"].dtype == torch.bfloat16
        assert torch.isfinite(found["half"]).all()


def leaves_gradients_alone(cls: Optimizer, kwargs: dict[str, Any]) -> None:
    """A step changes no gradient, and moves no global random state."""
    weights, grads = make_weights(), next(make_gradients())
    for foreach in (True, False):
        for maximize in (True, False):
            before = torch.get_rng_state()
            run(cls(weights.values(), **kwargs, foreach=foreach, maximize=maximize), weights, [grads])
            assert all(torch.equal(weights[n].grad, grads[n]) for n in weights)
            assert torch.equal(torch.get_rng_state(), before)


def skips_weights_without_a_gradient(cls: Optimizer, kwargs: dict[str, Any]) -> None:
    """They stay as they are and get no state; a step without any gradient is none."""
    weights = make_weights()
    optimizer = cls(weights.values(), **kwargs)
    optimizer.step()
    assert not optimizer.state
    before = weights["conv"].detach().clone()
    weights["linear"].grad = torch.ones_like(weights["linear"])
    optimizer.step()
    assert torch.equal(weights["conv"], before)
    assert set(optimizer.state) == {weights["linear"]}


def goes_up_when_told(cls: Optimizer, kwargs: dict[str, Any]) -> None:
    """`maximize` is the step of the negative gradient."""
    assert_same(trained(cls, kwargs, maximize=True), trained(cls, kwargs, sign=-1.0), rtol=0, atol=0)


def runs_a_closure_with_gradients(cls: Optimizer, kwargs: dict[str, Any]) -> None:
    """A closure is called once, may differentiate, and its value is returned."""
    weight = torch.nn.Parameter(torch.ones(2, 3))
    optimizer, calls = cls([weight], **kwargs), []

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = weight.square().sum()
        loss.backward()
        calls.append(1)
        return loss

    with torch.no_grad():
        assert float(optimizer.step(closure)) == 6
    assert len(calls) == 1


def drops_steps_that_are_not_finite(cls: Optimizer, kwargs: dict[str, Any]) -> None:
    """With `skip_nonfinite`, a NaN among the gradients leaves everything as it was; without, it shows."""
    weights, grads = make_weights(), next(make_gradients())
    before = {n: w.detach().clone() for n, w in weights.items()}
    grads["conv"][0, 0] = float("nan")
    optimizer = cls(weights.values(), **kwargs, skip_nonfinite=True)
    assert_same(run(optimizer, weights, [grads]), before, rtol=0, atol=0)
    assert optimizer.num_skipped == 1
    assert not optimizer.state
    run(cls(weights.values(), **kwargs), weights, [grads])
    assert torch.isnan(weights["conv"]).any()


def survives_a_skipped_step_of_the_scaler(cls: Optimizer, kwargs: dict[str, Any]) -> None:
    """Where the gradient scaler finds infinity, weights and state stay; then training goes on."""
    weight, direction = torch.nn.Parameter(torch.ones(2, 3)), torch.tensor([[1.0, -1.0, 0.5], [0.0, 2.0, 1.0]])
    optimizer, scaler = cls([weight], **kwargs), torch.amp.GradScaler("cpu", init_scale=2.0)
    for value, moves in ((float("inf"), False), (1.0, True)):
        optimizer.zero_grad()
        scaler.scale((weight * direction * value).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        assert torch.equal(weight, torch.ones(2, 3)) is not moves
        assert bool(optimizer.state) is moves


def stands_still_at_rate_zero(cls: Optimizer, kwargs: dict[str, Any]) -> None:
    """At learning rate 0, where a warm-up may start, and with gradients of 0, nothing moves and nothing is NaN."""
    before = make_weights()
    assert_same(trained(cls, kwargs | {"lr": 0.0}), dict(before.items()), rtol=0, atol=0)
    weights = make_weights()
    zeros = [{name: torch.zeros_like(w) for name, w in weights.items()}]
    found = run(cls(weights.values(), **kwargs | {"weight_decay": 0.0}), weights, zeros)
    assert_same(found, dict(before.items()), rtol=0, atol=0)


def follows_a_schedule(cls: Optimizer, kwargs: dict[str, Any]) -> None:
    """A scheduler of torch sets its rate."""
    weights = make_weights()
    optimizer = cls(weights.values(), **kwargs)
    rate = optimizer.param_groups[0]["lr"]
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    run(optimizer, weights, list(make_gradients(steps=1)))
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(rate / 2)


def keeps_options_of_groups_apart(cls: Optimizer, kwargs: dict[str, Any]) -> None:
    """Each group has its own rate; a group with an option out of range is refused by name."""
    weights = make_weights()
    groups = [{"params": [weights["conv"]], "lr": 0.0}, {"params": [weights["linear"]]}]
    optimizer = cls(groups, **kwargs)
    run(optimizer, {n: weights[n] for n in ("conv", "linear")}, make_gradients())
    assert torch.equal(weights["conv"], make_weights()["conv"])
    assert not torch.equal(weights["linear"], make_weights()["linear"])
    with pytest.raises(ValueError, match=r"lr must be .* got -1"):
        cls([{"params": [weights["bias"]], "lr": -1.0}], **kwargs)


def refuses_what_it_cannot_take(cls: Optimizer, kwargs: dict[str, Any]) -> None:
    """Sparse gradients, complex weights and options out of range are named."""
    weight = torch.nn.Parameter(torch.ones(3, 2))
    weight.grad = torch.eye(3, 2).to_sparse()
    with pytest.raises(RuntimeError, match="sparse gradients"):
        cls([weight], **kwargs).step()
    with pytest.raises(TypeError, match="real parameters"):
        cls([torch.nn.Parameter(torch.ones(2, dtype=torch.complex64))], **kwargs)
    for name in ("lr", "weight_decay"):
        with pytest.raises(ValueError, match=f"{name} must be .* got -0.5"):
            cls([weight], **kwargs | {name: -0.5})
        with pytest.raises(ValueError, match=f"{name} must be .* got nan"):
            cls([weight], **kwargs | {name: float("nan")})


def is_built_from_json(cls: Optimizer, kwargs: dict[str, Any]) -> None:
    """JSON builds it, by its public path in a bundle's config as well; a misspelt argument is refused."""
    kinds = {p.kind for p in inspect.signature(cls).parameters.values()}
    assert kinds <= {inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY}
    arguments = json.loads(json.dumps(kwargs))
    network = {"_target_": "torch.nn.Conv3d", "in_channels": 1, "out_channels": 2, "kernel_size": 3}
    name = getattr(cls, "__name__", None) or cls.func.__name__
    target = {"_target_": f"medseg.core.optim.{name}", "params": "$@network.parameters()", **arguments}
    optimizer = ConfigParser({"network": network, "optimizer": target}).get_parsed_content("optimizer")
    assert type(optimizer).__name__ == name
    with pytest.raises(TypeError):
        cls([torch.nn.Parameter(torch.ones(2))], **kwargs, misspelt_argument=1)


def can_be_compiled(cls: Optimizer, kwargs: dict[str, Any]) -> None:
    """The compiler traces a step, over several of which it gives the weights of the plain one."""
    torch.compiler.reset()
    weights = {name: make_weights()[name] for name in ("conv", "transposed", "bias")}
    optimizer = cls(weights.values(), **kwargs)
    gradients = list(make_gradients())
    run(optimizer, weights, gradients[:1])
    step = torch.compile(optimizer.step, backend="eager", fullgraph=True)
    for grads in gradients[1:]:
        for name, weight in weights.items():
            weight.grad = grads[name].clone()
        step()
    expected = trained(cls, kwargs)
    assert_same({n: w.detach() for n, w in weights.items()}, expected, rtol=1e-5, atol=1e-6)


def lowers_a_loss(cls: Optimizer, kwargs: dict[str, Any]) -> None:
    """It fits a small convolution to a linear target."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(4, 1, 1))
    image = torch.randn(2, 1, 8, 8)
    optimizer = cls(network.parameters(), **kwargs)

    def loss() -> torch.Tensor:
        return (network(image) - 0.5 * image - 1).square().mean()

    first = loss().item()
    for _ in range(60):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    assert loss().item() < 0.7 * first


PROPERTIES: tuple[Callable[[Optimizer, dict[str, Any]], None], ...] = (
    takes_every_kind_of_weight,
    agrees_at_once_and_piece_by_piece,
    does_not_depend_on_the_order_in_memory,
    goes_on_from_its_state,
    keeps_full_precision_beside_half,
    takes_mixed_types_in_a_group,
    leaves_gradients_alone,
    skips_weights_without_a_gradient,
    goes_up_when_told,
    runs_a_closure_with_gradients,
    drops_steps_that_are_not_finite,
    survives_a_skipped_step_of_the_scaler,
    stands_still_at_rate_zero,
    follows_a_schedule,
    keeps_options_of_groups_apart,
    refuses_what_it_cannot_take,
    is_built_from_json,
    can_be_compiled,
    lowers_a_loss,
)
