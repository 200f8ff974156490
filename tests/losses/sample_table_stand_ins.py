"""Losses with sample ids or a base loss in the battery of losses, which hands every loss logits and class ids alone."""

from __future__ import annotations

import torch

from medseg.losses import (
    AdaptiveWeightedConsistencyLoss,
    ExponentiatedSampleWeights,
    FocalTverskyLoss,
    LabelTrimmedLoss,
    TrimmedLoss,
)


class AgreementOfTwoScalings(AdaptiveWeightedConsistencyLoss):
    """Frozen, as the battery compares calls with each other; the second view is the first at half its strength."""

    def __init__(self, to_onehot_y=False, softmax=False):
        super().__init__(num_samples=8, consistency_weight=2.0, learn_weights=False)

    def forward(self, input, target):
        features = input.flatten(2).mean(2)
        views = (input, input / 2), (target, target), (features, features / 2)
        return super().forward(*views, torch.arange(len(input)))


class WeightedSamples(ExponentiatedSampleWeights):
    def __init__(self, to_onehot_y=False, softmax=False):
        super().__init__(num_samples=8)
        self.base = FocalTverskyLoss(to_onehot_y=to_onehot_y, softmax=softmax, reduction="none")
        self.log_weights += torch.arange(8) % 2
        self.eval()

    def forward(self, input, target):
        return super().forward(self.base(input, target).mean(1), torch.arange(len(input)))


class HardSamples(TrimmedLoss):
    def __init__(self, to_onehot_y=False, softmax=False):
        super().__init__(FocalTverskyLoss(to_onehot_y=to_onehot_y, softmax=softmax, reduction="none"), ratio=0.4)


class LabelledSamples(LabelTrimmedLoss):
    def __init__(self, to_onehot_y=False, softmax=False):
        super().__init__(FocalTverskyLoss(to_onehot_y=to_onehot_y, softmax=softmax, reduction="none"))


STAND_INS = {
    "AdaptiveWeightedConsistencyLoss": AgreementOfTwoScalings,
    "ExponentiatedSampleWeights": WeightedSamples,
    "LabelTrimmedLoss": LabelledSamples,
    "TrimmedLoss": HardSamples,
}
EXEMPT = {
    ("AdaptiveWeightedConsistencyLoss", "reduces_consistently"): "its Dice is that of the whole batch",
    ("ExponentiatedSampleWeights", "reduces_consistently"): "weights go by sample, and the halves hold other samples",
    ("TrimmedLoss", "reduces_consistently"): "what is trimmed depends on the whole batch",
}
