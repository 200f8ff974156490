"""The annealing law: its sums, the published example, and predictions for another schedule."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg.core.scaling import (
    AnnealingLaw,
    ExtrapolationWarning,
    PowerLawOffset,
    annealing_sums,
    best_decay_start,
    fit_annealing,
)
from tests.core.scaling.golden import load, named


@settings(deadline=None, max_examples=25)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=50), st.floats(0.5, 0.9999))
def test_the_sums_are_those_of_the_recursion(rates, lam):
    rates = [*rates, 0.5]
    way = gain = momentum = 0.0
    expected = []
    for index, rate in enumerate(rates):
        momentum = lam * momentum + (rates[index - 1] - rate if index else 0.0)
        way, gain = way + rate, gain + momentum
        expected.append((way, gain))
    np.testing.assert_allclose(annealing_sums(rates, lam), expected, rtol=1e-12, atol=1e-12)


def test_a_constant_rate_gains_nothing_by_annealing():
    sums = annealing_sums(np.full(100, 0.3))
    np.testing.assert_array_equal(sums[:, 1], 0)
    np.testing.assert_allclose(sums[:, 0], 0.3 * np.arange(1, 101))


@pytest.mark.parametrize("name", named("annealing_synth"))
def test_the_sums_are_the_recorded_ones_with_the_warm_up_at_the_peak(name):
    golden = load(name)
    for run in ("cosine3000", "const3000", "wsd6000", "wsd3000"):
        sums = annealing_sums(golden[f"{run}_lr"], float(golden["lam"]), int(golden["warmup"]))
        np.testing.assert_allclose(sums[:, 0], golden[f"{run}_S1"], rtol=1e-12)
        np.testing.assert_allclose(sums[:, 1], golden[f"{run}_S2"], atol=1e-12)


def test_the_sums_of_the_published_schedules_are_the_published_ones():
    golden = load("annealing_published_example")
    for run, key in (("cosine", "cos"), ("constant", "con")):
        sums = annealing_sums(golden[f"lr_{run}"], float(golden["lam"]))
        np.testing.assert_allclose(sums[:, 0], golden[f"S1_{key}"], rtol=1e-12)
        if run == "cosine":
            np.testing.assert_allclose(sums[:, 1], golden["S2_cos"], atol=1e-15)


@pytest.mark.parametrize("name", named("annealing_synth"))
def test_the_law_with_the_true_parameters_gives_the_losses(name):
    golden = load(name)
    law = AnnealingLaw(float(golden["lam"]), int(golden["warmup"]))
    level, size, gain, slope = golden["params_L0_A_C_alpha"]
    for run in ("cosine3000", "const3000", "wsd6000", "wsd3000"):
        found = np.exp(law.log_curve(np.array([[level, np.log(size), gain, slope]]), law.points(golden[f"{run}_lr"])))
        np.testing.assert_allclose(found[0], golden[f"{run}_loss"], rtol=1e-12)


def test_the_published_losses_give_the_published_fit():
    golden = load("annealing_published_example")
    curves = [(golden[f"lr_{run}"], golden["steps"], golden[f"loss_{run}"]) for run in ("cosine", "constant")]
    fit = fit_annealing(curves, lams=[0.999], bootstrap=0)
    np.testing.assert_allclose(list(fit.params.values()), golden["fit_polished"], rtol=1e-3)
    assert fit.objective <= golden["fit_polished_obj"] * (1 + 1e-6)
    logs = np.log(fit.y)
    assert 1 - (fit.residuals**2).sum() / ((logs - logs.mean()) ** 2).sum() > 0.999


@pytest.mark.parametrize("name", named("annealing_synth"))
def test_two_schedules_predict_a_third(name):
    golden = load(name)
    steps = np.arange(100, 3000, 60)

    def curves(kind):
        return [(golden[f"{r}_lr"], steps, golden[f"{r}_{kind}"][steps]) for r in ("cosine3000", "const3000")]

    warmup = int(golden["warmup"])
    exact = fit_annealing(curves("loss"), warmup_steps=warmup, bootstrap=0)
    assert exact.law.lam == pytest.approx(float(golden["lam"]))
    noisy = fit_annealing(curves("loss_noisy"), lams=[exact.law.lam], warmup_steps=warmup, bootstrap=0)
    for run in ("wsd3000", "wsd6000"):
        at = np.arange(100, len(golden[f"{run}_lr"]), 100)
        points = exact.law.points(golden[f"{run}_lr"], at)
        np.testing.assert_allclose(exact.predict(points).mean, golden[f"{run}_loss"][at], rtol=1e-3)
        np.testing.assert_allclose(noisy.predict(points).mean, golden[f"{run}_loss"][at], rtol=0.01)


def make_fit():
    law = AnnealingLaw(lam=0.98)
    schedules = [np.full(400, 0.01), np.linspace(0.01, 0, 400), np.r_[np.full(300, 0.01), np.linspace(0.01, 0, 100)]]
    points = np.concatenate([law.points(lr, np.arange(10, 400, 10)) for lr in schedules])
    return law.fit(points, 0.1 + 0.3 * points[:, 0] ** -0.4 - 0.2 * points[:, 1], bootstrap=0)


def test_the_best_start_of_a_decay_is_the_best_of_all():
    fit = make_fit()
    start, loss = best_decay_start(fit, 300, 0.01, shape="linear", grid=300)
    ends = []
    for at in range(300):
        rates = np.r_[np.full(at, 0.01), 0.01 * (1 - np.arange(1, 301 - at) / (300 - at))]
        ends.append(fit.predict(fit.law.points(rates, [299])).mean[0])
    assert loss == pytest.approx(min(ends), rel=1e-9)
    assert 100 < start < 299
    assert start == int(np.argmin(ends))
    with pytest.raises(ValueError, match="shape must be one of"):
        best_decay_start(fit, 300, 0.01, shape="square")
    with pytest.raises(ValueError, match="AnnealingLaw"):
        best_decay_start(PowerLawOffset().fit([1, 2, 4, 8], [4, 3, 2.5, 2.2], bootstrap=0), 300, 0.01)


def test_a_law_that_falls_below_0_is_told():
    fit = make_fit()
    with pytest.warns(ExtrapolationWarning, match="falls below 0"):
        fit.predict([[fit.x[:, 0].max(), 7 * fit.x[:, 1].max()]])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([],), "lr must hold"),
        (([0.0, 0.0],), "not all 0"),
        (([1.0, -1.0],), "none negative"),
        (([1.0, 1.0], 1.0), "lam must lie"),
        (([1.0, 1.0], 0.9, 2), "warmup_steps"),
    ],
)
def test_schedules_without_a_rate_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        annealing_sums(*arguments)


def test_curves_need_as_many_losses_as_steps():
    with pytest.raises(ValueError, match="as many losses as steps"):
        fit_annealing([([1.0] * 9, [1, 2], [1.0])])
    with pytest.raises(ValueError, match="S1 above 0"):
        AnnealingLaw().fit([[0.0, 0.0]] * 6, range(1, 7))
