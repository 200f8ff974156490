"""Multi-scale attention U-Net: the image at four sizes goes in, gated skips, a prediction at four sizes comes out.

With U a block of two convolutions (3, norm, activation), x_k the image averaged over k pixels a side, P an activation:

    e1 = U(x),   e_i = U([P(conv(x_k)), maxpool(e_(i-1))]),   centre = U(maxpool(e4))
    d1 = [P(up(centre)), A(e4, G(centre))],  d2 = [P(up(d1)), A(e3, G(d1))],  d3 = [P(up(d2)), A(e2, G(d2))]
    d4 = [P(up(d3)), e1],   logits at 1/8, 1/4, 1/2, 1 = conv(U(d1)), ..., conv(U(d4))
    G(d) = P(norm(conv(d))),   A(e, g) = norm(conv(e a)),   a = enlarge(sigmoid(conv(P(conv(e) + conv(g)))))

The decoder goes on with d1 to d4 as they are; the blocks U on them serve the predictions alone, so that evaluation,
which wants the finest prediction, leaves three of the four out.

Sources: Abraham, Khan, "A Novel Focal Tversky Loss Function with Improved Attention U-Net for Lesion Segmentation"
(ISBI 2019); Haseljic et al., "Liver segmentation using Turbolift learning for CT and cone-beam C-arm perfusion imaging"
(Computers in Biology and Medicine, 2023), whose network (parametric activations, one slope a channel) this is.

Differs from the published code: logits, not probabilities; finest first; the map `a` is broadcast over the channels
instead of copied; 3D as well; any norm. The order of the weights is the published one, so that those can be copied by
position.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from monai.networks.layers.factories import Conv, Pool
from monai.networks.layers.utils import get_act_layer, get_norm_layer
from torch import nn
from torch.nn import functional

Layer = str | Sequence
_DIVISOR = 16


class MultiScaleAttentionUNet(nn.Module):
    """U-Net with an image pyramid at its inputs, attention gates on its skips and a prediction at each of four scales.

    The sides of an image must be multiples of 16. Training with deep supervision gives a list of logits, finest first,
    for `medseg.losses.DeepSupervisionLoss`; evaluation gives the finest alone.

    Args:
        spatial_dims: 2 as published, or 3.
        in_channels: channels of the image.
        out_channels: channels of the logits.
        features: channels of the four scales, finest first, and of the centre.
        up_features: channels that come up from the coarser scale, coarsest first.
        act: MONAI's name of the activation, with its arguments; PReLU has one slope for each channel.
        norm: MONAI's name of the norm, with its arguments; None leaves it out everywhere but behind the attention, as
            published.
        deep_supervision: whether there are predictions at the three coarser scales.

    Raises:
        ValueError: an option is out of range.

    Example:
        >>> network = MultiScaleAttentionUNet(2, features=[4, 4, 8, 8, 16], up_features=[4, 4, 4, 4])
        >>> image = torch.zeros(2, 1, 32, 48)
        >>> [tuple(logits.shape[2:]) for logits in network(image)]
        [(32, 48), (16, 24), (8, 12), (4, 6)]
        >>> network.eval()(image).shape
        torch.Size([2, 1, 32, 48])
    """

    def __init__(
        self,
        spatial_dims: int = 2,
        in_channels: int = 1,
        out_channels: int = 1,
        *,
        features: Sequence[int] = (32, 64, 128, 256, 512),
        up_features: Sequence[int] = (32, 64, 32, 32),
        act: Layer = "PRELU",
        norm: Layer | None = "batch",
        deep_supervision: bool = True,
    ) -> None:
        super().__init__()
        _check(spatial_dims, in_channels, out_channels, features, up_features)
        self.spatial_dims, self.in_channels, self.deep_supervision = spatial_dims, in_channels, deep_supervision
        layers = _Layers(spatial_dims, act, norm)
        self.average, self.largest = Pool[Pool.AVG, spatial_dims](2), Pool[Pool.MAX, spatial_dims](2)
        *scales, centre = features
        self.encoders = nn.ModuleList([layers.block(in_channels, scales[0])])
        for finer, here in pairwise(scales):
            self.encoders.append(layers.conv(in_channels, here, 3))
            self.encoders.append(layers.block(here + finer, here))
        self.centre = layers.block(scales[-1], centre)
        self.decoders = nn.ModuleList()
        widths, below = [], centre
        for skip, up in zip(reversed(scales[1:]), up_features, strict=False):
            self.decoders.append(layers.gate(below))
            self.decoders.append(AttentionGate(layers, skip, below, skip // 2))
            self.decoders.append(layers.up(below, up))
            below = up + skip
            widths.append(below)
        self.decoders.append(layers.up(below, up_features[-1]))
        widths.append(up_features[-1] + scales[0])
        # Coarsest first, as the published weights stand; only the last exists without deep supervision.
        ends = [*zip(widths, reversed(scales), strict=True)][0 if deep_supervision else -1 :]
        self.refine = nn.ModuleList(layers.block(*end) for end in ends)
        self.predict = nn.ModuleList(layers.conv(end[1], out_channels, 1) for end in ends)
        self.pyramid_acts = nn.ModuleList(layers.act(width) for width in scales[1:])
        self.up_acts = nn.ModuleList(layers.act(width) for width in up_features)

    def forward(self, image: torch.Tensor, all_scales: bool | None = None) -> torch.Tensor | list[torch.Tensor]:
        """Compute logits.

        Args:
            image: (B, in_channels, spatial...).
            all_scales: whether to give the predictions at all scales; by default in training, if there are any.

        Returns:
            Logits (B, out_channels, spatial...), or a list of those at 1, 1/2, 1/4 and 1/8 of the size.

        Raises:
            ValueError: the shape does not fit, or coarser predictions are asked for that the network does not have.
        """
        self._check_image(image)
        if all_scales and not self.deep_supervision:
            raise ValueError("all_scales needs a network with deep_supervision=True; build it so, or leave it out")
        wants_all = self.deep_supervision and (self.training if all_scales is None else all_scales)
        decoded = self._decode(self._encode(image))
        if not wants_all:
            return self.predict[-1](self.refine[-1](decoded[-1]))
        coarse_first = zip(decoded, self.refine, self.predict, strict=True)
        return [predict(refine(features)) for features, refine, predict in coarse_first][::-1]

    def _encode(self, image: torch.Tensor) -> list[torch.Tensor]:
        """Features of the four scales, finest first, and of the centre."""
        first, *rest = self.encoders
        levels = [first(image)]
        for conv, block, act in zip(rest[::2], rest[1::2], self.pyramid_acts, strict=True):
            image = self.average(image)
            levels.append(block(torch.cat([act(conv(image)), self.largest(levels[-1])], dim=1)))
        return [*levels, self.centre(self.largest(levels[-1]))]

    def _decode(self, levels: list[torch.Tensor]) -> list[torch.Tensor]:
        """What the predictions are made of, coarsest first."""
        finest, *skips, below = levels
        *parts, last = self.decoders
        decoded = []
        for i, skip in enumerate(reversed(skips)):
            gate, attention, up = parts[3 * i : 3 * i + 3]
            attended = attention(skip, gate(below))
            below = torch.cat([self.up_acts[i](up(below)), attended], dim=1)
            decoded.append(below)
        return [*decoded, torch.cat([self.up_acts[-1](last(below)), finest], dim=1)]

    def _check_image(self, image: torch.Tensor) -> None:
        if image.ndim != self.spatial_dims + 2 or image.shape[1] != self.in_channels:
            spatial = "H, W" if self.spatial_dims == 2 else "H, W, D"
            raise ValueError(f"image must have shape (B, {self.in_channels}, {spatial}), got {tuple(image.shape)}")
        sides = tuple(image.shape[2:])
        if any(side % _DIVISOR for side in sides):
            raise ValueError(
                f"image must have sides that are multiples of {_DIVISOR}, got {sides}; pad it, for instance with "
                "monai.transforms.DivisiblePad, or let a sliding window cut windows of such a size"
            )


class AttentionGate(nn.Module):
    """Weigh the voxels of a skip by what the coarser scale says of them."""

    def __init__(self, layers: _Layers, skip: int, gate: int, width: int) -> None:
        super().__init__()
        self.from_skip = layers.conv(skip, width, 2, stride=2)
        self.from_gate = layers.conv(gate, width, 1)
        self.score = layers.conv(width, 1, 1)
        self.mix = layers.conv(skip, skip, 1)
        self.norm = get_norm_layer(layers.norm or "batch", layers.dims, skip)
        self.act = layers.act(width)
        self.mode = "bilinear" if layers.dims == 2 else "trilinear"

    def weigh(self, skip: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        """Weights (B, 1, spatial...) in [0, 1] at the size of `skip`; `gate` has half of it."""
        weights = torch.sigmoid(self.score(self.act(self.from_skip(skip) + self.from_gate(gate))))
        return functional.interpolate(weights, scale_factor=2, mode=self.mode, align_corners=False)

    def forward(self, skip: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        """The weighed skip, (B, C, spatial...)."""
        return self.norm(self.mix(skip * self.weigh(skip, gate)))


class _Layers:
    """The pieces of a network of so many dimensions, with its norm and activation."""

    def __init__(self, dims: int, act: Layer, norm: Layer | None) -> None:
        # JSON has lists where MONAI's factories want tuples.
        self.dims = dims
        self.activation = act if isinstance(act, str) else tuple(act)
        self.norm = norm if norm is None or isinstance(norm, str) else tuple(norm)

    def conv(self, inside: int, out: int, kernel: int, stride: int = 1) -> nn.Module:
        return Conv[Conv.CONV, self.dims](inside, out, kernel, stride, padding=1 if kernel == 3 else 0)

    def up(self, inside: int, out: int) -> nn.Module:
        return Conv[Conv.CONVTRANS, self.dims](inside, out, 2, 2)

    def act(self, channels: int) -> nn.Module:
        name, options = (self.activation, {}) if isinstance(self.activation, str) else self.activation
        if name.lower() == "prelu":
            options = {"num_parameters": channels, **options}
        return get_act_layer((name, options))

    def finish(self, channels: int) -> list[nn.Module]:
        norm = [] if self.norm is None else [get_norm_layer(self.norm, self.dims, channels)]
        return [*norm, self.act(channels)]

    def gate(self, channels: int) -> nn.Module:
        return nn.Sequential(self.conv(channels, channels, 1), *self.finish(channels))

    def block(self, inside: int, out: int) -> nn.Module:
        return nn.Sequential(self.conv(inside, out, 3), *self.finish(out), self.conv(out, out, 3), *self.finish(out))


def _check(dims: int, inside: int, out: int, features: Sequence[int], up_features: Sequence[int]) -> None:
    if dims not in (2, 3):
        raise ValueError(f"spatial_dims must be 2 or 3, got {dims}")
    if inside < 1 or out < 1:
        raise ValueError(f"in_channels and out_channels must be at least 1, got {inside} and {out}")
    for name, widths, count in (("features", features, 5), ("up_features", up_features, 4)):
        if len(widths) != count or min(widths) < (2 if count == 5 else 1):
            raise ValueError(f"{name} must be {count} numbers of channels, features at least 2, got {list(widths)}")
