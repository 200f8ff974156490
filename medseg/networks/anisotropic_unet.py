"""Anisotropic 3D U-Net for volumes of thick slices: it halves the plane three times and the slice axis once.

With CB(c) = convolution 3 x 3 x 3 to c channels, ReLU, batch norm (in this order), and features f0 to f4,

    level    blocks                                              pooling or upsampling, (z, y, x)
    1 to 3   CB(f[i]), CB(f[i+1])                                max (1, 2, 2), (1, 2, 2), (2, 2, 2)
    bottom   CB(f4), dropout, CB(f4)
    3 to 1   up(same width) + ReLU, join the level, CB(f), dropout, CB(f) with f = f3, f2, f1
    head     convolution 1 x 1 x 1 to the classes; no activation

which at 16 to 256 features, 1 channel in and 5 out has 6,098,245 parameters.

Sources: Meyer, Rak, Schindele, Blaschke, Schostak, Fedorov, Hansen, "Towards Patient-Individual PI-RADS v2 Sector Map:
CNN for Automatic Segmentation of Prostatic Zones from T2-Weighted MRI" (ISBI 2019), and its published code for what the
text leaves open: the order inside a block, and upsampling kernels of 2 x 2 x 2 (the text says 3 x 3 x 3, with which the
number of parameters that the text itself gives is not met).

Differs in that dropout is off in evaluation unless `mc_dropout` asks for it, and in that `legacy_upsample=False` gives
upsampling kernels the size of their stride: along an axis that is not upsampled the published kernel of 2 looks one
slice to one side only.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from monai.networks.layers.factories import Conv, Norm, Pool, split_args
from torch import nn
from torch.nn import functional

FEATURES = (16, 32, 64, 128, 256)
# Epsilon and momentum of the published code's framework.
BATCH_NORM = ("batch", {"eps": 1e-3, "momentum": 0.01})
_STRIDES = {2: ((2, 2), (2, 2), (2, 2)), 3: ((1, 2, 2), (1, 2, 2), (2, 2, 2))}


class AnisotropicUNet(nn.Module):
    """U-Net whose poolings follow the voxel: thick slices are pooled later than the plane.

    With the default strides the slice axis comes first, (B, C, Z, Y, X), and sides must be multiples of (2, 8, 8). For
    images as NIfTI files store them, (B, C, X, Y, Z), give `strides=[[2, 2, 1], [2, 2, 1], [2, 2, 2]]`.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        out_channels: channels of the logits.
        features: widths, two more than there are strides.
        strides: pooling from each level to the next, one number an axis, each 1 or 2.
        dropout: probability at the bottom and in each level of the decoder.
        norm: MONAI's name of the norm, with its arguments.
        legacy_upsample: upsampling kernels of 2 along every axis, as published; else as large as their stride.
        mc_dropout: keep dropout in evaluation, for samples.

    Raises:
        ValueError: an option is out of range.

    Example:
        >>> network = AnisotropicUNet(out_channels=5, features=[2, 4, 4, 4, 4]).eval()
        >>> network(torch.zeros(1, 1, 4, 16, 16)).shape
        torch.Size([1, 5, 4, 16, 16])
    """

    def __init__(
        self,
        spatial_dims: int = 3,
        in_channels: int = 1,
        out_channels: int = 5,
        *,
        features: Sequence[int] = FEATURES,
        strides: Sequence[Sequence[int]] | None = None,
        dropout: float = 0.5,
        norm: str | Sequence = BATCH_NORM,
        legacy_upsample: bool = True,
        mc_dropout: bool = False,
    ) -> None:
        super().__init__()
        self.plan = Plan(spatial_dims, features, strides, dropout, norm, legacy_upsample, mc_dropout)
        self.in_channels, self.out_channels = in_channels, out_channels
        self.stem, self.trunk, self.decoder = Stem(self.plan, in_channels), Trunk(self.plan), Decoder(self.plan)
        self.head = self.plan.conv(self.plan.features[1], out_channels, 1)
        initialise(self)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Logits (B, out_channels, spatial...) of images (B, in_channels, spatial...).

        Raises:
            ValueError: the shape does not fit.
        """
        self.plan.check_image(image, self.in_channels, self.training)
        first = self.stem(image)
        return self.head(self.decoder([first, *self.trunk(first)]))


