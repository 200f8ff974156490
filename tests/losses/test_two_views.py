"""Tests of `medseg.losses._two_views` through the loss that uses it: distances of features, and their alignment."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from medseg.losses import AdaptiveWeightedConsistencyLoss as Loss
from tests.losses.test_adawac import make_batch


def turn(angle, flip=1.0):
    """Matrix for `affine_grid` that turns, and mirrors, a square image."""
    c, s = np.cos(angle), np.sin(angle)
    return torch.tensor([[c, -s, 0], [s * flip, c * flip, 0], [0, 0, 1]], dtype=torch.float32)


def view_of(image, affine):
    grid = functional.affine_grid(affine[None, :-1], list(image[None].shape), align_corners=False)
    return functional.grid_sample(image[None], grid, align_corners=False)[0]


def test_gradients_are_exact_through_the_alignment():
    _, target, features, ids = make_batch(2)
    logits = torch.zeros(4, 3, 8, 6)
    affines = torch.stack([turn(a) for a in (0.3, -0.2, 0.9, 0.0)])
    loss = Loss(2, align="inverse", learn_weights=False)
    assert torch.autograd.gradcheck(
        lambda f: loss(logits.double(), target, f, ids, affines), [features.double().requires_grad_()]
    )


def test_aligned_features_of_turned_views_agree_and_unaligned_ones_do_not():
    image = torch.rand(4, 6, 6, generator=torch.Generator().manual_seed(0))
    affines = [turn(np.pi / 2), turn(np.pi, flip=-1.0)]
    features = torch.stack([view_of(image, a) for a in affines])
    logits, target, ids = torch.zeros(2, 2, 8, 8), torch.zeros(2, 1, 8, 8), torch.tensor([0])
    found = {}
    for align in ("none", "inverse", "pool"):
        loss = Loss(1, align=align)
        loss(logits, target, features, ids, view_affines=torch.stack(affines))
        found[align] = loss.last["consistency"].item()
    assert found["none"] > 0.1
    assert found["inverse"] < 1e-10
    assert found["pool"] < 1e-10


def test_cells_that_a_view_does_not_show_do_not_count():
    shift = torch.eye(3)
    shift[0, 2] = 1.0  # half of the width
    first = torch.rand(1, 2, 4, 4, generator=torch.Generator().manual_seed(1))
    second = torch.full_like(first, 9.0)
    second[..., :2] = first[..., 2:]
    logits, target, ids = torch.zeros(2, 2, 8, 8), torch.zeros(2, 1, 8, 8), torch.tensor([0])
    loss = Loss(1, align="inverse", step_size=1.0)
    loss(logits, target, (first, second), ids, view_affines=(torch.eye(3)[None], shift[None]))
    assert loss.last["consistency"].item() < 1e-10
    shift[0, 2] = 2.5  # the views share nothing: there is no agreement to measure and nothing to learn
    before = loss.weight_logits.clone()
    value = loss(logits, target, (first, second), ids, view_affines=(torch.eye(3)[None], shift[None]))
    assert torch.isfinite(value)
    assert loss.last["consistency"].item() == 0
    assert torch.equal(loss.weight_logits, before)


def test_distances_are_over_the_channels_and_averaged_over_the_grid():
    _, target, features, ids = make_batch()
    first, second = features.chunk(2)
    expected = {
        "mse": (first - second).square().flatten(1).mean(1),
        "cosine": 1 - functional.cosine_similarity(first, second, dim=1).flatten(1).mean(1),
        "l2": (first - second).square().sum(1).sqrt().flatten(1).mean(1),
    }
    for distance, values in expected.items():
        loss = Loss(3, distance=distance, consistency_weight=0.7)
        loss(torch.zeros(6, 3, 8, 6), target, features, ids)
        torch.testing.assert_close(loss.last["consistency"], 0.7 * values)


def test_equal_features_have_a_finite_gradient_under_every_distance():
    logits, target, features, ids = make_batch()
    for distance in ("mse", "cosine", "l2"):
        same = features[:3].clone().requires_grad_()
        Loss(3, distance=distance)(logits, target, (same, same.detach()), ids).backward()
        assert torch.isfinite(same.grad).all()


def test_alignment_needs_matrices_that_fit():
    batch = make_batch()
    with pytest.raises(ValueError, match=r"needs view_affines.*PairedViewsd"):
        Loss(3, align="inverse")(*batch)
    with pytest.raises(ValueError, match="view_affines must have shape"):
        Loss(3, align="inverse")(*batch, view_affines=torch.zeros(6, 4, 4))
