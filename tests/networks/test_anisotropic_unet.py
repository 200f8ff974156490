"""The anisotropic U-Net: its published size, and what it refuses."""

from __future__ import annotations

import pytest
import torch

from medseg.networks import AnisotropicUNet

SMALL = {"features": [2, 4, 4, 4, 4]}


def count(network: torch.nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(("classes", "published"), [(5, 6_098_245), (4, 6_098_212), (3, 6_098_179)])
def test_it_has_as_many_parameters_as_the_published_network(classes, published):
    assert count(AnisotropicUNet(3, 1, classes)) == published


def test_its_parts_have_the_published_sizes():
    network = AnisotropicUNet(3, 1, 5)
    assert count(network.stem) + count(network.trunk) == 3_085_728
    assert count(network.decoder) == 3_012_352
    assert count(network.head) == 165


@torch.no_grad()
def test_moving_the_image_by_a_multiple_of_all_strides_moves_the_answer():
    torch.manual_seed(0)
    network = AnisotropicUNet(3, 1, 2, features=[2, 4, 4, 4], strides=[[1, 2, 2], [2, 2, 2]]).eval()
    image = torch.zeros(1, 1, 40, 80, 80)
    image[..., 18:22, 36:44, 36:44] = torch.rand(4, 8, 8)
    moved = network(image.roll((2, 4, 4), (2, 3, 4)))
    expected = network(image).roll((2, 4, 4), (2, 3, 4))
    assert expected.abs().max() > 0.01
    torch.testing.assert_close(moved, expected)


@torch.no_grad()
def test_the_slice_axis_may_come_last():
    torch.manual_seed(0)
    first = AnisotropicUNet(3, 1, 2, legacy_upsample=False, **SMALL).eval()
    last = AnisotropicUNet(3, 1, 2, legacy_upsample=False, strides=[[2, 2, 1], [2, 2, 1], [2, 2, 2]], **SMALL).eval()
    state = {name: w.movedim(2, -1) if w.ndim == 5 else w for name, w in first.state_dict().items()}
    last.load_state_dict(state)
    image = torch.rand(1, 1, 4, 16, 24)
    torch.testing.assert_close(last(image.movedim(2, -1)), first(image).movedim(2, -1))


@torch.no_grad()
def test_dropout_is_off_in_evaluation_unless_samples_are_asked_for():
    image = torch.rand(1, 1, 4, 16, 16)
    plain, sampling = (AnisotropicUNet(3, 1, 2, mc_dropout=on, **SMALL).eval() for on in (False, True))
    assert torch.equal(plain(image), plain(image))
    assert not torch.equal(sampling(image), sampling(image))


def test_sides_that_cannot_be_pooled_are_named():
    network = AnisotropicUNet(**SMALL)
    with pytest.raises(ValueError, match=r"12 voxels along axis 3, which must be a multiple of 8.*DivisiblePadd"):
        network(torch.zeros(1, 1, 4, 12, 16))
    with pytest.raises(ValueError, match="3 voxels along axis 2, which must be a multiple of 2"):
        network(torch.zeros(1, 1, 3, 8, 8))
    with pytest.raises(ValueError, match=r"image must have shape \(B, 1, Z, Y, X\), got \(1, 2, 4, 8, 8\)"):
        network(torch.zeros(1, 2, 4, 8, 8))


def test_a_bottom_of_one_pixel_is_warned_of_in_2d_training():
    network = AnisotropicUNet(2, 1, 2, **SMALL)
    with pytest.warns(UserWarning, match="bottom of the network is a single pixel: its norm averages over 2 values"):
        network(torch.zeros(2, 1, 8, 8))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"features": [2, 4, 4]}, "features must be 5 positive widths, two more than there are strides"),
        ({"strides": [[1, 2, 3]] * 3}, "strides must hold 3 numbers of 1 or 2"),
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\)"),
        ({"spatial_dims": 1}, "spatial_dims must be 2 or 3, got 1"),
    ],
)
def test_odd_options_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        AnisotropicUNet(**wrong)
