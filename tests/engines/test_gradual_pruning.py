"""`medseg/engines/gradual_pruning.py`: the schedule in a trainer, resuming, and names that stay."""

from __future__ import annotations

import pytest
import torch
from ignite.engine import Engine, Events
from monai.bundle import ConfigParser
from torch import nn

from medseg.core.compress import cubic_sparsity
from medseg.engines import GradualPruning

SHAPE = [1, 1, 8, 8]


def make_network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.InstanceNorm2d(6), nn.ReLU(),
        nn.Conv2d(6, 6, 3, padding=1), nn.InstanceNorm2d(6), nn.ReLU(),
        nn.Conv2d(6, 2, 1),
    )  # fmt: skip


def make_run(network, **options):
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.01)

    def step(engine, batch):
        network.train()
        optimizer.zero_grad()
        network(batch).square().mean().backward()
        optimizer.step()
        return float((network[3].weight == 0).double().mean())

    trainer = Engine(step)
    GradualPruning(network, optimizer, SHAPE, **options).attach(trainer)
    seen = []
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: seen.append(engine.state.output))
    return trainer, optimizer, seen


def batches(count):
    return [torch.randn(SHAPE, generator=torch.Generator().manual_seed(n)) for n in range(count)]


def test_sparsity_rises_along_the_schedule_and_stays():
    network = make_network()
    trainer, _, seen = make_run(network, begin=2, end=8, every=2, sparsity=0.9)
    trainer.run(batches(12), max_epochs=1)
    expected = [0, 0, *(cubic_sparsity(t, 6, 0.9) for t in (0, 0, 2, 2, 4, 4, 6, 6, 6, 6))]
    assert seen == pytest.approx(expected, abs=0.005)
    assert network.state_dict().keys() == make_network().state_dict().keys()
    assert (network[0].weight != 0).all()
    assert (network[6].weight != 0).all()


def test_a_resumed_run_goes_on_as_one_that_was_not_stopped():
    straight = make_network()
    options = {"end": 8, "every": 3, "sparsity": 0.9}
    make_run(straight, **options)[0].run(batches(12), max_epochs=1)

    stopped = make_network()
    trainer, optimizer, _ = make_run(stopped, **options)
    trainer.run(batches(5), max_epochs=1)
    resumed = make_network()
    again, other, _ = make_run(resumed, **options)
    resumed.load_state_dict(stopped.state_dict())
    other.load_state_dict(optimizer.state_dict())
    again.add_event_handler(Events.STARTED, lambda engine: setattr(engine.state, "iteration", 5))
    again.run(batches(12)[5:], max_epochs=1, epoch_length=12)
    assert again.state.iteration == 12
    assert torch.equal(resumed[3].weight, straight[3].weight)


def test_a_bundle_can_name_it():
    config = {
        "network": {"_target_": "torch.nn.Conv2d", "in_channels": 1, "out_channels": 1, "kernel_size": 1},
        "optimizer": {"_target_": "torch.optim.SGD", "params": "$@network.parameters()", "lr": 0.1},
        "handler": {
            "_target_": "medseg.engines.GradualPruning",
            "network": "@network",
            "optimizer": "@optimizer",
            "input_shape": SHAPE,
            "end": 10,
        },
    }
    assert isinstance(ConfigParser(config).get_parsed_content("handler"), GradualPruning)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"end": 5, "begin": 5}, "0 <= begin < end"),
        ({"end": 5, "every": 0}, "every must be at least 1, got 0"),
        ({"end": 5, "sparsity": 1.5}, r"sparsity must be in \[0, 1\]"),
    ],
)
def test_numbers_out_of_range_are_refused_at_once(options, match):
    network = make_network()
    with pytest.raises(ValueError, match=match):
        GradualPruning(network, torch.optim.SGD(network.parameters(), lr=0.1), SHAPE, **options)
