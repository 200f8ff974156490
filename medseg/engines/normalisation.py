"""Which statistics the batch normalisation of a network uses, and which of its parameters train.

Batch normalisation remembers the means and variances of the images it was trained on. On images of another scanner they
are wrong, and replacing them is the cheapest adaptation there is: Li, Wang, Shi, Hou, Liu, "Adaptive Batch
Normalization for practical domain adaptation" (Pattern Recognition, 2018); Nado et al., "Evaluating Prediction-Time
Batch Normalization for Robustness under Covariate Shift" (2020). Instance, group and layer normalisation remember
nothing: there is nothing to replace, which leaves such networks, most nnU-Nets among them, as they are.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Literal

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from medseg.core.norm import is_norm

NormStatistics = Literal["target", "source", "batch"]
Trainable = Literal["all", "norm", "none"] | Callable[[str, nn.Parameter], bool]

STATISTICS = ("target", "source", "batch")


def configure_norm(model: nn.Module, mode: NormStatistics = "target") -> int:
    """Choose the statistics of every batch normalisation of a network (1D to 3D, and synchronised).

    Call it again after `model.train()`, which forgets "source".

    Args:
        model: the network; changed in place.
        mode: "target" normalises by the batch in training and moves the remembered statistics towards the images seen,
            which evaluation then uses; "source" keeps and uses the remembered ones; "batch" forgets them for good, so
            that evaluation normalises by the batch as well, and its state dict lacks them.

    Returns:
        How many such layers there are; a warning says if none.

    Raises:
        ValueError: the mode is unknown.

    Example:
        >>> layer = nn.BatchNorm2d(4)
        >>> configure_norm(layer, "source"), layer.training
        (1, False)
    """
    if mode not in STATISTICS:
        raise ValueError(f"mode must be one of {', '.join(STATISTICS)}, got {mode!r}")
    layers = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    for layer in layers:
        layer.train(mode != "source")
        if mode == "batch":
            layer.track_running_stats = False
            layer.running_mean = layer.running_var = layer.num_batches_tracked = None
    if not layers:
        warnings.warn(
            "the network has no batch normalisation, so that there are no statistics to adapt; other kinds, such as "
            "instance normalisation, remember none",
            stacklevel=2,
        )
    return len(layers)


def choose_parameters(model: nn.Module, trainable: Trainable) -> list[nn.Parameter]:
    """Let some parameters of a network train and freeze the others.

    Args:
        model: the network; changed in place.
        trainable: "all", "norm" (scales and shifts of every kind of normalisation), "none", or a function of a
            parameter's name and the parameter.

    Returns:
        The parameters that train.

    Raises:
        ValueError: the choice is unknown, or leaves nothing to train although it is not "none".

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))
        >>> len(choose_parameters(model, "norm")), len(choose_parameters(model, lambda name, _: name == "0.bias"))
        (2, 1)
    """
    if not callable(trainable) and trainable not in ("all", "norm", "none"):
        raise ValueError(f"trainable must be all, norm, none or a function of (name, parameter), got {trainable!r}")
    of_norms = {id(p) for m in model.modules() if is_norm(m) for p in m.parameters(recurse=False)}
    chosen = []
    for name, parameter in model.named_parameters():
        wanted = trainable(name, parameter) if callable(trainable) else trainable == "all"
        wanted = wanted or (trainable == "norm" and id(parameter) in of_norms)
        parameter.requires_grad_(bool(wanted))
        if wanted:
            chosen.append(parameter)
    if not chosen and trainable != "none":
        raise ValueError(f"trainable={trainable!r} leaves no parameter to train; use all, or none on purpose")
    return chosen
