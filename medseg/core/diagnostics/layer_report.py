"""One line a layer: size, zeros, spectrum and filters, and what stands out.

The notes say what to look at, no more. Their limits are ours: more than half of the kernels empty; an entropy below
half of that of random kernels, so that few patterns serve all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from medseg.core.diagnostics.filters import diagnose_filters
from medseg.core.diagnostics.spectrum import layer_alpha


class LayerDiagnosis(NamedTuple):
    """What the weight of a layer looks like.

    Attributes:
        name: of the parameter.
        shape: of the weight.
        zeros: part of its entries that are exactly zero.
        alpha: exponent of the spectrum, see `layer_alpha`.
        sparsity: part of empty kernels.
        entropy: of the variance of kernels.
        entropy_ratio: to that of random kernels.
        orthogonality: of the filters.
        note: what stands out, or nothing.
    """

    name: str
    shape: tuple[int, ...]
    zeros: float
    alpha: float
    sparsity: float
    entropy: float
    entropy_ratio: float
    orthogonality: float
    note: str


def diagnose_layers(model: nn.Module) -> list[LayerDiagnosis]:
    """Look at the weights of all convolutions and linear layers; no data are needed.

    Args:
        model: the network.

    Returns:
        A diagnosis each, in the order of the modules; a module under two names once.

    Example:
        >>> network = nn.Sequential(nn.Conv3d(1, 8, 3), nn.ReLU(), nn.Conv3d(8, 8, 3))
        >>> _ = network[2].weight.data[:6].zero_()
        >>> [(layer.name, layer.note) for layer in diagnose_layers(network)]
        [('0.weight', ''), ('2.weight', 'empty kernels')]
    """
    found = []
    for name, module in model.named_modules():
        if isinstance(module, (_ConvNd, nn.Linear)):
            weight, transposed = module.weight.detach(), isinstance(module, _ConvTransposeNd)
            filters, alpha = diagnose_filters(weight, transposed), layer_alpha(weight)
            label, zeros = f"{name}.weight" if name else "weight", float((weight == 0).double().mean())
            note = _note(filters.sparsity, filters.entropy_ratio)
            found.append(LayerDiagnosis(label, tuple(weight.shape), zeros, alpha, *filters, note))
    return found


def layer_table(layers: Sequence[LayerDiagnosis]) -> str:
    """Write diagnoses as a Markdown table.

    Args:
        layers: as `diagnose_layers` gives them.

    Returns:
        A line for each, with a dash where there is no value.

    Example:
        >>> print(layer_table(diagnose_layers(nn.Linear(4, 4))).splitlines()[0])
        | layer | shape | zeros | alpha | empty kernels | entropy | to random | orthogonality | note |
    """
    lines = ["| layer | shape | zeros | alpha | empty kernels | entropy | to random | orthogonality | note |"]
    lines.append("|---|---|---:|---:|---:|---:|---:|---:|---|")
    for layer in layers:
        numbers = [layer.zeros, layer.alpha, layer.sparsity, layer.entropy, layer.entropy_ratio, layer.orthogonality]
        cells = ["-" if math.isnan(number) else f"{number:.2f}" for number in numbers]
        shape = " x ".join(map(str, layer.shape))
        lines.append(f"| {layer.name} | {shape} | {' | '.join(cells)} | {layer.note} |")
    return "\n".join(lines)


def _note(sparsity: float, entropy_ratio: float) -> str:
    notes = []
    if sparsity > 0.5:
        notes.append("empty kernels")
    if entropy_ratio < 0.5:
        notes.append("few patterns")
    return ", ".join(notes)
