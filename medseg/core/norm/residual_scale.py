"""Scale the branches of residual blocks: x <- x + lambda F(x).

With n blocks the sum of all paths grows like (1 + lambda)^n; lambda = 1 / n bounds it by e, 1 / sqrt(n) keeps the
variance of independent branches. SkipInit learns lambda, one number a block, from 0; so every block starts as its
shortcut.

Dherin, Munn, "On residual network depth" (2025); De, Smith, "Batch Normalization Biases Residual Blocks Towards the
Identity Function in Deep Networks" (NeurIPS 2020, SkipInit). For networks without normalisation, or deep ones. Only the
branch is scaled, never a projection in the shortcut.

Fixup (Zhang, Dauphin, Ma 2019) is not here: it too starts blocks as their shortcuts, by zero weights in place of a zero
factor, which get no gradient through a ReLU at the end of a branch, as MONAI's `ResidualUnit` may have; and it needs
scalar biases inside the branches. SkipInit does the same with one number a block.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from monai.networks.blocks import ResidualUnit, TransformerBlock
from monai.networks.blocks.dynunet_block import UnetResBlock
from monai.networks.blocks.segresnet_block import ResBlock
from monai.networks.nets.swin_unetr import SwinTransformerBlock
from torch import Tensor, nn

# Type of a residual block, with the modules whose outputs are the last of its branches.
_BRANCHES: dict[type[nn.Module], tuple[str, ...]] = {
    ResidualUnit: ("conv",),
    ResBlock: ("conv2",),
    UnetResBlock: ("norm2",),
    TransformerBlock: ("attn", "mlp"),
    SwinTransformerBlock: ("attn", "mlp"),
}


def scale_residuals(model: nn.Module, mode: str | float = "1/sqrt(n)", n: int | None = None) -> int:
    """Scale the branches of the residual blocks of a network, in place.

    Knows MONAI's `ResidualUnit` (UNet), `ResBlock` (SegResNet), `UnetResBlock` (DynUNet, UNETR, SwinUNETR) and
    transformer blocks, which have two branches each.

    Args:
        model: the network, before training.
        mode: "1/n", "1/sqrt(n)", "1/sqrt(2)", "skipinit" (learned, starts at 0), or a number.
        n: branches on the path from input to output; None takes all that the network has.

    Returns:
        How many branches are scaled.

    Raises:
        ValueError: the mode is unknown, or the network has no such blocks.

    Example:
        >>> from monai.networks.nets import UNet
        >>> network = UNet(2, 1, 2, channels=(4, 8), strides=(2,), num_res_units=2)
        >>> scale_residuals(network, "1/n")
        3
    """
    branches = [
        getattr(module, name)
        for module in model.modules()
        for kind, names in _BRANCHES.items()
        if isinstance(module, kind)
        for name in names
    ]
    if not branches:
        raise ValueError(
            f"{type(model).__name__} has no residual blocks that are known here; set num_res_units or res_block"
        )
    if any(hasattr(branch, "branch_scale") for branch in branches):
        raise ValueError("the residual branches are scaled already; build the network anew")
    value = _choose(mode, n or len(branches))
    for branch in branches:
        if mode == "skipinit":
            first = next(branch.parameters(), torch.zeros(()))
            branch.register_parameter("branch_scale", nn.Parameter(first.new_zeros(())))
        else:
            branch.branch_scale = value
        branch.register_forward_hook(_scale)
    return len(branches)


def _choose(mode: str | float, n: int) -> float:
    known = {"1/n": 1 / n, "1/sqrt(n)": 1 / math.sqrt(n), "1/sqrt(2)": 1 / math.sqrt(2), "skipinit": 0.0}
    if isinstance(mode, str):
        if mode not in known:
            raise ValueError(f"mode must be one of {', '.join(known)} or a number, got {mode!r}")
        return known[mode]
    return float(mode)


# A function of the module rather than a closure, so that networks can be copied and pickled.
def _scale(module: nn.Module, _: Any, output: Tensor) -> Tensor:
    return output * module.branch_scale  # type: ignore[operator]
