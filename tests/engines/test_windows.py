"""What becomes of a bundle's inferer."""

from __future__ import annotations

import pytest
import torch
from monai.inferers import SimpleInferer, SliceInferer, SlidingWindowInferer

from medseg.engines.windows import Windows
from medseg.inferers import MirrorInferer


def _answer(windows: Windows, image: torch.Tensor, network) -> torch.Tensor:
    axis = windows.axis(tuple(image.shape[2:]))
    return torch.cat([s.logits.clone() for s in windows.slabs(image, network, axis)], dim=axis + 1)


@pytest.mark.parametrize(
    "inferer",
    [
        SimpleInferer(),
        SlidingWindowInferer((4, 4, 4), overlap=0.5, mode="gaussian"),
        MirrorInferer(SlidingWindowInferer((4, 4, 4), overlap=0.25), axes=[0, 2]),
        MirrorInferer(SimpleInferer(), axes=[1]),
    ],
)
def test_the_answer_is_that_of_the_bundles_own_inferer(inferer):
    torch.manual_seed(0)
    network = torch.nn.Conv3d(1, 2, 3, padding=1).eval()
    image = torch.randn(1, 1, 7, 9, 6)
    with torch.no_grad():
        assert torch.allclose(_answer(Windows(inferer), image, network), inferer(image, network)[0], atol=1e-5)


@pytest.mark.parametrize("spatial_dim", [0, 1, 2])
@pytest.mark.parametrize("mirrored", [False, True])
def test_a_2d_network_runs_on_the_slices_of_a_volume(spatial_dim, mirrored):
    torch.manual_seed(0)
    network = torch.nn.Conv2d(1, 2, 3, padding=1).eval()
    image = torch.randn(1, 1, 7, 9, 6)
    inferer = SliceInferer(roi_size=(4, 5), spatial_dim=spatial_dim, overlap=0.5, mode="gaussian")
    if mirrored:
        inferer = MirrorInferer(inferer, axes=[1])
    windows = Windows(inferer)
    assert windows.streaming is not None
    assert windows.fixed_shape == (4, 5)
    with torch.no_grad():
        assert torch.allclose(_answer(windows, image, network), inferer(image, network)[0], atol=1e-5)


def test_a_window_for_slices_may_be_given_in_2d():
    windows = Windows(SliceInferer(roi_size=(4, 4), spatial_dim=1), roi_size=[6, 8])
    assert windows.streaming is not None
    assert windows.streaming.roi_size == (6, 1, 8)
    assert windows.fixed_shape == (6, 8)


def test_an_inferer_that_does_more_than_move_windows_runs_as_it_is():
    coordinates = SlidingWindowInferer((4, 4), with_coord=True)
    assert Windows(coordinates).inferer is coordinates


def test_batches_are_limited_by_their_voxels():
    windows = Windows(SlidingWindowInferer((64, 64, 64), sw_batch_size=4))
    windows.limit_batch()
    assert windows.batch_size == 1
    windows = Windows(SlidingWindowInferer((32, 32, 32), sw_batch_size=4))
    windows.limit_batch()
    assert windows.batch_size == 4


def test_a_window_that_follows_the_volume_has_no_fixed_shape():
    assert Windows(SlidingWindowInferer((32, -1, 16))).fixed_shape is None
    assert Windows(SimpleInferer()).fixed_shape is None
    assert Windows(SlidingWindowInferer((8, 8, 16))).fixed_shape == (8, 8, 16)
    assert Windows(SlidingWindowInferer((32, -1, 16))).shape((40, 50, 60)) == (32, 50, 16)


def test_settings_that_the_inferer_has_not_got_are_refused():
    with pytest.raises(
        ValueError, match="overlap was given, but the bundle's inferer SimpleInferer has no such setting"
    ):
        Windows(SimpleInferer(), overlap=0.5)
