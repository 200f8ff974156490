"""Losses of dual-path networks in the battery of losses, which hands losses logits of three classes and ids."""

from __future__ import annotations

import torch

from medseg.losses import CoTrainingDisagreementLoss, DualPathZoneLoss
from medseg.networks import DualPathOutput, fuse_zones

ZONES, BRANCHES = ("one", "two"), (("one", "two"), ("two",))


class DisagreementWithIds(CoTrainingDisagreementLoss):
    """One branch gives the softmax of the logits, the other is sure of the class ids."""

    def forward(self, input, target):
        one_hot = torch.cat([target == c for c in range(input.shape[1])], dim=1)
        return super().forward(input.softmax(dim=1), one_hot.to(input))


class DualPathOfLogits(DualPathZoneLoss):
    """Two branches made of the same logits: both zones and background, and the second zone against the rest."""

    def __init__(self, lambda_cot=0.5):
        super().__init__(BRANCHES, zones=ZONES, aux=None, lambda_cot=lambda_cot, ramp_epochs=0)

    def forward(self, input, target):
        logits = [input[:, [1, 2, 0]], input[:, [2, 0]]]
        return super().forward(DualPathOutput(fuse_zones(logits, BRANCHES, ZONES), logits, []), target)


STAND_INS = {"CoTrainingDisagreementLoss": DisagreementWithIds, "DualPathZoneLoss": DualPathOfLogits}
ARGUMENTS: dict[str, dict[str, object]] = {name: {} for name in STAND_INS}
EXEMPT = {("CoTrainingDisagreementLoss", "refuses_labels_out_of_range"): "takes no class ids"}
