"""Loss of source-free adaptation: be decided, and find about as much of each class as anatomy says.

    L = lambda_entropy * weighted entropy + lambda_prior * KL of the class ratios

It needs neither labels nor source images: a trained network, new images, and a rough ratio for each class. It refines a
network that already half works; a ratio that is met proves nothing, and a ratio that is far too small, or a class that
is expected where it is absent, does harm.

Source: Bateson, Kervadec, Dolz, Lombaert, Ben Ayed, "Source-Free Domain Adaptation for Image Segmentation" (Medical
Image Analysis, 2022). Differences are those of `WeightedEntropyLoss` and `ClassRatioKLLoss`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from medseg.losses._inputs import reduce
from medseg.losses._label_free import LabelFreeLoss, check_at_least_zero
from medseg.losses.class_ratio_kl import ClassRatioKLLoss
from medseg.losses.weighted_entropy import WeightedEntropyLoss


class SourceFreeAdaptationLoss(LabelFreeLoss):
    """Weighted entropy plus the divergence of class ratios, both from one set of probabilities.

    Args:
        class_weight: weight of each channel in the entropy; 1 by default.
        lambda_entropy: weight of the entropy.
        lambda_prior: weight of the divergence; 0 leaves plain entropy minimisation.
        direction: this and the following are those of `ClassRatioKLLoss`.
        size_estimator: "mean" or "max_normalized".
        power: exponent of "max_normalized".
        eps: added inside the logarithms; the strength of tags for absent classes.
        include_background: whether channel 0 counts, in both terms.
        softmax: apply a softmax over the channels.
        sigmoid: apply a sigmoid to each channel; needs `softmax=False`.
        reduction: "mean" or "sum" over the images, or "none" for shape (B,).
        other_act: apply this function instead; needs `softmax=False`.

    Attributes:
        last_terms: "entropy" and "kl" of the last call, before their lambdas, detached, reduced like the loss; empty
            before the first call.

    Raises:
        ValueError: an option is out of range or contradicts another.

    Example:
        >>> loss = SourceFreeAdaptationLoss(class_weight=[0.1, 0.9])
        >>> loss(torch.zeros(1, 2, 4, 4), torch.tensor([0.9, 0.1]))
        tensor(0.8574)
        >>> {name: round(term.item(), 4) for name, term in loss.last_terms.items()}
        {'entropy': 0.3466, 'kl': 0.5108}
    """

    def __init__(
        self,
        class_weight: Sequence[float] | None = None,
        lambda_entropy: float = 1.0,
        lambda_prior: float = 1.0,
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
        flags: dict[str, Any] = {"include_background": include_background, "softmax": softmax, "sigmoid": sigmoid}
        super().__init__(**flags, other_act=other_act, reduction=reduction)
        check_at_least_zero(lambda_entropy=lambda_entropy, lambda_prior=lambda_prior)
        self.entropy = WeightedEntropyLoss(class_weight, **flags, other_act=other_act)
        self.prior = ClassRatioKLLoss(direction, size_estimator, power, eps, **flags, other_act=other_act)
        self.lambda_entropy, self.lambda_prior = float(lambda_entropy), float(lambda_prior)
        self.last_terms: dict[str, torch.Tensor] = {}

    def forward(
        self,
        input: torch.Tensor,
        class_ratio: torch.Tensor,
        mask: torch.Tensor | None = None,
        case_ratio: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Compute the loss; arguments and errors are those of `ClassRatioKLLoss.forward`.

        Returns:
            A scalar, or (B,) without reduction; float32, or float64 if the input is.
        """
        with torch.autocast(input.device.type, enabled=False):
            entropies, ratio = self.means(input, mask)
            if self.prior.size_estimator != "mean":
                ratio = self.prior.estimated(input, mask)
            entropy = self.entropy.values(entropies, input)
            kl = self.prior.values(ratio, input, class_ratio, case_ratio)
            terms = {"entropy": reduce(entropy, self.reduction), "kl": reduce(kl, self.reduction)}
        self.last_terms = {name: term.detach() for name, term in terms.items()}
        return self.lambda_entropy * terms["entropy"] + self.lambda_prior * terms["kl"]
