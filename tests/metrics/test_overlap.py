"""Dice, intersection over union and volume errors: values by hand, and laws."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg.metrics import EmptyPolicy, VolumeErrorMetric, compute_dice, compute_iou, compute_volume_error
from medseg.metrics.counts import dice_from_counts, iou_from_counts, volume_error_from_counts


@st.composite
def mask_pairs(draw):
    """Two random masks (2, 2, 5, 6), empty ones among them."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    density = draw(st.sampled_from([0.0, 0.05, 0.5, 1.0]))
    return tuple((torch.rand(2, 2, 5, 6, generator=generator) < density).float() for _ in range(2))


def test_overlap_by_hand():
    pred, ref = torch.zeros(2, 1, 1, 4, 4)
    pred[..., 0, :3], ref[..., 0, 1:] = 1, 1  # 3 voxels each, 2 shared
    assert compute_dice(pred, ref).item() == pytest.approx(2 / 3)
    assert compute_iou(pred, ref).item() == pytest.approx(0.5)


@settings(deadline=None, max_examples=25)
@given(mask_pairs())
def test_dice_is_symmetric_between_0_and_1_and_gives_iou(masks):
    dice = compute_dice(*masks)
    torch.testing.assert_close(dice, compute_dice(*masks[::-1]), equal_nan=True)
    counted = dice[~dice.isnan()]
    assert ((counted >= 0) & (counted <= 1)).all()
    torch.testing.assert_close(compute_iou(*masks), dice / (2 - dice), equal_nan=True)


@settings(deadline=None, max_examples=25)
@given(mask_pairs())
def test_counts_give_the_tensors_values(masks):
    pred, ref = (mask[0, 0].bool() for mask in masks)
    counts = int((pred & ref).sum()), int(pred.sum()), int(ref.sum())
    expected = torch.tensor([f(*counts, EmptyPolicy()) for f in (dice_from_counts, iou_from_counts)])
    values = torch.stack([f(*masks)[0, 0] for f in (compute_dice, compute_iou)])
    torch.testing.assert_close(values, expected, equal_nan=True)


def test_overlap_stays_exact_in_large_masks():
    ref = torch.ones(1, 1, 300, 300, 200, dtype=torch.bool)  # more voxels than float32 counts
    pred = ref.clone()
    pred[0, 0, 0, 0, 0] = False
    n = ref.numel()
    assert compute_dice(pred, ref).item() == pytest.approx(2 * (n - 1) / (2 * n - 1), abs=1e-7)


def test_volume_errors_by_hand():
    pred, ref = torch.zeros(2, 1, 1, 2, 3, 4)
    pred[..., 0, 0, :3], ref[..., 0, 0, :2] = 1, 1
    assert compute_volume_error(pred, ref).item() == pytest.approx(0.5)
    assert compute_volume_error(ref, pred).item() == pytest.approx(-1 / 3)
    assert compute_volume_error(ref, pred, unit="mm3", spacing=(1, 2, 3)).item() == -6.0
    assert compute_volume_error(ref, pred, unit="mm3", absolute=True, spacing=2).item() == 8.0


def test_signed_errors_cancel_and_absolute_ones_do_not():
    pred, ref = torch.zeros(2, 2, 1, 2, 4)
    pred[0, ..., :3], ref[0, ..., :2], pred[1, ..., :1], ref[1, ..., :2] = 1, 1, 1, 1
    signed, absolute = VolumeErrorMetric(unit="mm3"), VolumeErrorMetric(unit="mm3", absolute=True)
    signed(pred, ref)
    absolute(pred, ref)
    assert (signed.aggregate().item(), absolute.aggregate().item()) == (0.0, 2.0)


def test_a_missed_volume_is_all_lacking_and_a_hallucinated_one_all_surplus():
    policy = EmptyPolicy()
    assert volume_error_from_counts(0, 8, 2.0, unit="relative", empty=policy) == -1.0
    assert volume_error_from_counts(8, 0, 2.0, unit="relative", empty=policy) == 1.0
    assert volume_error_from_counts(0, 8, 2.0, unit="mm3", empty=policy) == -16.0
    assert volume_error_from_counts(8, 0, 2.0, unit="mm3", empty=policy) == 16.0


def test_an_unknown_unit_is_refused():
    with pytest.raises(ValueError, match="unit must be one of relative, mm3"):
        VolumeErrorMetric(unit="ml")  # type: ignore[arg-type]
