from __future__ import annotations

import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg.core.kernels import entropy_sums

module = sys.modules["medseg.core.kernels.entropy_sums"]


def compose(logits, weight, activation):
    """The sums as their formulas say, with everything in full size."""
    p = logits.softmax(1) if activation == "softmax" else logits.sigmoid()
    entropy = -p * p.log() if activation == "softmax" else -p * p.log() - (1 - p) * (1 - p).log()
    m = 1 if weight is None else weight
    return torch.stack([(values * m).flatten(2).sum(2) for values in (entropy, p)])


@settings(deadline=None, max_examples=25)
@given(st.sampled_from(["softmax", "sigmoid"]), st.booleans(), st.integers(1, 7), st.integers(1, 600), st.booleans())
def test_sums_and_gradients_are_those_of_the_formulas(activation, weighted, channels, voxels, last):
    torch.manual_seed(voxels)
    logits = torch.randn(2, channels, voxels, 1).double()
    logits = logits.to(memory_format=torch.channels_last) if last else logits
    logits.requires_grad_()
    weight = torch.rand(2, 1, voxels, 1).double() if weighted else None
    want = compose(logits, weight, activation)
    given_gradient = torch.randn_like(want)
    (right,) = torch.autograd.grad((want * given_gradient).sum(), logits)
    for dtype, backend, tolerance in (
        (torch.float64, "auto", 1e-10),
        (torch.float32, "auto", 1e-5),
        (torch.float32, "torch", 1e-5),
    ):
        got = torch.stack(entropy_sums(logits.to(dtype), weight, activation=activation, backend=backend))
        (left,) = torch.autograd.grad((got * given_gradient).sum(), logits)
        torch.testing.assert_close(got.double(), want, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(left, right, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_certain_voxels_have_no_entropy_and_a_finite_gradient(activation, backend):
    logits = torch.tensor([500.0, -500.0]).view(1, 2, 1).requires_grad_()
    sums = entropy_sums(logits, activation=activation, backend=backend)
    (gradient,) = torch.autograd.grad(sums.entropy.sum() + sums.size.sum(), logits)
    assert sums.entropy.abs().max() < 1e-12
    assert torch.isfinite(gradient).all()


def test_the_registered_operations_pass_opcheck():
    logits, weight = torch.randn(2, 3, 4, 5), torch.rand(2, 1, 4, 5)
    for given_weight in (weight, None):
        torch.library.opcheck(module._sum, (logits.clone().requires_grad_(), given_weight, "softmax", "auto"))
        torch.library.opcheck(module._spread, (torch.randn(2, 2, 3), logits, given_weight, "softmax", "auto"))


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((torch.zeros(2, 3),), {}, "logits must be"),
        ((torch.zeros(2, 3, 4), torch.zeros(2, 4)), {}, "weight must have shape"),
        ((torch.zeros(2, 3, 4),), {"activation": "none"}, "activation is 'none'"),
        ((torch.zeros(2, 3, 4),), {"backend": "cuda"}, "choose one of"),
    ],
)
def test_wrong_arguments_are_named(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        entropy_sums(*arguments, **options)
