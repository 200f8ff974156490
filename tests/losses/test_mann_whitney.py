"""Tests of `medseg.losses.mann_whitney`."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg.losses import MannWhitneyLoss
from medseg.metrics import compute_voxel_auc

LOCAL = Path(__file__).parents[1] / "golden" / "training_losses"
SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "golden" / "training_losses"
FILES = [*sorted(LOCAL.glob("*.npz")), *sorted(SHARED.glob("losses_*.npz"))]


def scores_and_mask(*shape, seed=0, share=0.3):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(1, 1, *shape, generator=generator, dtype=torch.float64)
    return scores, (torch.rand(1, 1, *shape, generator=generator) < share).double()


def all_pairs(scores, mask, cost):
    """The mean over all pairs, by the definition."""
    inside = mask[0, 0] > 0.5
    return cost(scores[0, 0][inside][:, None] - scores[0, 0][~inside][None]).mean()


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_loss_gradient_and_auc_are_the_golden_ones(path):
    with np.load(path) as golden:
        scores = torch.from_numpy(golden["mw_scores"]).requires_grad_()
        target = torch.from_numpy(golden["mw_target"])
        loss = MannWhitneyLoss()(scores, target)
        (gradient,) = torch.autograd.grad(loss, scores)
        np.testing.assert_allclose(loss.item(), golden["mw_loss"], rtol=1e-8)
        np.testing.assert_allclose(gradient, golden["mw_grad"], rtol=1e-8, atol=1e-12)
        np.testing.assert_allclose(compute_voxel_auc(scores, target), golden["auc"].reshape(1, 1), rtol=1e-6)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 999), st.floats(0.05, 20), st.integers(1, 6), st.sampled_from([1e-3, 1.0, 50.0]))
def test_the_sorted_squared_hinge_is_the_mean_over_all_pairs(seed, temperature, levels, scale):
    scores, mask = scores_and_mask(5, 7, seed=seed)
    scores = scale * (scores * levels).round() / levels + 1e3  # with ties, far from zero
    scores.requires_grad_()
    if not 0 < mask.sum() < mask.numel():
        return
    loss = MannWhitneyLoss(surrogate="squared_hinge", temperature=temperature, num_pos=None, num_neg=None)
    value = loss(scores, mask)
    expected = all_pairs(scores, mask, lambda d: (1 - d / temperature).clamp(min=0) ** 2)
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-9)
    got, right = (torch.autograd.grad(v, scores)[0] for v in (value, expected))
    torch.testing.assert_close(got, right, rtol=1e-7, atol=1e-9)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 999), st.floats(0.1, 10))
def test_both_surrogates_bound_what_auc_lacks_to_1(seed, temperature):
    scores, mask = scores_and_mask(4, 6, seed=seed)
    if not 0 < mask.sum() < mask.numel():
        return
    lacking = 1 - compute_voxel_auc(scores, mask).item()
    assert MannWhitneyLoss(temperature=temperature)(scores, mask) / math.log(2) >= lacking - 1e-6
    assert MannWhitneyLoss(surrogate="squared_hinge", temperature=temperature)(scores, mask) >= lacking - 1e-6


@pytest.mark.parametrize("surrogate", ["softplus", "squared_hinge"])
def test_a_number_added_to_all_logits_of_a_class_changes_nothing(surrogate):
    scores, mask = scores_and_mask(6, 6)
    loss = MannWhitneyLoss(sigmoid=True, surrogate=surrogate)
    torch.testing.assert_close(loss(scores + 7, mask), loss(scores, mask))


def test_scores_of_a_softmax_are_log_odds():
    logits = torch.randn(2, 3, 5, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    target = (torch.arange(60).view(2, 1, 5, 6) % 3).float()
    p = logits.softmax(1)
    expected = MannWhitneyLoss(to_onehot_y=True)(torch.log(p / (1 - p)), target)
    torch.testing.assert_close(MannWhitneyLoss(to_onehot_y=True, softmax=True)(logits, target), expected)


def test_half_precision_scores_are_subtracted_in_float32():
    scores, mask = torch.tensor([[[[2048.0, 2047.0]]]]), torch.tensor([[[[1.0, 0.0]]]])
    assert MannWhitneyLoss()(scores.half(), mask).item() == pytest.approx(math.log1p(math.exp(-1)), rel=1e-6)


def test_draws_estimate_the_mean_over_all_pairs_and_only_drawn_voxels_get_a_gradient():
    scores, mask = scores_and_mask(60, 60)
    exact = all_pairs(scores, mask, lambda d: torch.nn.functional.softplus(-d)).item()
    values = [MannWhitneyLoss(num_pos=100, num_neg=100, seed=s)(scores, mask).item() for s in range(50)]
    error = np.std(values) / math.sqrt(50)
    assert abs(np.mean(values) - exact) < 4 * error
    assert 0 < np.std(values) < 0.15
    scores.requires_grad_()
    (gradient,) = torch.autograd.grad(MannWhitneyLoss(num_pos=100, num_neg=100)(scores, mask), scores)
    assert 150 < gradient.count_nonzero() <= 200


def test_draws_follow_seed_and_target_not_the_place_in_the_batch():
    one, other = scores_and_mask(20, 20), scores_and_mask(20, 20, seed=5)
    loss = MannWhitneyLoss(num_pos=9, num_neg=9, reduction="none")
    together = loss(torch.cat((other[0], one[0])), torch.cat((other[1], one[1])))
    assert torch.equal(together[1:], loss(*one))
    assert torch.equal(together[:1], loss(*other))
    assert not torch.equal(MannWhitneyLoss(num_pos=9, num_neg=9, reduction="none", seed=1)(*one), loss(*one))


def test_blocks_of_pairs_add_up(monkeypatch):
    scores, mask = scores_and_mask(9, 9)
    scores.requires_grad_()
    whole = MannWhitneyLoss()(scores, mask)
    monkeypatch.setattr("medseg.losses.mann_whitney._BLOCK", 100)
    blocks = MannWhitneyLoss()(scores, mask)
    torch.testing.assert_close(blocks, whole)
    torch.testing.assert_close(*(torch.autograd.grad(v, scores)[0] for v in (blocks, whole)))


def test_a_class_that_is_absent_or_fills_the_image_does_not_count_in_the_mean():
    logits = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    y = torch.zeros(1, 3, 4, 4)
    y[:, 0] = 1
    y[:, 1, :2] = 1
    each = MannWhitneyLoss(reduction="none")(logits, y)
    assert each[0, 0] == each[0, 2] == 0
    assert MannWhitneyLoss()(logits, y) == each[0, 1] > 0


def test_a_nan_that_was_not_drawn_still_shows():
    scores, mask = scores_and_mask(50, 50)
    scores[0, 0, 3, 4] = torch.nan
    scores.requires_grad_()
    value = MannWhitneyLoss(num_pos=2, num_neg=2)(scores, mask)
    assert value.isnan()
    assert torch.autograd.grad(value, scores)[0].isnan().any()


def test_alone_it_learns_to_tell_a_structure_from_its_surroundings():
    scores, mask = scores_and_mask(8, 8)
    weights = torch.zeros_like(scores, requires_grad=True)
    optimizer = torch.optim.SGD([weights], lr=50.0)
    for _ in range(20):
        optimizer.zero_grad()
        MannWhitneyLoss(sigmoid=True)(weights + 0.1 * scores, mask).backward()
        optimizer.step()
    assert compute_voxel_auc(weights + 0.1 * scores, mask).item() == 1.0


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"surrogate": "hinge"}, "surrogate must be one of softplus, squared_hinge, got 'hinge'"),
        ({"num_pos": 0}, "num_pos must be at least 1, or None for all voxels, got 0"),
        ({"num_neg": -1}, "num_neg must be at least 1"),
        ({"temperature": 0.0}, "temperature must be a finite number above 0"),
        ({"sigmoid": True, "softmax": True}, "choose one activation"),
    ],
)
def test_bad_options_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        MannWhitneyLoss(**options)
