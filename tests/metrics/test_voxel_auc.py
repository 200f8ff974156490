"""Tests of `medseg.metrics.voxel_auc`."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.metrics import compute_roc_auc

from medseg.metrics import VoxelAUCMetric, compute_voxel_auc


def scores_and_mask(seed=0, levels=5):
    """Scores (2, 2, 5, 6) with ties and a mask that neither lacks nor fills a channel."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, levels, (2, 2, 5, 6), generator=generator) / levels
    mask = torch.rand(2, 2, 5, 6, generator=generator) < 0.4
    mask[..., 0, 0], mask[..., 0, 1] = True, False
    return scores, mask


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 999), st.integers(1, 30))
def test_it_is_the_share_of_ordered_pairs_with_ties_by_half(seed, levels):
    scores, mask = scores_and_mask(seed, levels)
    values = compute_voxel_auc(scores, mask)
    for b, c in ((0, 0), (1, 1)):
        difference = scores[b, c][mask[b, c]][:, None] - scores[b, c][~mask[b, c]]
        expected = (difference > 0).double().mean() + 0.5 * (difference == 0).double().mean()
        assert values[b, c].item() == pytest.approx(expected.item(), abs=1e-6)


def test_it_equals_monai_on_the_voxels_of_a_case():
    scores, mask = scores_and_mask()
    expected = compute_roc_auc(scores[0, 0].flatten(), mask[0, 0].flatten().long())
    assert compute_voxel_auc(scores, mask)[0, 0].item() == pytest.approx(expected, abs=1e-6)


def test_only_the_order_of_scores_counts():
    scores, mask = scores_and_mask()
    values = compute_voxel_auc(scores, mask)
    torch.testing.assert_close(compute_voxel_auc(scores.exp() * 1e30, mask), values)
    torch.testing.assert_close(compute_voxel_auc(-scores, mask), 1 - values)
    infinite = torch.where(scores == scores.max(), torch.inf, scores)
    torch.testing.assert_close(compute_voxel_auc(infinite, mask), values)
    for dtype in (torch.float16, torch.bfloat16, torch.int64):
        torch.testing.assert_close(compute_voxel_auc((5 * scores).round().to(dtype), mask), values)


def test_a_structure_that_is_absent_or_fills_the_image_follows_the_rule_for_both():
    scores, mask = scores_and_mask()
    mask[0, 0], mask[1, 1] = False, True
    values = compute_voxel_auc(scores, mask)
    assert values.isnan().tolist() == [[True, False], [False, True]]
    assert compute_voxel_auc(scores, mask, empty={"both": 0.5})[0, 0] == 0.5
    metric = VoxelAUCMetric(reduction="mean_batch")
    metric(scores, mask)
    torch.testing.assert_close(metric.aggregate(), torch.stack((values[1, 0], values[0, 1])))
    assert metric.empty_counts()["both_empty"].tolist() == [1, 1]
    assert metric.empty_counts()["present"].tolist() == [1, 1]


def test_a_nan_has_no_rank():
    scores, mask = scores_and_mask()
    scores[0, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="y_pred holds NaN, which has no rank"):
        compute_voxel_auc(scores, mask)
