"""Every public loss meets the contract of losses."""

from __future__ import annotations

import pytest
from torch.nn.modules.loss import _Loss

from tests.batteries.common import public_classes
from tests.batteries.losses import PROPERTIES

# Arguments with which a loss accepts logits and class ids; losses that need others are named here.
USUAL = {"to_onehot_y": True, "softmax": True}
ARGUMENTS: dict[str, dict[str, object]] = {}
# What a method does not promise, with the reason.
EXEMPT: dict[tuple[str, str], str] = {
    (name, "ignores_mirroring"): "features that appear or vanish at one voxel are told apart by the order of cells, "
    "which mirroring reverses; the battery's noise has many"
    for name in ("BettiMatchingLoss", "DiceBettiMatchingLoss")
}


@pytest.mark.parametrize("check", PROPERTIES, ids=lambda p: p.__name__)
@pytest.mark.parametrize("loss", public_classes("medseg.losses", _Loss), ids=lambda c: c.__name__)
def test_every_public_loss(loss, check):
    if reason := EXEMPT.get((loss.__name__, check.__name__)):
        pytest.skip(reason)
    check(loss, ARGUMENTS.get(loss.__name__, USUAL))
