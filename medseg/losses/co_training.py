"""Co-training: what two branches of a network say about the same zone must agree, with labels or without.

For the probabilities a and b of one zone in one image, sums and means over its voxels,

    dice    sum (a - b)^2 / (sum a^2 + sum b^2 + eps)          0 where equal, below 1; background does not dilute it
    mse     mean (a - b)^2
    js      mean of H((a + b) / 2) - (H(a) + H(b)) / 2,    H(p) = -p ln p - (1 - p) ln(1 - p); at most ln 2

`dice` is one minus the soft Dice with squares in the denominator. With a linear denominator equal soft maps would cost
something, so it is not offered.

Sources: Das, Ghosh, Stober, "PI-RADS v2 Compliant Automated Segmentation of Prostate Zones Using co-training Motivated
Multi-task Dual-Path CNN" (2023), whose text that can be read says only that differing predictions of the branches for
the same class are penalised: the forms are our choice. `js`: Qiao, Shen, Zhang, Wang, Yuille, "Deep Co-Training for
Semi-Supervised Image Recognition" (ECCV 2018).
"""

from __future__ import annotations

import math

import torch
from torch.nn.modules.loss import _Loss

from medseg.losses._inputs import check_activation, check_reduction, in_full_precision, reduce

_TOLERANCE = 1e-4  # of probabilities outside [0, 1], as half precision leaves them
_SEEN = 0.05  # a voxel belongs to the union where either branch gives more than this


class CoTrainingDisagreementLoss(_Loss):
    """Disagreement of two branches on the zones that both predict, (B, K, spatial...) each; symmetric, no labels.

    Compare zones only: what is outside a branch's zones differs from branch to branch by construction.

    Args:
        kind: "dice", "mse" or "js".
        region: "union" counts only voxels where either map exceeds 0.05; None counts all.
        eps: added to the denominator of "dice".
        target: "mutual" moves both branches towards each other; "mean" moves each towards their mean, which is held
            fixed.
        sigmoid: the maps are logits, one zone a channel; by default they are probabilities.
        softmax: the maps are logits of which all channels are compared.
        reduction: "mean" over items and zones, "sum", or "none" for shape (B, K).

    Raises:
        ValueError: an option is unknown.

    Example:
        >>> a, b = torch.zeros(2, 1, 1, 2, 2)
        >>> a[..., 0, :], b[..., 0, 0] = 1, 1
        >>> CoTrainingDisagreementLoss()(a, b)     # one of three
        tensor(0.3333)
    """

    def __init__(
        self,
        kind: str = "dice",
        region: str | None = None,
        eps: float = 1e-5,
        target: str = "mutual",
        *,
        sigmoid: bool = False,
        softmax: bool = False,
        reduction: str = "mean",
    ) -> None:
        super().__init__(reduction=reduction)
        check_reduction(reduction)
        check_activation(sigmoid=sigmoid, softmax=softmax, other_act=None)
        if kind not in _KINDS:
            raise ValueError(f"kind must be one of {', '.join(_KINDS)}, got {kind!r}")
        if region not in (None, "union"):
            raise ValueError(f"region must be 'union' or None, got {region!r}")
        if target not in ("mutual", "mean"):
            raise ValueError(f"target must be mutual or mean, got {target!r}")
        if not (math.isfinite(eps) and eps > 0):
            raise ValueError(f"eps must be a positive number, got {eps}")
        self.kind, self.region, self.eps, self.target = kind, region, float(eps), target
        self.sigmoid, self.softmax = sigmoid, softmax

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Compute the disagreement.

        Args:
            input: maps of the zones in one branch, (B, K, H, W) or (B, K, H, W, D), in any float type.
            target: maps of the same zones in another branch; it gets a gradient as the first does.

        Returns:
            A scalar, or (B, K) without reduction; float32, or float64 if the input is.

        Raises:
            ValueError: shapes differ, or values are no probabilities.
        """
        if input.shape != target.shape or input.ndim not in (4, 5):
            raise ValueError(
                "input and target must both have shape (B, K, H, W) or (B, K, H, W, D), got "
                f"{tuple(input.shape)} and {tuple(target.shape)}"
            )
        with torch.autocast(input.device.type, enabled=False):
            a, b = (self._activate(in_full_precision(maps)).flatten(2) for maps in (input, target))
            _check_probabilities(a, b)
            return reduce(self._compare(a, b), self.reduction)

    def _activate(self, maps: torch.Tensor) -> torch.Tensor:
        if self.sigmoid:
            return torch.sigmoid(maps)
        return torch.softmax(maps, dim=1) if self.softmax else maps

    def _compare(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """Disagreement (B, K) of probabilities (B, K, voxels)."""
        weight = torch.ones_like(a) if self.region is None else (torch.maximum(a, b).detach() > _SEEN).to(a)
        measure = _KINDS[self.kind]
        if self.target == "mutual":
            return measure(a, b, weight, self.eps)
        mean = ((a + b) / 2).detach()
        return (measure(a, mean, weight, self.eps) + measure(b, mean, weight, self.eps)) / 2


def _dice(a: torch.Tensor, b: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    apart, together = weight * (a - b).square(), weight * (a.square() + b.square())
    return apart.sum(dim=-1) / (together.sum(dim=-1) + eps)


def _mse(a: torch.Tensor, b: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return (weight * (a - b).square()).sum(dim=-1) / weight.sum(dim=-1).clamp_min(1)


def _js(a: torch.Tensor, b: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    each = _entropy((a + b) / 2) - (_entropy(a) + _entropy(b)) / 2
    return (weight * each).sum(dim=-1) / weight.sum(dim=-1).clamp_min(1)


def _entropy(p: torch.Tensor) -> torch.Tensor:
    """Entropy of heads and tails; kept off 0 and 1, where its slope is infinite."""
    tiny = torch.finfo(p.dtype).eps
    p = p.clamp(tiny, 1 - tiny)
    return -p * p.log() - (1 - p) * torch.log1p(-p)


_KINDS = {"dice": _dice, "mse": _mse, "js": _js}


def _check_probabilities(*maps: torch.Tensor) -> None:
    for name, p in zip(("input", "target"), maps, strict=True):
        low, high = torch.stack(p.detach().aminmax()).tolist() if p.numel() else (0.0, 0.0)
        # Comparisons with NaN are false: it passes, and makes the loss NaN.
        if low < -_TOLERANCE or high > 1 + _TOLERANCE:
            raise ValueError(
                f"{name} must hold probabilities in [0, 1], got values from {low:g} to {high:g}; set sigmoid=True or "
                "softmax=True for logits"
            )
