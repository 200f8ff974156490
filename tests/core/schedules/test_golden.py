"""Rates of the schedules against recorded ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from medseg.core.schedules import WSDLR, WSDSLR, InfiniteLR, refine_schedule, schedule_factors
from medseg.core.schedules.refined import _median_filter

ROOT = Path(__file__).resolve().parents[3]
FOLDERS = [ROOT / "tests/golden/schedules", ROOT.parent / "shared/golden/schedules"]
FILES = {path.stem: path for folder in FOLDERS for path in sorted(folder.glob("*.npz"))}
SHAPES = ("linear", "cosine", "1-sqrt", "inverse_linear", "exponential")


def named(kind):
    return sorted(name for name in FILES if name.startswith(kind))


def make_optimizer(lr=1.0):
    return torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr)


def check(schedule, rates, peak):
    np.testing.assert_allclose(schedule_factors(schedule, len(rates)) * peak, rates, rtol=1e-12, atol=1e-18)


@pytest.mark.parametrize("name", named("wsd"))
def test_wsd_has_the_recorded_rates_in_every_shape_and_with_every_minimum(name):
    golden = np.load(FILES[name])
    peak, *lengths = golden["meta"]
    keys = [k for k in golden if k.startswith("spec_") and "_r" in k]
    assert len(keys) >= 10
    for key in keys:
        shape, _, low = key.removeprefix("spec_").rpartition("_r")
        check(WSDLR(make_optimizer(), *lengths, decay_shape=shape, min_lr_ratio=float(low)), golden[key], peak)


@pytest.mark.parametrize("name", named("wsd"))
def test_wsd_is_the_published_implementation_one_step_earlier(name):
    golden = np.load(FILES[name])
    peak, *lengths = golden["meta"]
    for shape, low, key in (
        ("cosine", 0.0, "ref_cosine"), ("1-sqrt", 0.0, "ref_1-sqrt"), ("linear", 0.0, "ref_linear"),
        ("cosine", 0.1, "ref_cosine_min0.1"),
    ):  # fmt: skip
        schedule = WSDLR(make_optimizer(), *lengths, decay_shape=shape, min_lr_ratio=low)
        # From the end of its warm-up on; without a warm-up it has none of its odd first step.
        start = max(int(lengths[0]), 1)
        check_from = schedule_factors(schedule, len(golden[key]) - 1)[start - 1 :] * peak
        np.testing.assert_allclose(check_from, golden[key][start:], rtol=1e-12, atol=1e-12 * peak)


@pytest.mark.parametrize("name", named("wsd"))
def test_wsd_s_has_the_recorded_rates(name):
    golden = np.load(FILES[name])
    peak, warmup, *_ = golden["meta"]
    schedule = WSDSLR(make_optimizer(), warmup, budgets=golden["spec_wsds_budgets"].tolist())
    check(schedule, golden["spec_wsds"], peak)


@pytest.mark.parametrize("name", named("infinite"))
def test_the_infinite_schedule_is_the_published_one_one_step_earlier(name):
    golden = np.load(FILES[name])
    steps, warm, cooled, constant, peak, const, low = golden["meta"]
    ends = np.rint(np.array([warm, cooled, constant, 1.0]) * steps).astype(int).tolist()
    lengths = np.diff([0, *ends]).tolist()
    for shape, key in (("cosine", "cosine"), ("inverse_sqrt", "inverse_sqrt"), ("linear", "constant")):
        schedule = InfiniteLR(
            make_optimizer(), *lengths[:2], const_ratio=const / peak, cooldown_shape=shape, constant_steps=lengths[2],
            anneal_steps=lengths[3], min_lr_ratio=low / peak,
        )  # fmt: skip
        check(schedule, golden[f"task0_{key}"][1:], peak)
    later = InfiniteLR(
        make_optimizer(const), 0, 0, const_ratio=1 - 1e-16, constant_steps=ends[2], anneal_steps=lengths[3],
        min_lr_ratio=low / const,
    )  # fmt: skip
    check(later, golden["task1"][1:], const)


@pytest.mark.parametrize("name", named("refined"))
def test_refined_schedules_are_the_recorded_ones(name):
    golden = np.load(FILES[name])
    norms, tau = golden["gnorm"], float(golden["tau"])
    np.testing.assert_array_equal(_median_filter(norms, tau), golden["gnorm_filtered"])
    for optimizer in ("sgd", "adam"):
        found = refine_schedule(norms, optimizer, tau)
        np.testing.assert_allclose(found, golden[f"{optimizer}_peak1"], rtol=1e-12, atol=1e-15)
    rough = refine_schedule(norms, "sgd", 0.0)
    np.testing.assert_allclose(rough, golden["sgd_unsmoothed"] / golden["sgd_unsmoothed"].max(), rtol=1e-12, atol=1e-15)
    flat = refine_schedule(np.full(len(norms), 3.0), "sgd", tau)
    constant = golden["constant_norm"]
    np.testing.assert_allclose(flat, constant / constant.max(), rtol=1e-12, atol=1e-15)


def test_there_are_golden_files():
    assert {"wsd_a", "infinite_a", "refined_a"} <= set(FILES)
