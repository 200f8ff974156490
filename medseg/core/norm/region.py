"""Region normalisation: the voxels of each region are normalised by themselves.

    y = (x - mean_R) / sqrt(var_R + eps) * w_R + b_R          for voxels of region R, per channel

so that air, padding or a cropped border does not shift the statistics of the anatomy. Yu, Guo, Jin, Wu, Chen, Liu,
Zhang, "Region Normalization for Image Inpainting" (AAAI 2020). The mask comes from `with region_mask(mask):`, since
networks hand their norms nothing but features; it is resized by nearest neighbour to each resolution. Never use the
label to be predicted as mask.

The published code pools the statistics over the batch (`stats="batch"`; the default here is each item by itself),
divides eps by the region's share of the voxels (`scale_eps=True`) and adds the shifts of all regions everywhere
(`affine="code"`; the default keeps each to its region). There are no remembered statistics.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medseg.core.norm.feature_norm import FeatureNorm, batch_axes, count_values, spatial_axes, to_full_precision


class _Current:
    """Mask of regions by grid; a plain attribute, which torch.compile follows, unlike a ContextVar."""

    masks: dict[tuple[int, ...], Tensor] | None = None


@contextmanager
def region_mask(mask: Tensor) -> Iterator[None]:
    """Give the regions of the batches inside to every RegionNorm.

    Args:
        mask: (B, 1, spatial...) numbers of regions from 0 on; resized once for each resolution that asks.

    Yields:
        Nothing.

    Raises:
        ValueError: the mask is not (B, 1, spatial...).

    Example:
        >>> x = torch.randn(1, 2, 8, 8)
        >>> with region_mask((x[:, :1] > 0).int()):
        ...     y = RegionNorm(2)(x)
    """
    if not 3 <= mask.ndim <= 5 or mask.shape[1] != 1:
        raise ValueError(f"mask must be (B, 1, spatial...), got {tuple(mask.shape)}")
    before, _Current.masks = _Current.masks, {tuple(mask.shape): mask}
    try:
        yield
    finally:
        _Current.masks = before


def _find_mask(x: Tensor) -> Tensor | None:
    """Mask of the current context on the grid of x, or None."""
    known = _Current.masks
    if known is None:
        return None
    shape = (x.shape[0], 1, *x.shape[2:])
    if shape not in known:
        whole = next(iter(known.values()))
        if whole.ndim != x.ndim or len(whole) != x.shape[0]:
            raise ValueError(
                f"region_mask has shape {tuple(whole.shape)}, which does not fit features {tuple(x.shape)}; "
                "give one mask for each item of the batch"
            )
        known[shape] = F.interpolate(whole.float(), x.shape[2:], mode="nearest")
    return known[shape].to(x.device)


class RegionNorm(FeatureNorm):
    """Normalise the voxels of each region by themselves.

    Without a mask every voxel belongs to region 1, which makes it instance (or batch) normalisation.

    Args:
        num_features: channels C.
        regions: number of regions, at least 2: background 0, foreground 1, ...
        stats: "instance" for statistics of each item, "batch" to pool them.
        affine: "region" for a scale and a shift of each region inside it, "code" to add all shifts everywhere.
        scale_eps: divide eps by the region's share of the voxels.
        eps: added to the variance.
        allow_single_value: in training, accept an input of one voxel instead of raising.

    Raises:
        ValueError: an argument or an input that does not fit.

    Example:
        >>> tuple(RegionNorm(4)(torch.randn(1, 4, 5, 5, 5)).shape)
        (1, 4, 5, 5, 5)
    """

    weight: nn.Parameter
    bias: nn.Parameter

    def __init__(
        self,
        num_features: int,
        regions: int = 2,
        stats: Literal["instance", "batch"] = "instance",
        affine: Literal["region", "code"] = "region",
        scale_eps: bool = False,
        eps: float = 1e-5,
        allow_single_value: bool = False,
    ) -> None:
        super().__init__(num_features, eps=eps, allow_single_value=allow_single_value)
        if regions < 2:
            raise ValueError(f"regions must be at least 2, got {regions}")
        if stats not in ("instance", "batch"):
            raise ValueError(f"stats must be instance or batch, got {stats!r}")
        if affine not in ("region", "code"):
            raise ValueError(f"affine must be region or code, got {affine!r}")
        self.regions = regions
        self.stats = stats
        self.shift_everywhere = affine == "code"
        self.scale_eps = scale_eps
        self.weight = nn.Parameter(torch.ones(regions, num_features))
        self.bias = nn.Parameter(torch.zeros(regions, num_features))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, C, spatial...)."""
        self.check_input(x)
        check_region_count(self, x, self.stats)
        full = to_full_precision(x)
        mask = _find_mask(x)
        if mask is None:
            inside = [torch.zeros_like(full[:, :1]), torch.ones_like(full[:, :1])]
        else:
            inside = [(mask == region).to(full.dtype) for region in range(self.regions)]
        y = torch.zeros_like(full)
        shape = (1, -1, *[1] * (x.ndim - 2))
        for region, part in enumerate(inside):
            z = normalise_region(full, part, self.eps, self.stats, self.scale_eps)
            shift = self.bias[region].reshape(shape) * (1 if self.shift_everywhere else part)
            y = y + z * self.weight[region].reshape(shape) + shift
        return y.to(x.dtype)


def check_region_count(layer: FeatureNorm, x: Tensor, stats: str) -> None:
    """Refuse to train on one voxel."""
    batch = stats == "batch"
    layer.check_count(count_values(x) // (1 if batch else x.shape[0]), "batch and voxels" if batch else "voxels")


def normalise_region(x: Tensor, inside: Tensor, eps: float, stats: str, scale_eps: bool) -> Tensor:
    """Normalise the voxels of one region; 0 elsewhere.

    Args:
        x: (B, C, spatial...).
        inside: (B, 1, spatial...) of 0 and 1.
        eps: added to the variance.
        stats: "instance" or "batch".
        scale_eps: divide eps by the region's share of the voxels.

    Returns:
        (B, C, spatial...).

    Example:
        >>> x = torch.tensor([[[1.0, 3.0, 100.0]]])
        >>> normalise_region(x, torch.tensor([[[1.0, 1.0, 0.0]]]), 1e-9, "instance", False).round().tolist()
        [[[-1.0, 1.0, 0.0]]]
    """
    axes = batch_axes(x) if stats == "batch" else spatial_axes(x)
    count = inside.sum(axes, keepdim=True).clamp_min(1)
    mean = (x * inside).sum(axes, keepdim=True) / count
    centred = (x - mean) * inside
    variance = centred.square().sum(axes, keepdim=True) / count
    if scale_eps:
        eps = eps * (inside.numel() // (1 if stats == "batch" else x.shape[0])) / count  # type: ignore[assignment]
    return centred * torch.rsqrt(variance + eps)
