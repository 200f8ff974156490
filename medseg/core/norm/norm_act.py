"""Instance or group normalisation together with the activation behind it, and a residual between them.

    y = act((x - mean) / sqrt(var + eps) * w + b + residual)

`medseg.core.kernels.norm_act` does it in two reads of the input and one write, and keeps nothing for the backward pass
but the input and two numbers a channel. PyTorch keeps what the activation gives as well, which a convolution behind it
keeps anyway; and its instance norm copies channels_last_3d to the other layout and back, which is not done here.
`fuse_norm_act` puts these layers into an existing network; a new one takes `norm=("instance_act", {...}), act=""`.

Ulyanov, Vedaldi, Lempitsky, "Instance Normalization" (2016); Wu, He, "Group Normalization" (2018).
"""

from __future__ import annotations

from torch import Tensor

from medseg.core.kernels import norm_act
from medseg.core.kernels.norm_act import ACTIVATIONS
from medseg.core.norm.feature_norm import FeatureNorm, check_groups


class GroupNormAct(FeatureNorm):
    """Group normalisation and activation in one layer.

    Args:
        num_features: channels C.
        num_groups: groups of channels, a divisor of C.
        act: "none", "relu", "leaky_relu" or "silu".
        negative_slope: slope of "leaky_relu" below 0.
        eps: added to the variance.
        affine: learn a scale and a shift for each channel.
        allow_single_value: in training, accept a group of one value, whose normalised value is 0, instead of raising.

    Raises:
        ValueError: an unknown activation, groups that do not divide the channels, or an input with other channels.

    Example:
        >>> import torch
        >>> layer = GroupNormAct(4, num_groups=2, act="relu")
        >>> bool((layer(torch.randn(1, 4, 3, 3, 3)) >= 0).all())
        True
    """

    def __init__(
        self,
        num_features: int,
        num_groups: int,
        act: str = "leaky_relu",
        negative_slope: float = 0.01,
        eps: float = 1e-5,
        affine: bool = True,
        allow_single_value: bool = False,
    ) -> None:
        super().__init__(num_features, eps=eps, affine=affine, allow_single_value=allow_single_value)
        check_groups(num_groups, num_features)
        if act not in ACTIVATIONS:
            raise ValueError(f"act must be one of {', '.join(ACTIVATIONS)}, got {act!r}")
        self.num_groups, self.act, self.negative_slope = num_groups, act, float(negative_slope)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Normalise (B, C, spatial...), add a residual of that shape where there is one, and activate."""
        self.check_input(x)
        count = x.shape[1:].numel() // self.num_groups
        self.check_count(count, f"a group of {self.num_features // self.num_groups} channels of an item")
        if count == 1:  # normalised values of 0, and the kernel refuses them; two equal ones have the same
            x = x.repeat_interleave(2, dim=-1)
            residual = None if residual is None else residual.repeat_interleave(2, dim=-1)
        y = norm_act(
            x,
            self.weight,
            self.bias,
            residual,
            groups=self.num_groups,
            act=self.act,
            negative_slope=self.negative_slope,
            eps=self.eps,
        )
        return y[..., :1] if count == 1 else y

    def extra_repr(self) -> str:
        """Name what was chosen."""
        slope = f"({self.negative_slope})" if self.act == "leaky_relu" else ""
        return f"{super().extra_repr()}, num_groups={self.num_groups}, act={self.act}{slope}"


class InstanceNormAct(GroupNormAct):
    """Instance normalisation and activation in one layer.

    Args:
        num_features: channels C.
        act: "none", "relu", "leaky_relu" or "silu".
        negative_slope: slope of "leaky_relu" below 0.
        eps: added to the variance.
        affine: learn a scale and a shift for each channel.
        allow_single_value: in training, accept a single voxel, whose normalised value is 0, instead of raising.

    Raises:
        ValueError: an unknown activation, or an input with other channels.

    Example:
        >>> import torch
        >>> from monai.networks.nets import UNet
        >>> network = UNet(3, 1, 2, channels=(4, 8), strides=(2,), norm=("instance_act", {"act": "relu"}), act="")
        >>> tuple(network(torch.randn(1, 1, 8, 8, 8)).shape)
        (1, 2, 8, 8, 8)
    """

    def __init__(
        self,
        num_features: int,
        act: str = "leaky_relu",
        negative_slope: float = 0.01,
        eps: float = 1e-5,
        affine: bool = True,
        allow_single_value: bool = False,
    ) -> None:
        super().__init__(num_features, num_features, act, negative_slope, eps, affine, allow_single_value)
