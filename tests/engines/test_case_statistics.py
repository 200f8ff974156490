"""Bootstrap intervals and paired comparisons."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import bootstrap, wilcoxon

from medseg.engines.case_statistics import bootstrap_ci, compare_paired, describe


def test_description_skips_what_does_not_count():
    found = describe(np.array([1.0, 2.0, 6.0, np.nan]))
    assert (found["mean"], found["median"], found["n"]) == (3.0, 2.0, 3)
    assert found["sd"] == pytest.approx(math.sqrt(7))


def test_nothing_to_count_is_nan_without_warning():
    found = describe(np.full(3, np.nan))
    assert found["n"] == 0
    assert np.isnan([found["mean"], found["median"], found["sd"], *found["ci95"]]).all()
    one = describe(np.array([1.0]))
    assert np.isnan([one["sd"], *one["ci95"]]).all()


def test_the_interval_agrees_with_scipy_and_repeats_with_its_seed():
    values = np.random.default_rng(0).gamma(2.0, size=60)
    expected = bootstrap((values,), np.mean, method="percentile", n_resamples=5000, rng=np.random.default_rng(1))
    ours = bootstrap_ci(values[:, None], resamples=5000, seed=3)
    np.testing.assert_allclose(ours, expected.confidence_interval, atol=0.05 * values.std())
    assert bootstrap_ci(values[:, None], resamples=5000, seed=3) == ours
    assert bootstrap_ci(values[:, None], resamples=5000, seed=4) != ours


@settings(deadline=None, max_examples=25)
@given(st.integers(2, 30), st.integers(1, 3), st.integers(0, 1000))
def test_the_interval_lies_within_the_values(cases, labels, seed):
    values = np.random.default_rng(seed).random((cases, labels))
    low, high = bootstrap_ci(values, resamples=200)
    assert values.min() - 1e-12 <= low <= high <= values.max() + 1e-12


def test_a_comparison_gives_wilcoxons_p_and_the_mean_difference():
    rng = np.random.default_rng(0)
    first, noise = rng.random(20), 0.1 * rng.random(20)
    found = compare_paired(first, first - noise)
    assert found.p_wilcoxon == pytest.approx(wilcoxon(noise).pvalue)
    assert found.mean_difference == pytest.approx(noise.mean())
    assert found.ci95[0] <= found.mean_difference <= found.ci95[1]
    assert (found.n, found.n_first_larger, found.n_second_larger) == (20, 20, 0)


def test_equal_results_have_p_1_also_where_rounding_differs():
    values = np.array([0.1, 0.7, 0.3])
    for other in (values, values * 3 / 3, np.nextafter(values, 1)):
        found = compare_paired(values, other)
        assert (found.p_wilcoxon, found.mean_difference, found.n) == (1.0, 0.0, 3)


def test_pairs_with_a_gap_are_left_out():
    found = compare_paired(np.array([1.0, np.nan, 3.0]), np.array([0.5, 2.0, np.nan]))
    assert (found.n, found.mean_difference) == (1, 0.5)
    nothing = compare_paired(np.array([np.nan]), np.array([1.0]))
    assert nothing.n == 0
    assert np.isnan([nothing.p_wilcoxon, nothing.mean_difference]).all()
