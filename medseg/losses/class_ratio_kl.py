"""Class-ratio loss: the share of each class in a prediction must be near to what anatomy says.

For probabilities p, N voxels, the estimated ratio tau and the expected ratio q of every image,

    tau_c = (1/N) sum over voxels i of p_ic                                                        size_estimator "mean"
    tau_c = sum_i r_ic / (sum_ik r_ik + 1e-10),   r_ic = (p_ic / (max_k p_ik + 1e-10))^power            "max_normalized"

    KL(tau || q) = sum_c tau_c (log(tau_c + eps) - log(q_c + eps))                                 direction "est_prior"
    KL(q || tau) = sum_c q_c (log(q_c + eps) - log(tau_c + eps))                                   direction "prior_est"

A class known to be absent has q_c = 0. The first direction then costs about -log(eps) tau_c, so eps is the strength of
such tags; the second puts no force on it. With uniform q, entropy + KL(tau || q) is log C minus the mutual information
of voxel and class. "max_normalized" with a large power counts voxels as argmax does.

Sources: Bateson, Kervadec, Dolz, Lombaert, Ben Ayed, "Source-Free Domain Adaptation for Image Segmentation" (Medical
Image Analysis, 2022; est_prior) and "Source-Relaxed Domain Adaptation for Image Segmentation" (MICCAI 2020; prior_est).

Differs from the published code, whose only estimator is "max_normalized": the default is the paper's mean, for which
alone the identity with mutual information holds. Ratios that do not sum to 1 are refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from medseg.losses._inputs import reduce
from medseg.losses._label_free import LabelFreeLoss, mean_over_voxels, read_mask

_TINY = 1e-10
_SUM_TOLERANCE = 1e-3


class ClassRatioKLLoss(LabelFreeLoss):
    """Kullback-Leibler divergence between estimated and expected class ratios of every image, in 2D and 3D.

    Computed in float32 (float64 stays), outside autocast.

    Args:
        direction: "est_prior" for KL(tau || q), "prior_est" for KL(q || tau).
        size_estimator: "mean" of the probabilities, or "max_normalized" as in the published code.
        power: exponent of "max_normalized", above 0; the mean has none.
        eps: added inside the logarithms; with "est_prior" a class with q = 0 costs -log(eps) times its ratio.
        include_background: whether channel 0 is in the sum; a single channel always is.
        softmax: apply a softmax over the channels.
        sigmoid: apply a sigmoid to each channel, which is then a two-class problem with its own ratio. Needs
            `softmax=False`.
        reduction: "mean" or "sum" over the images, or "none" for shape (B,).
        other_act: apply this function instead; needs `softmax=False`. With no activation at all, input must hold
            probabilities whose channels sum to 1, or one channel.

    Raises:
        ValueError: an option is out of range or contradicts another.

    Example:
        >>> logits = torch.zeros(1, 2, 4, 4)                        # half of the voxels, as the network sees it
        >>> ClassRatioKLLoss()(logits, torch.tensor([0.5, 0.5]))
        tensor(0.)
        >>> ClassRatioKLLoss()(logits, torch.tensor([0.9, 0.1]))
        tensor(0.5108)
    """

    def __init__(
        self,
        direction: str = "est_prior",
        size_estimator: str = "mean",
        power: float = 1.0,
        eps: float = 1e-10,
        include_background: bool = True,
        softmax: bool = True,
        sigmoid: bool = False,
        reduction: str = "mean",
        *,
        other_act: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        super().__init__(
            include_background=include_background,
            softmax=softmax,
            sigmoid=sigmoid,
            other_act=other_act,
            reduction=reduction,
        )
        if direction not in ("est_prior", "prior_est"):
            raise ValueError(f"direction must be est_prior or prior_est, got {direction!r}")
        if size_estimator not in ("mean", "max_normalized"):
            raise ValueError(f"size_estimator must be mean or max_normalized, got {size_estimator!r}")
        for name, value in {"power": power, "eps": eps}.items():
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be a finite number above 0, got {value}")
        self.direction, self.size_estimator = direction, size_estimator
        self.power, self.eps = float(power), float(eps)

    def forward(
        self,
        input: torch.Tensor,
        class_ratio: torch.Tensor,
        mask: torch.Tensor | None = None,
        case_ratio: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Compute the loss.

        Args:
            input: logits or probabilities, (B, C, H, W) or (B, C, H, W, D), any float type.
            class_ratio: expected share of each class, (B, C) or (C,), summing to 1; with a sigmoid one number in
                [0, 1] a channel. Kept on the CPU it is checked without waiting for the device.
            mask: (B, 1, spatial...), the voxels that count, in sums and in N; all by default.
            case_ratio: (B, C) estimated ratio of the whole case where input is only a patch of it. The loss takes this
                value, and its gradient goes through the ratio of the patch.

        Returns:
            A scalar, or (B,) without reduction; float32, or float64 if the input is.

        Raises:
            ValueError: shapes or types do not fit, or a ratio is negative or does not sum to 1 within 0.001.
        """
        with torch.autocast(input.device.type, enabled=False):
            found = self.estimated(input, mask)
            return reduce(self.values(found, input, class_ratio, case_ratio), self.reduction)

    @torch.no_grad()
    def estimate(self, input: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Estimated share of each class in every image, (B, C), without a gradient.

        Args:
            input: logits or probabilities, as in `forward`.
            mask: (B, 1, spatial...), the voxels that count.

        Returns:
            The ratios; they sum to 1, but with a sigmoid each stands alone.
        """
        with torch.autocast(input.device.type, enabled=False):
            ratio = self.estimated(input, mask)
        return self.per_channel(ratio, input.shape[1])

    def values(
        self,
        found: torch.Tensor,
        input: torch.Tensor,
        class_ratio: torch.Tensor,
        case_ratio: torch.Tensor | None,
    ) -> torch.Tensor:
        """One value an image, (B,), from what `estimated` gave."""
        expected = self._grouped(self._read_ratio(class_ratio, input), found)
        if case_ratio is not None:
            known = self._grouped(_as_rows("case_ratio", case_ratio, input), found)
            found = found + (known - found).detach()
        first, second = (found, expected) if self.direction == "est_prior" else (expected, found)
        divergence = first * ((first + self.eps).log() - (second + self.eps).log())
        return (divergence * self.channel_weights(None, input)).sum((1, 2))

    def estimated(self, input: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Ratio of every class, (B, G, K)."""
        if self.size_estimator == "mean":
            return self.means(input, mask)[1]
        log_p = self.log_probabilities(input)
        largest = (log_p.amax(dim=2, keepdim=True).exp() + _TINY).log()
        sizes = mean_over_voxels((self.power * (log_p - largest)).exp(), read_mask(mask, input))
        return sizes / (sizes.sum(dim=2, keepdim=True) + _TINY)

    def _grouped(self, ratio: torch.Tensor, found: torch.Tensor) -> torch.Tensor:
        """Ratios (B, C) as (B, G, K)."""
        ratio = ratio.to(found)
        return torch.stack((1 - ratio, ratio), dim=2) if self.is_channelwise(ratio.shape[1]) else ratio[:, None]

    def _read_ratio(self, class_ratio: torch.Tensor, input: torch.Tensor) -> torch.Tensor:
        ratio = _as_rows("class_ratio", class_ratio, input)
        check_ratio(ratio.detach(), sums_to_one=not self.is_channelwise(input.shape[1]))
        return ratio


def check_ratio(ratio: torch.Tensor, *, sums_to_one: bool) -> None:
    """Refuse shares (B, C) that are negative, above 1, not numbers, or do not sum to 1."""
    for row in ratio.double().cpu():
        shown = [round(v, 6) for v in row.tolist()]
        if not bool(((row >= 0) & (row <= 1 + _SUM_TOLERANCE)).all()):
            raise ValueError(f"class_ratio must hold shares from 0 to 1, got {shown}; divide sizes by the voxel count")
        total = float(row.sum())
        if sums_to_one and abs(total - 1) > _SUM_TOLERANCE:
            raise ValueError(
                f"class_ratio must sum to 1 over the classes, got a sum of {total:.6g} for {shown}; "
                "give the background what the other classes leave"
            )


def _as_rows(name: str, ratio: torch.Tensor, input: torch.Tensor) -> torch.Tensor:
    """Ratios (B, C), from (B, C) or (C,)."""
    batch, channels = input.shape[:2]
    if tuple(ratio.shape) not in ((channels,), (batch, channels)):
        raise ValueError(
            f"{name} must have shape ({channels},) or ({batch}, {channels}) for this input, got {tuple(ratio.shape)}"
        )
    return ratio.as_subclass(torch.Tensor).expand(batch, channels)
