"""Scale and shift alone, in the place of a normalisation: for networks that do without one.

y = w x + b        per channel
"""

from __future__ import annotations

from torch import Tensor

from medseg.core.norm.feature_norm import FeatureNorm, to_full_precision


class Affine(FeatureNorm):
    """Scale and shift of each channel, nothing else; starts as the identity.

    Args:
        num_features: channels C.

    Raises:
        ValueError: the input has another number of channels.

    Example:
        >>> import torch
        >>> Affine(2)(torch.ones(1, 2, 3)).sum().item()
        6.0
    """

    def __init__(self, num_features: int) -> None:
        super().__init__(num_features)

    def forward(self, x: Tensor) -> Tensor:
        """Scale and shift (B, C, spatial...)."""
        self.check_input(x)
        return self.apply_affine(to_full_precision(x)).to(x.dtype)
