"""The gradient noise scale, and the multi-power law."""

from __future__ import annotations

import json

import numpy as np
import pytest

from medseg.core.scaling import GradientNoiseScale, multi_power_loss
from tests.core.scaling.golden import load

PARAMS = {"L0": 2.0, "A": 0.5, "alpha": 0.5, "B": 400.0, "C": 2.0, "beta": 0.6, "gamma": 0.6}


def test_on_a_quadratic_it_is_the_trace_of_the_noise_over_the_squared_gradient():
    random = np.random.default_rng(0)
    gradient, sd = np.array([1.0, -2.0, 0.5]), np.array([1.0, 3.0, 2.0])
    scale = GradientNoiseScale(small_batch=2, large_batch=16, decay=0.9995)
    for _ in range(4000):
        cases = gradient + sd * random.standard_normal((8, 2, 3))
        small = cases.mean(1)
        scale.update(np.linalg.norm(small, axis=1).tolist(), float(np.linalg.norm(small.mean(0))))
    assert scale.value == pytest.approx((sd**2).sum() / (gradient**2).sum(), rel=0.05)


def test_it_goes_on_from_a_checkpoint_and_knows_nothing_before_the_first_step():
    scale, again = GradientNoiseScale(1, 4), GradientNoiseScale(1, 4)
    assert np.isnan(scale.value)
    scale.update([3.0, 1.0, 3.0, 1.0], 2.0)
    again.load_state_dict(json.loads(json.dumps(scale.state_dict())))
    assert again.value == scale.value
    scale.load_state_dict(GradientNoiseScale(1, 4).state_dict())
    scale.update([1.0, 1.0], 0.1)
    assert scale.value == np.inf


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: GradientNoiseScale(4, 4), "large_batch must exceed"),
        (lambda: GradientNoiseScale(1, 4, 1.0), "decay"),
        (lambda: GradientNoiseScale(1, 4).update([np.nan], 1.0), "finite"),
        (lambda: multi_power_loss([1.0], {"L0": 1.0}), "missing: A, alpha"),
        (lambda: multi_power_loss([1.0, 0.0], PARAMS), "all above 0"),
        (lambda: multi_power_loss([1.0], PARAMS, [1]), "steps must lie"),
    ],
)
def test_arguments_out_of_range_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("schedule", ["wsd", "cosine"])
def test_the_multi_power_law_predicts_the_recorded_losses(schedule):
    golden = load("multi_power_law")
    names = ("L0", "A", "alpha", "B", "C", "beta", "gamma")
    params = dict(zip(names, golden["params_L0_A_alpha_B_C_beta_gamma"].tolist(), strict=True))
    found = multi_power_loss(golden[f"lr_{schedule}"], params, golden["steps"])
    np.testing.assert_allclose(found, golden[f"loss_{schedule}"], rtol=1e-9)


def test_without_a_change_of_the_rate_it_is_a_power_law():
    found = multi_power_loss(np.full(50, 0.1), PARAMS, warmup_sum=0.4)
    np.testing.assert_allclose(found, 2 + 0.5 * (0.1 * np.arange(1, 51) + 0.4) ** -0.5, rtol=1e-12)
