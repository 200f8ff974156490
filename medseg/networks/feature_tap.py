"""Get the deepest features of a network beside its output, without changing the network.

`layer="auto"` knows where the encoder of MONAI's networks ends: `UNet` the bottom of its nested blocks, `DynUNet` the
bottleneck, `UNETR` the transformer's tokens in their grid, `SwinUNETR` the block below the last stage.
"""

from __future__ import annotations

from typing import Any

import torch
from monai.networks.layers.simplelayers import SkipConnection
from monai.networks.nets import UNETR, DynUNet, SwinUNETR, UNet
from torch import nn

_LAYERS: dict[type[nn.Module], str] = {DynUNet: "bottleneck", UNETR: "vit", SwinUNETR: "encoder10"}


class FeatureTap(nn.Module):
    """A network that returns its output and the features of one layer.

    The layer is listened to by a hook that lives for the length of a call: the network itself stays as it was, its
    weights are those of `tap.model`, and calling it directly costs and gives nothing more. `torch.export` captures a
    tap with both outputs (with `strict=False`, its default); for inference, export the network itself. Wrap the tap,
    not the network, in `DistributedDataParallel`.

    Args:
        model: the network; in a bundle a reference to it.
        layer: name of the layer as in `model.named_modules()`, or "auto" for the end of the encoder of MONAI's UNet,
            DynUNet, UNETR or SwinUNETR.

    Raises:
        ValueError: there is no such layer, or the network is none of these; the text lists layers to choose from.

    Example:
        >>> network = UNet(spatial_dims=2, in_channels=1, out_channels=2, channels=(4, 8, 16), strides=(2, 2))
        >>> output, features = FeatureTap(network)(torch.zeros(1, 1, 32, 32))
        >>> tuple(output.shape), tuple(features.shape)
        ((1, 2, 32, 32), (1, 16, 8, 8))
    """

    def __init__(self, model: nn.Module, layer: str = "auto") -> None:
        super().__init__()
        self.model = model
        self.layer = _find_encoder_end(model) if layer == "auto" else layer
        if self.layer not in dict(model.named_modules(remove_duplicate=False)) or not self.layer:
            raise ValueError(f"layer {layer!r} is no part of {type(model).__name__}; {_list_layers(model)}")

    def forward(self, x: torch.Tensor) -> tuple[Any, torch.Tensor]:
        """Run the network.

        Args:
            x: (B, C, spatial...), as the network takes it.

        Returns:
            What the network returns, and the features (B, D, grid...), both with gradient.

        Raises:
            ValueError: the layer was not run, or gives no tensor (B, D, ...).
        """
        heard: list[Any] = []
        handle = self.model.get_submodule(self.layer).register_forward_hook(lambda _, __, output: heard.append(output))
        try:
            output = self.model(x)
        finally:
            handle.remove()
        if not heard:
            raise ValueError(f"layer {self.layer!r} was not run by {type(self.model).__name__}; choose another layer")
        return output, self._read(heard[-1])

    def _read(self, features: Any) -> torch.Tensor:
        if isinstance(self.model, UNETR) and isinstance(features, tuple):
            return self.model.proj_feat(features[0])
        if not isinstance(features, torch.Tensor) or features.ndim < 2:
            got = tuple(features.shape) if isinstance(features, torch.Tensor) else type(features).__name__
            raise ValueError(f"layer {self.layer!r} must give one tensor (B, D, ...), got {got}; choose another layer")
        return features


def _find_encoder_end(model: nn.Module) -> str:
    if isinstance(model, UNet):
        return _find_bottom(model.model, "model")
    for kind, layer in _LAYERS.items():
        if isinstance(model, kind):
            return layer
    raise ValueError(
        f'layer="auto" knows UNet, DynUNet, UNETR and SwinUNETR, not {type(model).__name__}; {_list_layers(model)}'
    )


def _find_bottom(block: nn.Module, name: str) -> str:
    """Name of the innermost block of nested skip connections."""
    for child_name, child in block.named_children():
        if isinstance(child, SkipConnection):
            return _find_bottom(child.submodule, f"{name}.{child_name}.submodule")
    return name


def _list_layers(model: nn.Module) -> str:
    names = [name for name, _ in model.named_children()]
    return f"name a layer as in model.named_modules(), such as one of {', '.join(names[:8])}, or one inside of these"
