"""Streaming sliding windows against MONAI's, and what only they can do."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.inferers import SlidingWindowInferer

from medseg.inferers import StreamingSlidingWindowInferer


def _network(channels: int, classes: int, dims: int) -> torch.nn.Module:
    torch.manual_seed(3)
    return (torch.nn.Conv2d if dims == 2 else torch.nn.Conv3d)(channels, classes, 3, padding=1).eval()


@st.composite
def _windows(draw):
    dims = draw(st.sampled_from([2, 3]))
    size = [draw(st.integers(3, 14)) for _ in range(dims)]
    roi = [draw(st.sampled_from([0, 3, 4, 7, 16])) for _ in range(dims)]
    overlap = [draw(st.sampled_from([0.0, 0.25, 0.5, 0.8])) for _ in range(dims)]
    return size, roi, overlap, draw(st.sampled_from(["constant", "gaussian"])), draw(st.integers(1, 5))


@settings(deadline=None, max_examples=40)
@given(case=_windows())
def test_any_windows_give_the_answer_of_monai(case):
    size, roi, overlap, mode, batch = case
    network = _network(2, 3, len(size))
    image = torch.randn(2, 2, *size, generator=torch.Generator().manual_seed(0))
    peer = SlidingWindowInferer(roi, sw_batch_size=batch, overlap=overlap, mode=mode)
    ours = StreamingSlidingWindowInferer.from_monai(peer)
    with torch.no_grad():
        expected = peer(image, network)
        assert torch.allclose(ours(image, network), expected, atol=1e-5)
        for axis in range(len(size)):
            slabs = [(s.start, s.stop, s.logits.clone()) for s in ours.slabs(image[:1], network, axis=axis)]
            assert [a for a, _, _ in slabs[1:]] == [b for _, b, _ in slabs[:-1]]
            joined = torch.cat([part for _, _, part in slabs], dim=axis + 1)
            assert torch.allclose(joined, expected[0], atol=1e-5)


@pytest.mark.parametrize(("padding", "cval"), [("constant", 2.0), ("reflect", 0.0), ("replicate", 0.0)])
def test_small_volumes_are_padded_as_in_monai(padding, cval):
    image = torch.randn(1, 1, 6, 7, 5, generator=torch.Generator().manual_seed(0))
    peer = SlidingWindowInferer((8, 8, 8), overlap=0.5, mode="gaussian", padding_mode=padding, cval=cval)
    network = _network(1, 2, 3)
    with torch.no_grad():
        assert torch.allclose(
            StreamingSlidingWindowInferer.from_monai(peer)(image, network), peer(image, network), atol=1e-5
        )


def test_slabs_are_cut_where_the_accumulator_is_smallest():
    inferer = StreamingSlidingWindowInferer((8, 8, 4), overlap=0.5)
    assert inferer.slab_axis((16, 40, 16)) == 1
    assert inferer.slab_axis((16, 16, 16)) == 2


def test_the_accumulator_is_as_deep_as_one_window(monkeypatch):
    made = []
    new_zeros = torch.Tensor.new_zeros
    monkeypatch.setattr(torch.Tensor, "new_zeros", lambda self, size: made.append(tuple(size)) or new_zeros(self, size))
    image = torch.zeros(1, 1, 64, 12, 10)
    list(StreamingSlidingWindowInferer((8, 6, 6), overlap=0.5).slabs(image, lambda x: x.repeat(1, 5, 1, 1, 1)))
    assert made == [(5, 8, 12, 10)]


def test_progress_counts_every_window_even_skipped_ones():
    seen = []
    inferer = StreamingSlidingWindowInferer((4, 4), sw_batch_size=3, overlap=0, skip_empty=True)
    image = torch.zeros(1, 1, 8, 16)
    image[..., 5:7, 9] = 1
    list(inferer.slabs(image, torch.nn.Identity(), on_windows=lambda done, total: seen.append((done, total))))
    assert seen[-1] == (8, 8)


def _counting(network):
    def call(x):
        call.windows += len(x)
        return network(x)

    call.windows = 0
    return call


def test_windows_without_content_are_skipped_and_are_background():
    network = _counting(_network(2, 3, 3))
    image = torch.full((1, 2, 16, 16, 16), -1.0)
    image[:, 1] = 5.0
    image[0, 1, 9:12, 10, 2] = 6.0
    inferer = StreamingSlidingWindowInferer((4, 4, 4), overlap=0, skip_empty=True)
    with torch.no_grad():
        answer = inferer(image, network)
        assert network.windows == 2  # the first, which always runs, and the only one with content
        full = StreamingSlidingWindowInferer((4, 4, 4), overlap=0)(image, network)
    assert torch.equal(answer[..., 8:12, 8:12, 0:4], full[..., 8:12, 8:12, 0:4])
    untouched = answer[0, :, 12:, 12:, 12:]
    assert (untouched.argmax(0) == 0).all()
    assert torch.softmax(untouched, 0)[0].min() > 1 - 1e-6


def test_a_window_that_only_one_channel_fills_is_not_skipped():
    image = torch.zeros(1, 2, 8, 8)
    image[0, 1, 6, 6] = 1
    network = _counting(torch.nn.Identity())
    StreamingSlidingWindowInferer((4, 4), overlap=0, skip_empty=True)(image, network)
    assert network.windows == 2


def test_skipping_changes_nothing_where_every_window_has_content():
    image = torch.rand(1, 1, 10, 11, generator=torch.Generator().manual_seed(0))
    network = _network(1, 2, 2)
    plain = StreamingSlidingWindowInferer((4, 4), overlap=0.5, mode="gaussian")
    skipping = StreamingSlidingWindowInferer((4, 4), overlap=0.5, mode="gaussian", skip_empty=True)
    with torch.no_grad():
        assert torch.equal(skipping(image, network), plain(image, network))


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"overlap": 1.0}, r"overlap must be in \[0, 1\), got 1.0"),
        ({"sw_batch_size": 0}, "sw_batch_size must be at least 1"),
    ],
)
def test_bad_settings_are_refused(arguments, match):
    with pytest.raises(ValueError, match=match):
        StreamingSlidingWindowInferer((4, 4), **arguments)


def test_wrong_shapes_are_refused():
    inferer = StreamingSlidingWindowInferer((4, 4))
    with pytest.raises(ValueError, match="inputs must hold one volume"):
        list(inferer.slabs(torch.zeros(2, 1, 8, 8), torch.nn.Identity()))
    with pytest.raises(ValueError, match=r"roi_size .* has 2 axes, the volume 3"):
        inferer(torch.zeros(1, 1, 8, 8, 8), torch.nn.Identity())
    with pytest.raises(ValueError, match="network must answer a window"):
        inferer(torch.zeros(1, 1, 8, 8), torch.nn.MaxPool2d(2))
