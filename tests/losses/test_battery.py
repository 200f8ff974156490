"""Every public loss meets the contract of losses."""

from __future__ import annotations

import pytest
from torch.nn.modules.loss import _Loss

from tests.batteries.common import public_classes
from tests.batteries.losses import PROPERTIES

# Arguments with which a loss accepts logits and class ids; losses that need others are named here.
USUAL = {"to_onehot_y": True, "softmax": True}
ARGUMENTS: dict[str, dict[str, object]] = {}


@pytest.mark.parametrize("check", PROPERTIES, ids=lambda p: p.__name__)
@pytest.mark.parametrize("loss", public_classes("medseg.losses", _Loss), ids=lambda c: c.__name__)
def test_every_public_loss(loss, check):
    check(loss, ARGUMENTS.get(loss.__name__, USUAL))
