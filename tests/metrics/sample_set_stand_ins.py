"""Metrics of sets in the battery of metrics, which hands every metric one prediction and one reference."""

from __future__ import annotations

from medseg.metrics import (
    BestSampleDiceMetric,
    BrierScoreMetric,
    CalibrationErrorMetric,
    GeneralizedEnergyDistanceMetric,
    MatchedDiceMetric,
    VolumeCoverageMetric,
)


class _SetOfOne:
    def __call__(self, y_pred, y=None, *, spacing=None):
        if isinstance(y_pred, list):
            return super().__call__([p[None] for p in y_pred], [r[None] for r in y], spacing=spacing)
        return super().__call__(y_pred[:, None], y[:, None], spacing=spacing)


class BestOfOne(_SetOfOne, BestSampleDiceMetric):
    pass


class BrierOfOne(_SetOfOne, BrierScoreMetric):
    pass


class CalibrationOfOne(_SetOfOne, CalibrationErrorMetric):
    pass


class EnergyOfOne(_SetOfOne, GeneralizedEnergyDistanceMetric):
    pass


class MatchedOfOne(_SetOfOne, MatchedDiceMetric):
    pass


class CoverageOfOne(_SetOfOne, VolumeCoverageMetric):
    pass


STAND_INS = {
    "BestSampleDiceMetric": BestOfOne,
    "BrierScoreMetric": BrierOfOne,
    "CalibrationErrorMetric": CalibrationOfOne,
    "GeneralizedEnergyDistanceMetric": EnergyOfOne,
    "MatchedDiceMetric": MatchedOfOne,
    "VolumeCoverageMetric": CoverageOfOne,
}
# What a metric does not promise, with the reason.
EXEMPT: dict[tuple[str, str], str] = {
    (name, "is_built_from_json"): "the stand-in has no public path; test_sample_sets builds the class"
    for name in STAND_INS
} | {
    ("BrierScoreMetric", "takes_any_mask_dtype"): "it takes probabilities, which the property refuses",
    ("CalibrationErrorMetric", "takes_any_mask_dtype"): "it takes probabilities, which the property refuses",
    ("VolumeCoverageMetric", "knows_empty_masks"): "one sample's interval is a point, so every wrong volume is as bad",
}
