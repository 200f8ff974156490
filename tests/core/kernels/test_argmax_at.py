from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from medseg.core.kernels import argmax_at, interpolate_along, upsample_argmax

module = sys.modules["medseg.core.kernels.argmax_at"]


def make_places(values: torch.Tensor, sizes: list[int]) -> list[torch.Tensor]:
    """Places from the first to the last voxel or back, among them one in the middle between two."""
    lists = [torch.rand(size, dtype=torch.float64) * (n - 1) for size, n in zip(sizes, values.shape[1:], strict=True)]
    for place, n in zip(lists, values.shape[1:], strict=True):
        place[0], place[-1] = 0, n - 1
        place[len(place) // 2] = (n - 1) // 2 + (0.5 if n > 1 else 0)
    return [place.sort(descending=bool(torch.rand(1) < 0.5)).values for place in lists]


@settings(deadline=None, max_examples=25)
@given(
    st.lists(st.tuples(st.integers(1, 6), st.integers(1, 9)), min_size=2, max_size=3),
    st.integers(1, 5),
    st.booleans(),
    st.integers(0, 99),
)
def test_labels_and_values_are_those_of_interpolation_and_argmax(extents, classes, with_floor, seed):
    torch.manual_seed(seed)
    values = torch.randn(classes, *(n for n, _ in extents)).softmax(0)
    places = make_places(values, [n for _, n in extents])
    everywhere = values
    for axis, place in enumerate(places):
        everywhere = interpolate_along(everywhere, axis + 1, place)
    best, labels = everywhere.max(0)
    for backend in ("auto", "torch"):
        found = argmax_at(values, places, floor=0.999 / classes if with_floor else None, backend=backend)
        assert torch.equal(found[0].long(), labels)
        assert torch.equal(found[1], best)


@settings(deadline=None, max_examples=25)
@given(
    st.lists(st.tuples(st.integers(1, 6), st.integers(1, 12)), min_size=2, max_size=3),
    st.integers(1, 4),
    st.integers(0, 99),
)
def test_upsampling_equals_torch_but_where_the_best_two_are_equal_to_rounding(extents, classes, seed):
    torch.manual_seed(seed)
    logits, size = torch.randn(2, classes, *(n for n, _ in extents)), [n for _, n in extents]
    mode = "bilinear" if len(size) == 2 else "trilinear"
    dense = functional.interpolate(logits, size, mode=mode, align_corners=False)
    for backend in ("auto", "torch"):
        found = upsample_argmax(logits, size, backend=backend)
        lost = dense.amax(1) - dense.gather(1, found[:, None].long())[:, 0]
        assert found.dtype == torch.uint8
        assert lost.max() < 1e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types_and_layouts_give_the_same_classes(dtype):
    torch.manual_seed(0)
    logits = torch.randn(1, 4, 5, 6, 7).to(dtype)
    want = upsample_argmax(logits.float(), (9, 8, 7))
    assert torch.equal(upsample_argmax(logits, (9, 8, 7)), want)
    assert torch.equal(upsample_argmax(logits.float().to(memory_format=torch.channels_last_3d), (9, 8, 7)), want)


def test_ties_give_the_lowest_class_and_nan_never_wins():
    values = torch.zeros(3, 2, 2)
    values[2, 1] = torch.nan
    for backend in ("auto", "torch"):
        labels, best = argmax_at(values, [torch.tensor([0.0, 1.0])] * 2, backend=backend)
        assert not labels.any()
        assert not best.any()
        labels, best = argmax_at(values[2:, 1:], [torch.zeros(1)] * 2, backend=backend)
        assert labels.item() == 0
        assert best.item() == -torch.inf


def test_more_classes_than_a_byte_holds_keep_their_numbers():
    logits = torch.zeros(1, 300, 2, 2)
    logits[0, 299] = 1
    for backend in ("auto", "torch"):
        labels = upsample_argmax(logits, (3, 3), backend=backend)
        assert labels.dtype == torch.int32
        assert labels.unique().item() == 299


def test_empty_outputs_are_empty():
    assert upsample_argmax(torch.zeros(0, 3, 2, 2), (4, 4)).shape == (0, 4, 4)
    assert argmax_at(torch.zeros(3, 2, 2), [torch.zeros(0), torch.zeros(2)])[0].shape == (0, 2)


def test_the_registered_operation_passes_opcheck():
    values = torch.randn(3, 4, 5)
    torch.library.opcheck(module._argmax, (values, make_places(values, [3, 4]), None, "auto"))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: upsample_argmax(torch.zeros(3, 2, 2), (4, 4)), "logits must be"),
        (lambda: upsample_argmax(torch.zeros(1, 3, 2, 2), (4, 0)), "size is"),
        (lambda: argmax_at(torch.zeros(3, 2, 2), [torch.zeros(1)]), "values must be"),
        (lambda: argmax_at(torch.zeros(3, 2, 2), [torch.zeros(1), torch.full((1,), 1.5)]), r"places\[1\] must be"),
        (lambda: upsample_argmax(torch.zeros(1, 3, 2, 2), (4, 4), backend="cuda"), "choose one of"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("places", [[0.0, 1.0, 2.0], [2.0, 1.0, 0.0], [0.25, 1.75], [2.0, 2.0, 0.5]])
def test_interpolation_along_an_axis_is_numpys(places):
    values = torch.tensor([[1.0, 4.0, 9.0], [0.0, -2.0, 7.0]])
    got = interpolate_along(values, 1, torch.tensor(places))
    expected = [np.interp(places, [0, 1, 2], row) for row in values.numpy()]
    assert np.allclose(got, expected)
