"""Parameter groups that decay the weights of convolutions and linear layers, and nothing else.

Decay of a normalisation's scale, of a bias or of an embedding of positions does not regularise a function, it only
pulls it; with Lion it even bounds it. Where labelled data are few, the decay of the rest is worth tuning: Kim, Kotha,
Liang, Hashimoto, "Pre-training under infinite compute" (2025) find its best value some 30 times the usual one for
language models on fixed data. Weights before a normalisation feel decay only through their effective learning rate.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from medseg.core.optim._checks import check_least

DECAYED = (
    nn.Linear,
    nn.Bilinear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.MultiheadAttention,
)


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups of the trainable parameters: matrices of convolutions, linear layers and attention, and all the rest.

    Args:
        model: the network.
        weight_decay: of the first group; that of the second is 0.

    Returns:
        Groups for any optimizer; one without parameters is left out.

    Raises:
        ValueError: the decay is negative or not finite.

    Example:
        >>> model = nn.Sequential(nn.Conv3d(1, 4, 3), nn.InstanceNorm3d(4, affine=True))
        >>> [(group["weight_decay"], len(group["params"])) for group in decay_groups(model, 0.1)]
        [(0.1, 1), (0.0, 3)]
    """
    check_least("weight_decay", weight_decay)
    decayed = {id(p) for p in decayed_weights(model)}
    params = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in params if id(p) in decayed], "weight_decay": weight_decay},
        {"params": [p for p in params if id(p) not in decayed], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def decayed_weights(model: nn.Module) -> Iterator[torch.Tensor]:
    """Matrices of the layers that decay."""
    for module in model.modules():
        if isinstance(module, DECAYED):
            yield from (p for p in module.parameters(recurse=False) if p.ndim > 1)
