"""Normalize-and-Project: golden values, constant norms, and effective learning rates."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch

from medseg.core.optim import AdamP, Lion, ProjectedOptimizer, effective_learning_rates
from tests.core.optim.golden import find_golden, load_golden


@pytest.mark.parametrize("path", find_golden("nap_sgd_*.npz"), ids=lambda path: path.stem)
@pytest.mark.parametrize("granularity", ["layer", "channel"])
def test_momentum_sgd_with_projection_gives_the_golden_weights(path, granularity):
    golden = load_golden(path)
    weight = torch.nn.Parameter(torch.from_numpy(golden["w0"].copy()))
    sgd = torch.optim.SGD([weight], lr=float(golden["lr"]), momentum=float(golden["momentum"]))
    optimizer = ProjectedOptimizer(sgd, granularity=granularity)
    for grad, expected in zip(golden["g"], golden[f"w_{granularity}"], strict=True):
        weight.grad = torch.from_numpy(grad.copy())
        optimizer.step()
        np.testing.assert_allclose(weight.detach(), expected, rtol=1e-9, atol=1e-12)


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("make", [AdamP, Lion, lambda params, lr: torch.optim.SGD(params, lr=lr)])
@pytest.mark.parametrize(("granularity", "axes"), [("layer", (0, 1, 2)), ("channel", (1, 2))])
def test_norms_stay_what_they_were_and_biases_are_free(make, granularity, axes):
    weight, bias = torch.nn.Parameter(noise(4, 3, 5)), torch.nn.Parameter(noise(4))
    before, bias_before = torch.linalg.vector_norm(weight.detach(), dim=axes), bias.detach().norm()
    optimizer = ProjectedOptimizer(make([weight, bias], lr=0.1), granularity=granularity)
    for seed in range(10):
        weight.grad, bias.grad = noise(4, 3, 5, seed=seed), noise(4, seed=seed)
        optimizer.step()
    after = torch.linalg.vector_norm(weight.detach(), dim=axes)
    torch.testing.assert_close(after, before, rtol=1e-6, atol=0)
    assert abs(bias.norm() - bias_before) > 1e-3


def test_channels_of_transposed_convolutions_lie_along_the_groups_axis():
    weight = torch.nn.Parameter(noise(3, 4, 2, 2))
    before = torch.linalg.vector_norm(weight.detach(), dim=(0, 2, 3))
    inner = AdamP([{"params": [weight], "channel_dim": 1}], lr=0.1)
    optimizer = ProjectedOptimizer(inner, granularity="channel")
    weight.grad = noise(3, 4, 2, 2, seed=1)
    optimizer.step()
    torch.testing.assert_close(torch.linalg.vector_norm(weight.detach(), dim=(0, 2, 3)), before)


def test_on_a_scale_invariant_loss_it_is_plain_sgd_at_another_rate():
    """Projected with rate lr, w / |w| moves as unprojected with the rate lr |w_t|^2 / rho^2."""
    target = noise(1, 6, seed=1).double()

    def gradient(weight):
        leaf = weight.detach().requires_grad_()
        (leaf / leaf.norm() - target).square().sum().backward()
        return leaf.grad

    projected = torch.nn.Parameter(noise(1, 6).double())
    plain, rho = projected.detach().clone(), projected.detach().norm()
    optimizer = ProjectedOptimizer(torch.optim.SGD([projected], lr=0.1))
    for _ in range(20):
        projected.grad = gradient(projected)
        optimizer.step()
        plain = plain - 0.1 * plain.norm() ** 2 / rho**2 * gradient(plain)
        torch.testing.assert_close(projected.detach() / rho, plain / plain.norm())


def test_it_projects_every_so_many_steps_to_any_norm():
    weight = torch.nn.Parameter(noise(2, 3))
    optimizer = ProjectedOptimizer(torch.optim.SGD([weight], lr=0.1), every=2, rho=3.0)
    norms = []
    for seed in range(4):
        weight.grad = noise(2, 3, seed=seed + 1)
        optimizer.step()
        norms.append(round(weight.norm().item(), 5))
    assert [norm == 3.0 for norm in norms] == [False, True, False, True]


def test_a_saved_state_holds_the_first_norm():
    weights = [torch.nn.Parameter(noise(2, 3)), torch.nn.Parameter(5 * noise(2, 3))]
    first, second = (ProjectedOptimizer(torch.optim.SGD([w], lr=0.1, momentum=0.9)) for w in weights)
    weights[0].grad = noise(2, 3, seed=1)
    first.step()
    stream = io.BytesIO()
    torch.save(first.state_dict(), stream)
    stream.seek(0)
    second.load_state_dict(torch.load(stream, weights_only=True))
    weights[1].data.copy_(weights[0].data)
    for optimizer, weight in ((first, weights[0]), (second, weights[1])):
        weight.grad = noise(2, 3, seed=2)
        optimizer.step()
    assert torch.equal(weights[0], weights[1])
    assert second.state[weights[1]]["momentum_buffer"] is not None


def test_a_schedule_reaches_the_optimizer_inside():
    weight = torch.nn.Parameter(noise(2, 3))
    inner = torch.optim.SGD([weight], lr=1.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(ProjectedOptimizer(inner), lambda step: 0.1)
    weight.grad = torch.zeros(2, 3)
    scheduler.optimizer.step()
    scheduler.step()
    assert inner.param_groups[0]["lr"] == pytest.approx(0.1)


def test_what_cannot_be_held_is_named():
    zero, decayed = torch.nn.Parameter(torch.zeros(2, 2)), torch.nn.Parameter(torch.ones(2, 2))
    with pytest.raises(ValueError, match=r"params\[0\] of shape \(2, 2\) has norm 0"):
        ProjectedOptimizer(torch.optim.SGD([zero], lr=0.1))
    with pytest.raises(ValueError, match=r"decays by 0.1, .* weight_decay=0"):
        ProjectedOptimizer(torch.optim.SGD([decayed], lr=0.1, weight_decay=0.1))
    with pytest.raises(ValueError, match="params holds 1 weights that the optimizer does not have"):
        ProjectedOptimizer(torch.optim.SGD([decayed], lr=0.1), params=[zero])
    with pytest.raises(TypeError, match=r"optimizer must be a torch.optim.Optimizer, got list"):
        ProjectedOptimizer([decayed])


def test_effective_rates_are_those_of_the_kind_of_optimizer():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1, bias=False))
    torch.nn.init.constant_(model[0].weight, 1.0)
    torch.nn.init.zeros_(model[1].weight)
    sgd = effective_learning_rates(torch.optim.SGD(model.parameters(), lr=0.4), model)
    assert sgd == {"0.weight": pytest.approx(0.1), "1.weight": float("inf")}
    assert effective_learning_rates(Lion(model.parameters(), lr=0.4), model)["0.weight"] == pytest.approx(0.2)
