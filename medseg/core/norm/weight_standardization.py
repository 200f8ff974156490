"""Weight standardisation: the weights of each output channel have mean 0 and variance 1.

    w' = (w - mean) / sqrt(var + eps)        over input channels and kernel, for each output channel

Qiao, Wang, Liu, Shen, Yuille, "Micro-Batch Training with Batch-Channel Normalization and Weight Standardization"
(2019); made for batches of one or two, together with group or batch-channel normalisation. It is a parametrization: any
network can have it, the optimiser sees the weights w, and `fuse_weights` leaves an ordinary network for inference. The
published code takes the unbiased variance, which is not a number for a 1 x 1 x 1 convolution of one channel; here it is
the biased one, and such weights stay as they are (`unbiased=True` gives the published values).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils import parametrize


class WeightStandardization(nn.Module):
    """A parametrization that standardises the weight of a convolution.

    Args:
        transposed: the weight is that of a transposed convolution, (in, out / groups, kernel...).
        groups: groups of a transposed convolution.
        eps: added to the variance.
        unbiased: take the unbiased variance, as the published code does.

    Raises:
        ValueError: eps is not above 0.

    Example:
        >>> weight = WeightStandardization()(torch.randn(4, 2, 3, 3))
        >>> bool(weight.mean((1, 2, 3)).abs().max() < 1e-5)
        True
    """

    def __init__(self, transposed: bool = False, groups: int = 1, eps: float = 1e-5, unbiased: bool = False) -> None:
        super().__init__()
        if not eps > 0:
            raise ValueError(f"eps must be above 0, got {eps}")
        self.transposed = transposed
        self.groups = groups
        self.eps = eps
        self.unbiased = unbiased

    def forward(self, weight: Tensor) -> Tensor:
        """Standardise a weight (out, in / groups, kernel...), or (in, out / groups, kernel...) when transposed."""
        rows = weight
        if self.transposed:  # (groups, in / groups, out / groups, kernel...), reduced over all but groups and out
            rows = weight.reshape(self.groups, -1, *weight.shape[1:])
        axes = [1, *range(3, rows.ndim)] if self.transposed else list(range(1, rows.ndim))
        if not self.unbiased and rows.numel() == rows.mean(axes).numel():
            return weight
        variance, mean = torch.var_mean(rows, axes, correction=int(self.unbiased), keepdim=True)
        return ((rows - mean) * torch.rsqrt(variance + self.eps)).reshape(weight.shape)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Start from the weight itself: it is standardised from then on."""
        return weight


def standardize_weights(
    model: nn.Module, exclude: Sequence[str] = (), *, eps: float = 1e-5, unbiased: bool = False
) -> int:
    """Standardise the weights of every convolution of a network, in place.

    Args:
        model: the network.
        exclude: parts of names of layers to leave out, such as that of the last convolution, whose output is the
            logits.
        eps: added to the variance.
        unbiased: take the unbiased variance, as the published code does.

    Returns:
        How many convolutions there are.

    Raises:
        ValueError: there is none.

    Example:
        >>> from monai.networks.nets import UNet
        >>> network = UNet(3, 1, 2, channels=(4, 8), strides=(2,), norm="bcn")
        >>> standardize_weights(network)
        3
    """
    count = 0
    for name, module in model.named_modules():
        if isinstance(module, _ConvNd) and not any(part in name for part in exclude):
            transposed = isinstance(module, _ConvTransposeNd)
            step = WeightStandardization(transposed, module.groups if transposed else 1, eps, unbiased)
            parametrize.register_parametrization(module, "weight", step)
            count += 1
    if count == 0:
        raise ValueError(f"{type(model).__name__} has no convolution outside of {list(exclude)}")
    return count


def fuse_weights(model: nn.Module) -> int:
    """Keep the weights that parametrizations give and remove these, for inference; in place.

    Works for `standardize_weights`, `compand_weights` and any other parametrization.

    Args:
        model: the network.

    Returns:
        How many weights were parametrized.

    Example:
        >>> layer = nn.Sequential(nn.Conv2d(1, 2, 3))
        >>> standardize_weights(layer), fuse_weights(layer)
        (1, 1)
    """
    count = 0
    for module in list(model.modules()):
        if parametrize.is_parametrized(module):
            for name in list(module.parametrizations):  # type: ignore[arg-type]
                parametrize.remove_parametrizations(module, name, leave_parametrized=True)
                count += 1
    return count
