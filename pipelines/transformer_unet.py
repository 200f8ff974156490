"""A small U-Net with a transformer at its lowest level, after TransUNet, the backbone of the AdaWAC paper.

Source: Chen et al., "TransUNet: Transformers Make Strong Encoders for Medical Image Segmentation" (2021), whose encoder
is a ResNet-50 and a ViT-B. Here the convolutions are those of MONAI's `UNet`, the transformer has two layers, and a
convolution in place of learned vectors tells cells where they are, so that any image size fits.
"""

from __future__ import annotations

import torch
from monai.networks.nets import UNet
from torch import nn


class TransformerUNet(UNet):
    """MONAI's `UNet` whose lowest block ends in a transformer over its cells."""

    def _get_bottom_layer(self, in_channels: int, out_channels: int) -> nn.Module:
        return nn.Sequential(super()._get_bottom_layer(in_channels, out_channels), CellTransformer(out_channels))


class CellTransformer(nn.Module):
    """Attention between the cells of a grid; a convolution tells them where they are."""

    def __init__(self, channels: int, layers: int = 2, heads: int = 4) -> None:
        super().__init__()
        self.place = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        layer = nn.TransformerEncoderLayer(
            channels, heads, 2 * channels, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, layers, nn.LayerNorm(channels), enable_nested_tensor=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map a grid (B, C, H, W) to one of the same shape."""
        cells = (x + self.place(x)).flatten(2).transpose(1, 2)
        return self.encoder(cells).transpose(1, 2).view_as(x)
