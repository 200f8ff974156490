"""Self-normalising networks: SELU, matching initial weights and alpha dropout instead of normalisation layers.

    selu(x) = 1.0507 (max(0, x) + min(0, 1.6733 (e^x - 1)))        weights from N(0, 1 / fan_in), biases 0

For such weights and inputs of mean 0 and variance 1, activations of a plain stack keep both. Dropped values are set to
-1.7581, the lowest value of SELU, and the result is scaled back (alpha dropout).

Klambauer, Unterthiner, Mayr, Hochreiter, "Self-Normalizing Neural Networks" (NeurIPS 2017). In a U-Net the variance
drifts: zero padding and linear upsampling lower it, maximum pooling shifts the mean, sums double it. `activation_stats`
shows how far; residual sums are best scaled with `scale_residuals(model, "1/sqrt(2)")`. Inputs must be z-scored.
"""

from __future__ import annotations

from typing import Any

import torch
from monai.networks.blocks.activation import MemoryEfficientSwish, Swish
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.dropout import _DropoutNd

from medseg.core.norm.convert import is_norm

_ACTIVATIONS = (
    nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.CELU, nn.GELU, nn.SiLU, nn.ReLU6, nn.Mish, Swish, MemoryEfficientSwish,
)  # fmt: skip


def make_self_normalizing(model: nn.Module, dropout: float = 0.0) -> dict[str, int]:
    """Turn a network into a self-normalising one, in place.

    Norms become identities, activations SELU, dropout alpha dropout of whole channels; weights are drawn anew.

    Args:
        model: the network, before training.
        dropout: probability of the dropout layers that the network has, 0 to 1.

    Returns:
        How many norms, activations, dropouts and weights were changed.

    Raises:
        ValueError: the probability is out of range, or the network has no activation to exchange.

    Example:
        >>> from monai.networks.nets import UNet
        >>> make_self_normalizing(UNet(2, 1, 2, channels=(4, 8), strides=(2,)))
        {'norms': 2, 'activations': 2, 'dropouts': 2, 'weights': 3}
    """
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be from 0 to below 1, got {dropout}")
    counts = {"norms": 0, "activations": 0, "dropouts": 0, "weights": 0}
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            new: nn.Module
            if is_norm(child):
                new, kind = nn.Identity(), "norms"
            elif isinstance(child, _ACTIVATIONS):
                new, kind = nn.SELU(), "activations"
            elif isinstance(child, _DropoutNd):
                new, kind = nn.FeatureAlphaDropout(dropout), "dropouts"
            else:
                continue
            setattr(parent, name, new)
            counts[kind] += 1
    if counts["activations"] == 0:
        raise ValueError(f"{type(model).__name__} has no activation layer that SELU could replace")
    counts["weights"] = _draw_weights(model)
    return counts


@torch.no_grad()
def _draw_weights(model: nn.Module) -> int:
    count = 0
    for module in model.modules():
        if isinstance(module, (_ConvNd, nn.Linear)):
            weight = module.weight
            fan_in = weight[0].numel()
            if isinstance(module, _ConvTransposeNd):  # stride^n of the kernel's taps meet in one output voxel
                overlap = torch.tensor(module.stride).prod()
                fan_in = max(1, module.in_channels // module.groups * weight[0, 0].numel() // int(overlap))
            weight.normal_(0, fan_in**-0.5)
            if module.bias is not None:
                module.bias.zero_()
            count += 1
    return count


@torch.no_grad()
def activation_stats(model: nn.Module, x: Tensor) -> dict[str, tuple[float, float]]:
    """Run a network once and give mean and variance of what each of its smallest parts gives.

    Args:
        model: the network.
        x: an input.

    Returns:
        (mean, variance) for each layer by name, in the order they ran.

    Example:
        >>> stats = activation_stats(nn.Sequential(nn.SELU()), torch.zeros(1, 2, 4, 4))
        >>> stats["0"]
        (0.0, 0.0)
    """
    found: dict[str, tuple[float, float]] = {}

    def listen(name: str) -> Any:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.is_floating_point():
                found[name] = (float(output.mean()), float(output.var(correction=0)))

        return hook

    leaves = [(name, m) for name, m in model.named_modules() if not list(m.children())]
    handles = [module.register_forward_hook(listen(name)) for name, module in leaves]
    try:
        model(x)
    finally:
        for handle in handles:
            handle.remove()
    return found
