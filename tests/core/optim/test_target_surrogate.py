"""Target-based surrogates: golden values, one evaluation of the loss, and passes that see the same function."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from medseg.core.optim import AdamP, TargetSurrogateOptimizer
from tests.core.optim.golden import find_golden, load_golden


@pytest.mark.parametrize("path", find_golden("sso_*.npz"), ids=lambda path: path.stem)
@pytest.mark.parametrize("inner_steps", [1, 5, 20])
def test_a_linear_model_takes_the_golden_steps(path, inner_steps):
    golden = load_golden(path)
    inputs, labels = torch.from_numpy(golden["X"]), torch.from_numpy(golden["Ylogits"]).softmax(1)
    weight = torch.nn.Parameter(torch.from_numpy(golden["W0"].copy()))
    sgd = torch.optim.SGD([weight], lr=float(golden["alpha"]))
    optimizer = TargetSurrogateOptimizer(sgd, inner_steps=inner_steps, eta=float(golden["eta"]))
    for expected in golden[f"W_m{inner_steps}"]:
        optimizer.step(lambda: inputs @ weight, lambda z: -(labels * z.log_softmax(1)).sum(1).mean())
        np.testing.assert_allclose(weight.detach(), expected, rtol=1e-7, atol=1e-12)


def make_network(*more):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), *more, nn.ReLU(), nn.Conv2d(4, 2, 1))


IMAGE = torch.randn(2, 1, 6, 6, generator=torch.Generator().manual_seed(1))
LABEL = torch.randint(0, 2, (2, 6, 6), generator=torch.Generator().manual_seed(2))


def cross_entropy(logits):
    return nn.functional.cross_entropy(logits, LABEL)


def test_one_inner_step_is_the_optimizers_own_bit_for_bit():
    ours, theirs = make_network(), make_network()
    wrapped = TargetSurrogateOptimizer(AdamP(ours.parameters(), lr=0.01), inner_steps=1, eta=0.3)
    plain = AdamP(theirs.parameters(), lr=0.01)
    for _ in range(3):
        wrapped.step(lambda: ours(IMAGE), cross_entropy)
        plain.zero_grad()
        cross_entropy(theirs(IMAGE)).backward()
        plain.step()
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


def test_the_loss_is_evaluated_once_a_step_and_more_inner_steps_lower_it_more():
    ends = {}
    for inner_steps in (1, 4):
        network, calls = make_network(), []
        sgd = torch.optim.SGD(network.parameters(), lr=0.05)
        optimizer = TargetSurrogateOptimizer(sgd, inner_steps=inner_steps, eta=30.0)

        def loss(logits, calls=calls):
            calls.append(1)
            return cross_entropy(logits)

        for _ in range(20):
            optimizer.step(lambda network=network: network(IMAGE), loss)
        assert len(calls) == 20
        ends[inner_steps] = cross_entropy(network(IMAGE)).item()
    assert ends[4] < ends[1] - 0.01


def test_the_surrogate_falls_with_every_inner_step():
    network = make_network()
    start = network(IMAGE).detach().requires_grad_()
    (slope,) = torch.autograd.grad(cross_entropy(start), start)
    seen = []

    def forward():
        logits = network(IMAGE)
        moved = logits.detach() - start.detach()
        seen.append(float((slope * moved).sum() + moved.square().sum() / (2 * 10.0 * len(IMAGE))))
        return logits

    sgd = torch.optim.SGD(network.parameters(), lr=0.05)
    TargetSurrogateOptimizer(sgd, inner_steps=6, eta=10.0).step(forward, cross_entropy)
    assert seen == sorted(seen, reverse=True)
    assert seen[0] == 0
    assert len(seen) == 6


def test_dropout_draws_the_same_in_every_inner_step():
    network, outputs = make_network(nn.Dropout(0.5)), []

    def forward():
        outputs.append(network(IMAGE))
        return outputs[-1]

    sgd = torch.optim.SGD(network.parameters(), lr=0.0)
    TargetSurrogateOptimizer(sgd, inner_steps=3).step(forward, cross_entropy)
    assert torch.equal(outputs[0], outputs[2])
    assert not torch.equal(outputs[0], network(IMAGE))


def test_running_statistics_are_those_of_one_pass():
    ours, theirs = make_network(nn.BatchNorm2d(4)), make_network(nn.BatchNorm2d(4))
    sgd = torch.optim.SGD(ours.parameters(), lr=0.5)
    TargetSurrogateOptimizer(sgd, inner_steps=3, model=ours).step(lambda: ours(IMAGE), cross_entropy)
    theirs(IMAGE)
    torch.testing.assert_close(ours[1].running_mean, theirs[1].running_mean)
    assert ours[1].num_batches_tracked == 1


def test_lists_of_logits_under_deep_supervision_are_taken_together():
    network = make_network()
    sgd = torch.optim.SGD(network.parameters(), lr=0.05)
    optimizer = TargetSurrogateOptimizer(sgd, inner_steps=3, eta=30.0)

    def forward():
        logits = network(IMAGE)
        return [logits, nn.functional.avg_pool2d(logits, 2)]

    def loss(logits):
        return cross_entropy(logits[0]) + cross_entropy(nn.functional.interpolate(logits[1], scale_factor=2))

    losses = [optimizer.step(forward, loss).item() for _ in range(5)]
    assert losses == sorted(losses, reverse=True)


def test_it_stops_early_when_told_and_eta_falls_with_time():
    """On z = w, every inner step leaves 1 - 0.25 / eta of the gradient: 0.75 in the first step, then 0.646."""
    options = {"inner_steps": 50, "eta": 1.0, "eta_schedule": "inv_sqrt", "stop_ratio": 0.45}
    weight, calls = torch.nn.Parameter(torch.zeros(1, 1)), []
    optimizer = TargetSurrogateOptimizer(torch.optim.SGD([weight], lr=0.25), **options)
    for expected in (4, 3):
        calls.clear()
        optimizer.step(lambda: calls.append(1) or weight * 1.0, lambda z: (z - 2).square().sum())
        assert len(calls) == expected
    other = TargetSurrogateOptimizer(torch.optim.SGD([weight], lr=0.25), **options)
    other.load_state_dict(optimizer.state_dict())
    assert other.count == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"inner_steps": 0}, "inner_steps must be a whole number of at least 1, got 0"),
        ({"eta": 0}, "eta must be above 0, got 0"),
        ({"eta_schedule": "cosine"}, "eta_schedule must be one of"),
        ({"stop_ratio": 1.0}, "stop_ratio must be in"),
    ],
)
def test_options_out_of_range_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        TargetSurrogateOptimizer(torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1), **options)
