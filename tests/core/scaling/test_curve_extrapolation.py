"""Learning curves: families, prior, posterior and the advice to stop."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import special

from medseg.core.scaling import CURVE_FAMILIES, CurveExtrapolator, curve_family, curve_prior, stop_advice
from tests.core.scaling.golden import load

T = np.arange(1, 41)
CURVE = 0.85 - 0.5 * T**-0.8 + 0.01 * np.random.default_rng(0).standard_normal(40)


@pytest.fixture(scope="module")
def posterior():
    return CurveExtrapolator(200, moves=20).fit(T, CURVE, 100)


@pytest.mark.parametrize("name", CURVE_FAMILIES)
def test_every_family_has_the_recorded_values(name):
    golden = load("learning_curve_basis_a")
    for params, expected in zip(golden[f"{name}_par"], golden[f"{name}_y"], strict=True):
        named = dict(zip(golden[f"{name}_keys"].tolist(), params, strict=True))
        np.testing.assert_allclose(curve_family(name, golden["x"], named), expected, rtol=1e-12, atol=1e-14)


def test_curves_of_the_prior_are_sums_of_three_families():
    z = np.random.default_rng(0).standard_normal((5, 13))
    x = np.array([0.5, 1.0, 30.0, 100.0])
    for one, found in zip(z, curve_prior.curves(z, x), strict=True):
        u = special.ndtr(one)
        parts = (
            curve_family("pow3", x, {"c": 1.25 * u[3], "a": 1.2 * u[4] - 0.6, "alpha": np.exp(2 * one[5])}),
            curve_family("ilog2", x, {"c": u[6], "a": u[7] - 0.5}),
            curve_family(
                "janoschek",
                x,
                {"a": u[8], "beta": 2 * u[9], "k": np.exp(one[10] - 2), "delta": np.exp(0.5 * one[11])},
            ),
        )
        np.testing.assert_allclose(
            found, sum(w * part for w, part in zip(u, parts, strict=False)), rtol=1e-9, atol=1e-12
        )


def test_unknown_families_and_missing_parameters_are_refused():
    with pytest.raises(ValueError, match="name must be one of"):
        curve_family("pow2", [1.0], {})
    with pytest.raises(ValueError, match="must hold 'c'"):
        curve_family("pow3", [1.0], {"a": 1.0})


def test_curves_of_the_prior_rise_within_0_and_1_and_spread_as_the_recorded_ones():
    z = curve_prior.draw(4000, np.random.default_rng(0))
    values = curve_prior.curves(z, curve_prior.GRID)
    assert (values[:, -1] > values[:, 0]).all()
    assert (values >= -0.01).all()
    assert (values <= 1.01).all()
    recorded = load("lcpfn_prior_samples_a")["y"]
    # 64 curves: their quartiles are known to about 0.06.
    for at in (0, 9, 99):
        found, expected = (np.quantile(table[:, at], (0.25, 0.5, 0.75)) for table in (values, recorded))
        np.testing.assert_allclose(found, expected, atol=0.12)
    noise = np.log(np.std(load("lcpfn_prior_samples_a")["y_noisy"] - recorded, axis=1))
    assert np.median(np.log(curve_prior.noise_sd(z))) == pytest.approx(np.median(noise), abs=0.4)


def coverage(curves, cut, particles):
    """Share of recorded curves whose last value lies in the 90 % interval seen from a part of them."""
    golden = load("lcpfn_prior_samples_a")
    held = []
    for index in range(curves):
        seen = np.clip(golden["y_noisy"][index, :cut], 0, 1)
        low, high = (
            CurveExtrapolator(particles, seed=index).fit(np.arange(1, cut + 1), seen, 100).quantile([0.05, 0.95])
        )
        held.append(low[0] <= golden["y"][index, -1] <= high[0])
    return np.mean(held)


def test_the_end_of_a_curve_is_predicted_closely(posterior):
    low, middle, high = posterior.quantile([0.05, 0.5, 0.95])[:, 0]
    assert abs(middle - (0.85 - 0.5 * 100**-0.8)) < 0.02
    assert 0.003 < high - low < 0.1


def test_what_was_seen_is_known_better_than_what_comes(posterior):
    low, high = posterior.quantile([0.05, 0.95], [20, 40, 100])
    widths = high - low
    assert widths[0] < widths[1] < widths[2]
    assert posterior.prob_exceeds(0.5) == 1
    assert posterior.prob_exceeds(0.99) == 0


def test_the_same_seed_gives_the_same_posterior(posterior):
    again = CurveExtrapolator(200, moves=20).fit(T, CURVE, 100)
    np.testing.assert_array_equal(again.z, posterior.z)


def test_a_loss_is_the_mirror_image_of_a_score(posterior):
    loss = CurveExtrapolator(200, moves=20).fit(T, 2 * (1 - CURVE), 100, bounds=(0, 2), increasing=False)
    score = posterior.quantile([0.05, 0.5, 0.95])[:, 0]
    np.testing.assert_allclose(loss.quantile([0.95, 0.5, 0.05])[:, 0], 2 * (1 - score), rtol=1e-9)
    assert stop_advice(loss, 0.1, points=40).stop
    assert not stop_advice(loss, 0.5, points=40).stop


def test_other_units_of_time_and_many_points_change_little(posterior):
    fine = np.repeat(T, 5) + np.tile([-0.4, -0.2, 0, 0.2, 0.4], 40)
    noise = 0.01 * np.random.default_rng(1).standard_normal(200)
    many = CurveExtrapolator(200, moves=20).fit(250 * fine, 0.85 - 0.5 * fine**-0.8 + noise, 25_000)
    assert many.quantile(0.5)[0] == pytest.approx(posterior.quantile(0.5)[0], abs=0.02)


def test_the_advice_is_to_stop_only_when_a_better_end_is_unlikely_and_enough_was_seen(posterior):
    hopeless = stop_advice(posterior, 0.95, points=40)
    assert hopeless.stop
    assert hopeless.reason.startswith("stop: a chance of 0.0%")
    assert not stop_advice(posterior, 0.95, points=9).stop
    assert not stop_advice(posterior, 0.8, points=40).stop
    assert not stop_advice(posterior, 0.95, points=40, margin=-0.2).stop
    with pytest.raises(ValueError, match="threshold"):
        stop_advice(posterior, 0.9, points=40, threshold=0)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("cut", [10, 20, 50])
def test_intervals_of_90_percent_hold_the_end_of_85_percent_of_the_recorded_curves(cut):
    assert coverage(64, cut, 600) >= 0.85


@pytest.mark.parametrize(
    ("t", "y", "options", "message"),
    [
        ([1], [0.5], {}, "at least 2"),
        ([1, 2], [0.5], {}, "as long as each other"),
        ([0, 1], [0.5, 0.6], {}, "t must lie above 0"),
        ([1, 101], [0.5, 0.6], {}, "at most at t_max"),
        ([1, 2], [0.5, np.nan], {}, "finite"),
        ([1, 2], [0.5, 1.6], {}, "within bounds"),
    ],
)
def test_curves_that_cannot_be_extrapolated_are_refused(t, y, options, message):
    with pytest.raises(ValueError, match=message):
        CurveExtrapolator(100, moves=20).fit(t, y, 100, **options)


def test_too_few_particles_and_times_outside_the_run_are_refused(posterior):
    with pytest.raises(ValueError, match="n_particles"):
        CurveExtrapolator(10)
    with pytest.raises(ValueError, match="moves"):
        CurveExtrapolator(moves=0)
    with pytest.raises(ValueError, match="t must lie above 0"):
        posterior.quantile(0.5, 101)


def test_averaging_neighbours_keeps_what_is_known_of_the_noise():
    t = np.repeat(T, 10) + np.tile(np.linspace(-0.4, 0.4, 10), 40)
    noise = 0.03 * np.random.default_rng(2).standard_normal(400)
    posterior = CurveExtrapolator(200, moves=20).fit(t, 0.8 - 0.5 * t**-0.8 + noise, 100)
    assert np.median(curve_prior.noise_sd(posterior.z)) == pytest.approx(0.03, rel=0.15)
