"""The inverse Fisher matrix: golden values, dense algebra, and the optimizer that it makes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg.core.optim import SGDP, EmpiricalFisherInverse, FisherPreconditioner
from tests.core.optim.golden import find_golden, load_golden

FILES = pytest.mark.parametrize("path", find_golden("mfac_*.npz"), ids=lambda path: path.stem)


def dense_inverse(grads, damp):
    return torch.linalg.inv(damp * torch.eye(grads.shape[1], dtype=grads.dtype) + grads.T @ grads / len(grads))


@FILES
def test_products_and_diagonal_are_the_golden_ones(path):
    golden = load_golden(path)
    inverse = EmpiricalFisherInverse(torch.from_numpy(golden["G"]), float(golden["damp"]))
    np.testing.assert_allclose(inverse.mul(torch.from_numpy(golden["x"])), golden["ihvp"], rtol=1e-7)
    np.testing.assert_allclose(inverse.diag(), golden["diag_inv"], rtol=1e-7)


def make_optimizer(golden):
    weight = torch.nn.Parameter(torch.from_numpy(golden["p0"].copy()))
    mu, options = float(golden["momentum"]), {"weight_decay": float(golden["weight_decay"])}
    fisher = FisherPreconditioner([weight], int(golden["ngrads"]), float(golden["damp"]), **options)
    sgd = SGDP([weight], lr=float(golden["lr"]), momentum=mu, dampening=mu, scale_invariant=False)
    return weight, fisher, sgd


@FILES
def test_with_averaged_directions_it_is_the_published_optimizer(path):
    golden = load_golden(path)
    weight, fisher, sgd = make_optimizer(golden)
    for step, grad in enumerate(torch.from_numpy(golden["g"])):
        weight.grad = grad.clone()
        fisher.precondition()
        np.testing.assert_allclose(weight.grad, golden["u"][step], rtol=1e-7, atol=1e-9)
        sgd.step()
        np.testing.assert_allclose(weight.detach(), golden["p"][step], rtol=1e-7)


def test_a_saved_window_goes_on():
    golden = load_golden(find_golden("mfac_*.npz")[0])
    weight, fisher, _ = make_optimizer(golden)
    grads = torch.from_numpy(golden["g"])
    for grad in grads[:10]:
        weight.grad = grad.clone()
        fisher.precondition()
    other_weight, other, _ = make_optimizer(golden)
    other.load_state_dict(fisher.state_dict())
    weight.grad, other_weight.grad = grads[10].clone(), grads[10].clone()
    fisher.precondition()
    other.precondition()
    assert torch.equal(weight.grad, other_weight.grad)
    with pytest.raises(ValueError, match="window of shape"):
        FisherPreconditioner([weight], num_grads=3).load_state_dict(fisher.state_dict())


@settings(deadline=None, max_examples=25)
@given(m=st.integers(1, 6), d=st.integers(1, 9), damp=st.floats(1e-3, 10), block=st.integers(1, 10))
def test_it_is_the_inverse_of_each_diagonal_block(m, d, damp, block):
    generator = torch.Generator().manual_seed(m * 100 + d)
    grads, x = (torch.randn(s, generator=generator, dtype=torch.float64) for s in ((m, d), (d,)))
    inverse = EmpiricalFisherInverse(grads, damp, block)
    dense = torch.block_diag(*[dense_inverse(part, damp) for part in grads.split(block, dim=1)])
    torch.testing.assert_close(inverse.mul(x), dense @ x)
    torch.testing.assert_close(inverse.diag(), dense.diagonal())


def test_gradients_of_several_weights_are_taken_as_one_vector():
    weights = [torch.nn.Parameter(torch.ones(shape, dtype=torch.float64)) for shape in ((2, 3), (4,))]
    fisher = FisherPreconditioner(weights, num_grads=2, damp=0.1)
    rows = torch.randn(3, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for row in rows:
        weights[0].grad, weights[1].grad = row[:6].view(2, 3).clone(), row[6:].clone()
        fisher.precondition()
    found = torch.cat([weight.grad.flatten() for weight in weights])
    torch.testing.assert_close(found, dense_inverse(rows[1:], 0.1) @ rows[2])


def test_odd_arguments_are_named():
    with pytest.raises(ValueError, match=r"grads must be float and \(gradients, parameters\), got \(3,\)"):
        EmpiricalFisherInverse(torch.ones(3))
    with pytest.raises(ValueError, match="damp must be above 0, got 0"):
        EmpiricalFisherInverse(torch.ones(1, 3), damp=0)
    with pytest.raises(ValueError, match=r"x must have shape \(3,\)"):
        EmpiricalFisherInverse(torch.ones(1, 3)).mul(torch.ones(2))
    with pytest.raises(ValueError, match=r"params\[0\] has no gradient"):
        FisherPreconditioner([torch.nn.Parameter(torch.ones(2))]).precondition()
    with pytest.raises(ValueError, match="at least one parameter"):
        FisherPreconditioner([])
