"""Prototype distances, chosen subsets, and repeated random subsets."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg.core.scaling import RepeatedSubsetSampler, prototype_difficulty, select_subset

laws = settings(deadline=None, max_examples=25)


def blobs(seed=0, size=60):
    random = np.random.default_rng(seed)
    means = np.array([[0.0, 0], [20, 0], [0, 20]])
    label = np.repeat(np.arange(3), size)
    return means[label] + random.standard_normal((3 * size, 2)), label


def test_on_blobs_the_difficulty_is_the_distance_to_the_blobs_mean():
    features, label = blobs()
    centres = np.array([features[label == k].mean(0) for k in range(3)])
    expected = np.linalg.norm(features - centres[label], axis=1)
    found = prototype_difficulty(features, 3, metric="euclidean")
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    np.testing.assert_array_equal(found, prototype_difficulty(features, 3, metric="euclidean"))


def test_with_one_prototype_it_is_the_distance_to_the_mean_and_cosine_ignores_lengths():
    random = np.random.default_rng(0)
    features = random.standard_normal((30, 5))
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    found = prototype_difficulty(features * random.uniform(0.1, 9, (30, 1)))
    np.testing.assert_allclose(found, np.linalg.norm(unit - unit.mean(0), axis=1), rtol=1e-9)


def test_samples_that_coincide_are_no_trouble():
    np.testing.assert_allclose(prototype_difficulty(np.ones((6, 2)), 3), 0, atol=1e-12)


@laws
@given(st.integers(1, 80), st.floats(0.05, 1), st.sampled_from(["hard", "easy", "auto"]))
def test_a_subset_has_the_wanted_size_and_no_better_sample_is_left_out(count, fraction, keep):
    scores = np.random.default_rng(count).random(count)
    kept = select_subset(scores, fraction, keep=keep)
    assert len(kept) == max(1, round(fraction * count))
    rest = np.setdiff1d(np.arange(count), kept)
    easy = keep == "easy" or (keep == "auto" and count < 50)
    if len(rest):
        assert (scores[kept].max() < scores[rest].min()) if easy else (scores[kept].min() > scores[rest].max())


def test_no_group_falls_below_half_of_its_share():
    scores = np.r_[np.zeros(20), np.ones(80)]
    groups = ["rare"] * 20 + ["common"] * 80
    kept = select_subset(scores, 0.5, keep="hard", groups=groups)
    assert len(kept) == 50
    assert (kept < 20).sum() == 5
    assert (select_subset(scores, 0.5, keep="hard", groups=groups, floor=0) < 20).sum() == 0
    assert select_subset([1, 1, 1, 1], 0.5, keep="hard").tolist() == [0, 1]


@laws
@given(st.integers(1, 40), st.floats(0.05, 1), st.integers(0, 3))
def test_without_replacement_all_samples_are_seen_before_any_is_seen_again(count, fraction, seed):
    sampler = RepeatedSubsetSampler(count, fraction, seed=seed)
    seen = []
    for epoch in range(3 * count):
        sampler.set_epoch(epoch)
        share = list(sampler)
        assert len(share) == len(sampler)
        seen += share
        if len(seen) >= 2 * count:
            break
    times = np.bincount(seen, minlength=count)
    # Consecutive chunks of shuffled orders; a chunk may reach into the next order.
    assert times.max() - times.min() <= 1


def test_a_share_can_be_drawn_from_all_data_and_repeats_with_its_seed_and_epoch():
    sampler, again = (RepeatedSubsetSampler(100, 0.2, replacement=True, seed=s) for s in (1, 1))
    first = list(sampler)
    assert len(set(first)) == 20
    assert first == list(again)
    sampler.set_epoch(1)
    assert sorted(first) != sorted(sampler)
    assert first != list(RepeatedSubsetSampler(100, 0.2, replacement=True, seed=2))


def test_every_epoch_holds_the_same_share_of_each_group():
    sampler = RepeatedSubsetSampler(40, 0.25, stratify=["a"] * 8 + ["b"] * 32)
    for epoch in range(8):
        sampler.set_epoch(epoch)
        share = np.array(list(sampler))
        assert ((share < 8).sum(), len(share)) == (2, 10)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: prototype_difficulty(np.zeros(3)), "finite table"),
        (lambda: prototype_difficulty(np.zeros((3, 2)), 4), "n_clusters"),
        (lambda: prototype_difficulty(np.zeros((3, 2)), metric="l1"), "metric"),
        (lambda: select_subset([], 0.5), "scores"),
        (lambda: select_subset([1.0], 0.0), "fraction"),
        (lambda: select_subset([1.0], 0.5, keep="middle"), "keep"),
        (lambda: select_subset([1.0], 0.5, groups=["a", "b"]), "groups"),
        (lambda: RepeatedSubsetSampler(0, 0.5), "n must be"),
        (lambda: RepeatedSubsetSampler(4, 0.5, stratify=["a"]), "stratify"),
    ],
)
def test_arguments_out_of_range_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
