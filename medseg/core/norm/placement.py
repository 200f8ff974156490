"""Where the norms of transformer blocks stand: Mix-LN, Peri-LN, Post-LN and LayerNorm Scaling.

    Pre-LN (what MONAI builds)    x <- x + F(N(x))
    Post-LN                       x <- N(x + F(x))
    Mix-LN                        the first floor(alpha L) blocks Post-LN, the rest Pre-LN
    Peri-LN                       x <- x + N'(F(N(x))), and a norm behind the embedding
    LayerNorm Scaling             N(x) / sqrt(l) in block l, counted from 1, for both norms of a block

Li, Yin, Liu, "Mix-LN: Unleashing the Power of Deeper Layers by Combining Pre-LN and Post-LN" (2024); Kim et al.,
"Peri-LN: Revisiting Normalization Layer in the Transformer Architecture" (ICML 2025); Sun et al., "The Curse of Depth
in Large Language Models" (NeurIPS 2025). All change the function and are meant for training from scratch. Do not
combine LayerNorm Scaling with an initialisation that depends on depth.

Block numbers start anew in each stage of a Swin transformer, since every patch merging normalises the stream; with two
blocks a stage LayerNorm Scaling then does little. It is made for deep streams: ViT, UNETR with its 12 blocks.
"""

from __future__ import annotations

import copy
import math
from typing import Any, Literal

import torch
from monai.networks.blocks import TransformerBlock
from monai.networks.nets import ViT
from monai.networks.nets.swin_unetr import SwinTransformer, SwinTransformerBlock
from torch import Tensor, nn

from medseg.core.norm.layer import LayerNormChannel
from medseg.core.norm.transformer_parts import find_runs

Placement = Literal["post_ln", "mix_ln", "peri_ln", "layernorm_scaling"]
PLACEMENTS = ("post_ln", "mix_ln", "peri_ln", "layernorm_scaling")


def place_norms(model: nn.Module, placement: Placement, *, alpha: float = 0.25, restart_per_stage: bool = True) -> int:
    """Change where the norms of the transformer blocks of a network stand, in place.

    `convert_norm(model, "peri_ln")` does the same.

    Args:
        model: MONAI's ViT, UNETR or SwinUNETR, or a network that holds one; freshly built.
        placement: "post_ln", "mix_ln", "peri_ln" or "layernorm_scaling". The last may follow one of the others.
        alpha: share of the blocks of each stream that Mix-LN makes Post-LN, 0 to 1.
        restart_per_stage: count blocks anew in each stage.

    Returns:
        How many blocks there are.

    Raises:
        ValueError: the placement is unknown, was made already, or the network has no transformer blocks.

    Example:
        >>> network = ViT(1, 8, 4, hidden_size=8, mlp_dim=8, num_layers=4, num_heads=2, spatial_dims=2)
        >>> place_norms(network, "mix_ln"), type(network.blocks[0]).__name__, type(network.blocks[1]).__name__
        (4, 'PostNormTransformerBlock', 'TransformerBlock')
    """
    if placement not in PLACEMENTS:
        raise ValueError(f"placement must be one of {', '.join(PLACEMENTS)}, got {placement!r}")
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be from 0 to 1, got {alpha}")
    runs = find_runs(model)
    if not restart_per_stage:
        runs = [[name for run in runs for name in run]]
    for run in runs:
        blocks = [model.get_submodule(name) for name in run]
        first = {"post_ln": len(blocks), "mix_ln": math.floor(alpha * len(blocks))}.get(placement, 0)
        for number, block in enumerate(blocks, 1):
            _place(block, placement, number, post=number <= first)
    if placement == "peri_ln":
        _normalise_embeddings(model)
    return sum(map(len, runs))


def _place(block: nn.Module, placement: str, number: int, post: bool) -> None:
    if post:
        _make_post(block)
    elif placement == "peri_ln":
        for part in ("attn", "mlp"):
            _add_norm_behind(getattr(block, part), _fresh(block.norm1))
    elif placement == "layernorm_scaling":
        for norm in (block.norm1, block.norm2):
            if hasattr(norm, "output_scale"):
                raise ValueError("layernorm_scaling was applied already")
            norm.output_scale = 1 / math.sqrt(number)  # type: ignore[union-attr]
            norm.register_forward_hook(_scale_output)  # type: ignore[union-attr]


def _fresh(norm: Any) -> nn.Module:
    """A norm like another, with scale 1 and shift 0."""
    new = copy.deepcopy(norm)
    with torch.no_grad():
        for name, parameter in new.named_parameters():
            parameter.fill_(0 if name == "bias" else 1)
    new._forward_hooks.clear()
    return new


def _add_norm_behind(module: nn.Module, norm: nn.Module) -> None:
    if hasattr(module, "norm_behind"):
        raise ValueError("peri_ln was applied already")
    module.add_module("norm_behind", norm)
    module.register_forward_hook(_normalise_output)


# Functions of the module rather than closures, so that networks can be copied and pickled.
def _normalise_output(module: nn.Module, _: Any, output: Tensor) -> Tensor:
    return module.norm_behind(output)  # type: ignore[operator]


def _scale_output(module: nn.Module, _: Any, output: Tensor) -> Tensor:
    return output * module.output_scale  # type: ignore[operator]


def _normalise_embeddings(model: nn.Module) -> None:
    for module in list(model.modules()):
        if isinstance(module, ViT):
            _add_norm_behind(module.patch_embedding, nn.LayerNorm(list(module.norm.normalized_shape)))
        elif isinstance(module, SwinTransformer):
            _add_norm_behind(module.patch_embed, LayerNormChannel(module.embed_dim, eps=1e-5))


def _make_post(block: nn.Module) -> None:
    kinds = {TransformerBlock: PostNormTransformerBlock, SwinTransformerBlock: PostNormSwinBlock}
    if type(block) not in kinds:
        raise ValueError(f"cannot make a {type(block).__name__} Post-LN; build the network anew")
    if getattr(block, "use_checkpoint", False):
        raise ValueError("Post-LN blocks do not checkpoint; build the network with use_checkpoint=False")
    if getattr(block, "with_cross_attention", False):
        raise ValueError("Post-LN blocks have no cross attention; build the network without")
    block.norm1_behind, block.norm2_behind = block.norm1, block.norm2
    block.norm1, block.norm2 = nn.Identity(), nn.Identity()
    block.__class__ = kinds[type(block)]


class PostNormTransformerBlock(TransformerBlock):
    """MONAI's transformer block with its norms behind the residual sums; made by `place_norms`."""

    def forward(self, x: Tensor, context: Tensor | None = None, attn_mask: Tensor | None = None) -> Tensor:
        """Transform tokens (B, N, C)."""
        x = self.norm1_behind(x + self.attn(x, attn_mask=attn_mask))  # type: ignore[operator]
        return self.norm2_behind(x + self.mlp(x))  # type: ignore[operator]


class PostNormSwinBlock(SwinTransformerBlock):
    """MONAI's Swin block with its norms behind the residual sums; made by `place_norms`."""

    def forward(self, x: Tensor, mask_matrix: Tensor | None) -> Tensor:
        """Transform tokens (B, spatial..., C)."""
        x = self.norm1_behind(x + self.drop_path(self.forward_part1(x, mask_matrix)))  # type: ignore[operator]
        return self.norm2_behind(x + self.forward_part2(x))  # type: ignore[operator]
