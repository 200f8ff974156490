"""Sliding windows over a network that draws samples: sample k means the same in every window.

A window's latent codes are z_k = mean(window) + std(window) e_k with standard normal numbers e_k. Drawn anew for every
window, neighbouring windows of one sample would hold different opinions, and blending their overlap would pull them to
the mean; here e_k is drawn once for a volume, from a seed. What the network computes once for all samples of a window
is computed once.

Differs from the published code of Chatterjee et al., "PULASki" (2025), which draws anew for every window.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch

from medseg.inferers.sliding_window import StreamingSlidingWindowInferer


def draw_noise(network: torch.nn.Module, samples: int, seed: int = 0) -> torch.Tensor:
    """Draw the noise that makes samples of a network repeatable.

    Args:
        network: a network with `sample(image, n, noise=...)` and `latent_dim`, such as
            `medseg.networks.ProbabilisticUNet`.
        samples: how many samples.
        seed: seed of the noise; a larger number of samples begins with the same ones.

    Returns:
        Standard normal numbers, (samples, latent_dim).

    Raises:
        ValueError: `samples` is below 1, or the network cannot draw samples.

    Example:
        >>> from medseg.networks import ProbabilisticUNet
        >>> draw_noise(ProbabilisticUNet(2, features=4, depth=2, latent_dim=6), samples=5).shape
        torch.Size([5, 6])
    """
    if samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples}")
    inside: Any = getattr(network, "module", network)
    if not hasattr(inside, "sample") or not hasattr(inside, "latent_dim"):
        raise ValueError(
            f"the network {type(inside).__name__} cannot draw samples: it has no sample(image, n, noise=...); use a "
            "probabilistic network such as medseg.networks.ProbabilisticUNet, or leave samples out"
        )
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((samples, inside.latent_dim), generator=generator)


def with_noise(network: torch.nn.Module, noise: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """Give a function from windows (B, C, window...) to all samples side by side, (B, samples * K, window...)."""
    inside: Any = getattr(network, "module", network)
    return lambda windows: inside.sample(windows, len(noise), noise=noise.to(windows.device)).flatten(1, 2)


class SharedNoiseSlidingWindowInferer(StreamingSlidingWindowInferer):
    """Sliding windows for a network that draws samples, in 2D and 3D; see `draw_noise` for such networks.

    Args:
        roi_size: window size in voxels; entries that are not positive stand for the whole extent.
        sw_batch_size: windows in one pass.
        overlap: overlap of neighbouring windows in [0, 1), one number or one an axis.
        mode: `constant` or `gaussian` blending.
        sigma_scale: standard deviation of the Gaussian in window sizes.
        padding_mode: how volumes smaller than a window are padded: `constant`, `reflect`, `replicate` or `circular`.
        cval: value of constant padding.
        skip_empty: do not run windows without content, see `StreamingSlidingWindowInferer`.
        samples: samples of each volume.
        seed: seed of their noise; every volume gets the same noise, so that it does not depend on its neighbours.

    Raises:
        ValueError: an overlap outside [0, 1), a batch size or a number of samples below 1.

    Example:
        >>> from medseg.networks import ProbabilisticUNet
        >>> inferer = SharedNoiseSlidingWindowInferer([16, 16], samples=3)
        >>> inferer(torch.zeros(1, 1, 24, 16), ProbabilisticUNet(2, features=4, depth=3)).shape
        torch.Size([1, 3, 1, 24, 16])
    """

    def __init__(
        self,
        roi_size: Sequence[int] | int,
        sw_batch_size: int = 1,
        overlap: Sequence[float] | float = 0.25,
        mode: Literal["constant", "gaussian"] = "constant",
        sigma_scale: Sequence[float] | float = 0.125,
        padding_mode: str = "constant",
        cval: float = 0.0,
        skip_empty: bool = False,
        *,
        samples: int = 10,
        seed: int = 0,
    ) -> None:
        super().__init__(roi_size, sw_batch_size, overlap, mode, sigma_scale, padding_mode, cval, skip_empty)
        if samples < 1:
            raise ValueError(f"samples must be at least 1, got {samples}")
        self.sets, self.samples, self.seed = samples, samples, seed

    def __call__(  # type: ignore[override]
        self, inputs: torch.Tensor, network: torch.nn.Module, *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """Draw samples of whole volumes.

        Args:
            inputs: shape (B, C, spatial...).
            network: the network; its `sample` is called.
            *args: none are taken.
            **kwargs: none are taken.

        Returns:
            Logits, shape (B, samples, K, spatial...), float32.

        Raises:
            ValueError: the network cannot draw samples.
        """
        if args or kwargs:
            raise TypeError("SharedNoiseSlidingWindowInferer takes inputs and network alone")
        noise = draw_noise(network, self.samples, self.seed)
        answer: torch.Tensor = super().__call__(inputs, with_noise(network, noise))
        return answer.unflatten(1, (self.samples, -1))
