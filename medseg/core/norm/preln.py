"""Exact conversion of a trained Pre-LN transformer into one with RMS or CRMS normalisation.

Layer normalisation removes the mean over the features of a token, so nothing is lost when the residual stream never has
one: then it is RMS normalisation. For every layer that writes to the stream (embeddings, positions, outputs of
attention and MLP), the mean over its output features is subtracted from its weight and bias once; scale and shift of
each norm go into the linear layers that read it:

    writers   W <- W - mean_out(W),  b <- b - mean(b)
    readers   W <- W diag(w),        b <- b + W b_norm

For CRMS the last feature, which is minus the sum of the others, is not stored at all: writers lose their last output,
and readers W <- W[:, :-1] - W[:, -1:].

Jiang, Gu, Zhu, Pan, "Pre-RMSNorm and Pre-CRMSNorm Transformers: Equivalent and Efficient Pre-LN Transformers" (NeurIPS
2023). It is exact in evaluation where all who read the stream begin with a layer normalisation. That is so in MONAI's
ViT. It is not so in UNETR, whose decoder reads the stream itself, nor in SwinUNETR, whose patch merging normalises
eight tokens as one and so sees the differences of their means; both are refused. A norm that no linear layer reads
stays a layer normalisation, which is the same function there. The hidden states that a ViT returns lose their means.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from monai.networks.nets import UNETR, SwinUNETR, ViT
from monai.networks.nets.swin_unetr import SwinTransformer
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize

from medseg.core.norm.rms import CRMSNorm, RMSNorm
from medseg.core.norm.transformer_parts import block_readers, block_writers, find_runs, replace_module

Plan = Mapping[str, Any]


class ZeroMeanOutput(nn.Module):
    """A parametrization that keeps the mean over the output features (axis 0) of a weight or bias at zero.

    Example:
        >>> layer = nn.Linear(3, 4)
        >>> _ = parametrize.register_parametrization(layer, "weight", ZeroMeanOutput())
        >>> bool(layer.weight.mean(0).abs().max() < 1e-6)
        True
    """

    def forward(self, weight: Tensor) -> Tensor:
        """Subtract the mean over axis 0."""
        return weight - weight.mean(0, keepdim=True)


def convert_preln(
    model: nn.Module,
    target: Literal["rms", "crms"] = "rms",
    plan: Plan | None = None,
    check_input: Tensor | None = None,
    atol: float = 1e-5,
    trainable: bool = False,
) -> nn.Module:
    """Give a copy of a Pre-LN transformer with RMS or CRMS norms that computes the same.

    Args:
        model: a MONAI `ViT`, or any network with a `plan`; stays as it is.
        target: "rms", or "crms", which has one feature less and trains as an ordinary network.
        plan: {"readers": {norm: [linear layers]}, "writers": [layers or parameters]} with dotted names; None finds it.
        check_input: an input on which both are compared in evaluation.
        atol: largest difference allowed there, relative to the largest output.
        trainable: with "rms", keep the means of the writers at zero in training as well (`ZeroMeanOutput`).

    Returns:
        The converted copy.

    Raises:
        ValueError: the network cannot be converted exactly, or the outputs differ.

    Example:
        >>> network = ViT(1, 8, 4, hidden_size=8, mlp_dim=8, num_layers=1, num_heads=2, spatial_dims=2)
        >>> converted = convert_preln(network, check_input=torch.randn(1, 1, 8, 8))
        >>> type(converted.blocks[0].norm1).__name__
        'RMSNorm'
    """
    if target not in ("rms", "crms"):
        raise ValueError(f"target must be rms or crms, got {target!r}")
    plan = find_preln_plan(model) if plan is None else plan
    new = copy.deepcopy(model)
    with torch.no_grad():
        for name, readers in plan["readers"].items():
            _convert_norm(new, name, readers, target)
        for name in plan["writers"]:
            _convert_writer(new, name, target, trainable)
    if check_input is not None:
        compare_outputs(model, new, check_input, atol)
    return new


def find_preln_plan(model: nn.Module) -> dict[str, Any]:
    """Find who reads and who writes the residual stream of MONAI's ViT.

    Args:
        model: a `ViT`.

    Returns:
        A plan for `convert_preln`.

    Raises:
        ValueError: the network reads its stream without a norm, or is of an unknown kind.

    Example:
        >>> network = ViT(1, 8, 4, hidden_size=8, mlp_dim=8, num_layers=1, num_heads=2, spatial_dims=2)
        >>> find_preln_plan(network)["writers"][:2]
        ['patch_embedding.patch_embeddings', 'patch_embedding.position_embeddings']
    """
    if isinstance(model, UNETR):
        raise ValueError(
            "UNETR's decoder reads the residual stream without a norm: removing its mean changes the output"
        )
    if isinstance(model, (SwinUNETR, SwinTransformer)):
        raise ValueError(
            "the patch merging of a Swin transformer normalises neighbouring tokens as one and so depends on "
            "their means: "
            "removing these changes the output"
        )
    if not isinstance(model, ViT):
        raise ValueError(f"no plan is known for {type(model).__name__}; give one with the argument plan")
    blocks = [name for run in find_runs(model) for name in run]
    readers = {norm: linear for block in blocks for norm, linear in block_readers(model, block).items()}
    embedding = model.patch_embedding.patch_embeddings
    inner = ".1" if isinstance(embedding, nn.Sequential) else ""
    writers = [f"patch_embedding.patch_embeddings{inner}", "patch_embedding.position_embeddings"]
    if model.classification:
        head = ".0" if isinstance(model.classification_head, nn.Sequential) else ""
        readers["norm"] = [f"classification_head{head}"]
        writers.append("cls_token")
    else:
        readers["norm"] = []
    return {"readers": readers, "writers": writers + [name for b in blocks for name in block_writers(model, b)]}


def _convert_norm(model: nn.Module, name: str, readers: Sequence[str], target: str) -> None:
    norm = model.get_submodule(name)
    if not isinstance(norm, nn.LayerNorm) or len(norm.normalized_shape) != 1:
        raise ValueError(f"{name} must be a LayerNorm over features, got {type(norm).__name__}")
    if not readers:
        if target == "crms":
            raise ValueError(f'no linear layer reads {name}, whose output needs all features; use target="rms"')
        return
    for reader in readers:
        fold_into_linear(model.get_submodule(reader), norm.weight, norm.bias)
        if target == "crms":
            linear = model.get_submodule(reader)
            weight: Tensor = linear.weight  # type: ignore[assignment]
            linear.weight = nn.Parameter(weight[:, :-1] - weight[:, -1:])
            linear.in_features -= 1  # type: ignore[operator]
    size = norm.normalized_shape[0]
    if target == "crms":
        replace_module(model, name, CRMSNorm(size - 1, eps=norm.eps, affine=False, channels_last=True))
    else:
        replace_module(model, name, RMSNorm(size, eps=norm.eps, affine=False, channels_last=True))


@torch.no_grad()
def fold_into_linear(linear: nn.Module, weight: Tensor | None, bias: Tensor | None) -> None:
    """Put the scale and shift of a norm into a linear layer that reads it; it gets a bias where it needs one.

    Args:
        linear: an `nn.Linear`; changed in place.
        weight: scale (C,) or None.
        bias: shift (C,) or None.

    Raises:
        ValueError: the layer is of another kind.

    Example:
        >>> layer = nn.Linear(2, 1, bias=False)
        >>> fold_into_linear(layer, torch.ones(2), torch.zeros(2))
        >>> layer.bias.tolist()
        [0.0]
    """
    if not isinstance(linear, nn.Linear):
        raise ValueError(f"a norm can be folded into an nn.Linear, got {type(linear).__name__}")
    if bias is not None:
        shift = linear.weight @ bias
        linear.bias = nn.Parameter(shift if linear.bias is None else linear.bias + shift)
    if weight is not None:
        linear.weight.copy_(linear.weight * weight)


def _convert_writer(model: nn.Module, name: str, target: str, trainable: bool) -> None:
    parent, _, last = name.rpartition(".")
    thing = getattr(model.get_submodule(parent), last)
    if isinstance(thing, nn.Parameter):  # positions and tokens: features are the last axis
        thing.copy_(thing - thing.mean(-1, keepdim=True))
        if target == "crms":
            shorter = nn.Parameter(thing[..., :-1].clone(), requires_grad=thing.requires_grad)
            setattr(model.get_submodule(parent), last, shorter)
        return
    if not isinstance(thing, (nn.Linear, _ConvNd)):
        raise ValueError(f"{name} must be a linear layer, a convolution or a parameter, got {type(thing).__name__}")
    for part in ("weight", "bias"):
        values = getattr(thing, part)
        if values is None:
            continue
        values.copy_(values - values.mean(0, keepdim=True))
        if target == "crms":
            setattr(thing, part, nn.Parameter(values[:-1].clone()))
        elif trainable:
            parametrize.register_parametrization(thing, part, ZeroMeanOutput())
    if target == "crms":
        size = "out_features" if isinstance(thing, nn.Linear) else "out_channels"
        setattr(thing, size, getattr(thing, size) - 1)


@torch.no_grad()
def compare_outputs(model: nn.Module, new: nn.Module, x: Tensor, atol: float) -> None:
    """Run both networks in evaluation and raise where their (first) outputs differ.

    Args:
        model: the original.
        new: what should compute the same.
        x: an input of both.
        atol: largest difference allowed, relative to the largest output.

    Raises:
        ValueError: they differ by more.

    Example:
        >>> compare_outputs(nn.ReLU(), nn.Identity(), torch.ones(3), 1e-6)
    """
    outputs = []
    for network in (model, new):
        training = network.training
        y = network.eval()(x)
        network.train(training)
        outputs.append(y[0] if isinstance(y, (tuple, list)) else y)
    worst = float((outputs[0] - outputs[1]).abs().max() / outputs[0].abs().max().clamp_min(1e-12))
    if not worst <= atol:
        raise ValueError(
            f"the new network differs by {worst:.2g}, more than atol {atol}: something reads features that are "
            "not what "
            "they were, as the residual stream without a norm, or padding behind a norm"
        )
