"""A gate around a token's own value, and transformer blocks that only the tokens with the largest gates pass.

    w = scale tanh(r) + bias,       r a linear function of the token, 0 at the start

so with bias 1 a pretrained network starts as it was, and no gate leaves [bias - scale, bias + scale]. In a
mixture-of-depths block the tokens with the largest w go through; w multiplies the output of their MLP, and the skipped
tokens themselves.

Zhang et al., "p-MoD: Building Mixture-of-Depths MLLMs via Progressive Ratio Decay" (2024); scale 0.2 and bias 1 are
those of its code. In a ViT over an image much of which is background, skipped tokens still reach the decoder by the
residual stream. The schedule of ratios over depth is the user's: one `ratio` a block.
"""

from __future__ import annotations

import torch
from monai.networks.blocks import TransformerBlock
from torch import Tensor, nn


class TanhGate(nn.Module):
    """A weight near `bias` for each token.

    Args:
        dim: features of a token.
        scale: how far a weight can be from `bias`.
        bias: weight at the start.
        zero_init: start with all weights at `bias`.

    Example:
        >>> TanhGate(4)(torch.randn(1, 2, 4)).flatten().tolist()
        [1.0, 1.0]
    """

    def __init__(self, dim: int, scale: float = 0.2, bias: float = 1.0, zero_init: bool = True) -> None:
        super().__init__()
        self.scale = scale
        self.bias = bias
        self.router = nn.Linear(dim, 1, bias=False)
        if zero_init:
            nn.init.zeros_(self.router.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Give weights (..., 1) of tokens (..., dim)."""
        return self.scale * torch.tanh(self.router(x)) + self.bias


class MixtureOfDepthsBlock(nn.Module):
    """A MONAI transformer block that only a part of the tokens of each item pass.

    Args:
        block: a `TransformerBlock` without cross attention.
        ratio: share of the tokens that pass, above 0 to 1; at least one does.
        scale: of the gate.
        bias: of the gate.

    Raises:
        ValueError: another kind of block, or a ratio out of range.

    Example:
        >>> block = MixtureOfDepthsBlock(TransformerBlock(8, 16, 2), ratio=0.5)
        >>> tuple(block(torch.randn(1, 6, 8)).shape)
        (1, 6, 8)
    """

    def __init__(self, block: nn.Module, ratio: float = 0.5, scale: float = 0.2, bias: float = 1.0) -> None:
        super().__init__()
        if not isinstance(block, TransformerBlock) or block.with_cross_attention:
            raise ValueError(f"block must be a TransformerBlock without cross attention, got {type(block).__name__}")
        if not 0 < ratio <= 1:
            raise ValueError(f"ratio must be above 0 to 1, got {ratio}")
        self.block = block
        self.ratio = ratio
        self.gate = TanhGate(block.norm1.normalized_shape[0], scale, bias)

    def forward(self, x: Tensor) -> Tensor:
        """Transform tokens (B, N, dim)."""
        weight = self.gate(x)
        kept = weight[..., 0].topk(max(1, round(self.ratio * x.shape[1])), dim=1).indices.sort(dim=1).values[..., None]
        tokens = x.gather(1, kept.expand(-1, -1, x.shape[-1]))
        middle = tokens + self.block.attn(self.block.norm1(tokens))
        done = middle + weight.gather(1, kept) * self.block.mlp(self.block.norm2(middle))
        return (x * weight).scatter(1, kept.expand_as(done), done.to(x.dtype))
