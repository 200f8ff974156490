"""Every public network meets the contract of networks."""

from __future__ import annotations

import pytest
from torch import nn

from tests.batteries.common import public_classes
from tests.batteries.networks import PROPERTIES

# Arguments that make a network small enough to test; networks without an entry are built with their defaults.
ARGUMENTS: dict[str, dict[str, object]] = {
    "AnisotropicUNet": {"features": [2, 4, 4, 4, 4]},
    "DualPathZoneNet": {"features": [2, 4, 4, 4, 4], "zones": ["in", "out"], "branches": [["in", "out"], ["out"]]},
    "MultiScaleAttentionUNet": {"features": [4, 4, 4, 4, 8], "up_features": [4, 4, 4, 4]},
    "ProbabilisticUNet": {"features": 4, "depth": 3},
}
# What a network does not promise, with the reason.
EXEMPT: dict[tuple[str, str], str] = {
    ("DualPathZoneNet", "trains_every_parameter"): "gives lists of maps in training; its own test does this with them",
    (
        "ProbabilisticUNet",
        "trains_every_parameter",
    ): "its posterior reads annotations, which the battery does not give; its own test takes a whole training step",
}
# These wrap a network that they are given, and have tests of their own.
WRAPPERS = {"FeatureTap", "SlicewisePartsNet"}
NETWORKS = [c for c in public_classes("medseg.networks", nn.Module) if c.__name__ not in WRAPPERS]


@pytest.mark.parametrize("check", PROPERTIES, ids=lambda p: p.__name__)
@pytest.mark.parametrize("network", NETWORKS, ids=lambda c: c.__name__)
def test_every_public_network(network, check):
    if reason := EXEMPT.get((network.__name__, check.__name__)):
        pytest.skip(reason)
    check(network, ARGUMENTS.get(network.__name__, {}))
