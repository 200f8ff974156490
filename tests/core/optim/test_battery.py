"""Every public optimizer meets the contract of optimizers, in each of its ways to work."""

from __future__ import annotations

import pytest
from torch.optim import Optimizer

from medseg.core import optim
from tests.batteries.common import public_classes
from tests.batteries.optimizers import PROPERTIES, can_be_compiled

# Ways of each optimizer to work; one that is missing here fails, so that none goes untested.
WAYS: dict[str, dict[str, dict[str, object]]] = {
    "AdamP": {
        "cosine": {"lr": 1e-2, "weight_decay": 0.1},
        "known": {"lr": 1e-2, "betas": [0.9, 0.99], "scale_invariant": True, "channel_dim": 1, "nesterov": True},
    },
    "SGDP": {
        "cosine": {"lr": 1e-2, "momentum": 0.9, "weight_decay": 0.1, "nesterov": True},
        "known": {"lr": 1e-2, "momentum": 0.9, "scale_invariant": True, "channel_groups": 1},
    },
    "FrugalAdamW": {
        "block": {"lr": 1e-2, "weight_decay": 0.1, "density": 0.5, "update_gap": 3},
        "columns": {"lr": 1e-2, "selection": "columns", "density": 0.5, "update_gap": 2},
        "entries": {"lr": 1e-2, "selection": "entries", "update_gap": 3, "state_free": "sgd"},
    },
    "Lion": {
        "l1": {"lr": 1e-2, "weight_decay": 0.5},
        "l2": {"lr": 1e-1, "kappa": "l2"},
        "group_l2": {"lr": 1e-2, "kappa": "group_l2", "channel_dim": 1},
        "deadzone": {"lr": 1e-2, "kappa": "deadzone", "kappa_eps": 0.01},
    },
}
# These wrap an optimizer that they are given, and have tests of their own.
WRAPPERS = {"ProjectedOptimizer", "TargetSurrogateOptimizer"}
EXEMPT: dict[tuple[str, str], str] = {
    ("FrugalAdamW", "can_be_compiled"): "what has state is drawn anew every so many steps, outside of any graph",
}
CASES = [
    pytest.param(cls, arguments, check, id=f"{cls.__name__}-{way}-{check.__name__}")
    for cls in public_classes("medseg.core.optim", Optimizer)
    if cls.__name__ not in WRAPPERS
    for way, arguments in WAYS[cls.__name__].items()
    for check in PROPERTIES
    # Tracing takes seconds, and the ways differ little in it.
    if check is not can_be_compiled or way == next(iter(WAYS[cls.__name__]))
]


@pytest.mark.parametrize(("optimizer", "arguments", "check"), CASES)
def test_every_public_optimizer(optimizer, arguments, check):
    if reason := EXEMPT.get((optimizer.__name__, check.__name__)):
        pytest.skip(reason)
    check(optimizer, arguments)


def test_the_battery_knows_only_optimizers_that_exist():
    assert set(WAYS) <= set(optim.__all__)
