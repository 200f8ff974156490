"""Every public loss meets the contract of losses."""

from __future__ import annotations

import pytest
from torch.nn import functional
from torch.nn.modules.loss import _Loss

from medseg.losses import DeepSupervisionLoss, FocalTverskyLoss
from tests.batteries.common import public_classes
from tests.batteries.losses import PROPERTIES
from tests.losses import dual_path_stand_ins as dual_path
from tests.losses import label_free_stand_ins as label_free
from tests.losses import sample_set_stand_ins as sample_set
from tests.losses import sample_table_stand_ins as sample_table

# Arguments with which a loss accepts logits and class ids; losses that need others are named here.
USUAL = {"to_onehot_y": True, "softmax": True}
ARGUMENTS: dict[str, dict[str, object]] = {**dual_path.ARGUMENTS, **label_free.ARGUMENTS}
# What a method does not promise, with the reason.
MIRRORING = (
    "features that appear or vanish at one voxel are told apart by the order of cells, which mirroring reverses; the "
    "battery's noise has many"
)
EXEMPT: dict[tuple[str, str], str] = {
    **{(name, "ignores_mirroring"): MIRRORING for name in ("BettiMatchingLoss", "DiceBettiMatchingLoss")},
    **dual_path.EXEMPT,
    ("DiceCELoss", "reduces_consistently"): "as in MONAI the terms are means over different things: classes and voxels",
    **label_free.EXEMPT,
    **sample_table.EXEMPT,
}


class SupervisedAtTwoScales(DeepSupervisionLoss):
    """Deep supervision with a loss and a coarse prediction in it: it needs a loss object, which JSON gives nested."""

    def __init__(self, to_onehot_y=False, softmax=False):
        super().__init__(FocalTverskyLoss(to_onehot_y=to_onehot_y, softmax=softmax, reduction="mean"))

    def forward(self, input, target):
        pool = functional.max_pool2d if input.ndim == 4 else functional.max_pool3d
        return super().forward([input, pool(input, 2)], target)


STAND_INS = {
    "DeepSupervisionLoss": SupervisedAtTwoScales,
    **dual_path.STAND_INS,
    **label_free.STAND_INS,
    **sample_table.STAND_INS,
    **sample_set.STAND_INS,
}


@pytest.mark.parametrize("check", PROPERTIES, ids=lambda p: p.__name__)
@pytest.mark.parametrize("loss", public_classes("medseg.losses", _Loss), ids=lambda c: c.__name__)
def test_every_public_loss(loss, check):
    if reason := EXEMPT.get((loss.__name__, check.__name__)):
        pytest.skip(reason)
    check(STAND_INS.get(loss.__name__, loss), ARGUMENTS.get(loss.__name__, USUAL))
