"""The online mixer of groups, on losses that follow its linear law."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg.core.scaling import MixtureSampler, OnlineDataMixer

EFFECTS = np.array([[0.004, 0.001, 0.0], [0.001, 0.003, 0.0], [0.002, 0.001, 0.0005]])


def train(mixer, effects, updates, *, noise=0.0, losses=None, seed=0):
    """Updates under the linear law; the losses at the end."""
    random = np.random.default_rng(seed)
    losses = np.ones(len(effects)) if losses is None else losses
    for _ in range(updates):
        if mixer.wants_losses:
            mixer.observe(losses + noise * random.standard_normal(len(losses)))
        losses = losses - effects @ mixer.proportions
        mixer.step()
    return losses


@settings(deadline=None, max_examples=25)
@given(st.integers(2, 6), st.integers(0, 999), st.floats(0.6, 1.0))
def test_effects_under_the_linear_law_are_recovered_whatever_their_number(groups, seed, one_hot):
    effects = np.random.default_rng(seed).random((groups, groups)) * 1e-3
    mixer = OnlineDataMixer(groups, one_hot=one_hot, sweeps=2, steps=3, every=6 * groups + 1)
    train(mixer, effects, 6 * groups + 1)
    np.testing.assert_allclose(mixer.effects, effects / effects.sum(), atol=1e-9)
    assert np.argsort(mixer._shares).tolist() == np.argsort(effects.sum(0)).tolist()


def test_noise_of_the_validations_averages_out():
    mixer = OnlineDataMixer(3, sweeps=60, steps=4, every=800)
    train(mixer, EFFECTS, 800, noise=1e-3)
    np.testing.assert_allclose(mixer.effects, EFFECTS / EFFECTS.sum(), atol=0.05)


def test_it_beats_equal_shares_where_groups_differ():
    mixed = train(OnlineDataMixer(3, eta=2.0), EFFECTS, 500)
    equal = 1 - 500 * EFFECTS.mean(1)
    assert mixed.mean() < equal.mean()
    alike = np.full((3, 3), 1e-3)
    np.testing.assert_allclose(train(OnlineDataMixer(3, eta=2.0), alike, 500), 1 - 500 * alike.mean(1))


def test_a_group_that_harms_keeps_the_floor():
    harm = np.array([[0.01, -0.01], [0.0, -0.01]])
    mixer = OnlineDataMixer(2, eta=1e3, floor=0.1, sweeps=1, steps=1, every=10)
    train(mixer, harm, 9)
    np.testing.assert_allclose(mixer.proportions, [0.9, 0.1])
    assert (mixer.effects >= 0).all()


def test_probes_hold_their_share_and_a_sweep_is_even():
    mixer = OnlineDataMixer(3, sweeps=1, steps=2, every=9)
    seen = []
    for _ in range(9):
        if mixer.wants_losses:
            mixer.observe(np.ones(3))
        seen.append(mixer.proportions)
        mixer.step()
    assert np.sort(seen[0]).tolist() == [0.1875, 0.1875, 0.625]
    np.testing.assert_allclose(np.mean(seen[:6], 0), 1 / 3)
    np.testing.assert_allclose(seen[6:], 1 / 3)  # nothing fell: nobody is better
    assert mixer.wants_losses


def test_later_rounds_keep_a_part_of_what_was_learnt():
    mixer = OnlineDataMixer(2, ema=0.25, sweeps=1, steps=1, every=3)
    one, other = np.array([[0.4, 0.1], [0.1, 0.4]]), np.array([[0.1, 0.4], [0.4, 0.1]])
    losses = train(mixer, one, 3)
    train(mixer, other, 3, losses=losses)
    np.testing.assert_allclose(mixer.effects, 0.75 * other + 0.25 * one)


@pytest.mark.parametrize("stop", [0, 5, 9, 24, 40, 61])
def test_a_run_goes_on_from_a_checkpoint(stop):
    def make():
        return OnlineDataMixer(3, sweeps=2, steps=4, every=30)

    whole, first, second = make(), make(), make()
    expected = train(whole, EFFECTS, 70)
    middle = train(first, EFFECTS, stop)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    np.testing.assert_array_equal(train(second, EFFECTS, 70 - stop, losses=middle), expected)
    np.testing.assert_array_equal(second.effects, whole.effects)
    with pytest.raises(ValueError, match="state is of 3 groups, this mixer has 2"):
        OnlineDataMixer(2).load_state_dict(first.state_dict())


def test_losses_come_when_they_are_due_and_only_then():
    mixer = OnlineDataMixer(2)
    with pytest.raises(RuntimeError, match="losses were due before this update"):
        mixer.step()
    with pytest.raises(ValueError, match="losses must be 2 finite numbers"):
        mixer.observe([1.0, np.nan])
    mixer.observe([1.0, 1.0])
    with pytest.raises(RuntimeError, match="no losses are due"):
        mixer.observe([1.0, 1.0])


def test_samples_are_drawn_by_the_shares_of_the_moment():
    mixer = OnlineDataMixer(2, one_hot=1.0, sweeps=1, steps=1, every=50)
    sampler = MixtureSampler([0, 0, 0, 1], mixer, num_samples=40)
    groups = []
    for index in sampler:
        groups.append(int(index == 3))
        if mixer.wants_losses:
            mixer.observe([1.0, 1.0])
        mixer.step()
    assert sorted(groups[:2]) == [0, 1]
    assert 0.2 < np.mean(groups[2:]) < 0.8
    assert list(sampler) == list(sampler)
    before = list(sampler)
    sampler.set_epoch(1)
    assert list(sampler) != before
    with pytest.raises(ValueError, match="each group at least once, got \\[0\\]"):
        MixtureSampler([0, 0], mixer)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"groups": 1}, "groups must be at least 2"),
        ({"groups": 3, "one_hot": 0.3}, "one_hot must be above 1/groups, 0.333"),
        ({"groups": 3, "floor": 0.4}, "floor must be at least 0 and below 1/groups"),
        ({"groups": 3, "ema": 1.0}, "ema must be"),
        ({"groups": 3, "eta": -1}, "eta must be"),
        ({"groups": 3, "steps": 0}, "sweeps and steps must be at least 1"),
        ({"groups": 3, "every": 48}, "every must exceed the 48 updates of the probes"),
    ],
)
def test_arguments_out_of_range_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        OnlineDataMixer(**options)