class Plan:
    """What the parts of the U-Net have in common: checked options, and the layers made of them."""

    def __init__(
        self,
        spatial_dims: int,
        features: Sequence[int],
        strides: Sequence[Sequence[int]] | None,
        dropout: float,
        norm: str | Sequence,
        legacy_upsample: bool,
        mc_dropout: bool,
    ) -> None:
        if spatial_dims not in _STRIDES:
            raise ValueError(f"spatial_dims must be 2 or 3, got {spatial_dims}")
        self.spatial_dims, self.features = spatial_dims, [int(f) for f in features]
        self.strides = [tuple(map(int, s)) for s in (_STRIDES[spatial_dims] if strides is None else strides)]
        if len(self.features) != len(self.strides) + 2 or min(self.features) < 1:
            raise ValueError(
                f"features must be {len(self.strides) + 2} positive widths, two more than there are strides, got "
                f"{list(features)}"
            )
        if not self.strides or any(len(s) != spatial_dims or not set(s) <= {1, 2} for s in self.strides):
            raise ValueError(f"strides must hold {spatial_dims} numbers of 1 or 2 for each level, got {strides}")
        self.divisors = tuple(math.prod(along) for along in zip(*self.strides, strict=True))
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {dropout}")
        self.dropout, self.legacy_upsample, self.mc_dropout = dropout, legacy_upsample, mc_dropout
        # JSON has lists where MONAI's factories want tuples.
        self.norm = norm if isinstance(norm, str) else tuple(norm)

    def conv(self, channels_in: int, channels_out: int, kernel: int) -> nn.Module:
        """A convolution that keeps the size."""
        return Conv["conv", self.spatial_dims](channels_in, channels_out, kernel, padding=kernel // 2)

    def block(self, channels_in: int, channels_out: int) -> nn.Sequential:
        """Convolution, ReLU, norm."""
        name, options = split_args(self.norm)
        norm: Any = Norm[name, self.spatial_dims]
        # Instance and batch norm take the width first; group norm would not, and is not needed here.
        return nn.Sequential(self.conv(channels_in, channels_out, 3), nn.ReLU(), norm(channels_out, **options))

    def drop(self) -> nn.Module:
        """Dropout by single voxels."""
        return Dropout(self.dropout, always=self.mc_dropout)

    def check_image(self, image: torch.Tensor, channels: int, training: bool) -> None:
        """Refuse images that cannot be pooled, and warn where batch norm has next to nothing to average."""
        if image.ndim != self.spatial_dims + 2 or image.shape[1] != channels:
            spatial = "Y, X" if self.spatial_dims == 2 else "Z, Y, X"
            raise ValueError(f"image must have shape (B, {channels}, {spatial}), got {tuple(image.shape)}")
        for axis, (side, divisor) in enumerate(zip(image.shape[2:], self.divisors, strict=True)):
            if side % divisor:
                raise ValueError(
                    f"image has {side} voxels along axis {axis + 2}, which must be a multiple of {divisor} (the sides "
                    f"must be multiples of {self.divisors}); pad it, for example with monai.transforms.DivisiblePadd"
                )
        if training and self.spatial_dims == 2 and tuple(image.shape[2:]) == self.divisors:
            warnings.warn(
                f"the bottom of the network is a single pixel: its norm averages over {len(image)} values; train on "
                "larger images",
                stacklevel=3,
            )


class Dropout(nn.Module):
    """Dropout that can stay on in evaluation."""

    def __init__(self, probability: float, always: bool) -> None:
        super().__init__()
        self.probability, self.always = probability, always

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Drop single values."""
        return functional.dropout(x, self.probability, self.training or self.always)


class Stem(nn.Sequential):
    """The finest level."""

    def __init__(self, plan: Plan, in_channels: int) -> None:
        first, second = plan.features[:2]
        super().__init__(plan.block(in_channels, first), plan.block(first, second))


class Trunk(nn.Module):
    """The coarser levels and the bottom."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        widths = plan.features
        self.pools = nn.ModuleList(Pool["max", plan.spatial_dims](stride, stride) for stride in plan.strides)
        self.levels = nn.ModuleList(
            nn.Sequential(plan.block(a, a), plan.block(a, b)) for a, b in pairwise(widths[1:-1])
        )
        bottom = nn.Sequential(plan.block(widths[-2], widths[-1]), plan.drop(), plan.block(widths[-1], widths[-1]))
        self.levels.append(bottom)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Features of every coarser level, the bottom last."""
        found = []
        for pool, level in zip(self.pools, self.levels, strict=True):
            x = level(pool(x))
            found.append(x)
        return found


class Decoder(nn.Module):
    """The way up, from the bottom to the features of the finest level."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        widths, strides = plan.features[:0:-1], plan.strides[::-1]
        self.ups = nn.ModuleList(Up(plan, width, stride) for width, stride in zip(widths[:-1], strides, strict=True))
        self.levels = nn.ModuleList(
            nn.Sequential(plan.block(a + b, b), plan.drop(), plan.block(b, b)) for a, b in pairwise(widths)
        )

    def forward(self, levels: list[torch.Tensor]) -> torch.Tensor:
        """Join the levels, given from the finest to the bottom."""
        *skips, x = levels
        for up, level, skip in zip(self.ups, self.levels, reversed(skips), strict=True):
            x = level(torch.cat([up(x), skip], dim=1))
        return x


class Up(nn.Module):
    """Transposed convolution and ReLU."""

    def __init__(self, plan: Plan, width: int, stride: tuple[int, ...]) -> None:
        super().__init__()
        kernel = (2,) * plan.spatial_dims if plan.legacy_upsample else stride
        self.conv = Conv["convtrans", plan.spatial_dims](width, width, kernel, stride)
        self.stride = stride

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Upsample; what a kernel wider than its stride adds at the end is cut off."""
        up = self.conv(x)
        for axis, (side, stride) in enumerate(zip(x.shape[2:], self.stride, strict=True), start=2):
            up = up.narrow(axis, 0, side * stride)
        return functional.relu(up)


def initialise(network: nn.Module) -> None:
    """He's normal weights and no bias for every convolution."""
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
