"""Weight Compander: every weight is a saturating function of what is trained.

    w = a arctan(v / b),        |w| < a pi / 2,        dw/dv = (a / b) / (1 + (v / b)^2)

so weights stay bounded and are pushed away from zero, where the slope is steepest. a and b are learned, one pair a
layer. Cakaj, Mehnert, Yang, "Weight Compander: A Simple Weight Reparameterization for Regularization" (2023). No code
was published and the paper's exact function could not be read again: the arctangent and its start (a 1.25 times what
the largest weight needs, b = a / 1.5) are ours. Weight decay acts on v. At the start every weight is what it was.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize


class WeightCompander(nn.Module):
    """A parametrization w = a arctan(v / b) with positive a and b.

    Args:
        a: bound of the weights divided by pi / 2; above 0.
        b: width; above 0.
        learnable: train a and b.

    Raises:
        ValueError: a or b is not above 0.

    Example:
        >>> compand = WeightCompander(1.0, 0.5)
        >>> torch.allclose(compand(compand.right_inverse(torch.tensor([0.3]))), torch.tensor([0.3]))
        True
    """

    def __init__(self, a: float = 1.0, b: float = 1.0, learnable: bool = True) -> None:
        super().__init__()
        if not (a > 0 and b > 0):
            raise ValueError(f"a and b must be above 0, got {a} and {b}")
        # Kept through softplus, whose inverse this is, so that training cannot make them negative.
        start = torch.tensor([x + math.log(-math.expm1(-x)) for x in (a, b)])
        self.shape = nn.Parameter(start, requires_grad=learnable)

    def forward(self, v: Tensor) -> Tensor:
        """Give the weights."""
        a, b = F.softplus(self.shape)
        return a * torch.atan(v / b)

    @torch.no_grad()
    def right_inverse(self, weight: Tensor) -> Tensor:
        """Give what is trained for given weights."""
        a, b = F.softplus(self.shape)
        if bool((weight.abs() >= a * math.pi / 2).any()):
            raise ValueError(f"weights must be below {float(a) * math.pi / 2:.4g}; choose a larger a")
        return b * torch.tan(weight / a)


def compand_weights(model: nn.Module, exclude: Sequence[str] = (), *, learnable: bool = True) -> int:
    """Compand the weights of every convolution and linear layer of a network, in place.

    Args:
        model: the network; biases and norms stay as they are.
        exclude: parts of names of layers to leave out, such as that of the last convolution.
        learnable: train the two numbers of each layer.

    Returns:
        How many layers were changed.

    Raises:
        ValueError: there is none.

    Example:
        >>> layer = nn.Conv2d(2, 3, 3)
        >>> before = layer.weight.clone()
        >>> compand_weights(nn.Sequential(layer)), torch.allclose(layer.weight, before, atol=1e-6)
        (1, True)
    """
    count = 0
    for name, module in model.named_modules():
        if isinstance(module, (_ConvNd, nn.Linear)) and not any(part in name for part in exclude):
            largest = float(module.weight.detach().abs().max()) or 1.0
            a = 1.25 * largest * 2 / math.pi
            step = WeightCompander(a, a / 1.5, learnable).to(module.weight)
            parametrize.register_parametrization(module, "weight", step)
            count += 1
    if count == 0:
        raise ValueError(f"{type(model).__name__} has no convolution or linear layer outside of {list(exclude)}")
    return count
