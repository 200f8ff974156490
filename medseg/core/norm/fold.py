"""Fold normalisations that are fixed in evaluation into the convolutions before them.

    conv then norm:  s (W x + c) + t  =  (s W) x + (s c + t)

Batch normalisation, PowerNorm, Unified Normalization, ghost and L1 batch normalisation and AdaB2N are a scale s and a
shift t per channel in evaluation, so inference can do without them. Which convolution feeds which norm is seen by
running the network once, and the result is checked against the original; where it differs, nothing is changed.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from medseg.core.norm.feature_norm import RunningNorm
from medseg.core.norm.ghost_batch import fixed_affine


def fold_norms(model: nn.Module, example: Tensor, *, atol: float = 1e-4) -> tuple[nn.Module, int]:
    """Give a copy of a network for inference whose fixed norms are folded into convolutions.

    Args:
        model: the network; stays as it is.
        example: an input that it takes.
        atol: largest difference of the outputs, relative to their largest value.

    Returns:
        The copy, in evaluation mode, with `nn.Identity` where a norm was folded, and how many were.

    Raises:
        ValueError: no norm could be folded, or the outputs differ by more than `atol`.

    Example:
        >>> from monai.networks.nets import UNet
        >>> network = UNet(2, 1, 2, channels=(4, 8), strides=(2,), norm="batch").eval()
        >>> fold_norms(network, torch.randn(1, 1, 8, 8))[1]
        2
    """
    folded = copy.deepcopy(model).eval()
    with torch.no_grad():
        pairs = _find_pairs(folded, example)
        for conv, norm in pairs:
            fold_norm(folded.get_submodule(conv), folded.get_submodule(norm))
            _replace(folded, norm)
        if not pairs:
            raise ValueError(
                "found no norm with fixed statistics behind a convolution; evaluation of the others reads x"
            )
        before = copy.deepcopy(model).eval()(example)
        worst = _difference(before, folded(example))
    if not worst <= atol:
        raise ValueError(
            f"the folded network differs by {worst:.2g}, more than atol {atol}: a convolution's output is used "
            "beside its norm"
        )
    return folded, len(pairs)


def fold_norm(conv: nn.Module, norm: nn.Module) -> None:
    """Put the scale and shift of a fixed norm into the convolution or linear layer before it, in place.

    Args:
        conv: a convolution, transposed convolution or `nn.Linear`; gets a bias where it has none.
        norm: a norm that is fixed in evaluation.

    Raises:
        ValueError: one of them is of another kind.

    Example:
        >>> conv, norm = nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2).eval()
        >>> fold_norm(conv, norm)
    """
    affine = fixed_scale_and_shift(norm)
    if affine is None or not isinstance(conv, (_ConvNd, nn.Linear)):
        raise ValueError(f"cannot fold {type(norm).__name__} into {type(conv).__name__}")
    scale, shift = affine
    transposed = isinstance(conv, _ConvTransposeNd)
    with torch.no_grad():
        groups = conv.groups if transposed else 1
        shape = (groups, 1, -1) if transposed else (-1, 1)
        weight = conv.weight.reshape(groups, -1, *conv.weight.shape[1:]) if transposed else conv.weight
        factor = scale.reshape(*shape, *[1] * (weight.ndim - len(shape)))
        conv.weight.copy_((weight * factor).reshape(conv.weight.shape))
        bias = shift if conv.bias is None else conv.bias * scale + shift
        conv.bias = nn.Parameter(bias.detach().to(conv.weight.dtype).clone())


def fixed_scale_and_shift(norm: nn.Module) -> tuple[Tensor, Tensor] | None:
    """Give the scale and shift per channel that a norm amounts to in evaluation; None where it reads its input.

    Example:
        >>> fixed_scale_and_shift(nn.InstanceNorm2d(2)) is None
        True
    """
    if isinstance(norm, RunningNorm):
        return norm.inference_affine()
    if isinstance(norm, _BatchNorm) and norm.running_mean is not None and norm.running_var is not None:
        return fixed_affine(norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)
    return None


def _find_pairs(model: nn.Module, example: Tensor) -> list[tuple[str, str]]:
    """Names of (convolution, norm) where the norm's input is what the convolution has just given."""
    source: dict[int, str] = {}
    alive: list[Tensor] = []  # an id may be used again once its tensor is gone
    pairs: list[tuple[str, str]] = []
    runs: dict[str, int] = {}

    def listen(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            runs[name] = runs.get(name, 0) + 1
            if isinstance(module, (_ConvNd, nn.Linear)):
                source[id(output)] = name
                alive.append(output)
            elif id(inputs[0]) in source:
                pairs.append((source[id(inputs[0])], name))

        return hook

    wanted = [
        (n, m) for n, m in model.named_modules() if isinstance(m, _ConvNd) or fixed_scale_and_shift(m) is not None
    ]
    handles = [m.register_forward_hook(listen(n)) for n, m in wanted]
    try:
        model(example)
    finally:
        for handle in handles:
            handle.remove()
    return [(conv, norm) for conv, norm in pairs if runs[conv] == runs[norm] == 1]


def _replace(model: nn.Module, name: str) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, nn.Identity())


def _difference(a: Any, b: Any) -> float:
    if isinstance(a, (list, tuple)):
        return max(_difference(x, y) for x, y in zip(a, b, strict=True))
    return float((a - b).abs().max() / a.abs().max().clamp_min(1e-12))
