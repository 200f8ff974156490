"""A network with the constructor that nnU-Net's plans expect; its logits say how near the voxel is to each class."""

from __future__ import annotations

import torch
from torch import nn


class TinyNetwork(nn.Module):
    def __init__(self, input_channels: int, num_classes: int, conv_op: type, deep_supervision: bool) -> None:
        super().__init__()
        assert not deep_supervision
        self.conv = conv_op(input_channels, num_classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x)
