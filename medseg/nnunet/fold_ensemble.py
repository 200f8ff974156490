"""The networks of an nnU-Net model's folds as one network whose logits are their mean.

Source: Isensee et al., "nnU-Net: a self-configuring method for deep learning-based biomedical image segmentation"
(2021).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pydoc import locate
from typing import Any

import torch
from torch import nn

from medseg.core.norm import convert_norm


class FoldEnsemble(nn.Module):
    """Mean of the logits of several networks of one architecture.

    Args:
        architecture: dotted name of the network's class, `network_class_name` of plans.json.
        arguments: its arguments, `arch_kwargs` of plans.json.
        to_import: those arguments that name a class or function, `_kw_requires_import`.
        in_channels: input channels.
        out_channels: output channels.
        folds: number of networks.
        norm: exchange the norms for these, see `medseg.core.norm.convert_norm`.

    Raises:
        ModuleNotFoundError: the architecture's package is not installed.
        ValueError: a name cannot be found, or an argument does not fit.

    Example:
        >>> network = FoldEnsemble("torch.nn.Sequential", {}, folds=1)      # doctest: +SKIP
    """

    def __init__(
        self,
        architecture: str,
        arguments: Mapping[str, Any],
        *,
        to_import: Sequence[str] = (),
        in_channels: int = 1,
        out_channels: int = 2,
        folds: int = 1,
        norm: str | Sequence[Any] | None = None,
    ) -> None:
        super().__init__()
        kind = _find(architecture)
        values = {
            name: _find(value) if name in to_import and value is not None else value
            for name, value in arguments.items()
        }
        channels = {"input_channels": in_channels, "num_classes": out_channels, "deep_supervision": False}
        try:
            self.networks = nn.ModuleList(kind(**channels, **values) for _ in range(folds))
        except TypeError as error:
            raise ValueError(f"architecture {architecture} does not take these arguments: {error}") from error
        self.flat = arguments.get("conv_op") == "torch.nn.modules.conv.Conv2d"
        if norm is not None:
            convert_norm(self, norm, spatial_dims=2 if self.flat else 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run the networks.

        Args:
            x: (B, C, X, Y, Z); for 2D networks with X = 1.

        Returns:
            Mean logits (B, K, X, Y, Z).
        """
        x = x.squeeze(2) if self.flat else x
        total = self.networks[0](x)
        for network in self.networks[1:]:
            total = total + network(x)
        mean = total / len(self.networks)
        return mean.unsqueeze(2) if self.flat else mean


def _find(name: str) -> Any:
    found = locate(name)
    if found is not None:
        return found
    package = name.split(".", maxsplit=1)[0]
    if package == "dynamic_network_architectures":
        raise ModuleNotFoundError(
            "nnU-Net's networks need the package dynamic-network-architectures: pip install 'medseg[nnunet]'",
            name=package,
        )
    raise ValueError(f"{name} cannot be imported; install the package it comes from")
