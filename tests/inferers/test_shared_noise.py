"""Samples of a volume are whole: sample k draws from the same noise in every window."""

from __future__ import annotations

import pytest
import torch

from medseg.inferers import SharedNoiseSlidingWindowInferer, StreamingSlidingWindowInferer, draw_noise
from medseg.networks import ProbabilisticUNet


class Shifts(torch.nn.Module):
    """Adds its noise to the image: two classes, 0 and image + noise."""

    latent_dim = 1

    def sample(self, image, n, noise):
        shifted = torch.stack([image + e for e in noise[:, 0]], dim=1)
        return torch.cat([0 * shifted, shifted], dim=2)


def tiny() -> ProbabilisticUNet:
    torch.manual_seed(0)
    return ProbabilisticUNet(2, features=4, depth=3).eval()


def test_windows_of_a_sample_agree_where_they_overlap():
    image = torch.rand(2, 1, 20, 14)
    answer = SharedNoiseSlidingWindowInferer([8, 8], overlap=0.5, samples=4, seed=3)(image, Shifts())
    assert answer.shape == (2, 4, 2, 20, 14)
    noise = draw_noise(Shifts(), 4, 3)
    torch.testing.assert_close(answer[:, :, 1], image + noise.view(1, 4, 1, 1))


def test_every_sample_is_what_a_plain_sliding_window_gives_for_its_noise():
    network, image = tiny(), torch.randn(1, 1, 40, 32)
    options = {"roi_size": [16, 16], "overlap": 0.5, "mode": "gaussian", "sw_batch_size": 3}
    with torch.no_grad():
        together = SharedNoiseSlidingWindowInferer(**options, samples=3, seed=1)(image, network)
        noise = draw_noise(network, 3, 1)
        for k in range(3):
            plain = StreamingSlidingWindowInferer(**options)
            alone = plain(image, lambda x, k=k: network.sample(x, 1, noise=noise[k : k + 1])[:, 0])
            torch.testing.assert_close(together[:, k], alone)


def test_the_seed_decides_and_more_samples_begin_with_the_same_ones():
    network, image = tiny(), torch.randn(1, 1, 16, 16)
    with torch.no_grad():
        few, again, many, other = (
            SharedNoiseSlidingWindowInferer([16, 16], samples=n, seed=s)(image, network)
            for n, s in ((2, 0), (2, 0), (5, 0), (2, 1))
        )
    assert torch.equal(few, again)
    torch.testing.assert_close(many[:, :2], few)
    assert not torch.equal(few, other)


def test_empty_windows_are_certain_background_in_every_sample():
    image = torch.zeros(1, 1, 32, 8)
    image[..., :8, :] = 1
    answer = SharedNoiseSlidingWindowInferer([8, 8], samples=3, skip_empty=True)(image, Shifts())
    probability = answer.softmax(2)[:, :, 0]
    assert (probability[:, :, 16:] > 0.999).all()
    assert (probability[:, :, :8] < 0.999).all()


def test_a_network_without_samples_is_refused_by_name():
    with pytest.raises(ValueError, match=r"the network Conv2d cannot draw samples: .*ProbabilisticUNet"):
        SharedNoiseSlidingWindowInferer([8, 8])(torch.zeros(1, 1, 8, 8), torch.nn.Conv2d(1, 1, 1))
    with pytest.raises(ValueError, match="samples must be at least 1, got 0"):
        SharedNoiseSlidingWindowInferer([8, 8], samples=0)
    with pytest.raises(TypeError, match="takes inputs and network alone"):
        SharedNoiseSlidingWindowInferer([8, 8])(torch.zeros(1, 1, 8, 8), Shifts(), 3)
