"""Layer normalisation over the channels of each voxel, as ConvNeXt and MedNeXt blocks use it.

    y = (x - mean) / sqrt(var + eps) * w + b,        mean and var (biased) over the C values of one voxel

Ba, Kiros, Hinton, "Layer Normalization" (2016). Of its two readings for feature maps this is the one per voxel; the one
over channels and voxels together is MONAI's ("group", {"num_groups": 1}). With few channels it comes close to a sign:
two channels can only give +1 and -1, and one gives 0, which is refused.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from medseg.core.norm.feature_norm import FeatureNorm, to_full_precision


class LayerNormChannel(FeatureNorm):
    """Layer normalisation over the channels of each voxel or token.

    Args:
        num_features: channels C, at least 2.
        eps: added to the variance.
        affine: learn a scale for each channel.
        bias: learn a shift as well.
        channels_last: the channels are the last axis, as in tokens (B, N, C), instead of axis 1.

    Raises:
        ValueError: fewer than 2 channels, or an input with another number of them.

    Example:
        >>> tuple(LayerNormChannel(4)(torch.randn(1, 4, 3, 3, 3)).shape)
        (1, 4, 3, 3, 3)
        >>> tuple(LayerNormChannel(4, channels_last=True)(torch.randn(1, 27, 4)).shape)
        (1, 27, 4)
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-6,
        affine: bool = True,
        bias: bool = True,
        channels_last: bool = False,
    ) -> None:
        if num_features < 2:
            raise ValueError(f"num_features must be at least 2, got {num_features}: a single channel would become 0")
        super().__init__(num_features, eps=eps, affine=affine)
        self.channels_last = channels_last
        if not bias:
            self.bias = None

    def forward(self, x: Tensor) -> Tensor:
        """Normalise each voxel of (B, C, spatial...), or each token of (..., C) with `channels_last`."""
        full = to_full_precision(x)
        if self.channels_last:
            check_tokens(self, x)
            y = F.layer_norm(full, (self.num_features,), None, None, self.eps)
        else:
            self.check_input(x)
            variance, mean = torch.var_mean(full, dim=1, keepdim=True, correction=0)
            y = (full - mean) * torch.rsqrt(variance + self.eps)
        return scale_channels(y, self.weight, self.bias, self.channels_last).to(x.dtype)


def check_tokens(layer: FeatureNorm, x: Tensor) -> None:
    """Refuse anything but (..., C)."""
    if x.ndim < 2 or x.shape[-1] != layer.num_features:
        raise ValueError(
            f"{type(layer).__name__} with channels_last takes (..., {layer.num_features}), got {tuple(x.shape)}; "
            f"build it with num_features equal to the last axis of its input"
        )


def scale_channels(y: Tensor, weight: Tensor | None, bias: Tensor | None, channels_last: bool) -> Tensor:
    """Multiply by the scale and add the shift, each where there is one."""
    shape = (-1,) if channels_last else (-1, *[1] * (y.ndim - 2))
    if weight is not None:
        y = y * weight.reshape(shape)
    return y if bias is None else y + bias.reshape(shape)
