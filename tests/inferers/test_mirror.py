"""Averaging over mirror images."""

from __future__ import annotations

import pytest
import torch
from monai.inferers import SimpleInferer, SlidingWindowInferer

from medseg.inferers import MirrorInferer


def _network(x: torch.Tensor) -> torch.Tensor:
    return x.cumsum(2) + 0.5 * x.cumsum(3)


def test_a_network_that_commutes_with_mirroring_is_unchanged():
    x = torch.randn(2, 3, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(MirrorInferer(SimpleInferer(), axes=[0, 1, 2])(x, torch.sigmoid), torch.sigmoid(x))


def test_the_answer_commutes_with_mirroring_along_the_axes():
    x = torch.randn(1, 1, 4, 5, generator=torch.Generator().manual_seed(1))
    inferer = MirrorInferer(SimpleInferer(), axes=[0, 1])
    for flip in ([2], [3], [2, 3]):
        assert torch.allclose(inferer(x.flip(flip), _network), inferer(x, _network).flip(flip), atol=1e-6)


def test_one_axis_is_the_mean_of_two_passes():
    x = torch.randn(1, 1, 4, 5, generator=torch.Generator().manual_seed(2))
    expected = (_network(x) + _network(x.flip(2)).flip(2)) / 2
    assert torch.allclose(MirrorInferer(SimpleInferer(), axes=[0])(x, _network), expected)


def test_it_runs_inside_a_sliding_window():
    x = torch.randn(1, 1, 9, 10, generator=torch.Generator().manual_seed(3))
    window = SlidingWindowInferer(roi_size=[4, 4], overlap=0.5)
    assert torch.allclose(MirrorInferer(window, axes=[1])(x, torch.tanh), torch.tanh(x), atol=1e-5)


@pytest.mark.parametrize("axes", [[], [0, 0], [-1]])
def test_bad_axes_are_refused(axes):
    with pytest.raises(ValueError, match="axes must be distinct"):
        MirrorInferer(SimpleInferer(), axes=axes)


def test_axes_beyond_the_input_are_refused():
    with pytest.raises(ValueError, match="do not fit an input with 2 spatial dimensions"):
        MirrorInferer(SimpleInferer(), axes=[2])(torch.zeros(1, 1, 4, 4), torch.tanh)
