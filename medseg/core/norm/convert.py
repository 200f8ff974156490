"""Exchange the normalisation of an existing network, tokens included, which MONAI's factory does not reach.

UNETR and SwinUNETR take `norm_name` for their convolutions and keep `nn.LayerNorm` for their tokens; VNet, AHNet and
SENet fix batch normalisation. `convert_norm` exchanges what it finds, in place.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from monai.networks.layers import Norm, get_norm_layer
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from medseg.core.norm.feature_norm import FeatureNorm
from medseg.core.norm.placement import PLACEMENTS, place_norms

_KINDS: dict[str, type[nn.Module]] = {
    "batch": _BatchNorm,
    "instance": _InstanceNorm,
    "group": nn.GroupNorm,
    "layer": nn.LayerNorm,
}
_STATE = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def convert_norm(
    model: nn.Module,
    to: str | Sequence[Any],
    source: str | Sequence[str] | None = None,
    *,
    within: str = "",
    spatial_dims: int = 3,
    copy_affine: bool = True,
) -> int:
    """Exchange normalisation layers of a network in place.

    Layers that normalise tokens, the last axis of (..., C), must be exchanged for one with `channels_last`
    ("layer_channel" or "rms"); it is set for them. Note that SwinUNETR normalises what its encoder hands to the decoder
    by a function, which no exchange of layers reaches; `normalize=False` turns that off.

    Args:
        model: the network; changed in place.
        to: a name, or [name, {arguments}], as for `norm=` of MONAI's networks; or "post_ln", "mix_ln", "peri_ln" or
            "layernorm_scaling", which moves the norms of transformer blocks (see `place_norms`).
        source: what to exchange: "batch", "instance", "group", "layer" (several in a list), or names of this package;
            None means all of the first three, that is everything but tokens.
        within: dotted name of the part of the network to look at; "" for all of it.
        spatial_dims: of the network, for layers that MONAI has one class a dimension of.
        copy_affine: take over scale, shift and remembered statistics wherever the new layer has them in that shape.

    Returns:
        How many layers were exchanged.

    Raises:
        ValueError: nothing was found to exchange, or a layer cannot stand in that place.

    Example:
        >>> from monai.networks.nets import UNet
        >>> network = UNet(3, 1, 2, channels=(4, 8), strides=(2,))
        >>> convert_norm(network, ["power", {"warmup_iters": 500}])
        2
    """
    if (name := to if isinstance(to, str) else to[0]) in PLACEMENTS:
        return place_norms(model.get_submodule(within), name, **({} if isinstance(to, str) else to[1]))
    kinds = _find_kinds(("batch", "instance", "group") if source is None else source)
    root = model.get_submodule(within)
    if isinstance(root, kinds):
        raise ValueError("model is itself a normalisation layer; give the network that holds it")
    # A layer may be known by several names, as in nnU-Net's blocks; it stays one.
    exchanged: dict[nn.Module, nn.Module] = {}
    for parent in list(root.modules()):
        for name, child in list(parent._modules.items()):
            if isinstance(child, kinds):
                if child not in exchanged:
                    exchanged[child] = _replace(child, to, spatial_dims, copy_affine)
                setattr(parent, name, exchanged[child])
    if not exchanged:
        found = sorted({type(m).__name__ for m in root.modules() if "Norm" in type(m).__name__})
        raise ValueError(
            f"found no layer of {source or 'batch, instance, group'} in {within or type(model).__name__}, which has "
            f"{', '.join(found) or 'no normalisation at all'}; choose others with source"
        )
    return len(exchanged)


def _find_kinds(source: str | Sequence[str]) -> tuple[type[nn.Module], ...]:
    from medseg.core.norm.register import NORMS  # here, because that imports every layer

    known = _KINDS | NORMS
    names = [source] if isinstance(source, str) else list(source)
    if unknown := [n for n in names if n not in known]:
        raise ValueError(f"source must be of {', '.join(known)}, got {', '.join(map(str, unknown))}")
    return tuple(known[n] for n in names)


def _channels(layer: nn.Module) -> int:
    if isinstance(layer, nn.LayerNorm):
        if len(layer.normalized_shape) != 1:
            raise ValueError(
                f"cannot exchange a LayerNorm over {tuple(layer.normalized_shape)}, only over channels alone"
            )
        return layer.normalized_shape[0]
    return int(layer.num_channels if isinstance(layer, nn.GroupNorm) else layer.num_features)  # type: ignore[arg-type]


def _replace(old: nn.Module, to: str | Sequence[Any], spatial_dims: int, copy_affine: bool) -> nn.Module:
    name, arguments = (to, {}) if isinstance(to, str) else (to[0], dict(to[1]))
    tokens = isinstance(old, nn.LayerNorm) or bool(getattr(old, "channels_last", False))
    layer = Norm[name, spatial_dims]
    if tokens:
        if "channels_last" not in inspect.signature(layer).parameters:
            raise ValueError(
                f"{name} normalises feature maps, but {type(old).__name__} normalises tokens, whose channels are "
                "the last "
                "axis; use layer_channel, rms or crms there, or choose other layers with source"
            )
        arguments = {"channels_last": True} | arguments
    new = get_norm_layer((name, arguments), spatial_dims, _channels(old))
    first = next((t for t in [*old.parameters(), *old.buffers()]), None)
    if first is not None:
        new.to(first.device)
        if first.is_floating_point():
            new.to(first.dtype)
    if copy_affine:
        _copy_state(old, new)
    return new.train(old.training)


@torch.no_grad()
def _copy_state(old: nn.Module, new: nn.Module) -> None:
    for name in _STATE:
        theirs, ours = getattr(old, name, None), getattr(new, name, None)
        if isinstance(theirs, torch.Tensor) and isinstance(ours, torch.Tensor) and theirs.shape == ours.shape:
            ours.copy_(theirs)


def is_norm(module: nn.Module) -> bool:
    """Say whether a layer is a normalisation, of torch or of this package.

    Example:
        >>> is_norm(nn.BatchNorm2d(3)), is_norm(nn.Conv2d(1, 1, 1))
        (True, False)
    """
    return isinstance(module, (*_KINDS.values(), nn.RMSNorm, FeatureNorm))
