"""Losses without labels in the battery of losses, which hands every loss class ids: here ids become what they need."""

from __future__ import annotations

import torch

from medseg.losses import (
    ClassRatioKLLoss,
    PseudoLabelLoss,
    ShapeMomentLoss,
    SizeBoundLoss,
    SourceFreeAdaptationLoss,
    WeightedEntropyLoss,
    compute_shape_moments,
)


def one_hot(input, target):
    return torch.cat([target == c for c in range(input.shape[1])], dim=1).float()


class RatioOfIds(ClassRatioKLLoss):
    def forward(self, input, target):
        return super().forward(input, one_hot(input, target).flatten(2).mean(-1))


class AdaptationByIds(SourceFreeAdaptationLoss):
    def forward(self, input, target):
        return super().forward(input, one_hot(input, target).flatten(2).mean(-1))


class EntropyWhereIds(WeightedEntropyLoss):
    def forward(self, input, target):
        return super().forward(input, target > 0)


class BoundWhereIds(SizeBoundLoss):
    def forward(self, input, target):
        return super().forward(input, target > 0)


class MomentOfIds(ShapeMomentLoss):
    def forward(self, input, target):
        mask = one_hot(input, target)
        moments = compute_shape_moments(mask, self.moment, self.spacing)
        return super().forward(input, moments, tags=mask.flatten(2).any(-1))


class TeacherOfIds(PseudoLabelLoss):
    def forward(self, input, target):
        return super().forward(input, 9 * one_hot(input, target))


STAND_INS = {
    "ClassRatioKLLoss": RatioOfIds,
    "PseudoLabelLoss": TeacherOfIds,
    "ShapeMomentLoss": MomentOfIds,
    "SizeBoundLoss": BoundWhereIds,
    "SourceFreeAdaptationLoss": AdaptationByIds,
    "WeightedEntropyLoss": EntropyWhereIds,
}
ARGUMENTS: dict[str, dict[str, object]] = {
    "ClassRatioKLLoss": {},
    "PseudoLabelLoss": {},
    "ShapeMomentLoss": {"spacing": 1.5, "min_voxels": 0},
    "SizeBoundLoss": {"lower": [0.0, 0.4, 0.0], "upper": [0.2, 1.0, 1.0], "reduction": "mean"},
    "SourceFreeAdaptationLoss": {"class_weight": [0.1, 0.4, 0.5]},
    "WeightedEntropyLoss": {"weight": [0.1, 0.4, 0.5]},
}
EXEMPT = {(name, "refuses_labels_out_of_range"): "takes no class ids" for name in STAND_INS}
