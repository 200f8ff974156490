from __future__ import annotations

import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from medseg.core.kernels import norm_act

module = sys.modules["medseg.core.kernels.norm_act"]
ACTS = {
    "none": lambda x: x,
    "relu": functional.relu,
    "leaky_relu": lambda x: functional.leaky_relu(x, 0.01),
    "silu": functional.silu,
}


def compose(x, weight, bias, residual, groups, centered, act):
    """What the formulas say."""
    parts = x.reshape(x.shape[0], groups, -1)
    parts = parts - parts.mean(2, keepdim=True) if centered else parts
    h = (parts / (parts.square().mean(2, keepdim=True) + 1e-5).sqrt()).view(x.shape)
    wide = (-1, *(1,) * (x.ndim - 2))
    h = h if weight is None else h * weight.view(wide) + bias.view(wide)
    return ACTS[act](h if residual is None else h + residual)


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from([6, 3, 2, 1]),
    st.booleans(),
    st.sampled_from(list(ACTS)),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.sampled_from([(2, 6, 5, 7), (1, 6, 3, 4, 5), (2, 6, 13, 11, 10)]),
)
def test_values_and_gradients_are_those_of_the_formulas(groups, centered, act, affine, added, last, shape):
    torch.manual_seed(0)
    x = 2 * torch.randn(shape, dtype=torch.float64) + 1
    x = x.to(memory_format=torch.channels_last if x.ndim == 4 else torch.channels_last_3d) if last else x
    weight, bias = (torch.randn(6, dtype=torch.float64) if affine else None for _ in range(2))
    residual = torch.randn(shape, dtype=torch.float64) if added else None
    inputs = [t if t is None else t.requires_grad_() for t in (x, weight, bias, residual)]
    want = compose(x, weight, bias, residual, groups, centered, act)
    above = torch.randn_like(want)
    right = torch.autograd.grad(want, [t for t in inputs if t is not None], above)
    for dtype, backend in ((torch.float64, "auto"), (torch.float32, "auto"), (torch.float32, "torch")):
        same = [t if t is None else t.detach().to(dtype).requires_grad_() for t in inputs]
        got = norm_act(*same, groups=groups, centered=centered, act=act, backend=backend)  # pyright: ignore
        left = torch.autograd.grad(got, [t for t in same if t is not None], above.to(dtype))
        assert got.stride() == x.stride()
        for one, other in zip((got, *left), (want, *right), strict=True):
            largest = other.abs().max()
            assert (one - other).abs().max() <= (1e-8 if dtype == torch.float64 else 1e-5) * (1 + largest)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_an_offset_of_ten_thousand_standard_deviations_costs_no_digit(last, backend):
    torch.manual_seed(0)
    x = torch.randn(2, 4, 20, 21, 22) + 1e4
    x = x.to(memory_format=torch.channels_last_3d) if last else x
    want = compose(x.double(), None, None, None, 4, True, "none")
    assert (norm_act(x, backend=backend) - want).abs().max() <= 2e-6 * want.abs().max()


@pytest.mark.parametrize("groups", [4, 2])
def test_instance_and_group_norm_are_those_of_pytorch(groups):
    x, weight, bias = torch.randn(2, 4, 5, 6, 7), torch.randn(4), torch.randn(4)
    want = functional.group_norm(x, groups, weight, bias)
    torch.testing.assert_close(norm_act(x, weight, bias, groups=groups), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_the_rounded_float32_result(dtype):
    x = torch.randn(2, 4, 5, 6).to(dtype)
    got = norm_act(x, act="silu")
    assert got.dtype == dtype
    torch.testing.assert_close(got, norm_act(x.float(), act="silu").to(dtype))


def test_the_number_of_threads_changes_no_bit():
    x = torch.randn(1, 3, 40, 40, 40)
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            found.append((norm_act(x), norm_act(x.to(memory_format=torch.channels_last_3d))))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_the_registered_operation_passes_opcheck():
    x, weight, bias = torch.randn(2, 4, 5, 6, requires_grad=True), torch.rand(4), torch.rand(4)
    for residual in (torch.randn(2, 4, 5, 6), None):
        torch.library.opcheck(module._norm, (x, weight, bias, residual, 2, True, False, 0.01, 1e-5, "auto"))


def test_constant_inputs_become_the_bias_and_nan_goes_through():
    x = torch.full((1, 2, 3, 3), 5.0)
    torch.testing.assert_close(norm_act(x, torch.ones(2), torch.ones(2)), torch.ones_like(x))
    x[0, 0, 0, 0] = torch.nan
    y = norm_act(x)
    assert y[0, 0].isnan().all()
    assert not y[0, 1].isnan().any()


def test_an_empty_batch_gives_an_empty_result():
    x = torch.zeros(0, 2, 3, 3, requires_grad=True)
    y = norm_act(x)
    assert y.shape == x.shape
    assert torch.autograd.grad(y.sum(), x)[0].shape == x.shape


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((2, 3), {}, "x must be"),
        ((2, 3, 4), {"weight": torch.ones(2)}, "weight must have shape"),
        ((2, 3, 4), {"residual": torch.ones(2, 3, 5)}, "residual must have shape"),
        ((2, 3, 4), {"groups": 2}, "groups is 2"),
        ((2, 3, 4), {"act": "gelu"}, "act is 'gelu'"),
        ((2, 3, 4), {"eps": 0.0}, "eps is"),
        ((2, 3, 1), {}, "one value a group"),
        ((2, 3, 4), {"backend": "cuda"}, "choose one of"),
    ],
)
def test_wrong_arguments_are_named(shape, options, message):
    with pytest.raises(ValueError, match=message):
        norm_act(torch.zeros(shape), **options)
