"""Mann-Whitney loss: voxels of a structure shall score above the voxels outside it, whatever the threshold.

With scores s of the voxels inside (+) and outside (-) a structure of one item, and a temperature t,

    softplus         L = mean over pairs of log(1 + exp(-(s+ - s-)/t))
    squared hinge    L = mean over pairs of max(0, 1 - (s+ - s-)/t)^2

Either bounds 1 - AUC from above, the first after division by ln 2. Being a mean over pairs, a structure of 20 voxels
weighs as much as one of 20000. The scores are log-odds: the logits where `sigmoid`, the logit against the log-sum-exp
of all others where `softmax`; a probability would flatten the differences where they matter.

There are far too many pairs for the softplus, so that voxels are drawn and all pairs of the drawn ones count, a block
at a time. The squared hinge needs no pairs: sorted scores and their running sums give it in O(n log n), of the drawn
voxels or (`num_pos` and `num_neg` None) of all.

The loss knows ranks alone: adding a number to all logits of a class changes nothing, so that 0.5 as a threshold means
nothing after training with it alone. Add it to Dice or cross-entropy, with a weight of 0.1 to 1.

Sources: the softplus of pairs is the loss of "Optimizing What Matters: AUC-driven learning"; Hanley, McNeil, "The
Meaning and Use of the Area under a Receiver Operating Characteristic (ROC) Curve" (Radiology, 1982), for the pairs; the
sorted form follows from expanding the square. Differs in being one-vs-rest for the channels of a segmentation.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.nn.modules.loss import _Loss

from medseg.losses._inputs import check_activation, check_reduction, check_scores, in_full_precision, read_target

_SURROGATES = ("softplus", "squared_hinge")
# Pairs held at a time.
_BLOCK = 1 << 20


class MannWhitneyLoss(_Loss):
    """Mean over pairs of voxels inside and outside a structure, for (B, C, H, W) or (B, C, H, W, D).

    Computed in float32 (float64 stays), outside autocast. A class that an item lacks, or that fills it, has no pairs:
    it costs nothing, has no gradient, and does not count in the mean.

    Args:
        include_background: whether channel 0 counts; a single channel always does.
        to_onehot_y: whether target holds class ids (B, 1, spatial...).
        sigmoid: the input holds logits of a sigmoid; they are the scores.
        softmax: the input holds logits of a softmax; the scores are the log-odds of each channel against all others.
        other_act: apply this function to the input; with no activation at all, the input itself is the score.
        surrogate: what a pair costs, "softplus" or "squared_hinge".
        num_pos: voxels drawn inside a structure, with replacement where it has more; None takes all.
        num_neg: voxels drawn outside; None takes all. Softplus works on num_pos x num_neg pairs, which is nothing to a
            GPU; on a processor take 1024 of each, or the squared hinge.
        temperature: difference of scores in units of which a pair counts; the margin of the squared hinge.
        seed: of the draws. They depend on the seed and the target alone: the same patch draws the same voxels again.
        reduction: "mean" over items and classes that have pairs, "sum", or "none" for shape (B, classes), 0 where
            there are no pairs.

    Raises:
        ValueError: an option is out of range or contradicts another.

    Example:
        >>> y = torch.tensor([[[[1.0, 0.0], [0.0, 0.0]]]])
        >>> MannWhitneyLoss(sigmoid=True)(torch.zeros(1, 1, 2, 2), y)              # ln 2: no pair is told apart
        tensor(0.6931)
        >>> MannWhitneyLoss(sigmoid=True, surrogate="squared_hinge")(2 * y - 1, y)
        tensor(0.)
    """

    def __init__(
        self,
        include_background: bool = True,
        to_onehot_y: bool = False,
        sigmoid: bool = False,
        softmax: bool = False,
        other_act: Callable[[torch.Tensor], torch.Tensor] | None = None,
        *,
        surrogate: str = "softplus",
        num_pos: int | None = 4096,
        num_neg: int | None = 4096,
        temperature: float = 1.0,
        seed: int = 0,
        reduction: str = "mean",
    ) -> None:
        super().__init__(reduction=reduction)
        check_activation(sigmoid=sigmoid, softmax=softmax, other_act=other_act)
        check_reduction(reduction)
        _check_options(surrogate, num_pos, num_neg, temperature)
        self.include_background, self.to_onehot_y = include_background, to_onehot_y
        self.sigmoid, self.softmax, self.other_act = sigmoid, softmax, other_act
        self.surrogate, self.temperature, self.seed = surrogate, float(temperature), int(seed)
        self.num_pos, self.num_neg = num_pos, num_neg

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Compute the loss.

        Args:
            input: logits or scores, (B, C, H, W) or (B, C, H, W, D), any float type.
            target: one-hot masks of the same shape, of which values above one half are inside; or class ids
                (B, 1, spatial...) with `to_onehot_y`.

        Returns:
            A scalar, or values (B, classes) without reduction; float32, or float64 if the input is. NaN where an item
            holds NaN.

        Raises:
            ValueError: shapes or types do not fit, or target holds an id without a channel.
        """
        check_scores(input, softmax=self.softmax)
        target = read_target(input, target, to_onehot_y=self.to_onehot_y)
        first = 0 if self.include_background or input.shape[1] == 1 else 1
        with torch.autocast(input.device.type, enabled=False):
            logits = input.as_subclass(torch.Tensor)
            logits = (logits if self.other_act is None else self.other_act(in_full_precision(logits))).flatten(2)
            values = self._values(logits, (target[:, first:] > 0.5).flatten(2), first)
        return self._reduce(values, (len(logits), logits.shape[1] - first), logits)

    def _values(self, logits: torch.Tensor, inside: torch.Tensor, first: int) -> dict[tuple[int, int], torch.Tensor]:
        """Losses by item and class, of those that have pairs; logits (B, C, voxels), inside (B, classes, voxels)."""
        draws = {(b, c): self._draw(inside[b, c]) for b in range(len(inside)) for c in range(inside.shape[1])}
        draws = {key: drawn for key, drawn in draws.items() if all(len(voxels) for voxels in drawn)}
        if not draws:
            return {}
        voxels = torch.cat([torch.cat(drawn) for drawn in draws.values()])
        sizes = [len(part) for drawn in draws.values() for part in drawn]
        item = torch.tensor([b for b, _ in draws for _ in range(2)], device=voxels.device)
        item = item.repeat_interleave(torch.tensor(sizes, device=voxels.device))
        # One gather for all, because the gradient of each is as large as the input.
        parts = in_full_precision(logits[item, :, voxels]).split(sizes)
        # What was not drawn must not hide a NaN.
        nan = torch.where(logits.detach().isnan().flatten(1).any(1), torch.nan, 1.0)
        return {
            (b, c): nan[b] * self._loss(*(self._scores(part, c + first) for part in (pos, neg)))
            for (b, c), pos, neg in zip(draws, parts[::2], parts[1::2], strict=True)
        }

    def _draw(self, inside: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Voxels drawn inside and outside a structure."""
        positive, negative = inside.nonzero()[:, 0], (~inside).nonzero()[:, 0]
        random = torch.Generator(inside.device).manual_seed(hash((self.seed, len(inside), int(positive.sum()))))
        return _draw(positive, self.num_pos, random), _draw(negative, self.num_neg, random)

    def _scores(self, logits: torch.Tensor, channel: int) -> torch.Tensor:
        """Scores of drawn voxels, logits (n, C), in units of the temperature."""
        scores = logits[:, channel]
        if self.softmax:
            scores = scores - torch.cat((logits[:, :channel], logits[:, channel + 1 :]), 1).logsumexp(1)
        return scores / self.temperature

    def _loss(self, pos: torch.Tensor, neg: torch.Tensor) -> torch.Tensor:
        if self.surrogate == "squared_hinge":
            return _squared_hinge(pos, neg)
        return _SoftplusOfPairs.apply(pos, neg)  # type: ignore[return-value]

    def _reduce(
        self, values: dict[tuple[int, int], torch.Tensor], shape: tuple[int, int], logits: torch.Tensor
    ) -> torch.Tensor:
        nothing = in_full_precision(logits[:0]).sum()  # zero, with a gradient of zeros
        if self.reduction == "none":
            return torch.stack([values.get((b, c), nothing) for b, c in np.ndindex(*shape)]).view(shape)
        if not values:
            return nothing
        every = torch.stack(list(values.values()))
        return every.mean() if self.reduction == "mean" else every.sum()


class _SoftplusOfPairs(torch.autograd.Function):
    """Mean of log(1 + exp(-(p - n))) over all pairs, a block of pairs at a time; the gradient is made on the way."""

    @staticmethod
    def forward(ctx: Any, pos: torch.Tensor, neg: torch.Tensor) -> torch.Tensor:
        total = pos.new_zeros((), dtype=torch.float64)
        to_pos, to_neg = torch.empty_like(pos), torch.zeros_like(neg)
        rows = max(1, _BLOCK // len(neg))
        for start in range(0, len(pos), rows):
            lacking = neg - pos[start : start + rows, None]
            total += functional.softplus(lacking).sum(dtype=torch.float64)
            pull = lacking.sigmoid_()
            to_pos[start : start + rows] = pull.sum(1)
            to_neg += pull.sum(0)
        pairs = len(pos) * len(neg)
        ctx.save_for_backward(-to_pos / pairs, to_neg / pairs)
        return (total / pairs).to(pos.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        to_pos, to_neg = ctx.saved_tensors
        return grad * to_pos, grad * to_neg


def _squared_hinge(pos: torch.Tensor, neg: torch.Tensor) -> torch.Tensor:
    """Mean of max(0, 1 - (p - n))^2 over all pairs, from sorted scores, in float64.

    With a = 1 - p, the negatives above -a count: k a^2 + 2 a sum(n) + sum(n^2), sums over those k.
    """
    centre = neg.detach().double().mean()  # the sums of squares shall not drown the differences
    a, n = 1 - (pos.double() - centre), (neg.double() - centre).sort(descending=True).values
    count = torch.searchsorted(-n.detach(), a.detach())
    zero = n.new_zeros(1)
    sums, squares = (torch.cat((zero, values.cumsum(0)))[count] for values in (n, n.square()))
    return ((count * a.square() + 2 * a * sums + squares).sum() / (len(pos) * len(neg))).to(pos.dtype)


def _draw(voxels: torch.Tensor, most: int | None, random: torch.Generator) -> torch.Tensor:
    if most is None or len(voxels) <= most:
        return voxels
    return voxels[torch.randint(len(voxels), (most,), generator=random, device=voxels.device)]


def _check_options(surrogate: str, num_pos: int | None, num_neg: int | None, temperature: float) -> None:
    if surrogate not in _SURROGATES:
        raise ValueError(f"surrogate must be one of {', '.join(_SURROGATES)}, got {surrogate!r}")
    for name, number in (("num_pos", num_pos), ("num_neg", num_neg)):
        if number is not None and number < 1:
            raise ValueError(f"{name} must be at least 1, or None for all voxels, got {number}")
    if not math.isfinite(temperature) or temperature <= 0:
        raise ValueError(f"temperature must be a finite number above 0, got {temperature}")
