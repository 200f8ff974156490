"""Laws of the schedules, their life inside an optimizer, and refused arguments."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg.core.schedules import (
    WSDLR,
    WSDSLR,
    GradNormRecorder,
    InfiniteLR,
    LinearDecayLR,
    PolyLR,
    TabulatedLR,
    WarmUpLR,
    refine_schedule,
    schedule_factors,
)

SHAPES = ("linear", "cosine", "1-sqrt", "inverse_linear", "exponential")
laws = settings(deadline=None, max_examples=25)


def make_optimizer(*rates):
    rates = rates or (1.0,)
    return torch.optim.SGD([{"params": [torch.zeros(1, requires_grad=True)], "lr": r} for r in rates], lr=1.0)


BUILD = {
    "WarmUpLR": lambda o: WarmUpLR(o, 5),
    "LinearDecayLR": lambda o: LinearDecayLR(o, 20, 3, 0.1),
    "PolyLR": lambda o: PolyLR(o, 20, steps_per_epoch=4),
    "WSDLR": lambda o: WSDLR(o, 3, 10, 7),
    "WSDSLR": lambda o: WSDSLR(o, 2, [10, 20]),
    "InfiniteLR": lambda o: InfiniteLR(o, 3, 5, constant_steps=6, anneal_steps=6, min_lr_ratio=0.01),
    "TabulatedLR": lambda o: TabulatedLR(o, [0.5, 1.0, 0.2, 0.0], total_steps=20),
}


def run(schedule, steps):
    """Rates with which the steps were taken, one list a group."""
    rates = []
    for _ in range(steps):
        rates.append([group["lr"] for group in schedule.optimizer.param_groups])
        schedule.optimizer.step()
        schedule.step()
    return np.array(rates)


@pytest.mark.parametrize("name", BUILD)
def test_each_group_follows_the_factors_times_its_own_rate(name):
    schedule = BUILD[name](make_optimizer(0.1, 0.003))
    expected = schedule_factors(schedule, 24)
    np.testing.assert_allclose(run(schedule, 24), expected[:, None] * [0.1, 0.003], rtol=1e-12)


@pytest.mark.parametrize("name", BUILD)
def test_a_run_that_is_stopped_and_restored_goes_on_alike(name):
    whole = run(BUILD[name](make_optimizer(0.1)), 24)
    first = BUILD[name](make_optimizer(0.1))
    run(first, 11)
    second = BUILD[name](make_optimizer(0.1))
    second.optimizer.load_state_dict(copy.deepcopy(first.optimizer.state_dict()))
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    np.testing.assert_allclose(run(second, 13), whole[11:], rtol=1e-12)


def test_a_rate_that_is_a_tensor_is_changed_in_place():
    rate = torch.tensor(0.5)
    schedule = WSDSLR(torch.optim.Adam([torch.zeros(1, requires_grad=True)], lr=rate), 0)
    schedule.start_decay(2)
    assert schedule.optimizer.param_groups[0]["lr"] is rate
    assert rate.item() == pytest.approx(0.5 / 5.5)


@laws
@given(st.integers(0, 8), st.integers(0, 30), st.integers(1, 30), st.sampled_from(SHAPES), st.floats(0.01, 0.9))
def test_wsd_rises_stays_and_falls_to_its_minimum_without_a_jump_at_the_end(warm, stable, length, shape, low):
    schedule = WSDLR(make_optimizer(), warm, stable, length, shape, low)
    end = warm + stable + length
    factors = schedule_factors(schedule, end + 5)
    assert factors.min() > 0
    assert (np.diff(factors[: max(warm, 1)]) >= 0).all()
    np.testing.assert_array_equal(factors[max(warm - 1, 0) : warm + stable], 1.0)
    assert (np.diff(factors[warm + stable :]) <= 1e-15).all()
    np.testing.assert_allclose(factors[end - 1 :], low, rtol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_neighbouring_rates_of_a_long_wsd_are_close(shape):
    factors = schedule_factors(WSDLR(make_optimizer(), 0, 100, 1000, shape, 0.1), 1200)
    ratios = factors[:-1] / factors[1:]
    # 1-sqrt starts steeply: sqrt(1/n) in its first step.
    assert ratios.max() < (1.04 if shape == "1-sqrt" else 1.011)
    assert ratios.min() >= 1 - 1e-12


def test_the_rates_of_a_linear_decay_sum_to_half_of_a_constant_one():
    factors = schedule_factors(LinearDecayLR(make_optimizer(), 1001), 1001)
    assert factors.sum() == pytest.approx(500)


def test_polynomial_decay_is_nnu_nets_and_ends_at_0():
    schedule = PolyLR(make_optimizer(), 250_000, steps_per_epoch=250)
    for epoch in (0, 1, 400, 999):
        assert schedule.factor(250 * epoch + 249) == pytest.approx((1 - epoch / 1000) ** 0.9, rel=1e-12)
    assert [schedule.factor(step) for step in (250_000, 300_000)] == [0.0, 0.0]


def test_wsd_s_by_hand_is_wsd_s_by_budget():
    planned = run(WSDSLR(make_optimizer(), 2, [10, 20]), 25)
    open_ended = WSDSLR(make_optimizer(), 2)
    parts = [run(open_ended, 9)]
    open_ended.start_decay(1)
    parts.append(run(open_ended, 1))
    open_ended.resume_stable()
    parts.append(run(open_ended, 8))
    open_ended.start_decay(2)
    restored = WSDSLR(make_optimizer(), 2)
    restored.load_state_dict(json.loads(json.dumps(open_ended.state_dict())))
    restored.optimizer.load_state_dict(open_ended.optimizer.state_dict())
    parts.append(run(restored, 7))
    np.testing.assert_allclose(np.concatenate(parts), planned, rtol=1e-12)


def test_wsd_s_says_where_to_save_and_refuses_odd_orders():
    planned = WSDSLR(make_optimizer(), 0, [10, 30, 100], decay_fraction=0.2)
    assert planned.checkpoint_steps == [10, 30, 100]
    with pytest.raises(RuntimeError, match="budgets=None"):
        planned.start_decay(3)
    by_hand = WSDSLR(make_optimizer(), 0)
    with pytest.raises(RuntimeError, match="call start_decay first"):
        by_hand.resume_stable()
    by_hand.start_decay(3)
    with pytest.raises(RuntimeError, match="call resume_stable"):
        by_hand.start_decay(3)


def test_the_infinite_schedule_stays_until_annealing_is_asked_for():
    schedule = InfiniteLR(make_optimizer(), 2, 4, const_ratio=0.2, anneal_steps=3, min_lr_ratio=0.002)
    np.testing.assert_allclose(run(schedule, 40)[6:], 0.2)
    schedule.begin_anneal()
    annealed = run(schedule, 5).ravel()
    np.testing.assert_allclose(annealed, 0.2 * 0.01 ** np.array([1 / 3, 2 / 3, 1, 1, 1]), rtol=1e-12)


@laws
@given(st.lists(st.floats(1e-3, 1e3), min_size=3, max_size=60), st.floats(1e-6, 1e6), st.sampled_from(["sgd", "adam"]))
def test_a_refined_schedule_has_peak_1_ends_at_0_and_ignores_the_unit_of_the_norms(norms, unit, optimizer):
    factors = refine_schedule(norms, optimizer)
    assert factors.max() == 1
    assert factors[-1] == 0
    assert (factors >= 0).all()
    np.testing.assert_allclose(refine_schedule(np.array(norms) * unit, optimizer), factors, rtol=1e-9, atol=1e-12)


def test_high_early_norms_give_a_warm_up():
    norms = 1 + 9 * np.exp(-np.arange(1000) / 60)
    assert refine_schedule(norms)[0] < 0.05
    assert 100 < refine_schedule(norms).argmax() < 400


def test_norms_of_0_are_raised_with_a_warning():
    with pytest.warns(UserWarning, match="raised to the smallest positive"):
        factors = refine_schedule([0.0, 0.0, 1.0, 1.0], tau=0)
    np.testing.assert_allclose(factors, [1, 2 / 3, 1 / 3, 0])


@pytest.mark.parametrize(
    ("norms", "options", "message"),
    [
        ([1.0, 1.0], {}, "at least 3 steps"),
        ([1.0, np.nan, 1.0], {}, "finite"),
        ([1.0, -1.0, 1.0], {}, "not negative"),
        ([0.0, 0.0, 0.0], {}, "all zero"),
        ([1.0, 1.0, 1.0], {"optimizer": "lion"}, "sgd, adam"),
        ([1.0, 1.0, 1.0], {"tau": 1.0}, "tau"),
    ],
)
def test_norms_that_refine_nothing_are_refused(norms, options, message):
    with pytest.raises(ValueError, match=message):
        refine_schedule(norms, **options)


def test_a_table_keeps_its_ends_when_it_is_stretched():
    factors = refine_schedule(1 + np.random.default_rng(0).random(100))
    for steps in (37, 100, 411):
        table = schedule_factors(TabulatedLR(make_optimizer(), factors.tolist(), steps), steps)
        np.testing.assert_allclose(table[[0, -1]], factors[[0, -1]], atol=1e-15)
        assert table.mean() == pytest.approx(factors.mean(), rel=0.03)


def test_recorded_norms_are_those_of_all_gradients_together():
    torch.manual_seed(0)
    network = torch.nn.Linear(4, 3)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    network(torch.randn(2, 4)).square().sum().backward()
    flat = torch.cat([p.grad.flatten() for p in network.parameters()])
    long, short = GradNormRecorder("l2"), GradNormRecorder("l1")
    assert long.record(optimizer) == pytest.approx(flat.norm().item(), rel=1e-6)
    assert short.record(network.parameters()) == pytest.approx(flat.abs().sum().item(), rel=1e-6)
    restored = GradNormRecorder()
    restored.load_state_dict(short.state_dict())
    assert (restored.norm, restored.norms) == ("l1", short.norms)
    optimizer.zero_grad()
    with pytest.raises(ValueError, match="after backward"):
        long.record(optimizer)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda o: WarmUpLR(o, -1), "warmup_steps must be a whole number"),
        (lambda o: WarmUpLR(o, 1.5), "warmup_steps must be a whole number"),
        (lambda o: LinearDecayLR(o, 5, 5), "total_steps includes the warm-up"),
        (lambda o: LinearDecayLR(o, 5, min_lr_ratio=1.0), "min_lr_ratio must be at least 0 and below 1"),
        (lambda o: PolyLR(o, 5, power=0), "power must be above 0"),
        (lambda o: PolyLR(o, 5, steps_per_epoch=0), "steps_per_epoch"),
        (lambda o: WSDLR(o, 0, 5, 5, "square"), "decay_shape must be one of"),
        (lambda o: WSDLR(o, 0, 5, 5, "exponential"), "never reaches 0"),
        (lambda o: WSDSLR(o, 0, [10, 10]), "budgets must ascend"),
        (lambda o: WSDSLR(o, 10, [10, 20]), "budgets must ascend"),
        (lambda o: WSDSLR(o, 0, []), "budgets is empty"),
        (lambda o: WSDSLR(o, 0, [10], decay_fraction=1.0), "decay_fraction"),
        (lambda o: InfiniteLR(o, 0, 5, const_ratio=0.0), "const_ratio must exceed"),
        (lambda o: InfiniteLR(o, 0, 5, cooldown_shape="exp"), "cooldown_shape"),
        (lambda o: InfiniteLR(o, 0, 5, timescale=0.0), "timescale"),
        (lambda o: InfiniteLR(o, 0, 5, constant_steps=5), "anneal_steps is missing"),
        (lambda o: InfiniteLR(o, 0, 5, constant_steps=5, anneal_steps=5), "never reaches 0"),
        (lambda o: TabulatedLR(o, []), "factors"),
        (lambda o: TabulatedLR(o, [1.0], 0), "total_steps"),
        (lambda o: schedule_factors(WarmUpLR(o, 2), 0), "steps"),
        (lambda o: GradNormRecorder("max"), "norm must be one of"),
    ],
)
def test_arguments_out_of_range_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build(make_optimizer())


def test_anything_but_an_optimizer_is_refused():
    with pytest.raises(TypeError, match=r"torch\.optim\.Optimizer"):
        WarmUpLR([torch.zeros(1)], 3)
