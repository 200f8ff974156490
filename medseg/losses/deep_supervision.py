"""Deep supervision that keeps thin structures: enlarge the predictions, or shrink labels by their maximum.

    loss = sum over levels i of  w_i loss(enlarged prediction_i, target),   or  w_i loss(prediction_i, shrunk target)

Source: Radhakrishna et al., "SPOCKMIP: Segmentation of Vessels in MRAs with Enhanced Continuity using Maximum Intensity
Projection as Loss" (2024): predictions enlarged by nearest neighbours, weights 1, 0.66, 0.34, not normalised.

Differs from MONAI's class of the same name, which shrinks labels by nearest neighbours and so loses vessels that are
thinner than the step between the samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch.nn import functional
from torch.nn.modules.loss import _Loss


class DeepSupervisionLoss(_Loss):
    """Weighted sum of a loss over the predictions of a network at several scales, finest first.

    Args:
        loss: the loss of (input, target) at one scale; in a bundle, a nested `_target_`.
        weights: weight of each prediction, in their order; 1, 1/2, 1/4 and so on by default. They are not normalised.
            A prediction of weight 0 costs nothing, so that [1, 0, 0] keeps a dear loss to the finest.
        resize: "predictions" are enlarged to the target by nearest neighbours; or "labels" are shrunk to each
            prediction by their maximum. Of class ids the largest in reach stays, of masks each channel by itself. Or
            "strided_labels": every k-th voxel of the labels, from the first on, as Turbolift's code takes them.

    Raises:
        ValueError: an option is unknown or out of range.

    Example:
        >>> loss = DeepSupervisionLoss(torch.nn.L1Loss(), weights=[1.0, 0.5])
        >>> fine, coarse, label = torch.zeros(1, 1, 4, 4), torch.ones(1, 1, 2, 2), torch.zeros(1, 1, 4, 4)
        >>> loss([fine, coarse], label)
        tensor(0.5000)
    """

    def __init__(
        self,
        loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        weights: Sequence[float] | None = None,
        resize: str = "predictions",
    ) -> None:
        super().__init__()
        if not callable(loss):
            raise TypeError(f"loss must be a loss object, got {type(loss).__name__}")
        if resize not in ("predictions", "labels", "strided_labels"):
            raise ValueError(f"resize must be predictions, labels or strided_labels, got {resize!r}")
        if weights is not None and not (any(weights) and all(math.isfinite(w) and w >= 0 for w in weights)):
            raise ValueError(
                f"weights must be finite numbers, at least 0 and not all 0, one for each prediction, got {weights}"
            )
        self.loss, self.weights, self.resize = loss, weights, resize

    def forward(
        self, input: torch.Tensor | Sequence[torch.Tensor], target: torch.Tensor | Sequence[torch.Tensor]
    ) -> torch.Tensor:
        """Compute the loss.

        Args:
            input: predictions (B, C, spatial...), finest first; or one alone, as in evaluation, which has weight 1.
            target: masks or class ids as `loss` takes them, as large as the finest prediction; or one of each
                prediction's size for each prediction, as nnU-Net gives them, and nothing is resized.

        Returns:
            What `loss` gives, summed over the predictions.

        Raises:
            ValueError: there are no predictions, or not as many as weights or targets, or one is larger than the
                target.
        """
        if isinstance(input, torch.Tensor):
            return self.loss(input, target if isinstance(target, torch.Tensor) else target[0])
        weights = self._find_weights(len(input))
        if not isinstance(target, torch.Tensor) and len(target) != len(input):
            raise ValueError(f"target must hold a tensor for each of the {len(input)} predictions, got {len(target)}")
        losses = []
        for level, weight in enumerate(weights):
            if weight:
                one = target if isinstance(target, torch.Tensor) else target[level]
                losses.append(weight * self.loss(*self._match(input[level], one)))
        return torch.stack(losses).sum(0)

    def _find_weights(self, count: int) -> Sequence[float]:
        weights = [0.5**level for level in range(count)] if self.weights is None else self.weights
        if count == 0 or len(weights) != count:
            raise ValueError(f"input must hold as many predictions as there are weights, {len(weights)}, got {count}")
        return weights

    def _match(self, prediction: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Prediction and target at one size."""
        size, full = prediction.shape[2:], target.shape[2:]
        if size == full:
            return prediction, target
        if len(size) != len(full) or any(small > large for small, large in zip(size, full, strict=True)):
            raise ValueError(
                f"input holds a prediction of size {tuple(size)} for a target of size {tuple(full)}; "
                "predictions must have the target's axes and not be larger"
            )
        if self.resize == "predictions":
            return functional.interpolate(prediction, size=full, mode="nearest"), target
        if self.resize == "strided_labels":
            return prediction, _take_every(target, size)
        pool = functional.adaptive_max_pool2d if len(size) == 2 else functional.adaptive_max_pool3d
        return prediction, pool(target.float(), size).to(target.dtype)


def _take_every(target: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Every k-th voxel along each axis, from the first on, k = target's size / `size`."""
    full = target.shape[2:]
    if any(large % small for large, small in zip(full, size, strict=True)):
        raise ValueError(
            f"input holds a prediction of size {tuple(size)}, which does not divide the target's size {tuple(full)}; "
            'use resize="labels" or "predictions"'
        )
    return target[(..., *(slice(None, None, large // small) for large, small in zip(full, size, strict=True)))]
