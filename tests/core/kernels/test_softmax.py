from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg.core.kernels import softmax_


@settings(deadline=None, max_examples=25)
@given(
    st.lists(st.integers(1, 300), min_size=1, max_size=1),
    st.lists(st.integers(1, 5), max_size=2),
    st.integers(1, 9),
    st.booleans(),
)
def test_softmax_in_place_is_softmax_of_whatever_strides(last, others, classes, narrowed):
    torch.manual_seed(0)
    whole = 30 * torch.randn(classes, *others, *(n + 2 for n in last))
    logits = whole.narrow(-1, 1, last[0]) if narrowed else whole
    border = whole[..., 0].clone()
    for backend in ("torch", "auto"):
        given_logits = logits.clone() if backend == "torch" else logits
        expected = torch.softmax(given_logits, 0)
        assert softmax_(given_logits, backend=backend) is given_logits
        torch.testing.assert_close(given_logits, expected, rtol=1e-5, atol=1e-30 if backend == "torch" else 1e-7)
    if narrowed:
        assert torch.equal(whole[..., 0], border)


def test_nan_stays_in_its_voxel():
    logits = torch.zeros(2, 3)
    logits[1, 1] = torch.nan
    assert softmax_(logits).isnan().all(0).tolist() == [False, True, False]


def test_an_unknown_backend_is_named():
    with pytest.raises(ValueError, match="choose one of"):
        softmax_(torch.zeros(2, 3), backend="cuda")
