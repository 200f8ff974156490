"""Normalisation by the root mean square of the channels, and its form for compressed zero-mean vectors.

    RMS      y = x / sqrt(mean_C(x^2) + eps) * w
    CRMS     y = x / sqrt((sum x^2 + (sum x)^2) / (C + 1) + eps) * w

CRMS normalises the first C values of a vector of C + 1 values whose sum is 0: the last one is minus the sum of the
others and need not be stored. Jiang, Gu, Zhu, Pan, "Pre-RMSNorm and Pre-CRMSNorm Transformers: Equivalent and Efficient
Pre-LN Transformers" (NeurIPS 2023); RMS is Zhang, Sennrich, "Root Mean Square Layer Normalization" (2019). There is no
shift, as published. `convert_preln` turns a trained network with layer normalisation into one of these, exactly.
"""

from __future__ import annotations

import torch
from torch import Tensor

from medseg.core.norm.feature_norm import FeatureNorm, to_full_precision
from medseg.core.norm.layer import check_tokens, scale_channels


class RMSNorm(FeatureNorm):
    """Divide each voxel or token by the root mean square of its channels.

    Args:
        num_features: channels C.
        eps: added to the mean square.
        affine: learn a scale for each channel.
        channels_last: the channels are the last axis, as in tokens (B, N, C), instead of axis 1.

    Raises:
        ValueError: the input has another number of channels.

    Example:
        >>> RMSNorm(2)(torch.tensor([[[3.0], [4.0]]])).square().mean().item()  # doctest: +ELLIPSIS
        0.9999...
    """

    def __init__(self, num_features: int, eps: float = 1e-6, affine: bool = True, channels_last: bool = False) -> None:
        super().__init__(num_features, eps=eps, affine=affine)
        self.channels_last = channels_last
        self.bias = None

    def forward(self, x: Tensor) -> Tensor:
        """Normalise each voxel of (B, C, spatial...), or each token of (..., C) with `channels_last`."""
        if self.channels_last:
            check_tokens(self, x)
        else:
            self.check_input(x)
        full = to_full_precision(x)
        y = full * torch.rsqrt(self._mean_square(full, -1 if self.channels_last else 1) + self.eps)
        return scale_channels(y, self.weight, None, self.channels_last).to(x.dtype)

    def _mean_square(self, x: Tensor, axis: int) -> Tensor:
        return x.square().mean(axis, keepdim=True)


class CRMSNorm(RMSNorm):
    """Normalise zero-mean vectors of C + 1 values of which the first C are stored.

    Args:
        num_features: stored channels C.
        eps: added to the mean square of all C + 1 values.
        affine: learn a scale for each stored channel.
        channels_last: the channels are the last axis, as in tokens (B, N, C), instead of axis 1.

    Raises:
        ValueError: the input has another number of channels.

    Example:
        >>> full = torch.tensor([[1.0, 2.0, -3.0]])
        >>> whole = RMSNorm(3, channels_last=True)(full)[:, :2]
        >>> torch.allclose(CRMSNorm(2, channels_last=True)(full[:, :2]), whole)
        True
    """

    def _mean_square(self, x: Tensor, axis: int) -> Tensor:
        total = x.square().sum(axis, keepdim=True) + x.sum(axis, keepdim=True).square()
        return total / (self.num_features + 1)
