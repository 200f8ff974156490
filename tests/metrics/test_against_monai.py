"""Where definitions coincide, values equal MONAI's; where MONAI rewards a missed structure, they do not."""

from __future__ import annotations

import monai.metrics as peers
import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

import medseg.metrics as ours

SPACINGS = {2: (0.8, 1.7), 3: (0.8, 1.7, 3.0)}


def blobs(dims: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Smooth random masks (2, 2, spatial...) that touch the border and hold something in every channel."""
    rng = np.random.default_rng(seed)
    shape = (2, 2, 2, *(24, 20, 16)[:dims])
    smooth = gaussian_filter(rng.standard_normal(shape), sigma=(0, 0, 0, *(2.0,) * dims))
    smooth[1] = 0.7 * smooth[0] + 0.3 * smooth[1]
    masks = torch.from_numpy((smooth > 0.3 * smooth.std()).astype(np.float32))
    assert masks.flatten(3).any(-1).all()
    return masks[0], masks[1]


@pytest.fixture(params=[2, 3], ids=["2D", "3D"])
def pair(request):
    return (*blobs(request.param), SPACINGS[request.param])


def test_overlaps_equal_monai(pair):
    pred, ref, _ = pair
    torch.testing.assert_close(ours.compute_dice(pred, ref), peers.compute_dice(pred, ref))
    torch.testing.assert_close(ours.compute_iou(pred, ref), peers.compute_iou(pred, ref))


@pytest.mark.parametrize("percentile", [50, 95, 100])
def test_hausdorff_distances_equal_monai(pair, percentile):
    pred, ref, spacing = pair
    expected = peers.compute_hausdorff_distance(
        pred, ref, include_background=True, percentile=percentile, spacing=spacing
    )
    torch.testing.assert_close(
        ours.compute_hausdorff_distance(pred, ref, percentile=percentile, spacing=spacing), expected
    )


def test_average_surface_distances_equal_monai(pair):
    pred, ref, spacing = pair
    expected = peers.compute_average_surface_distance(
        pred, ref, include_background=True, symmetric=True, spacing=spacing
    )
    torch.testing.assert_close(ours.compute_average_surface_distance(pred, ref, spacing=spacing), expected)


@pytest.mark.parametrize("tolerance", [0.0, 0.8, 2.0])
def test_surface_dice_equals_monai(pair, tolerance):
    pred, ref, spacing = pair
    expected = peers.compute_surface_dice(pred, ref, [tolerance] * 2, include_background=True, spacing=spacing)
    torch.testing.assert_close(ours.compute_surface_dice(pred, ref, tolerance=tolerance, spacing=spacing), expected)


@pytest.mark.filterwarnings("ignore:the prediction of class:UserWarning")
def test_a_missed_structure_scores_the_diagonal_where_monai_scores_zero():
    ref = torch.zeros(1, 1, 9, 12)
    ref[..., 3:6, 3:6] = 1
    missed = torch.zeros_like(ref)
    peer = peers.HausdorffDistanceMetric(include_background=True, percentile=95)
    peer(missed, ref)
    assert peer.aggregate().item() == 0.0
    metric = ours.HausdorffDistanceMetric()
    metric(missed, ref)
    assert metric.aggregate().item() == 15.0
    metric(ref, ref)
    assert metric.aggregate().item() == 7.5
    assert {kind: int(n) for kind, n in metric.empty_counts().items()} == {
        "present": 1,
        "both_empty": 0,
        "missed": 1,
        "hallucinated": 0,
    }
