"""Betti matching loss: pulls matched topological features together and shrinks those that only one image has.

For one prediction p and target y, with the bars of all dimensions in values of p and y,

    L = w_m sum over matched           2 [(p_birth - y_birth)^2 + (p_death - y_death)^2]
      + w_u sum over unmatched of p    (p_birth - p_death)^2        where |p_birth - p_death| > threshold
      +     sum over unmatched of y    (y_birth - y_death)^2        a constant that makes L a distance

which is twice the squared distance of matched points plus the squared distance of the others to the diagonal. The
matching is piecewise constant; gradients flow through the values at the birth and death voxels alone, gathered from p.

With `push_unmatched_to_1_0` an unmatched bar costs 2 [p_birth^2 + (1 - p_death)^2] (superlevel; for sublevel with 1 - p
in place of p): its peak is erased and its saddle filled. The value jumps when such a bar vanishes.

Sources: Stucki, Paetzold, Shit, Menze, Bauer, "Topologically Faithful Image Segmentation via Induced Matching of
Persistence Barcodes" (ICML 2023); Stucki, Bürgin, Paetzold, Bauer, "Efficient Betti Matching Enables Topology-Aware 3D
Segmentation via Persistent Homology" (2024); Berger et al., "Topologically Faithful Multi-class Segmentation in Medical
Images" (MICCAI 2024).

Differences from the published code: a frame (`boundary`) is the same constant in both images and lies on every spatial
axis; the infinite bar, without which an empty prediction of one connected structure costs nothing, can be included; NaN
or infinity in a prediction makes its loss NaN instead of a number without meaning, and in a target is an error.

The matching is not unique where several features appear or vanish at one voxel, as in noise: there a mirrored pair may
be matched otherwise and cost something else. `image_bars="positive"` depends less on that order.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch.nn import functional
from torch.nn.modules.loss import _Loss

from medseg.losses._inputs import check_activation, check_shapes, in_full_precision, make_one_hot, refuse_stray_ids
from medseg.topology import BarTable, BatchMatching, betti_matching_batch

_FRAMES = {"none": None, "background": 0.0, "foreground": 1.0}
_CHOICES = {
    "filtration": ("superlevel", "sublevel", "bothlevels"),
    "boundary": tuple(_FRAMES),
    "image_bars": ("all", "positive"),
    "reduction": ("mean", "sum", "none"),
}


class BettiMatchingLoss(_Loss):
    """Betti matching loss on (B, C, H, W) or (B, C, H, W, D); every item and class is a problem of its own.

    Computed in float32 (float64 stays) on any device; the matching itself runs on CPU threads after one copy of the
    batch to the host. Train with Dice or cross-entropy first: confident predictions have far fewer bars.

    Args:
        include_background: whether channel 0 counts; a single channel always does.
        to_onehot_y: whether target holds class ids (B, 1, spatial...).
        sigmoid: apply a sigmoid to the input.
        softmax: apply a softmax over the channels.
        other_act: apply this function instead.
        one_vs_max: for each class the softmax of its logit against the largest other one: above 0.5 where it wins.
        filtration: "superlevel" (features of the foreground), "sublevel" (of the background), or "bothlevels" (mean).
        dims: dimensions that count: 0 components, 1 loops or tunnels, 2 cavities; all by default.
        boundary: "none", or a frame one voxel wide of "background" or "foreground" around prediction and target.
        topology_weights: weights of matched bars and of unmatched bars of the prediction.
        barcode_length_threshold: unmatched bars of the prediction not longer than this cost nothing.
        push_unmatched_to_1_0: drive unmatched bars to (1, 0) instead of the diagonal, see the module's text.
        image_bars: "all" matches as the published code does; "positive" only through non-empty image bars.
        include_essential: also compare the one infinite bar, that is the largest values: 2 (max p - max y)^2.
        num_threads: threads over items and classes; by default as many as there are cores for the process.
        reduction: "mean" over items and classes, "sum", or "none" for shape (B, classes).

    Raises:
        ValueError: an option is unknown or contradicts another.

    Example:
        >>> p = torch.zeros(1, 1, 5, 5)
        >>> p[..., 1, 1], p[..., 3, 3] = 0.75, 0.5   # two components; the target holds one of them
        >>> y = (p > 0.6).float()
        >>> BettiMatchingLoss()(p, y)                # the bar of length 0.5 is surplus
        tensor(0.2500)
    """

    def __init__(
        self,
        include_background: bool = False,
        to_onehot_y: bool = False,
        sigmoid: bool = False,
        softmax: bool = False,
        other_act: Callable[[torch.Tensor], torch.Tensor] | None = None,
        *,
        one_vs_max: bool = False,
        filtration: str = "superlevel",
        dims: Sequence[int] | None = None,
        boundary: str = "none",
        topology_weights: Sequence[float] = (1.0, 1.0),
        barcode_length_threshold: float = 0.0,
        push_unmatched_to_1_0: bool = False,
        image_bars: str = "all",
        include_essential: bool = False,
        num_threads: int | None = None,
        reduction: str = "mean",
    ) -> None:
        super().__init__(reduction=reduction)
        check_activation(sigmoid=sigmoid, softmax=softmax, other_act=other_act, one_vs_max=one_vs_max)
        given = {"filtration": filtration, "boundary": boundary, "image_bars": image_bars, "reduction": reduction}
        for name, value in given.items():
            check_choice(name, value)
        _check_numbers(topology_weights, barcode_length_threshold, num_threads)
        self.include_background = include_background
        self.to_onehot_y = to_onehot_y
        self.sigmoid, self.softmax, self.other_act, self.one_vs_max = sigmoid, softmax, other_act, one_vs_max
        self.topology_weights = (float(topology_weights[0]), float(topology_weights[1]))
        self.barcode_length_threshold = float(barcode_length_threshold)
        self.push_unmatched_to_1_0 = push_unmatched_to_1_0
        self.boundary = boundary
        self.options = {
            "filtration": filtration,
            "dims": None if dims is None else tuple(dims),
            "boundary": boundary,
            "image_bars": image_bars,
            "include_essential": include_essential,
            "num_threads": num_threads,
        }

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Compute the loss.

        Args:
            input: logits or probabilities, (B, C, H, W) or (B, C, H, W, D), any float type.
            target: one-hot or soft masks of the same shape, or class ids (B, 1, spatial...) with `to_onehot_y`.

        Returns:
            A scalar, or (B, classes) without reduction; float32, or float64 if the input is. NaN where a prediction
            holds NaN or infinite values, as other losses give it.

        Raises:
            ValueError: shapes do not fit, or target holds an id without a channel, NaN or infinite values.
        """
        with torch.autocast(input.device.type, enabled=False):
            values = self._losses(*self._prepare(input, target), channels=input.shape[1])
        return {"mean": values.mean, "sum": values.sum, "none": lambda: values}[self.reduction]()

    def _prepare(self, input: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Probabilities and target of the classes that count, and ids that have no channel."""
        channels = input.shape[1] if input.ndim > 1 else 0
        class_ids = self.to_onehot_y and channels > 1
        check_shapes(input, target, class_ids=class_ids)
        if self.to_onehot_y and not class_ids:
            warnings.warn("single channel input, to_onehot_y=True ignored", stacklevel=4)
        if channels == 1 and (self.softmax or self.one_vs_max):
            flag = "softmax" if self.softmax else "one_vs_max"
            raise ValueError(f"{flag} needs at least two channels, got 1; use sigmoid=True")
        probability = self._activate(in_full_precision(input))
        target = target.detach().as_subclass(torch.Tensor)
        target, stray = make_one_hot(target, channels) if class_ids else (target, torch.zeros(2, device=target.device))
        first = 0 if self.include_background or channels == 1 else 1
        return probability[:, first:], target[:, first:].to(probability), stray

    def _activate(self, input: torch.Tensor) -> torch.Tensor:
        if self.sigmoid:
            return torch.sigmoid(input)
        if self.softmax:
            return torch.softmax(input, dim=1)
        if self.one_vs_max:
            return torch.sigmoid(input - _largest_other(input))
        return input if self.other_act is None else self.other_act(input)

    def _losses(
        self, probability: torch.Tensor, target: torch.Tensor, stray: torch.Tensor, channels: int
    ) -> torch.Tensor:
        """Loss of every item and class, (B, classes)."""
        matching = betti_matching_batch(*self._copy_to_host(probability, target, stray, channels), **self.options)
        p, y = probability.flatten(0, 1), target.flatten(0, 1)
        # Zero times the images: a value that backward can start from where there is no bar, and NaN from NaN.
        losses = ((p + y) * 0).flatten(1).sum(dim=1)
        for table, values in self._terms(matching, self._frame(p), self._frame(y)):
            losses = losses.index_add(0, torch.from_numpy(table.item).to(values.device), values)
        directions = 2 if self.options["filtration"] == "bothlevels" else 1
        return (losses / directions).view(probability.shape[:2])

    def _copy_to_host(
        self, p: torch.Tensor, y: torch.Tensor, stray: torch.Tensor, channels: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Predictions and targets (B * classes, spatial...) in float32, by one copy; zeros for NaN or infinity."""
        parts = [part.detach().float().flatten() for part in (p, y, stray)]
        flat = torch.cat(parts).cpu().numpy()
        refuse_stray_ids(flat[-2:].tolist(), channels)
        preds, targets = both = flat[:-2].reshape(2, p.shape[:2].numel(), *p.shape[2:])
        if (self.push_unmatched_to_1_0 or self.options["include_essential"]) and (preds.min() < 0 or preds.max() > 1):
            warnings.warn(
                "input has values outside [0, 1], to which push_unmatched_to_1_0 and include_essential refer; "
                "give probabilities, or set sigmoid or softmax",
                stacklevel=6,
            )
        odd = ~np.logical_and.reduce(np.isfinite(both), axis=tuple(range(2, both.ndim)))
        if odd[1].any():
            raise ValueError(
                f"target holds NaN or infinite values in item {odd[1].argmax() // p.shape[1]}; expected a mask: "
                "repair the labels, or leave such items out"
            )
        preds[odd[0]] = 0
        return preds, targets

    def _frame(self, images: torch.Tensor) -> torch.Tensor:
        """Images with their frame, flattened, as the matching's indices refer to them."""
        value = _FRAMES[self.boundary]
        if value is not None:
            images = functional.pad(images, [1, 1] * (images.ndim - 1), value=value)
        return images.reshape(-1)

    def _terms(
        self, matching: BatchMatching, p: torch.Tensor, y: torch.Tensor
    ) -> Iterator[tuple[BarTable, torch.Tensor]]:
        """Weighted terms of the loss, one for each row of the tables."""
        matched_weight, unmatched_weight = self.topology_weights
        birth, death, target_birth, target_death = _columns(matching.matched, p.device)
        squares = (p[birth] - y[target_birth]).square() + (p[death] - y[target_death]).square()
        yield matching.matched, 2 * matched_weight * squares
        birth, target_birth = _columns(matching.essential, p.device)
        yield matching.essential, 2 * matched_weight * (p[birth] - y[target_birth]).square()
        birth, death = (p[i] for i in _columns(matching.unmatched_pred, p.device))
        is_long = (birth - death).detach().abs() > self.barcode_length_threshold
        yield matching.unmatched_pred, unmatched_weight * is_long * self._cost(matching.unmatched_pred, birth, death)
        birth, death = (y[i] for i in _columns(matching.unmatched_target, p.device))
        yield matching.unmatched_target, self._cost(matching.unmatched_target, birth, death)

    def _cost(self, table: BarTable, birth: torch.Tensor, death: torch.Tensor) -> torch.Tensor:
        """Squared length of bars, or twice their squared distance to (1, 0) in values of the filtration."""
        if not self.push_unmatched_to_1_0:
            return (birth - death).square()
        sublevel = torch.from_numpy(table.sublevel).to(birth.device)
        return 2 * torch.where(sublevel, (birth - 1).square() + death.square(), birth.square() + (death - 1).square())


def _largest_other(logits: torch.Tensor) -> torch.Tensor:
    """For each channel the largest of the others: the second largest where the channel itself is the largest."""
    top, index = logits.topk(2, dim=1)
    channel = torch.arange(logits.shape[1], device=logits.device).view(1, -1, *(1,) * (logits.ndim - 2))
    return torch.where(channel == index[:, :1], top[:, 1:], top[:, :1])


def _columns(table: BarTable, device: torch.device) -> tuple[torch.Tensor, ...]:
    return torch.from_numpy(np.ascontiguousarray(table.voxels.T)).to(device).unbind()


def check_choice(name: str, value: str) -> None:
    """Raise unless an option has a known value."""
    if value not in _CHOICES[name]:
        raise ValueError(f"{name} must be one of {', '.join(_CHOICES[name])}, got {value!r}")


def _check_numbers(weights: Sequence[float], threshold: float, threads: int | None) -> None:
    if len(weights) != 2 or not all(math.isfinite(w) and w >= 0 for w in weights):
        raise ValueError(f"topology_weights must be two finite numbers, at least 0 (matched, unmatched), got {weights}")
    if not (math.isfinite(threshold) and threshold >= 0):
        raise ValueError(f"barcode_length_threshold must be a finite number, at least 0, got {threshold}")
    if threads is not None and threads < 1:
        raise ValueError(f"num_threads must be at least 1, or None for as many as there are cores, got {threads}")
