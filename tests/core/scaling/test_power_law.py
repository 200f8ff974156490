"""The power law with an offset, and what all laws share: fit, intervals, notes, refused data."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg.core.scaling import (
    ExtrapolationWarning,
    IdentifiabilityWarning,
    PowerLawOffset,
    ScalingFit,
)
from tests.core.scaling.golden import load, named

SIZES = np.array([20.0, 40, 80, 160, 320])
LAW = PowerLawOffset()
laws = settings(deadline=None, max_examples=8)


def simulate(seed, sizes=SIZES, noise=0.01, runs=3, floor=0.08):
    x = np.repeat(sizes, runs)
    return x, (floor + 0.9 * x**-0.5) * np.exp(noise * np.random.default_rng(seed).standard_normal(len(x)))


def fit_quietly(*arguments, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", IdentifiabilityWarning)
        return LAW.fit(*arguments, **options)


@pytest.mark.parametrize("name", named("powerlaw_offset"))
def test_losses_without_noise_give_the_recorded_parameters_and_prediction(name):
    golden = load(name)
    fit = LAW.fit(golden["D"], golden["loss"], bootstrap=50)
    np.testing.assert_allclose(list(fit.params.values()), golden["params_E_B_beta"], rtol=1e-6)
    prediction = fit.predict(golden["target_D"])
    np.testing.assert_allclose(prediction.mean, golden["truth_at_target"], rtol=1e-6)
    np.testing.assert_allclose(prediction.upper - prediction.lower, 0, atol=1e-6)
    assert fit.notes == ()


@pytest.mark.parametrize("name", named("powerlaw_offset"))
def test_noisy_losses_give_the_recorded_optimum(name):
    golden = load(name)
    cases = np.tile(golden["D"], len(golden["loss_noisy"]))
    fit = fit_quietly(cases, golden["loss_noisy"].ravel(), delta=1e-3, bootstrap=0)
    np.testing.assert_allclose(fit.objective, golden["fit_noisy_obj"], rtol=1e-6)
    np.testing.assert_allclose(fit.predict(golden["target_D"]).mean, golden["pred_noisy_at_target"], rtol=1e-4)
    assert np.isnan(fit.predict(golden["target_D"]).lower).all()


@laws
@given(st.floats(0, 0.5), st.floats(0.1, 10), st.floats(0.2, 1.5), st.floats(0.01, 100), st.floats(0.01, 100))
def test_other_units_change_amplitudes_alone(floor, size, slope, unit_x, unit_y):
    losses = floor + size * SIZES**-slope
    noisy = losses * np.exp(0.01 * np.random.default_rng(0).standard_normal(5))
    plain = fit_quietly(SIZES, noisy, delta=0.01, bootstrap=0)
    scaled = fit_quietly(SIZES * unit_x, noisy * unit_y, delta=0.01, bootstrap=0)
    assert scaled.objective == pytest.approx(plain.objective, rel=1e-4, abs=1e-12)
    np.testing.assert_allclose(scaled.predict(640 * unit_x).mean, plain.predict(640).mean * unit_y, rtol=1e-3)


@laws
@given(st.floats(0.01, 0.5), st.floats(0.1, 10), st.floats(0.3, 1.5))
def test_any_law_is_recovered_from_losses_without_noise(floor, size, slope):
    fit = fit_quietly(SIZES, floor + size * SIZES**-slope, bootstrap=0)
    np.testing.assert_allclose(
        fit.predict([640, 1280]).mean, floor + size * np.array([640, 1280.0]) ** -slope, rtol=1e-3
    )


def test_predictions_fall_and_the_interval_widens_with_the_distance():
    fit = fit_quietly(*simulate(0), bootstrap=300)
    at = np.geomspace(20, 2560, 30)
    found = fit.predict(at)
    assert (np.diff(found.mean) < 0).all()
    assert ((found.lower <= found.mean) & (found.mean <= found.upper)).all()
    wide = np.log(found.upper / found.lower)
    assert wide[-1] > 3 * wide[15]
    wider = fit.predict(at, new_run=True)
    assert (wider.upper / wider.lower > found.upper / found.lower).all()
    assert (fit.predict(at, interval=0.5).upper < found.upper).all()


def test_the_same_seed_gives_the_same_interval_and_another_seed_another():
    data = simulate(1)
    ends = [fit_quietly(*data, bootstrap=100, seed=s).predict(1000).upper[0] for s in (0, 0, 1)]
    assert ends[0] == ends[1]
    assert ends[0] != ends[2]


def coverage(studies, noise, runs, draws):
    """Share of simulated studies whose 90 % interval at 4 times the largest size holds the truth."""
    held = 0
    for seed in range(studies):
        found = fit_quietly(*simulate(seed, noise=noise, runs=runs), bootstrap=draws, seed=seed).predict(1280)
        held += found.lower[0] <= 0.08 + 0.9 * 1280**-0.5 <= found.upper[0]
    return held / studies


def test_the_interval_holds_the_truth_in_most_simulated_studies():
    assert coverage(20, 0.01, 3, 80) >= 0.75


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("runs", [1, 3])
@pytest.mark.parametrize("noise", [0.01, 0.03])
def test_intervals_of_90_percent_hold_the_truth_in_at_least_85_percent_of_studies(noise, runs):
    assert coverage(150, noise, runs, 150) >= 0.85


def test_the_back_test_predicts_the_largest_size_from_the_others():
    fit = fit_quietly(*simulate(2), bootstrap=300)
    test = fit.backtest
    assert test.x == (320.0,)
    assert test.observed == pytest.approx(0.08 + 0.9 * 320**-0.5, rel=0.03)
    assert test.lower <= test.predicted <= test.upper
    assert test.predicted == pytest.approx(test.observed, rel=0.15)
    assert fit_quietly(SIZES[:4], 0.9 * SIZES[:4] ** -0.5, bootstrap=0).backtest is None


def test_the_cases_for_a_loss_come_with_an_interval_that_may_be_endless():
    fit = fit_quietly(*simulate(3), bootstrap=400)
    near = fit.solve(0.12)
    assert near.lower < near.x < near.upper
    assert near.lower < (0.9 / 0.04) ** 2 < near.upper
    assert near.reachable == 1
    low = fit.solve(0.02)
    assert (low.x, low.upper) == (np.inf, np.inf)
    assert low.reachable < 0.5
    with pytest.raises(ValueError, match="y must be above 0"):
        fit.solve(0.0)


def test_a_fit_comes_back_from_json():
    fit = fit_quietly(*simulate(4), bootstrap=50)
    again = ScalingFit.from_dict(json.loads(json.dumps(fit.to_dict())))
    assert again.to_dict() == fit.to_dict()
    np.testing.assert_array_equal(again.predict(500).lower, fit.predict(500).lower)
    with pytest.raises(ValueError, match="law must be a law"):
        ScalingFit.from_dict(fit.to_dict() | {"law": "os"})


def test_one_far_outlier_hardly_moves_the_fit():
    cases, losses = simulate(5, runs=4)
    spoiled = losses.copy()
    spoiled[6] *= 1.5
    clean, robust = (fit_quietly(cases, y, delta=0.01, bootstrap=0).predict(640).mean for y in (losses, spoiled))
    squares = fit_quietly(cases, spoiled, delta=1e3, bootstrap=0).predict(640).mean
    assert abs(np.log(robust / clean)) < 0.5 * abs(np.log(squares / clean))


def test_points_of_weight_0_are_as_if_they_were_not_there():
    cases, losses = simulate(6)
    weights = (cases < 320).astype(float)
    part = fit_quietly(cases, np.where(weights, losses, 9.0), weights=weights, delta=0.01, bootstrap=0)
    kept = fit_quietly(cases[weights > 0], losses[weights > 0], delta=0.01, bootstrap=0)
    np.testing.assert_allclose(part.theta, kept.theta, rtol=1e-4, atol=1e-6)


def test_a_floor_that_the_data_do_not_show_is_told():
    cases = np.repeat([10.0, 20, 40], 3)
    losses = 0.9 * cases**-0.1 * np.exp(0.02 * np.random.default_rng(0).standard_normal(9))
    with pytest.warns(IdentifiabilityWarning):
        fit = LAW.fit(cases, losses, bootstrap=300)
    assert any(note.startswith("E is not identified") for note in fit.notes)


def test_two_sizes_cannot_tell_three_parameters_apart():
    cases = np.repeat([10.0, 40], 4)
    losses = cases**-0.5 * np.exp(0.01 * np.random.default_rng(0).standard_normal(8))
    with pytest.warns(IdentifiabilityWarning, match="cannot be told apart"):
        LAW.fit(cases, losses, bootstrap=0)


def test_a_prediction_far_beyond_the_data_is_told():
    fit = fit_quietly(*simulate(7), bootstrap=0)
    fit.predict(8 * 320)
    with pytest.warns(ExtrapolationWarning, match=r"x is 31\.2 times"):
        fit.predict(10_000)


def test_rows_with_nan_are_left_out_with_a_warning():
    with pytest.warns(UserWarning, match="1 of 6 points"):
        fit = LAW.fit([*SIZES, np.nan], [*(0.1 + SIZES**-0.5), 1.0], bootstrap=0)
    assert len(fit.y) == 5


@pytest.mark.parametrize(
    ("x", "y", "options", "message"),
    [
        (SIZES, -SIZES, {}, "y must be above 0"),
        (-SIZES, SIZES, {}, "x must be above 0"),
        (SIZES[:3], SIZES[:3], {}, "at least 4 points"),
        (SIZES, np.ones(5), {}, "y is constant"),
        (SIZES, np.ones(4), {}, "as long as each other"),
        (np.ones((5, 2)), SIZES, {}, "columns x"),
        (SIZES, 1 / SIZES, {"delta": 0.0}, "delta must be"),
        (SIZES, 1 / SIZES, {"weights": -SIZES}, "weights must not be negative"),
    ],
)
def test_data_that_fit_no_law_are_refused(x, y, options, message):
    with pytest.raises(ValueError, match=message):
        LAW.fit(x, y, **options)


def test_an_interval_out_of_range_is_refused():
    with pytest.raises(ValueError, match="interval must lie"):
        fit_quietly(*simulate(0), bootstrap=0).predict(100, interval=1.0)
