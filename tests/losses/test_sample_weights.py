"""Tests of `medseg.losses.sample_weights`."""

from __future__ import annotations

import math

import pytest
import torch

from medseg.losses import ExponentiatedSampleWeights
from tests.losses.test_adawac import load


@pytest.mark.parametrize("name", ["j_reweight_only", "k_pm_dro"])
def test_weights_of_the_first_batch_are_in_the_golden_ratio(name):
    """Later steps differ by design: the published code divides by the sum over the batch."""
    golden = load(name)
    loss = ExponentiatedSampleWeights(
        int(golden["cfg_num_samples"]), float(golden["cfg_lr_w"]), float(golden["cfg_entropy_max"])
    )
    ids, logits, labels = (torch.from_numpy(golden[key][0]) for key in ("idx", "logits", "labels"))
    # The published code takes the first view alone here.
    loss(torch.nn.functional.cross_entropy(logits[0], labels[0], reduction="none").mean((1, 2)), ids)
    weights = loss.sample_weights(ids)
    torch.testing.assert_close(weights / weights.sum(), torch.from_numpy(golden["step0_weights"][:, 0]))


def test_weights_are_exponential_in_the_summed_losses_and_sum_to_1():
    loss = ExponentiatedSampleWeights(5, step_size=0.5)
    for ids, losses in ([0, 3], [1.0, 2.0]), ([3, 3], [0.5, 0.5]), ([2, 0], [4.0, 0.0]):
        loss(torch.tensor(losses), torch.tensor(ids))
    expected = torch.tensor([1.0, 0.0, 4.0, 3.0, 0.0]).mul(0.5).softmax(0)
    torch.testing.assert_close(loss.sample_weights(), expected)
    assert loss.visits.tolist() == [2, 0, 1, 3, 0]


def test_without_steps_it_is_the_plain_mean():
    loss, losses = ExponentiatedSampleWeights(7, step_size=0.0), torch.tensor([1.0, 2.0, 6.0], requires_grad=True)
    value = loss(losses, torch.tensor([6, 0, 3]))
    value.backward()
    torch.testing.assert_close(value, losses.mean())
    torch.testing.assert_close(losses.grad, torch.full((3,), 1 / 3))


def test_entropy_pulls_the_weights_back_to_equal_ones():
    loss = ExponentiatedSampleWeights(2, step_size=1.0, entropy=0.25)
    ids = torch.tensor([0, 1])
    for _ in range(200):
        loss(torch.tensor([1.0, 0.0]), ids)
    # At rest, step_size * l = step_size * entropy * log weight: the weights stand as e^(1 / 0.25) to 1.
    assert math.log(loss.sample_weights()[0] / loss.sample_weights()[1]) == pytest.approx(4, rel=1e-3)
    for _ in range(200):
        loss(torch.zeros(2), ids)
    torch.testing.assert_close(loss.sample_weights(), torch.full((2,), 0.5), rtol=0, atol=1e-4)


def test_evaluation_and_losses_that_are_not_finite_write_nothing():
    loss = ExponentiatedSampleWeights(3)
    loss.eval()(torch.tensor([5.0]), torch.tensor([1]))
    loss.train()(torch.tensor([torch.nan, 1.0]), torch.tensor([1, 2]))
    assert loss.log_weights.tolist() == [0, 0, 1]
    assert loss.nonfinite_updates == 1


def test_odd_input_is_refused():
    loss = ExponentiatedSampleWeights(3)
    with pytest.raises(IndexError, match="run from 0 to 3, but num_samples is 3"):
        loss(torch.ones(2), torch.tensor([0, 3]))
    with pytest.raises(ValueError, match=r"losses must have shape \(B,\)"):
        loss(torch.ones(2, 2), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="step_size must be a finite number"):
        ExponentiatedSampleWeights(3, step_size=-1.0)
    with pytest.raises(ValueError, match=r"step_size \* entropy must be at most 1, got 2"):
        ExponentiatedSampleWeights(3, step_size=4.0, entropy=0.5)
