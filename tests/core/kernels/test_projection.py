from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg.core.kernels import choose_backend, max_projections
from medseg.core.kernels import projection as module


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(1, 6), min_size=2, max_size=3), st.integers(0, 9))
def test_values_and_first_indices_are_those_of_torch_max(extents, seed):
    torch.manual_seed(seed)
    volume = torch.randint(-2, 3, (2, 2, *extents)).float()
    volume[torch.rand_like(volume) < 0.1] = torch.nan
    for axis, found in enumerate(max_projections(volume)):
        values, indices = volume.max(axis + 2)
        assert torch.equal(found.indices, indices)
        torch.testing.assert_close(found.values, values, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("slabs", [None, 2, (3, None, 1)])
def test_first_and_second_derivatives_agree_with_finite_differences(slabs):
    volume = torch.randperm(48).double().view(1, 2, 2, 3, 4).requires_grad_()

    def values(volume):
        return tuple(one.values for one in max_projections(volume, slab_thickness=slabs))

    assert torch.autograd.gradcheck(values, volume)
    assert torch.autograd.gradgradcheck(values, volume)


def test_the_registered_operations_pass_opcheck():
    volume = torch.randn(1, 2, 3, 4, 5, requires_grad=True)
    torch.library.opcheck(module._project, (volume, [2, 3, 4], [3, 2, 5], "auto"))
    gradient, index = torch.randn(1, 2, 1, 4, 5, requires_grad=True), torch.zeros(1, 2, 1, 4, 5, dtype=torch.int64)
    torch.library.opcheck(module._spread, ([gradient], [index], [2], [3], [1, 2, 3, 4, 5], "auto"))


def test_a_constant_volume_sends_the_gradient_to_its_first_voxels_only():
    volume = torch.zeros(1, 1, 3, 4, 5, requires_grad=True)
    sum(one.values.sum() for one in max_projections(volume)).backward()
    assert volume.grad is not None
    assert volume.grad[0, 0, 0, 0, 0] == 3
    assert not volume.grad[..., 1:, 1:, 1:].any()
    assert volume.grad.sum() == 20 + 15 + 12


def test_a_projection_without_use_sends_nothing_back():
    volume = torch.randn(1, 1, 3, 4, 5, requires_grad=True)
    max_projections(volume)[1].values.sum().backward()
    assert volume.grad.count_nonzero() == 15


def test_slabs_count_their_indices_from_the_start_of_the_volume():
    (found,) = max_projections(torch.arange(5.0).view(1, 1, 5, 1), (0,), slab_thickness=2)
    assert found.values.flatten().tolist() == [1, 3, 4]
    assert found.indices.flatten().tolist() == [1, 3, 4]


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((2, 3), {}, r"volume has shape \(2, 3\)"),
        ((1, 1, 0, 3), {}, "extent of 0"),
        ((1, 1, 2, 3), {"axes": (2,)}, "axes is"),
        ((1, 1, 2, 3), {"axes": (0, 0)}, "axes is"),
        ((1, 1, 2, 3), {"slab_thickness": 0}, "slab_thickness is 0"),
        ((1, 1, 2, 3), {"slab_thickness": (1,)}, "slab_thickness is"),
        ((1, 1, 2, 3), {"backend": "cuda"}, "choose one of auto, torch, triton"),
    ],
)
def test_wrong_arguments_are_named(shape, options, message):
    with pytest.raises(ValueError, match=message):
        max_projections(torch.zeros(shape), **options)


def test_an_explicit_backend_that_cannot_run_is_an_error(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    dispatch = __import__("medseg.core.kernels.dispatch", fromlist=["_has_triton"])
    monkeypatch.setattr(dispatch, "_has_triton", lambda: False)
    with pytest.raises(ImportError, match=r"medseg\[triton\]"):
        max_projections(torch.zeros(1, 1, 2, 3), backend="triton")
    monkeypatch.setattr(dispatch, "_has_triton", lambda: True)
    with pytest.raises(ValueError, match="needs a CUDA tensor"):
        max_projections(torch.zeros(1, 1, 2, 3), backend="triton")


def test_a_wish_of_the_environment_that_is_not_met_warns_once(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    dispatch = __import__("medseg.core.kernels.dispatch", fromlist=["_warn_once"])
    dispatch._warn_once.cache_clear()
    monkeypatch.setenv("MEDSEG_KERNELS", "triton")
    with pytest.warns(RuntimeWarning, match="MEDSEG_KERNELS=triton") as caught:
        chosen = [choose_backend("auto", torch.zeros(2), (torch.float32,)) for _ in range(2)]
    assert chosen == ["torch", "torch"]
    assert len(caught) == 1
