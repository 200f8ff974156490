"""Where the transformer blocks of a network are, and which linear layers read each of their norms.

A block is a MONAI `TransformerBlock` (ViT, UNETR) or `SwinTransformerBlock` (SwinUNETR): norm1, attn, norm2, mlp.
"""

from __future__ import annotations

from monai.networks.blocks import TransformerBlock
from monai.networks.nets.swin_unetr import SwinTransformerBlock
from torch import nn


def find_runs(model: nn.Module) -> list[list[str]]:
    """List the names of the transformer blocks of each residual stream, in order.

    Args:
        model: a network.

    Returns:
        One list for each run of blocks with the same parent: one for a ViT, one a stage for a Swin transformer.

    Raises:
        ValueError: the network has no such blocks.

    Example:
        >>> from monai.networks.nets import ViT
        >>> find_runs(ViT(1, 8, 4, hidden_size=4, mlp_dim=4, num_layers=2, num_heads=1, spatial_dims=2))
        [['blocks.0', 'blocks.1']]
    """
    runs: dict[str, list[str]] = {}
    for name, module in model.named_modules():
        if isinstance(module, (TransformerBlock, SwinTransformerBlock)):
            runs.setdefault(name.rpartition(".")[0], []).append(name)
    if not runs:
        raise ValueError(
            f"{type(model).__name__} has no transformer blocks of MONAI (as in ViT, UNETR, SwinUNETR); placements "
            "of norms "
            "around attention have no meaning in it"
        )
    return list(runs.values())


def block_readers(model: nn.Module, block: str) -> dict[str, list[str]]:
    """Give for both norms of a block the linear layers that read them.

    Args:
        model: the network.
        block: name of the block.

    Returns:
        Names of norms, with names of linear layers.

    Example:
        >>> from monai.networks.nets import ViT
        >>> network = ViT(1, 8, 4, hidden_size=4, mlp_dim=4, num_layers=1, num_heads=1, spatial_dims=2)
        >>> block_readers(network, "blocks.0")
        {'blocks.0.norm1': ['blocks.0.attn.qkv'], 'blocks.0.norm2': ['blocks.0.mlp.linear1']}
    """
    attention = [f"{block}.attn.{name}" for name in ("qkv", "to_q", "to_k", "to_v")]
    known = dict(model.named_modules())
    linear = [name for name in attention if isinstance(known.get(name), nn.Linear)]
    return {f"{block}.norm1": linear, f"{block}.norm2": [f"{block}.mlp.linear1"]}


def block_writers(model: nn.Module, block: str) -> list[str]:
    """Give the linear layers of a block whose output is added to the residual stream.

    Example:
        >>> from monai.networks.nets import ViT
        >>> network = ViT(1, 8, 4, hidden_size=4, mlp_dim=4, num_layers=1, num_heads=1, spatial_dims=2)
        >>> block_writers(network, "blocks.0")
        ['blocks.0.attn.out_proj', 'blocks.0.mlp.linear2']
    """
    last = "proj" if isinstance(model.get_submodule(block), SwinTransformerBlock) else "out_proj"
    return [f"{block}.attn.{last}", f"{block}.mlp.linear2"]


def replace_module(model: nn.Module, name: str, new: nn.Module) -> None:
    """Put another module in the place of the one with this dotted name."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, new)
