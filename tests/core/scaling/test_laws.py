"""The laws of model size, ensembles, batches, mixtures and labelled cases."""

from __future__ import annotations

import itertools
import warnings

import numpy as np
import pytest

from medseg.core.scaling import (
    BivariateLaw,
    ChinchillaLaw,
    CriticalBatchLaw,
    EnsembleLaw,
    IdentifiabilityWarning,
    MixtureLaw,
    OpenAILaw,
    PowerLawOffset,
    ScalingFit,
    annotation_budget,
    best_encoder_share,
    compute_optimum,
    critical_batch_size,
    critical_mixture_ratio,
    data_efficiency,
    ensemble_losses,
)
from tests.core.scaling.golden import load

CASES = np.array([20.0, 40, 80, 160, 320])


def fit_quietly(law, *arguments, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", IdentifiabilityWarning)
        return law.fit(*arguments, **options)


def noise(size, seed=0, sd=0.01):
    return np.exp(sd * np.random.default_rng(seed).standard_normal(size))


def test_chinchilla_gives_the_recorded_parameters_optimum_and_objective():
    golden = load("chinchilla_a")
    grid = np.stack([golden["N"], golden["D"]], 1)
    fit = ChinchillaLaw().fit(grid, golden["loss"], bootstrap=0)
    np.testing.assert_allclose(list(fit.params.values()), golden["params_E_A_B_alpha_beta"], rtol=1e-3)
    best = compute_optimum(fit, float(golden["C"]))
    np.testing.assert_allclose([best.model, best.data], [golden["N_opt"], golden["D_opt"]], rtol=1e-4)
    noisy = fit_quietly(ChinchillaLaw(), grid, golden["loss_noisy"], delta=1e-3, bootstrap=200)
    assert noisy.objective <= golden["fit_obj"] * (1 + 1e-6)
    np.testing.assert_allclose(noisy.predict(grid).mean, golden["loss"], rtol=0.01)
    spread = compute_optimum(noisy, float(golden["C"]))
    assert spread.model_interval[0] < golden["N_opt"] < spread.model_interval[1]


def test_the_bivariate_law_gives_the_recorded_parameters_and_share():
    golden = load("bivariate_a")
    grid = np.stack([golden["Ne"], golden["Nd"]], 1)
    law = BivariateLaw(float(golden["N0"]))
    fit = law.fit(grid, golden["loss"], bootstrap=0)
    expected = dict(zip(("alpha", "pe", "pd", "Linf"), golden["params_alpha_pe_pd_Linf"], strict=True))
    assert fit.params == pytest.approx(expected, rel=1e-3)
    share = best_encoder_share(fit, total=1e7)
    assert share.share == pytest.approx(float(golden["optimal_encoder_share"]), rel=1e-4)
    assert share.good[0] < share.share < share.good[1]
    noisy = law.fit(grid, golden["loss_noisy"], bootstrap=50)
    np.testing.assert_allclose(noisy.predict(grid).mean, golden["loss"], rtol=0.01)
    again = ScalingFit.from_dict(noisy.to_dict())
    np.testing.assert_array_equal(again.predict(grid).upper, noisy.predict(grid).upper)


def test_a_dearer_decoder_moves_the_budget_so_that_no_other_share_is_better():
    sizes = [0.25, 0.5, 1, 2, 4]
    grid = np.array(list(itertools.product(sizes, sizes))) * 1e6
    loss = 0.1 + 0.4 * (grid[:, 0] / 1e6) ** -0.2 * (grid[:, 1] / 1e6) ** -0.3
    fit = BivariateLaw().fit(grid, loss, bootstrap=0)
    found = best_encoder_share(fit, total=1e7, encoder_cost=1.0, decoder_cost=8.0)
    share = np.linspace(0.01, 0.99, 981)
    size = 1e7 / (share + 8 * (1 - share))
    losses = fit.law.log_curve(fit.theta[None], np.stack([share * size, (1 - share) * size], 1))[0]
    assert found.share == pytest.approx(share[losses.argmin()], abs=0.002)
    assert found.share > best_encoder_share(fit, total=1e7).share


def test_the_openai_law_is_recovered():
    grid = np.array(list(itertools.product([1e5, 4e5, 1.6e6], [500.0, 2000, 8000])))
    loss = (3e3 / grid[:, 0]) ** 0.3 + (20 / grid[:, 1]) ** 0.7
    fit = OpenAILaw().fit(grid, loss, bootstrap=0)
    assert fit.params == pytest.approx({"Nc": 3e3, "aN": 0.3, "Sc": 20, "aS": 0.7}, rel=1e-3)


def test_model_and_data_that_grow_together_cannot_be_told_apart():
    size = np.geomspace(1e5, 1e7, 8)
    loss = 0.1 + 30 * size**-0.5
    with pytest.warns(IdentifiabilityWarning, match="cannot be told apart|leaves no trace"):
        ChinchillaLaw().fit(np.stack([size, 10 * size], 1), loss, bootstrap=0)


def test_two_inputs_have_no_single_answer_to_solve_for():
    golden = load("bivariate_a")
    fit = BivariateLaw().fit(np.stack([golden["Ne"], golden["Nd"]], 1), golden["loss"], bootstrap=0)
    with pytest.raises(NotImplementedError, match="no single input"):
        fit.solve(0.2)


def test_the_asymptote_of_an_ensemble_is_found_from_all_subsets():
    random = np.random.default_rng(0)
    truth = random.random(4000)
    members = truth + 0.2 * random.standard_normal((5, 4000))
    losses = ensemble_losses(members, lambda p: float(0.03 + ((p - truth) ** 2).mean()))
    assert (np.diff(losses) < 0).all()
    # Independent errors: exactly E + A/K up to the chance of 4000 voxels.
    fit = EnsembleLaw().fit(np.arange(1, 6), losses, bootstrap=200)
    assert fit.params == pytest.approx({"E": 0.03, "A": 0.04}, rel=0.02)
    with pytest.raises(ValueError, match="1 to 12"):
        ensemble_losses(np.zeros((13, 2)), np.mean)


def test_the_critical_batch_takes_twice_the_steps_and_samples():
    batch = np.repeat([2.0, 4, 8, 16, 32, 64], 2)
    steps = (500 + 20_000 / batch) * noise(12)
    fit = CriticalBatchLaw().fit(batch, steps, bootstrap=300)
    found = critical_batch_size(fit)
    assert found.lower < 40 < found.upper
    assert found.x == pytest.approx(40, rel=0.15)
    assert fit.predict(found.x).mean == pytest.approx(2 * fit.params["Smin"])
    with pytest.raises(ValueError, match="CriticalBatchLaw"):
        critical_batch_size(fit_quietly(EnsembleLaw(), batch, steps, bootstrap=0))


def test_the_critical_share_of_a_new_site_keeps_the_old_one_within_the_tolerance():
    share = np.repeat([0.05, 0.1, 0.2, 0.4, 0.8], 3)
    loss = (0.1 + 0.05 * share**1.5) * noise(15, sd=0.003)
    fit = fit_quietly(MixtureLaw(), share, loss, bootstrap=300)
    found = critical_mixture_ratio(fit, start=0.1, tolerance=0.005)
    truth = 0.1 ** (1 / 1.5)
    assert found.lower < truth < found.upper
    assert found.lower < found.x
    assert critical_mixture_ratio(fit, start=0.05, tolerance=0.0).x == 0
    assert critical_mixture_ratio(fit, start=0.5, tolerance=0.0).x == 1
    assert fit.predict([0.1, 0.4]).mean[0] < fit.predict([0.1, 0.4]).mean[1]
    with pytest.raises(ValueError, match=r"shares in \(0, 1\]"):
        MixtureLaw().fit(share * 10, loss)
    with pytest.raises(ValueError, match="tolerance"):
        critical_mixture_ratio(fit, 0.1, -1)


def test_an_annotation_budget_says_how_many_cases_and_what_they_cost():
    fit = PowerLawOffset().fit(np.repeat(CASES, 3), np.repeat(0.08 + 0.9 * CASES**-0.5, 3) * noise(15), bootstrap=300)
    budget = annotation_budget(fit, 0.12, current=320, cost_per_case=50)
    assert budget.cases.lower < budget.cases.x < budget.cases.upper
    assert budget.cases.x == pytest.approx(0.04**-2 * 0.9**2, rel=0.15)
    value, low, high = budget.additional
    assert low <= value <= high
    assert value == np.ceil(budget.cases.x - 320)
    assert budget.cost == (50 * value, 50 * low, 50 * high)
    assert budget.gain_per_case == pytest.approx(0.45 * 320**-1.5, rel=0.3)
    assert annotation_budget(fit, 0.3).additional == (0, 0, 0)
    assert annotation_budget(fit, 0.01).additional[2] == np.inf
    with pytest.raises(ValueError, match="cost_per_case"):
        annotation_budget(fit, 0.12, cost_per_case=-1)


def test_a_method_that_needs_half_the_cases_has_a_data_efficiency_of_2():
    def fit(factor, seed):
        loss = (0.08 + 0.9 * (np.repeat(CASES, 3) * factor) ** -0.5) * noise(15, seed)
        return fit_quietly(PowerLawOffset(), np.repeat(CASES, 3), loss, bootstrap=200)

    found = data_efficiency(fit(1, 0), fit(2, 1), 0.15)
    assert found.lower < found.x < found.upper
    assert found.x == pytest.approx(2, rel=0.1)
    assert np.isnan(data_efficiency(fit(1, 0), fit(2, 1), 0.001).x)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f: compute_optimum(f, 1e9), "ChinchillaLaw"),
        (lambda f: best_encoder_share(f, 1e7), "BivariateLaw"),
        (lambda f: critical_mixture_ratio(f, 0.1, 0.1), "MixtureLaw"),
        (lambda f: BivariateLaw(0.0), "reference"),
    ],
)
def test_a_fit_of_another_law_is_refused(call, message):
    fit = PowerLawOffset().fit(CASES, 0.1 + CASES**-0.5, bootstrap=0)
    with pytest.raises(ValueError, match=message):
        call(fit)
