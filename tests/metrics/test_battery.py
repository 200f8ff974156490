"""Every public metric meets the contract of metrics."""

from __future__ import annotations

import pytest
from monai.metrics.metric import CumulativeIterationMetric

from tests.batteries.common import public_classes
from tests.batteries.metrics import PROPERTIES
from tests.metrics.sample_set_stand_ins import EXEMPT, STAND_INS

# Arguments of metrics that have no usable defaults; the tolerance lies below a voxel, so that errors show.
ARGUMENTS: dict[str, dict[str, object]] = {"SurfaceDiceMetric": {"tolerance": 0.5}}
NO_THRESHOLD = "without a threshold nothing is missed or hallucinated; test_voxel_auc looks at absent structures"
NOT_PROMISED = {
    **EXEMPT,
    ("VoxelAUCMetric", "takes_any_mask_dtype"): "it takes scores, which the property refuses",
    ("VoxelAUCMetric", "knows_empty_masks"): NO_THRESHOLD,
    ("VoxelAUCMetric", "follows_the_policy"): NO_THRESHOLD,
}
CLASSES = public_classes("medseg.metrics", CumulativeIterationMetric)


def test_the_battery_finds_the_metrics():
    assert len(CLASSES) >= 6


@pytest.mark.parametrize("check", PROPERTIES, ids=lambda p: p.__name__)
@pytest.mark.parametrize("metric", CLASSES, ids=lambda c: c.__name__)
def test_every_public_metric(metric, check):
    if reason := NOT_PROMISED.get((metric.__name__, check.__name__)):
        pytest.skip(reason)
    check(STAND_INS.get(metric.__name__, metric), ARGUMENTS.get(metric.__name__, {}))
