"""Replace or blend the remembered statistics of a network by those of new images, without labels or gradients.

    mean = (N mean_s + n mean_t) / (N + n),    the same for variances and second moments

s the training images, t the n new ones, N the weight of the old statistics in images (0 replaces them; about 16 suits
few images). With `pooled_variance` the variance also gets N n / (N + n)^2 (mean_s - mean_t)^2.

Schneider, Rusak, Eck, Bringmann, Brendel, Bethge, "Improving robustness against common corruptions by covariate shift
adaptation" (NeurIPS 2020); Nado et al., "Evaluating Prediction-Time Batch Normalization for Robustness under Covariate
Shift" (2020). While statistics are gathered, layers normalise by each batch, so that deep layers see what they will
see, dropout is off, and sums are float64 and weighted by voxels. Volumes are mostly background: `foreground_fn` says
which voxels count.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from medseg.core.norm.adaptive_batch import AdaBatchNorm
from medseg.core.norm.batch_channel import BatchChannelNorm
from medseg.core.norm.evonorm import EvoNormB0
from medseg.core.norm.ghost_batch import GhostBatchNorm
from medseg.core.norm.power import PowerNorm
from medseg.core.norm.unified import UnifiedNorm

# What each buffer holds: the mean, the variance, or the mean square. L1 norms are left out: their deviation is no
# moment.
_MOMENTS: dict[type[nn.Module], dict[str, str]] = {
    _BatchNorm: {"running_mean": "mean", "running_var": "variance"},
    BatchChannelNorm: {"running_mean": "mean", "running_var": "variance"},
    GhostBatchNorm: {"running_mean": "mean", "running_var": "variance"},
    AdaBatchNorm: {"running_mean": "mean", "running_var": "variance"},
    EvoNormB0: {"running_var": "variance"},
    PowerNorm: {"running_phi": "square"},
    UnifiedNorm: {"running_var": "square"},
}


def adapt_batch_stats(
    model: nn.Module,
    loader: Iterable[Any],
    prior: float = 16.0,
    *,
    pooled_variance: bool = False,
    foreground_fn: Callable[[Tensor], Tensor] | None = None,
) -> int:
    """Move the remembered statistics of a network towards those of new images, in place.

    Args:
        model: the network; unchanged if anything fails.
        loader: batches: tensors (B, C, spatial...), dictionaries with "image", or sequences that begin with one.
        prior: how many images the old statistics count as; 0 replaces them.
        pooled_variance: add the spread between old and new means to the variance.
        foreground_fn: from a batch of images to (B, 1, spatial...), 1 for the voxels that count.

    Returns:
        How many layers were adapted.

    Raises:
        ValueError: no layer tracks statistics, the prior is negative, or there are no images.

    Example:
        >>> network = nn.Sequential(nn.BatchNorm2d(1))
        >>> adapt_batch_stats(network, [torch.full((2, 1, 4, 4), 5.0)], prior=0)
        1
        >>> network[0].running_mean.item()
        5.0
    """
    if not prior >= 0:
        raise ValueError(f"prior must not be negative, got {prior}")
    layers = [m for m in model.modules() if _moments_of(m)]
    if not layers:
        raise ValueError("no layer tracks statistics; instance, group and layer normalisation have none to adapt")
    before = copy.deepcopy(model.state_dict())
    training = {module: module.training for module in model.modules()}
    try:
        sums, images = _gather(model, layers, loader, foreground_fn)
    finally:
        model.load_state_dict(before)
        for module, mode in training.items():
            module.training = mode
    for layer in layers:
        if layer in sums:
            _blend(layer, sums[layer], prior, images, pooled_variance)
    return len(sums)


def _moments_of(module: nn.Module) -> dict[str, str]:
    for kind, moments in _MOMENTS.items():
        if isinstance(module, kind) and getattr(module, next(iter(moments))) is not None:
            return moments
    return {}


@torch.no_grad()
def _gather(
    model: nn.Module, layers: list[nn.Module], loader: Iterable[Any], foreground_fn: Callable[[Tensor], Tensor] | None
) -> tuple[dict[nn.Module, Tensor], int]:
    """Sums (count, x, x^2) of each layer's input per channel, and the number of images."""
    sums: dict[nn.Module, Tensor] = {}
    mask: Tensor | None = None

    def listen(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0].detach().double()
        weight = torch.ones_like(x[:, :1])
        if mask is not None and x.ndim > 2:
            weight = F.interpolate(mask.double(), x.shape[2:], mode="nearest")
        axes = [0, *range(2, x.ndim)]
        found = torch.stack([(weight.expand_as(x)).sum(axes), (x * weight).sum(axes), (x.square() * weight).sum(axes)])
        sums[module] = sums.get(module, 0) + found

    handles = [layer.register_forward_pre_hook(listen) for layer in layers]
    images = 0
    try:
        model.eval()
        for layer in layers:
            layer.train()
        for batch in loader:
            image = _image_of(batch)
            mask = None if foreground_fn is None else foreground_fn(image)
            model(image)
            images += len(image)
    finally:
        for handle in handles:
            handle.remove()
    if images == 0:
        raise ValueError("loader gave no images; statistics of nothing cannot be taken")
    return sums, images


def _image_of(batch: Any) -> Tensor:
    if isinstance(batch, dict):
        return batch["image"]
    return batch if isinstance(batch, Tensor) else batch[0]


@torch.no_grad()
def _blend(layer: nn.Module, sums: Tensor, prior: float, images: int, pooled: bool) -> None:
    count, total, squares = sums
    new = {"mean": total / count, "square": squares / count}
    new["variance"] = (new["square"] - new["mean"].square()).clamp_min(0)
    share = images / (prior + images)
    moments = _moments_of(layer)
    apart = 0.0
    if pooled and "mean" in moments.values():
        apart = share * (1 - share) * (layer.get_buffer("running_mean").double() - new["mean"]).square()
    for name, kind in moments.items():
        buffer = layer.get_buffer(name)
        blended = (1 - share) * buffer.double() + share * new[kind] + (apart if kind == "variance" else 0)
        # A channel without a counted voxel, or with values that are no numbers, keeps what it had.
        buffer.copy_(torch.where(torch.isfinite(blended), blended, buffer.double()))
