"""Losses on sets in the battery of losses, which hands a loss one prediction and one label: here they become sets."""

from __future__ import annotations

import torch
from torch.distributions import Normal

from medseg.losses import ProbabilisticSegLoss, SampleSetLoss
from medseg.networks import ProbabilisticOutput


class SetOfOne(SampleSetLoss):
    """One sample against one annotation, listed twice because a single one is warned of."""

    def forward(self, input, target):
        return super().forward(input[:, None], target[:, None].expand(-1, 2, *target.shape[1:]))


class OneSampleOfPrior(ProbabilisticSegLoss):
    """One sample, and posterior and prior that are some fixed Gaussians."""

    def __init__(self, to_onehot_y=False, softmax=False, kl_weight=1.0):
        super().__init__(SampleSetLoss(to_onehot_y=to_onehot_y, softmax=softmax), kl_weight=kl_weight)

    def forward(self, input, target):
        one = torch.ones(len(input), 2)
        output = ProbabilisticOutput(input[:, None], Normal(one, one), Normal(2 * one, one))
        return super().forward(output, target[:, None].expand(-1, 2, *target.shape[1:]))


STAND_INS = {"SampleSetLoss": SetOfOne, "ProbabilisticSegLoss": OneSampleOfPrior}
