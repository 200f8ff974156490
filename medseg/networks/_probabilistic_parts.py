"""The three parts of a Probabilistic U-Net: a plain U-Net, an encoder that ends in a Gaussian, and the head on both.

Sources and differences stand in `probabilistic_unet.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from monai.networks.layers.factories import Conv, Pool
from monai.networks.layers.utils import get_act_layer, get_norm_layer
from torch import nn
from torch.nn import functional

Named = str | tuple
# Log-variances beyond this are infinite in half precision and mean nothing anyway.
_LOG_VARIANCE = 10.0


def convolutions(dims: int, widths: Sequence[int], norm: Named | None, act: Named) -> list[nn.Module]:
    """Convolutions of kernel 3 from each width to the next, every one followed by norm and activation."""
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers.append(Conv[Conv.CONV, dims](before, after, 3, padding=1))
        if norm is not None:
            layers.append(get_norm_layer(norm, dims, after))
        layers.append(get_act_layer(act))
    return layers


class FeatureUNet(nn.Module):
    """A U-Net that gives features on the grid of the image; `extra` channels can be joined to its bottom.

    Args:
        dims: 2 or 3.
        in_channels: channels of the image.
        widths: channels of each level, finest first.
        extra: channels that `decode` joins to the bottom.
        norm: norm after every convolution but those that enlarge.
        act: activation after it.
    """

    def __init__(
        self, dims: int, in_channels: int, widths: Sequence[int], *, extra: int, norm: Named, act: Named
    ) -> None:
        super().__init__()
        bottom = len(widths) - 1
        self.encoders, self.decoders = nn.ModuleList(), nn.ModuleList()
        for level, width in enumerate(widths):
            shrink = [Pool[Pool.AVG, dims](2)] if level else []
            before = widths[level - 1] if level else in_channels
            inner = [before, width] if level == bottom else [before, width, width]
            self.encoders.append(nn.Sequential(*shrink, *convolutions(dims, inner, norm, act)))
        for level, width in reversed(list(enumerate(widths))):
            inner = [width + extra, width] if level == bottom else [2 * width, width, width]
            enlarge = [Conv[Conv.CONVTRANS, dims](width, widths[level - 1], 3, 2, 1, 1)] if level else []
            self.decoders.append(nn.Sequential(*convolutions(dims, inner, norm, act), *enlarge))

    def encode(self, image: torch.Tensor) -> list[torch.Tensor]:
        """Features of every level, finest first."""
        levels = [self.encoders[0](image)]
        for encoder in list(self.encoders)[1:]:
            levels.append(encoder(levels[-1]))
        return levels

    def decode(self, levels: Sequence[torch.Tensor], z: torch.Tensor | None = None) -> torch.Tensor:
        """Features on the image's grid; `z` (B, extra) is joined to the bottom."""
        x = levels[-1]
        if z is not None:
            z = z.to(x).reshape(*z.shape, *(1,) * (x.ndim - 2))
            x = torch.cat([x, z.expand(-1, -1, *x.shape[2:])], dim=1)
        x = self.decoders[0](x)
        for decoder, skip in zip(list(self.decoders)[1:], reversed(levels[:-1]), strict=True):
            x = decoder(torch.cat([skip, x], dim=1))
        return x


class GaussianEncoder(nn.Module):
    """Mean and standard deviation of a Gaussian with independent components, from an image.

    Args:
        dims: 2 or 3.
        in_channels: channels of the image.
        widths: channels of each level, finest first.
        latent_dim: components of the Gaussian.
        norm: norm of the first `norm_levels` levels; the others have none, for there size and contrast count.
        act: activation after every convolution.
        norm_levels: how many levels are normalised.
    """

    def __init__(
        self,
        dims: int,
        in_channels: int,
        widths: Sequence[int],
        latent_dim: int,
        *,
        norm: Named,
        act: Named,
        norm_levels: int,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for level, width in enumerate(widths):
            before = widths[level - 1] if level else in_channels
            layers += [Pool[Pool.AVG, dims](2)] if level else []
            layers += convolutions(dims, [before, width, width], norm if level < norm_levels else None, act)
        self.layers = nn.Sequential(*layers)
        self.last = Conv[Conv.CONV, dims](widths[-1], 2 * latent_dim, 1, bias=False)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation, (B, latent_dim) each, never in half precision."""
        features = self.layers(image)
        # The last layer is linear, so averaging before it changes nothing but the cost.
        pooled = self.last(features.mean(tuple(range(2, features.ndim)), keepdim=True)).flatten(1)
        pooled = pooled if pooled.dtype == torch.float64 else pooled.float()
        mean, log_variance = pooled.chunk(2, dim=1)
        return mean, torch.exp(0.5 * log_variance.clamp(-_LOG_VARIANCE, _LOG_VARIANCE))


class LatentHead(nn.Module):
    """Logits from features and latent codes by 1 x 1 convolutions; features go through the first one only once.

        first(features, z) = W_f features + b + W_z z

    Args:
        dims: 2 or 3.
        features: channels of the features.
        latent_dim: components of a code; 0 where the code went in at the bottom.
        out_channels: channels of the logits.
        layers: number of convolutions.
        act: activation between them; None for none.
    """

    def __init__(
        self, dims: int, features: int, latent_dim: int, out_channels: int, *, layers: int, act: Named | None
    ) -> None:
        super().__init__()
        width = features + latent_dim
        widths = [width] * layers + [out_channels]
        self.features = features
        self.first = Conv[Conv.CONV, dims](widths[0], widths[1], 1)
        self.rest = nn.ModuleList(Conv[Conv.CONV, dims](a, b, 1) for a, b in pairwise(widths[1:]))
        self.act = nn.Identity() if act is None else get_act_layer(act)
        if hasattr(self.act, "inplace"):
            # Nobody needs what it overwrites, and training holds these tensors once for every sample.
            self.act.inplace = True  # pyright: ignore[reportArgumentType]

    def prepare(self, features: torch.Tensor) -> torch.Tensor:
        """What all codes share: the first convolution of the features."""
        convolve = functional.conv2d if features.ndim == 4 else functional.conv3d
        return convolve(features, self.first.weight[:, : self.features], self.first.bias)

    def forward(self, prepared: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        """Logits (B, out_channels, spatial...) for one code (B, latent_dim)."""
        weight = self.first.weight[:, self.features :].flatten(1)
        shift = functional.linear(z.to(weight), weight)
        x = prepared + shift.reshape(*shift.shape, *(1,) * (prepared.ndim - 2)).to(prepared)
        for layer in self.rest:
            x = layer(self.act(x))
        return x
