from __future__ import annotations

import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from medseg.core.kernels import class_sums

module = sys.modules["medseg.core.kernels.class_sums"]
CHOICES = {
    "activation": st.sampled_from(["softmax", "sigmoid", "none"]),
    "power": st.sampled_from([1, 2]),
    "gamma": st.sampled_from([0.0, 0.5, 1.0, 2.0]),
    "ignore_index": st.sampled_from([None, 1, -1]),
    "entropy": st.sampled_from(["same", "softmax"]),
}


def compose(logits, target, activation, power, gamma, ignore_index, entropy):
    """The sums as their formulas say, with everything in full size."""
    channels = logits.shape[1]
    counts = torch.ones_like(target) if ignore_index is None else (target != ignore_index)
    y = functional.one_hot(torch.where(counts > 0, target, 0)[:, 0], channels).movedim(-1, 1).to(logits)
    activations = {"softmax": logits.softmax(1), "sigmoid": logits.sigmoid(), "none": logits}
    of_entropy = activation if entropy == "same" else entropy
    p, q = activations[activation], activations[of_entropy]
    log_q, log_rest = (q.log(), (1 - q).log()) if of_entropy != "none" else (torch.zeros_like(p),) * 2
    rest = -log_q if of_entropy == "softmax" else -(1 - y) * q**gamma * log_rest
    values = (p * y, p**power, y, -y * (1 - q) ** gamma * log_q, rest, torch.ones_like(p))
    return torch.stack([(value * counts).flatten(2).sum(2) for value in values])


@settings(deadline=None, max_examples=40)
@given(st.fixed_dictionaries(CHOICES), st.integers(0, 9))
def test_sums_and_gradients_are_those_of_the_formulas(options, seed):
    torch.manual_seed(seed)
    logits = torch.randn(2, 3, 4, 5, 6).double()
    if options["activation"] == "none":
        logits = logits.sigmoid()
    logits.requires_grad_()
    target = torch.randint(0, 3, (2, 1, 4, 5, 6))
    if options["ignore_index"] == -1:
        target[torch.rand(target.shape) < 0.3] = -1
    want = compose(logits, target, **options)
    given_gradient = torch.randn_like(want)
    (right,) = torch.autograd.grad((want * given_gradient).sum(), logits)
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        got = torch.stack(class_sums(logits.to(dtype), target, **options))
        (left,) = torch.autograd.grad((got * given_gradient).sum(), logits)
        torch.testing.assert_close(got.double(), want, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(left, right, rtol=tolerance, atol=tolerance)


@settings(deadline=None, max_examples=25)
@given(
    st.fixed_dictionaries(CHOICES),
    st.integers(1, 20),
    st.integers(1, 700),
    st.booleans(),
    st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
)
def test_compiled_loops_give_the_sums_of_plain_pytorch(options, channels, voxels, by_id, dtype):
    torch.manual_seed(voxels)
    logits = (5 * torch.randn(2, channels, voxels)).to(dtype)
    logits = (logits.float().sigmoid().to(dtype) if options["activation"] == "none" else logits).requires_grad_()
    target = torch.randint(0, channels, (2, 1, voxels)) if by_id else torch.rand(2, channels, voxels).round()
    left, right = (torch.stack(class_sums(logits, target, backend=b, **options)) for b in ("auto", "torch"))
    torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-6)
    given_gradient = torch.randn_like(left)
    (one,), (other,) = (torch.autograd.grad((sums * given_gradient).sum(), logits) for sums in (left, right))
    torch.testing.assert_close(one, other, rtol=2e-2 if dtype != torch.float32 else 1e-4, atol=1e-5)


@pytest.mark.parametrize("channels", [2, 3])
def test_masks_equal_class_ids(channels):
    logits, target = torch.randn(2, channels, 4, 5), torch.randint(0, channels, (2, 1, 4, 5))
    masks = functional.one_hot(target[:, 0], channels).movedim(-1, 1).float()
    for activation in ("softmax", "sigmoid", "none"):
        by_id, by_mask = (class_sums(logits, y, activation=activation) for y in (target, masks))
        torch.testing.assert_close(torch.stack(by_id), torch.stack(by_mask))


def test_a_confident_mistake_has_a_finite_price_and_slope():
    logits = torch.tensor([200.0, -200.0]).view(1, 2, 1).requires_grad_()
    for backend in ("auto", "torch"):
        for gamma in (0.0, 0.5, 2.0):
            sums = class_sums(logits, torch.ones(1, 1, 1), gamma=gamma, backend=backend)
            assert sums.surprise[0, 1].item() == pytest.approx(400)
            (gradient,) = torch.autograd.grad(sums.surprise.sum(), logits)
            assert gradient.flatten().tolist() == pytest.approx([1, -1])


def test_large_offsets_of_the_logits_change_nothing():
    logits, target = torch.randn(1, 4, 50), torch.randint(0, 4, (1, 1, 50))
    rounded = (logits + 1e4) - 1e4
    for backend in ("auto", "torch"):
        plain, shifted = (class_sums(z, target, backend=backend) for z in (rounded, rounded + 1e4))
        torch.testing.assert_close(torch.stack(plain)[:4], torch.stack(shifted)[:4])


def test_the_number_of_threads_changes_no_bit():
    logits, target = torch.randn(1, 4, 40000), torch.randint(0, 4, (1, 1, 40000))
    threads = torch.get_num_threads()
    found = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            found.append(torch.stack(class_sums(logits, target)))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*found)


def test_the_registered_operations_pass_opcheck():
    logits, target = torch.randn(2, 3, 4, 5), torch.randint(0, 3, (2, 1, 4, 5))
    for activation in ("softmax", "sigmoid"):
        how = (activation, 1, 0.0, None, "softmax", "auto")
        torch.library.opcheck(module._sum, (logits.clone().requires_grad_(), target, *how))
        torch.library.opcheck(module._spread, (torch.randn(2, 6, 3), logits, target, *how))


def test_an_empty_batch_gives_empty_sums():
    logits = torch.zeros(0, 3, 4, requires_grad=True)
    sums = class_sums(logits, torch.zeros(0, 1, 4))
    assert sums.hits.shape == (0, 3)
    assert torch.autograd.grad(sums.hits.sum(), logits)[0].shape == (0, 3, 4)


@pytest.mark.parametrize(
    ("shapes", "options", "message"),
    [
        (((2, 3), (2, 1)), {}, "logits must be"),
        (((2, 3, 4), (2, 2, 4)), {}, "target has shape"),
        (((2, 3, 4), (2, 1, 4)), {"activation": "relu"}, "activation is 'relu'"),
        (((2, 3, 4), (2, 1, 4)), {"power": 3}, "power is 3"),
        (((2, 3, 4), (2, 1, 4)), {"gamma": -1.0}, "gamma is -1.0"),
        (((2, 3, 4), (2, 1, 4)), {"entropy": "sigmoid"}, "entropy is 'sigmoid'"),
        (((2, 3, 4), (2, 1, 4)), {"backend": "cuda"}, "choose one of auto, torch, triton"),
    ],
)
def test_wrong_arguments_are_named(shapes, options, message):
    with pytest.raises(ValueError, match=message):
        class_sums(torch.zeros(shapes[0]), torch.zeros(shapes[1]), **options)
