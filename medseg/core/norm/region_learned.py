"""Region normalisation with regions that the layer finds itself.

    A = sigmoid(conv([mean_C x, max_C x])),   region 1 where A >= threshold, region 0 elsewhere
    y = rn * (1 + conv(A)) + conv(A)'

rn is x normalised within the two regions, per channel. The regions are constants for the gradient, which reaches the
convolutions through the scale and shift of each voxel alone.

Yu, Guo, Jin, Wu, Chen, Liu, Zhang, "Region Normalization for Image Inpainting" (AAAI 2020), RN-L. Statistics of each
item by itself, as in the paper; the published code pools them over the batch (`stats="batch"`).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from medseg.core.norm.feature_norm import FeatureNorm, to_full_precision
from medseg.core.norm.region import check_region_count, normalise_region


class RegionNormLearned(FeatureNorm):
    """Normalise two regions found from the features by themselves.

    Args:
        num_features: channels C.
        spatial_dims: 1, 2 or 3; filled in where the layer is chosen by name.
        kernel_size: odd width of the convolutions; the published 7 is 343 voxels in 3D, 3 is cheaper.
        threshold: value of A from which a voxel belongs to region 1, 0 to 1.
        stats: "instance" or "batch".
        eps: added to the variance.
        allow_single_value: in training, accept an input of one voxel instead of raising.

    Raises:
        ValueError: an argument or an input that does not fit.

    Example:
        >>> tuple(RegionNormLearned(4, spatial_dims=2, kernel_size=3)(torch.randn(1, 4, 5, 5)).shape)
        (1, 4, 5, 5)
    """

    def __init__(
        self,
        num_features: int,
        spatial_dims: int = 3,
        kernel_size: int = 7,
        threshold: float = 0.8,
        stats: Literal["instance", "batch"] = "instance",
        eps: float = 1e-5,
        allow_single_value: bool = False,
    ) -> None:
        super().__init__(num_features, eps=eps, affine=False, allow_single_value=allow_single_value)
        if spatial_dims not in (1, 2, 3) or kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"need spatial_dims 1 to 3 and an odd kernel_size, got {spatial_dims} and {kernel_size}")
        if stats not in ("instance", "batch"):
            raise ValueError(f"stats must be instance or batch, got {stats!r}")
        self.threshold = threshold
        self.stats = stats
        conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[spatial_dims - 1]
        padding = kernel_size // 2
        self.find_regions = conv(2, 1, kernel_size, padding=padding, bias=False)
        self.scale = conv(1, 1, kernel_size, padding=padding)
        self.shift = conv(1, 1, kernel_size, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, C, spatial...)."""
        self.check_input(x)
        check_region_count(self, x, self.stats)
        full = to_full_precision(x)
        # In half precision a voxel near the threshold would change its region.
        with torch.autocast(x.device.type, enabled=False):
            attention = self._attend(full)
            scale, shift = self.scale(attention), self.shift(attention)
        inside = (attention.detach() >= self.threshold).to(full.dtype)
        z = normalise_region(full, inside, self.eps, self.stats, False)
        z = z + normalise_region(full, 1 - inside, self.eps, self.stats, False)
        return (z * (1 + scale) + shift).to(x.dtype)

    def _attend(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.find_regions(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)))
