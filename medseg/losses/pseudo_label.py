"""Pseudo-label loss: learn from the voxels that another network, or a slower copy of this one, is sure about.

    label of a voxel = the teacher's class, where its probability is at least t
    L = mean over the classes that are somebody's label of the mean cross-entropy over the voxels with that label

for every image; the mean over classes keeps a large background from drowning a small structure.

Sources: Tarvainen, Valpola, "Mean teachers are better role models" (NeurIPS 2017); for source-free segmentation: Tang
et al., "Source-Free Domain Adaptive Fundus Image Segmentation with Class-Balanced Mean Teacher" (MICCAI 2023), whose
threshold is the default.

Differs from the latter, of which this is a simple relative: classes are balanced within each image, not by a bank of
predictions of all images.
"""

from __future__ import annotations

import torch
from torch.nn import functional
from torch.nn.modules.loss import _Loss

from medseg.losses._inputs import check_reduction, check_scores, check_shapes, in_full_precision, reduce


class PseudoLabelLoss(_Loss):
    """Cross-entropy against the confident voxels of a teacher, balanced over classes, in 2D and 3D.

    Computed in float32 (float64 stays), outside autocast. An image without a confident voxel adds 0.

    Args:
        threshold: least probability of the teacher's class, in [0, 1).
        balance: whether every class counts the same; otherwise every confident voxel does.
        reduction: "mean" or "sum" over the images, or "none" for shape (B,).

    Raises:
        ValueError: an option is out of range.

    Example:
        >>> teacher = torch.tensor([[[[0.0, 9.0]], [[0.0, 0.0]]]])      # undecided, and sure of class 0
        >>> PseudoLabelLoss()(torch.zeros(1, 2, 1, 2), teacher)
        tensor(0.6931)
    """

    def __init__(self, threshold: float = 0.75, balance: bool = True, *, reduction: str = "mean") -> None:
        super().__init__(reduction=reduction)
        check_reduction(reduction)
        if not 0 <= threshold < 1:
            raise ValueError(f"threshold must be a probability in [0, 1), got {threshold}")
        self.threshold, self.balance = float(threshold), balance

    def forward(self, input: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Compute the loss.

        Args:
            input: logits of the network that learns, (B, C, H, W) or (B, C, H, W, D), for a softmax.
            teacher: logits of the teacher, of the same shape; no gradient goes there.
            mask: (B, 1, spatial...), the voxels that count; all by default.

        Returns:
            A scalar, or (B,) without reduction; float32, or float64 if the input is.

        Raises:
            ValueError: shapes or types do not fit.
        """
        check_scores(input, softmax=True)
        check_shapes(input, teacher, class_ids=False)
        if mask is not None:
            check_shapes(input, mask, class_ids=True)
        with torch.autocast(input.device.type, enabled=False):
            log_p = functional.log_softmax(in_full_precision(input).flatten(2), dim=1)
            sure, label = in_full_precision(teacher.detach()).flatten(2).softmax(1).max(1)
            weight = (sure >= self.threshold).to(log_p) if mask is None else self._masked(sure, mask).to(log_p)
            chosen = functional.one_hot(label, input.shape[1]).movedim(-1, 1) * weight[:, None]
            values = self._values(-log_p * chosen, chosen)
        return reduce(values, self.reduction)

    def _masked(self, sure: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return (sure >= self.threshold) & (mask.flatten(1).to(sure.device) > 0)

    def _values(self, losses: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        """One value an image, of losses (B, C, N) that are 0 where a voxel has another label or none."""
        total, count = losses.sum(-1), chosen.sum(-1)
        if not self.balance:
            return total.sum(1) / count.sum(1).clamp(min=1)
        return (total / count.clamp(min=1)).sum(1) / (count > 0).sum(1).clamp(min=1)
