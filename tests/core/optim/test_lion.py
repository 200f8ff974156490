"""Lion and Lion-K: golden values, scale invariance, and the bound on the weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg.core.optim import Lion
from tests.core.optim.golden import find_golden, load_golden, replay

SETTINGS = {"lion_default": {"lr": 1e-3}, "lion_wd": {"lr": 1e-3, "betas": (0.95, 0.98), "weight_decay": 1.0}}
FILES = [(key, path) for key in SETTINGS for path in find_golden(f"{key}_*.npz")]
KINDS = {
    "l1": "l1",
    "l2": "l2",
    "huber_sign": "huber",
    "smooth_l1": "smooth_l1",
    "deadzone": "deadzone",
    "group_l2_rows": "group_l2",
}


@pytest.mark.parametrize("foreach", [True, False])
@pytest.mark.parametrize(("key", "path"), FILES, ids=[path.stem for _, path in FILES])
def test_the_published_numbers_come_out(key, path, foreach):
    replay(lambda weights: Lion(weights.values(), **SETTINGS[key], foreach=foreach), load_golden(path))


def descend(golden, kappa, steps):
    """Iterates on 0.5 sum Q (x - c)^2."""
    quadratic, centre = (torch.from_numpy(golden[key]) for key in ("Q", "c"))
    x = torch.nn.Parameter(torch.from_numpy(golden["x0"].copy()))
    betas = (float(golden["beta1"]), float(golden["beta2"]))
    options = {"weight_decay": float(golden["weight_decay"]), "kappa_eps": float(golden["e"])}
    optimizer = Lion([x], lr=float(golden["lr"]), betas=betas, kappa=kappa, **options)
    for _ in range(steps):
        x.grad = quadratic * (x.detach() - centre)
        optimizer.step()
        yield x.detach().numpy().copy()


@pytest.mark.parametrize("path", find_golden("lion_k_*.npz"), ids=lambda path: path.stem)
@pytest.mark.parametrize("kind", KINDS)
def test_the_family_takes_the_steps_of_its_formulas(path, kind):
    golden = load_golden(path)
    np.testing.assert_allclose(list(descend(golden, KINDS[kind], 10)), golden[f"x_{kind}"][:10], rtol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("path", find_golden("lion_k_*.npz"), ids=lambda path: path.stem)
@pytest.mark.parametrize("kind", KINDS)
def test_the_family_is_where_its_formulas_lead_after_2000_steps(path, kind):
    golden = load_golden(path)
    *_, last = descend(golden, KINDS[kind], 2000)
    np.testing.assert_allclose(last, golden[f"x_{kind}"][10], rtol=1e-9)


@pytest.mark.parametrize("path", find_golden("lion_k_*.npz"), ids=lambda path: path.stem)
def test_lion_ends_at_the_optimum_within_its_box(path):
    golden = load_golden(path)
    *_, last = descend(golden, "l1", 600)
    assert np.abs(golden["c"]).max() > 1
    np.testing.assert_allclose(last, golden["box_solution_l1"], atol=3 * float(golden["lr"]))


def run(gradients, **options):
    weight = torch.nn.Parameter(torch.ones(gradients[0].shape, dtype=torch.float64))
    optimizer = Lion([weight], lr=0.01, **options)
    for grad in gradients:
        weight.grad = grad
        optimizer.step()
    return weight.detach()


@settings(deadline=None, max_examples=25)
@given(scale=st.floats(1e-3, 1e3), kappa=st.sampled_from(["l1", "l2", "group_l2"]), seed=st.integers(0, 99))
def test_the_scale_of_the_gradients_has_no_effect(scale, kappa, seed):
    gradients = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    torch.testing.assert_close(run(scale * gradients, kappa=kappa), run(gradients, kappa=kappa))


@settings(deadline=None, max_examples=25)
@given(decay=st.floats(0.5, 5), start=st.floats(-8, 8), seed=st.integers(0, 99))
def test_weights_come_within_the_bound_as_fast_as_promised(decay, start, seed):
    lr, steps = 0.05, 20
    weight = torch.nn.Parameter(torch.full((6,), start, dtype=torch.float64))
    optimizer = Lion([weight], lr=lr, weight_decay=decay)
    for grad in torch.randn(steps, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64):
        weight.grad = grad
        optimizer.step()
    outside = max(abs(start) - 1 / decay, 0) * (1 - lr * decay) ** steps
    assert weight.abs().max() <= outside + 1 / decay + 1e-9


def test_a_function_of_torch_stands_for_any_elementwise_kappa():
    gradients = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(run(gradients, kappa=torch.sign), run(gradients, kappa="l1"))
    assert not torch.allclose(run(gradients, kappa=torch.tanh), run(gradients, kappa="l1"))


def test_a_deadzone_moves_no_weight_whose_gradient_is_small():
    weight = run([torch.tensor([0.2, 1.0, -0.3], dtype=torch.float64)], kappa="deadzone", kappa_eps=0.05)
    torch.testing.assert_close(weight, torch.tensor([1.0, 0.99, 1.0], dtype=torch.float64))


@pytest.mark.parametrize("state_dtype", [None, "bfloat16"])
def test_the_momentum_takes_the_memory_that_was_asked_for(state_dtype):
    weight = torch.nn.Parameter(torch.ones(8, 4))
    optimizer = Lion([weight], lr=0.1, state_dtype=state_dtype)
    weight.grad = torch.linspace(-1, 1, 32).reshape(8, 4)
    optimizer.step()
    momentum = optimizer.state[weight]["exp_avg"]
    assert set(optimizer.state[weight]) == {"step", "exp_avg"}
    assert momentum.element_size() == (2 if state_dtype else 4)
    torch.testing.assert_close(momentum.float(), 0.01 * weight.grad, rtol=1e-2, atol=0)
    torch.testing.assert_close(weight.detach(), 1 - 0.1 * weight.grad.sign())
    other = Lion([torch.nn.Parameter(torch.ones(8, 4))], state_dtype=state_dtype)
    other.load_state_dict(optimizer.state_dict())
    assert next(iter(other.state.values()))["exp_avg"].dtype == momentum.dtype


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kappa": "l3"}, "kappa must be one of 'l1', .* got 'l3'"),
        ({"kappa_eps": 0}, "kappa_eps must be above 0, got 0"),
        ({"betas": [0.9]}, "betas must be two numbers"),
        ({"state_dtype": "float8"}, "state_dtype must be one of None, 'float32', 'bfloat16', got 'float8'"),
    ],
)
def test_options_out_of_range_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Lion([torch.nn.Parameter(torch.ones(2, 2))], **options)
