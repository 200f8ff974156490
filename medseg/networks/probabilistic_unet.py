"""Probabilistic U-Net: one image, any number of plausible segmentations.

A U-Net computes features of the image. A prior network turns the image into a Gaussian over a few latent numbers z, a
posterior network does the same with image and annotation together. The head joins z to the features:

    z ~ N(mean(x), std(x)^2),    logits(x, z) = W_3 act(W_2 act(W_1 [features(x), z] + b_1) + b_2) + b_3

at every voxel. In training z comes from the posterior of one annotation, afterwards from the prior.

Sources: Kohl et al., "A Probabilistic U-Net for Segmentation of Ambiguous Images" (2018); Petersen et al., "Deep
Probabilistic Modeling of Glioma Growth" (2019); Chatterjee et al., "PULASki: Learning inter-rater variability using
statistical distances to improve probabilistic segmentation" (2025), whose architecture this is.

Differs from the published code in two points. Its head creates activations between the 1 x 1 convolutions and never
calls them; the logits are then affine in z, so that z adds one number to all voxels and the samples of an image are
nested level sets of one map: two raters who mark different places cannot be expressed. Here they are called;
`head_activation=False` gives the published network. And the features, with their part of the first 1 x 1 convolution,
are computed once for all samples of an image instead of once for each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.distributions import Normal

from medseg.networks._probabilistic_parts import FeatureUNet, GaussianEncoder, LatentHead


class ProbabilisticOutput(NamedTuple):
    """What a training step needs of a Probabilistic U-Net.

    Attributes:
        samples: logits of samples from the posterior, (B, n, C, spatial...).
        prior: distribution over latent codes given the image; components (B, latent_dim).
        posterior: the same given image and annotation.
    """

    samples: torch.Tensor
    prior: Normal
    posterior: Normal


class ProbabilisticUNet(nn.Module):
    """Segmentations drawn from a learned distribution, for images on which experts disagree.

    Called with an image it gives the logits at the prior's mean, one tensor (B, out_channels, spatial...), as any
    network does; `sample` draws segmentations; called with an image and a segmentation it gives a training step's
    `ProbabilisticOutput`. The sides of an image must be multiples of 2^(depth - 1), and one of them larger than that.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        out_channels: channels of the logits; the posterior takes a one-hot segmentation of as many.
        features: channels of the finest level, doubled at every coarser one.
        depth: levels.
        latent_dim: numbers in a latent code.
        head_layers: 1 x 1 convolutions of the head.
        head_activation: activations between them; False is the published network, whose samples are nested level sets.
        inject: where the code enters: "end" (the head, cheap for many samples) or "bottom" (the decoder runs anew for
            each sample).
        encoder_norm_levels: finest levels of prior and posterior that have a norm.
        norm: MONAI's name of the norm, with its arguments.
        act: MONAI's name of the activation, with its arguments.

    Raises:
        ValueError: an option is out of range.

    Example:
        >>> network = ProbabilisticUNet(2, features=4, depth=3).eval()
        >>> network(torch.zeros(1, 1, 16, 16)).shape
        torch.Size([1, 1, 16, 16])
        >>> network.sample(torch.zeros(1, 1, 16, 16), n=5).shape
        torch.Size([1, 5, 1, 16, 16])
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int = 1,
        out_channels: int = 1,
        *,
        features: int = 24,
        depth: int = 5,
        latent_dim: int = 3,
        head_layers: int = 3,
        head_activation: bool = True,
        inject: str = "end",
        encoder_norm_levels: int = 2,
        norm: str | Sequence = "instance",
        act: str | Sequence = ("leakyrelu", {"negative_slope": 0.01}),
    ) -> None:
        super().__init__()
        if spatial_dims not in (2, 3):
            raise ValueError(f"spatial_dims must be 2 or 3, got {spatial_dims}")
        if inject not in ("end", "bottom"):
            raise ValueError(f"inject must be end or bottom, got {inject!r}")
        for name, count in {"features": features, "latent_dim": latent_dim, "head_layers": head_layers}.items():
            if count < 1:
                raise ValueError(f"{name} must be at least 1, got {count}")
        if depth < 2:
            raise ValueError(f"depth must be at least 2, got {depth}")
        self.spatial_dims, self.in_channels, self.out_channels = spatial_dims, in_channels, out_channels
        self.latent_dim, self.inject, self.divisor = latent_dim, inject, 2 ** (depth - 1)
        at_end, at_bottom = (latent_dim, 0) if inject == "end" else (0, latent_dim)
        widths = [features * 2**level for level in range(depth)]
        # JSON has lists where MONAI's factories want tuples.
        norm, act = (name if isinstance(name, str) else tuple(name) for name in (norm, act))
        both: dict[str, Any] = {"norm": norm, "act": act}
        self.unet = FeatureUNet(spatial_dims, in_channels, widths, extra=at_bottom, **both)
        head_act = act if head_activation else None
        self.head = LatentHead(spatial_dims, features, at_end, out_channels, layers=head_layers, act=head_act)
        more = {**both, "norm_levels": encoder_norm_levels}
        self.prior = GaussianEncoder(spatial_dims, in_channels, widths, latent_dim, **more)
        self.posterior = GaussianEncoder(spatial_dims, in_channels + out_channels, widths, latent_dim, **more)
        self.apply(_initialise)

    def forward(
        self, image: torch.Tensor, seg: torch.Tensor | None = None, n: int = 1, noise: torch.Tensor | None = None
    ) -> torch.Tensor | ProbabilisticOutput:
        """Run the network.

        Args:
            image: (B, in_channels, spatial...).
            seg: one annotation of each image, (B, out_channels, spatial...) one-hot; then samples come from the
                posterior.
            n: samples from the posterior.
            noise: standard normal numbers for them, see `sample`.

        Returns:
            Logits (B, out_channels, spatial...) at the prior's mean, or with `seg` samples and distributions.

        Raises:
            ValueError: shapes do not fit.
        """
        self._check_image(image)
        if seg is None:
            return self._decode(image, self.prior(image)[0][:, None])[:, 0]
        prior, posterior = self.encode(image, seg)
        assert posterior is not None
        return ProbabilisticOutput(self.sample(image, n, posterior, noise), prior, posterior)

    def encode(self, image: torch.Tensor, seg: torch.Tensor | None = None) -> tuple[Normal, Normal | None]:
        """Distributions over latent codes.

        Args:
            image: (B, in_channels, spatial...).
            seg: one annotation of each image, (B, out_channels, spatial...), one-hot.

        Returns:
            The prior, and the posterior or None without `seg`; components (B, latent_dim), in float32 at least.

        Raises:
            ValueError: shapes do not fit.
        """
        self._check_image(image)
        prior = Normal(*self.prior(image), validate_args=False)
        if seg is None:
            return prior, None
        expected = (image.shape[0], self.out_channels, *image.shape[2:])
        if tuple(seg.shape) != expected:
            raise ValueError(f"seg must have shape {expected}, one-hot, for this image, got {tuple(seg.shape)}")
        both = torch.cat([image, seg.to(image)], dim=1)
        return prior, Normal(*self.posterior(both), validate_args=False)

    def sample(
        self,
        image: torch.Tensor,
        n: int = 1,
        dist: Normal | None = None,
        noise: torch.Tensor | None = None,
        return_logits: bool = True,
    ) -> torch.Tensor:
        """Draw segmentations.

        Args:
            image: (B, in_channels, spatial...).
            n: how many of each image.
            dist: distribution over latent codes; by default the prior of the image.
            noise: standard normal numbers, (n, latent_dim) or (B, n, latent_dim), that decide which codes are drawn;
                by default from torch's global generator. The same row for every window of a volume makes the windows
                agree.
            return_logits: logits; else probabilities by a sigmoid (one channel) or softmax.

        Returns:
            (B, n, out_channels, spatial...).

        Raises:
            ValueError: shapes do not fit.
        """
        self._check_image(image)
        if n < 1:
            raise ValueError(f"n must be at least 1, got {n}")
        dist = self.encode(image)[0] if dist is None else dist
        shape = (image.shape[0], n, self.latent_dim)
        if noise is None:
            noise = torch.randn(shape, device=image.device)
        elif tuple(noise.shape) not in (shape, shape[1:]):
            raise ValueError(f"noise must have shape {shape} or {shape[1:]}, got {tuple(noise.shape)}")
        z = dist.loc[:, None] + dist.scale[:, None] * noise.to(dist.loc)
        logits = self._decode(image, z)
        if return_logits:
            return logits
        return torch.sigmoid(logits) if self.out_channels == 1 else torch.softmax(logits, dim=2)

    def _decode(self, image: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        """Logits (B, n, C, spatial...) of codes (B, n, latent_dim)."""
        levels = self.unet.encode(image)
        if self.inject == "bottom":
            nothing = z[:, 0, :0]
            each = [self.head(self.head.prepare(self.unet.decode(levels, code)), nothing) for code in z.unbind(1)]
        else:
            prepared = self.head.prepare(self.unet.decode(levels))
            each = [self.head(prepared, code) for code in z.unbind(1)]
        return torch.stack(each, dim=1)

    def _check_image(self, image: torch.Tensor) -> None:
        if image.ndim != self.spatial_dims + 2 or image.shape[1] != self.in_channels:
            spatial = "H, W" if self.spatial_dims == 2 else "H, W, D"
            raise ValueError(f"image must have shape (B, {self.in_channels}, {spatial}), got {tuple(image.shape)}")
        sides = tuple(image.shape[2:])
        if any(side % self.divisor for side in sides) or all(side == self.divisor for side in sides):
            raise ValueError(
                f"image must have sides that are multiples of {self.divisor}, at least one of them larger, got "
                f"{sides}; pad it, or build the network with a smaller depth"
            )


def _initialise(module: nn.Module) -> None:
    """He's uniform weights and no bias."""
    if isinstance(module, (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
        nn.init.kaiming_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
