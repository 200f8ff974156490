"""The spread of volumes over samples."""

from __future__ import annotations

import numpy as np
import pytest

from medseg.report import volume_spread


def test_volumes_are_in_cubic_millimetres_with_interpolated_percentiles():
    masks = np.zeros((3, 4, 4, 4), np.uint8)
    masks[0, 0, 0, :2], masks[1, 0, 0], masks[2, 0, :2] = 1, 1, 1  # 2, 4 and 8 voxels
    masks[2, 3] = 2
    spread = volume_spread(masks, np.diag([0.5, 2.0, 3.0, 1.0]), [1, 2, 3])
    assert spread[1]["volume_mm3_mean"] == pytest.approx(3 * 14 / 3)
    assert spread[1]["volume_mm3_sd"] == pytest.approx(3 * np.std([2, 4, 8], ddof=1))
    assert spread[1]["volume_mm3_p50"] == pytest.approx(12)
    assert spread[1]["volume_mm3_p5"] == pytest.approx(3 * 2.2)
    assert spread[2]["volume_mm3_p95"] == pytest.approx(3 * 16 * 0.9)
    assert spread[3]["volume_mm3_mean"] == 0


def test_one_sample_has_no_deviation_and_no_sample_is_refused():
    assert volume_spread(np.ones((1, 2, 2, 2), np.uint8), np.eye(4), [1])[1]["volume_mm3_sd"] is None
    with pytest.raises(ValueError, match=r"masks must have shape \(N, X, Y, Z\)"):
        volume_spread(np.ones((2, 2, 2), np.uint8), np.eye(4), [1])
