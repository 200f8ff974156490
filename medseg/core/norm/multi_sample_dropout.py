"""Multi-sample dropout: several dropout masks on the same features share one head, and their losses are averaged.

    loss = mean over m of L(head(dropout_m(features)), target)

Inoue, "Multi-Sample Dropout for Accelerated Training and Better Generalization" (2019). Whole channels are dropped by
default, since convolutions smooth away what is dropped voxel by voxel. In a 3D decoder put it before the last
convolution with few samples: the logits take `num_samples` times their memory. Evaluation is the head alone.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


class MultiSampleDropoutHead(nn.Module):
    """A head that in training sees its input through several dropout masks.

    Args:
        head: from features to logits.
        p: probability of dropping, from 0 to below 1.
        num_samples: masks M.
        spatial_dims: 1, 2 or 3.
        channelwise: drop whole channels.

    Raises:
        ValueError: an argument out of range.

    Example:
        >>> head = MultiSampleDropoutHead(nn.Conv3d(4, 2, 1), num_samples=3)
        >>> tuple(head(torch.ones(1, 4, 2, 2, 2)).shape), tuple(head.eval()(torch.ones(1, 4, 2, 2, 2)).shape)
        ((3, 1, 2, 2, 2, 2), (1, 2, 2, 2, 2))
    """

    def __init__(
        self, head: nn.Module, p: float = 0.5, num_samples: int = 4, spatial_dims: int = 3, channelwise: bool = True
    ) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"p must be from 0 to below 1, got {p}")
        if num_samples < 1 or spatial_dims not in (1, 2, 3):
            raise ValueError(
                f"need num_samples of at least 1 and spatial_dims 1 to 3, got {num_samples}, {spatial_dims}"
            )
        kinds = (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
        self.head = head
        self.num_samples = num_samples
        self.dropout = kinds[spatial_dims - 1](p) if channelwise else nn.Dropout(p)

    def forward(self, x: Tensor) -> Tensor:
        """Give logits (B, C, spatial...) in evaluation, (M, B, C, spatial...) in training."""
        if not self.training:
            return self.head(x)
        return torch.stack([self.head(self.dropout(x)) for _ in range(self.num_samples)])


def multi_sample_loss(loss: Callable[[Tensor, Tensor], Tensor], outputs: Tensor, target: Tensor) -> Tensor:
    """Average a loss over the samples of a `MultiSampleDropoutHead`.

    Args:
        loss: from logits and target to a number.
        outputs: (M, B, C, spatial...).
        target: as the loss takes it.

    Returns:
        The mean of the M losses.

    Raises:
        ValueError: outputs have no sample.

    Example:
        >>> multi_sample_loss(nn.MSELoss(), torch.tensor([[1.0], [3.0]]), torch.zeros(1)).item()
        5.0
    """
    if len(outputs) == 0:
        raise ValueError("outputs must be (M, B, C, spatial...) with at least one sample")
    return torch.stack([loss(sample, target) for sample in outputs]).mean()
