"""Train nothing but the scales and shifts of normalisation: a fraction of a percent of a network's parameters.

Frankle, Schwab, Morcos, "Training BatchNorm and Only BatchNorm: On the Expressive Power of Random Features in CNNs"
(ICLR 2021), where all else is random; for segmentation it is a cheap way to adapt a trained network to a site, with
checkpoints of a few kilobytes. Weight decay pulls scales to zero: leave these parameters out of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from medseg.core.norm.convert import is_norm


def norm_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Give the parameters of every normalisation layer of a network by name.

    Example:
        >>> sorted(norm_parameters(nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))))
        ['1.bias', '1.weight']
    """
    return {
        f"{name}.{key}" if name else key: parameter
        for name, module in model.named_modules()
        if is_norm(module)
        for key, parameter in module.named_parameters(recurse=False)
    }


def freeze_except_norm(
    model: nn.Module, include: Sequence[str] = (), *, reinit: bool = False, seed: int | None = None
) -> list[str]:
    """Let the parameters of normalisation train and freeze the others, in place.

    Args:
        model: the network.
        include: parts of names of further parameters that train, such as those of the last convolution.
        reinit: draw scales from U(0, 1) and set shifts to 0, as in the paper.
        seed: of that draw.

    Returns:
        Names of the parameters that train.

    Raises:
        ValueError: there is no normalisation with parameters.

    Example:
        >>> freeze_except_norm(nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2)))
        ['1.weight', '1.bias']
    """
    norms = norm_parameters(model)
    if not norms:
        raise ValueError("the network has no normalisation with parameters; instance normalisation needs affine=True")
    generator = torch.Generator().manual_seed(seed) if seed is not None else None
    trainable = []
    for name, parameter in model.named_parameters():
        wanted = name in norms or any(part in name for part in include)
        parameter.requires_grad_(wanted)
        if wanted:
            trainable.append(name)
        if reinit and name in norms:
            fresh = torch.rand(parameter.shape, generator=generator) if name.endswith("weight") else torch.zeros(1)
            with torch.no_grad():
                parameter.copy_(fresh.expand(parameter.shape))
    return trainable


def norm_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """Give the state of the normalisation layers alone, to keep a site's adaptation beside the shared weights.

    Load it with `model.load_state_dict(state, strict=False)`.

    Example:
        >>> len(norm_state_dict(nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))))
        5
    """
    prefixes = tuple(f"{name}." for name, module in model.named_modules() if is_norm(module))
    return {name: value.detach().clone() for name, value in model.state_dict().items() if name.startswith(prefixes)}


def small_scale_fraction(model: nn.Module, threshold: float = 0.01) -> float:
    """Give the share of scales of normalisation below a threshold: channels that training has switched off.

    Args:
        model: the network.
        threshold: of the absolute value.

    Returns:
        From 0 to 1; nan without scales.

    Example:
        >>> small_scale_fraction(nn.BatchNorm2d(2))
        0.0
    """
    scales = [p.detach().abs().flatten() for name, p in norm_parameters(model).items() if name.endswith("weight")]
    return float((torch.cat(scales) < threshold).float().mean()) if scales else float("nan")
