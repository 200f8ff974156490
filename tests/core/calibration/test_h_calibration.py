"""Properties of the objectives: against loops, gradients, edges of bins, and odd input."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg.core.calibration import correctness_loss, h_calibration_loss


def make_voxels(count: int = 300, classes: int = 3, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(count, classes, generator=generator, dtype=torch.float64)
    return logits, torch.multinomial((0.5 * logits).softmax(1), 1, generator=generator)[:, 0]


def loop_errors(p: np.ndarray, y: np.ndarray, window: int) -> tuple[np.ndarray, np.ndarray]:
    """The sums written out, pair by pair."""
    order = np.argsort(p, kind="stable")
    p, y = p[order], y[order]
    half = window // 2
    errors = [abs((p - y)[max(i - half, 0) : i + half + 1].sum()) / (window + 1) for i in range(len(p))]
    return p, np.array(errors)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10**6), window=st.sampled_from([2, 10, 60]), classes=st.integers(2, 4))
def test_the_loss_is_what_a_loop_over_pairs_gives(seed, window, classes):
    logits, labels = make_voxels(80, classes, seed)
    p, y = logits.softmax(1).numpy().ravel(), np.eye(classes)[labels.numpy()].ravel()
    p, errors = loop_errors(p, y, window)
    inside = [(p > low) & (p <= high) for low, high in zip(np.arange(15) / 15, np.arange(1, 16) / 15, strict=True)]
    expected = {"none": errors.mean(), "equal": np.mean([errors[i].mean() if i.any() else 0 for i in inside])}
    for bins, value in expected.items():
        loss = h_calibration_loss(logits.softmax(1), labels, window=window, bins=bins, leave_one_class_out=False)
        assert loss.item() == pytest.approx(value, rel=1e-4 if bins == "equal" else 1e-9)


@pytest.mark.parametrize("bins", ["none", "equal", "kmeans"])
def test_gradients_are_those_of_the_formula(bins):
    logits, labels = make_voxels(15)
    assert torch.autograd.gradcheck(
        lambda z: h_calibration_loss(z.softmax(1), labels, window=4, bins=bins), logits.requires_grad_()
    )


def test_a_probability_on_an_edge_counts_once():
    # All pairs of class 1 sit on the edge 0.2 = 3/15 exactly, those of class 0 on 0.8.
    p = torch.tensor([[0.8, 0.2]], dtype=torch.float64).expand(100, 2)
    labels = torch.zeros(100, dtype=torch.int64)
    loss = h_calibration_loss(p, labels, window=2, bins="equal", leave_one_class_out=False)
    # Two bins hold something, each with an error near 0.2.
    assert loss.item() == pytest.approx(2 * 0.2 / 15, rel=0.02)


def test_clusters_weigh_rare_probabilities_as_much_as_common_ones():
    sure = torch.tensor([[0.999, 0.001]]).repeat(5000, 1)
    unsure = torch.tensor([[0.6, 0.4]]).repeat(200, 1)
    labels = torch.cat([torch.zeros(5000), torch.ones(200)]).long()  # the unsure are all wrong
    p = torch.cat([sure, unsure])
    plain, clusters = (
        h_calibration_loss(p, labels, window=20, bins=bins, leave_one_class_out=False) for bins in ("none", "kmeans")
    )
    assert clusters > 2 * plain


def test_calibrated_probabilities_have_a_smaller_loss_than_sure_and_unsure_ones():
    logits, labels = make_voxels(4000)
    losses = [h_calibration_loss((b * logits).softmax(1), labels).item() for b in (0.1, 0.5, 2.0)]
    assert losses[1] < min(losses[0], losses[2])


def test_half_precision_is_computed_in_single():
    logits, labels = make_voxels()
    p = logits.softmax(1)
    expected = h_calibration_loss(p, labels, window=40).item()
    half = h_calibration_loss(p.half(), labels, window=40)
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(expected, abs=2e-3)


def test_volumes_and_lists_of_voxels_give_the_same():
    logits, labels = make_voxels(360)
    p = logits.softmax(1)
    volume = p.reshape(2, 3, 6, 10, 3).movedim(-1, 1)
    for shape in ((2, 3, 6, 10), (2, 1, 3, 6, 10)):
        for loss in (partial(h_calibration_loss, window=40), correctness_loss):
            assert torch.equal(loss(volume, labels.reshape(shape)), loss(p, labels))


def test_correctness_is_least_at_the_share_of_right_voxels():
    labels = torch.tensor([0, 0, 0, 1]).repeat(25)
    losses = {c: correctness_loss(torch.tensor([[c, 1 - c]]).expand(100, 2), labels).item() for c in (0.6, 0.75, 0.9)}
    assert min(losses, key=losses.__getitem__) == 0.75


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"window": 41}, "window must be an even number of neighbours, at least 2, got 41"),
        ({"bins": "quantile"}, "bins must be none, equal or kmeans, got 'quantile'"),
        ({"window": 4000}, "window 4000 needs more pairs"),
    ],
)
def test_options_that_do_not_fit_are_refused(change, match):
    logits, labels = make_voxels()
    with pytest.raises(ValueError, match=match):
        h_calibration_loss(logits.softmax(1), labels, **change)


def test_odd_values_are_refused():
    logits, labels = make_voxels()
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\]; take the softmax"):
        h_calibration_loss(logits, labels)
    with pytest.raises(ValueError, match="got 0 once one class is left out"):
        h_calibration_loss(logits.softmax(1), torch.zeros_like(labels))
    with pytest.raises(ValueError, match="hold NaN or infinity"):
        h_calibration_loss(logits.softmax(1) * torch.nan, labels)
    with pytest.raises(ValueError, match="labels must lie in 0 to 2"):
        h_calibration_loss(logits.softmax(1), labels + 1)
    with pytest.raises(ValueError, match="integer class ids of shape"):
        h_calibration_loss(logits.softmax(1), labels.float())
