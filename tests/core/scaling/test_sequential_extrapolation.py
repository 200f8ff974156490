"""Forecasts of a growing curve: exact on its own law, distrusted while they come down, settled afterwards."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg.core.scaling import SequentialExtrapolator
from tests.core.scaling.golden import load

X = np.arange(1, 31) * 10.0


@settings(deadline=None, max_examples=25)
@given(st.floats(0.3, 0.95), st.floats(0.05, 0.3), st.floats(0.2, 2.0), st.booleans())
def test_a_power_law_is_forecast_exactly(level, size, exponent, increasing):
    y = level - size * X**-exponent
    y = y if increasing else 1 - y
    last = SequentialExtrapolator(600, increasing=increasing).extend(X, y)[-1]
    expected = level - size * 600**-exponent
    assert last.value == pytest.approx(expected if increasing else 1 - expected, abs=1e-6)
    assert last.settled


def test_a_noisy_curve_settles_close_to_its_end_and_not_before_its_asymptotes_do():
    errors = []
    for seed in range(10):
        noise = 0.003 * np.random.default_rng(seed).standard_normal(len(X))
        follower = SequentialExtrapolator(600, threshold=0.01)
        forecasts = follower.extend(X, 0.85 - 1.5 * X**-0.6 + noise)
        settled = [f for f in forecasts if f.settled]
        assert all(f.trusted and f.change < 0.01 for f in settled)
        if settled:
            errors.append(abs(settled[-1].value - (0.85 - 1.5 * 600**-0.6)))
    assert len(errors) >= 7
    assert np.max(errors) < 0.03


def test_a_straight_rise_has_an_asymptote_out_of_bounds_and_is_not_trusted():
    follower = SequentialExtrapolator(600)
    forecasts = follower.extend(X, 0.1 + 0.002 * X)
    assert forecasts[-1].asymptote > 1
    assert not any(f.trusted for f in forecasts)
    assert follower.trusted_from is None


def test_trust_begins_after_the_last_rise_of_the_asymptote():
    y = 0.9 - 0.8 * X**-0.5
    y[10:] += 0.05  # a rate was lowered
    follower = SequentialExtrapolator(600)
    forecasts = follower.extend(X, y)
    assert not forecasts[10].trusted
    assert forecasts[10].asymptote > forecasts[9].asymptote
    assert follower.trusted_from is None or follower.trusted_from > 11


def test_recorded_curves_of_losses_over_sizes_are_forecast_within_their_noise():
    golden = load("powerlaw_offset_a")
    x, target = golden["D"], float(golden["target_D"])
    clean = SequentialExtrapolator(target, bounds=(0, 10), increasing=False).extend(x, golden["loss"])[-1]
    assert clean.value == pytest.approx(float(golden["truth_at_target"]), rel=1e-4)
    noisy = SequentialExtrapolator(target, bounds=(0, 10), increasing=False).extend(x, golden["loss_noisy"].mean(0))
    assert noisy[-1].value == pytest.approx(float(golden["truth_at_target"]), rel=0.1)


def test_a_flat_curve_and_few_points_are_no_trouble():
    forecasts = SequentialExtrapolator(100).extend([1, 2, 3, 4, 5, 6, 7, 8], [0.5] * 8)
    assert [f.points for f in forecasts if np.isnan(f.value)] == [1, 2, 3]
    assert forecasts[-1].value == pytest.approx(0.5)
    assert [f.points for f in forecasts if f.settled] == [7, 8]


@pytest.mark.parametrize(
    ("build", "match"),
    [
        (lambda: SequentialExtrapolator(0), "horizon and threshold must be above 0"),
        (lambda: SequentialExtrapolator(1, patience=0), "patience must be at least 1"),
        (lambda: SequentialExtrapolator(1, bounds=(1, 0)), "bounds must be a smaller and a larger number"),
        (lambda: SequentialExtrapolator(9).extend([1, 1], [0.5, 0.5]), "x must lie above 1 and not beyond the horizon"),
        (lambda: SequentialExtrapolator(9).update(10, 0.5), "not beyond the horizon, 9, got 10"),
        (lambda: SequentialExtrapolator(9).update(1, np.nan), "y must lie within bounds"),
    ],
)
def test_arguments_out_of_range_are_refused(build, match):
    with pytest.raises(ValueError, match=match):
        build()
