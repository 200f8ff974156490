"""SlicewisePartsNet: the outline's answer, divided into parts once for each slice."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from medseg.networks import SlicewisePartsNet

IMAGE = torch.rand(2, 1, 11, 17, 14, generator=torch.Generator().manual_seed(0))


def build(channels: int = 2, **options) -> SlicewisePartsNet:
    torch.manual_seed(0)
    return SlicewisePartsNet(nn.Conv3d(1, channels, 3, padding=1), width=4, **options)


@pytest.mark.parametrize("channels", [2, 4])
def test_the_parts_share_the_probability_of_the_outline(channels):
    network = build(channels, num_parts=3).eval()
    probabilities = network(IMAGE).softmax(1)
    assert probabilities.shape == (2, 4, 11, 17, 14)
    torch.testing.assert_close(probabilities[:, 1:].sum(1), network.outline(IMAGE).softmax(1)[:, 1:].sum(1))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_part_is_as_probable_everywhere_in_a_slice(axis):
    logits = build(slice_axis=axis).eval()(IMAGE)
    odds = (logits[:, 1] - logits[:, 2]).movedim(axis + 1, 1).flatten(2)
    torch.testing.assert_close(odds, odds[..., :1].expand_as(odds))
    assert odds[0, :, 0].std() > 0


def test_outline_and_parts_do_not_teach_each_other():
    network = build()
    logits = network(IMAGE)
    (logits[:, 1] - logits[:, 2]).square().mean().backward()
    assert all((p.grad is None or not p.grad.any()) for p in network.outline.parameters())
    assert all(p.grad.any() for p in network.line.parameters())
    network.zero_grad()
    network(IMAGE).softmax(1)[:, 0].mean().backward()
    assert all(p.grad.any() for p in network.outline.parameters())
    assert all(p.grad.abs().max() < 1e-8 for p in (*network.volume.parameters(), *network.line.parameters()))


def test_it_learns_at_which_slice_a_structure_is_divided():
    """Bars of several places and lengths, brighter at one end: the border is where the bright end begins."""
    random = torch.Generator().manual_seed(0)
    images, labels = torch.zeros(16, 1, 8, 24, 8), torch.zeros(16, 1, 8, 24, 8)
    for image, label in zip(images, labels, strict=True):
        start, border, end = (int(torch.randint(low, low + 5, (1,), generator=random)) for low in (1, 9, 18))
        label[0, 2:6, start:border, 2:6], label[0, 2:6, border:end, 2:6] = 2, 1
        image[0] = (label[0] > 0) + (label[0] == 1)
    torch.manual_seed(0)
    sure = nn.Conv3d(1, 2, 1)  # knows the outline
    with torch.no_grad():
        sure.weight.copy_(torch.tensor([0.0, 20.0]).reshape(2, 1, 1, 1, 1))
        sure.bias.copy_(torch.tensor([0.0, -10.0]))
    network = SlicewisePartsNet(sure, width=4, dropout=0.0)
    network.outline.requires_grad_(False)
    optimizer = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], 0.01)
    for _ in range(25):
        loss = nn.functional.cross_entropy(network(images[:12]), labels[:12, 0].long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = network.eval()(images[12:]).argmax(1)  # of bars that were not learnt from
    assert (found == labels[12:, 0]).float().mean() > 0.98


def test_weights_are_restored_and_the_network_can_be_exported():
    network = build().eval()
    other = SlicewisePartsNet(nn.Conv3d(1, 2, 3, padding=1), width=4).eval()
    other.load_state_dict(network.state_dict())
    assert torch.equal(other(IMAGE), network(IMAGE))
    program = torch.export.export(network, (IMAGE,))
    torch.testing.assert_close(program.module()(IMAGE), network(IMAGE))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"num_parts": 1}, "num_parts must be at least 2, got 1"), ({"slice_axis": 3}, "slice_axis must be 0, 1 or 2")],
)
def test_options_out_of_range_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)
