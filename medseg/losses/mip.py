"""MIP loss: the maximum projections of a prediction must look like those of its label.

A gap of few voxels in a vessel costs a voxel loss next to nothing, but is a hole in the projection. For probabilities p
and target y (B, C, spatial...), a spatial axis a, and the pixels u of the projection,

    P_a[u] = max over a of p,   T_a[u] = max over a of y,   l_a = base loss of P_a and T_a for every item and class
    L = sum over a of w_a l_a / sum over a of w_a              (without the division for `axis_reduction="sum"`)

The gradient of a pixel goes to the one voxel that shows in it, so at most HW + DW + DH voxels get any.

Sources: Radhakrishna et al., "SPOCKMIP: Segmentation of Vessels in MRAs with Enhanced Continuity using Maximum
Intensity Projection as Loss" (2024); projections as annotation: Koziński, Mosinska, Salzmann, Fua, "Tracing in 2D to
reduce the annotation effort for 3D deep delineation of linear structures" (Medical Image Analysis, 2020).

Differs from the published code: both projections run along the same axis (the released script pairs different ones, so
that a perfect prediction costs up to 0.94); the label is projected over the same patch as the prediction unless other
projections are given; the axes are averaged, so the weight does not depend on their number; ties go to the first voxel;
thick slabs are an addition of ours. Organs fill their projections: use slabs for them, or another loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.nn import functional
from torch.nn.modules.loss import _Loss

from medseg.core.kernels import max_projections
from medseg.core.kernels.dispatch import check_backend
from medseg.losses._inputs import (
    check_activation,
    check_reduction,
    check_scores,
    in_full_precision,
    read_target,
    reduce,
)
from medseg.losses._projection import Projections, check_axes_of, project_evenly, take_given
from medseg.losses.focal_tversky import FocalTverskyLoss

BaseLoss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class MIPLoss(_Loss):
    """Base loss between maximum projections of prediction and label, in 2D and 3D, for every item and class.

    Use it beside a loss on voxels, see `SegWithMIPLoss`: alone it says nothing about the voxels that do not show.
    Computed in float32 (float64 stays); with `sigmoid` the logits are projected as they are, which is the same and
    spares a copy of the volume.

    Args:
        axes: spatial axes to project along, 0 the first after the channel; all by default.
        base_loss: "focal_tversky" (`FocalTverskyLoss` as it comes), "dice" (soft Dice with 1 added to both sides),
            "bce", or a loss object with options of its own, called with probabilities and targets (B, C, ...) of the
            input's number of axes, which gives one value, or values (B, C, ...). In a bundle, a nested `_target_`.
        slab_thickness: voxels that a projection runs through, one number or one for each axis; a thinner slab at the
            end takes what is left. By default the whole extent; 1 is the base loss on voxels.
        include_background: whether channel 0 counts; a single channel always does.
        to_onehot_y: whether target holds class ids (B, 1, spatial...).
        sigmoid: apply a sigmoid to the input.
        softmax: apply a softmax over the channels, before the projection.
        other_act: apply this function instead, before the projection.
        ties: which voxels get the gradient of a pixel where several are equally large: the "first", or all in "even"
            parts, as in the published code.
        axis_weights: weights of the axes, in their order; equal by default.
        axis_reduction: weighted "mean" over the axes, or weighted "sum" as in the published code.
        backend: "auto", "torch" or "triton" for the projections of the prediction, see
            `medseg.core.kernels.max_projections`; "even" ties know PyTorch alone.
        reduction: "mean" over items and classes, "sum", or "none" for shape (B, classes). A loss object that already
            gives one value has done this by itself.

    Raises:
        ValueError: an option is unknown, out of range, or contradicts another.

    Example:
        >>> label = torch.zeros(1, 1, 4, 5, 6)
        >>> label[..., 2, 3, :] = 1                           # a vessel along the last axis
        >>> broken = label.clone()
        >>> broken[..., 2, 3, 2] = 0                          # seen from the other two axes, but not along it
        >>> [round(MIPLoss(axes=[a])(broken, label).item(), 3) for a in (0, 1, 2)]
        [0.184, 0.184, 0.0]
    """

    def __init__(
        self,
        axes: Sequence[int] | None = None,
        base_loss: str | BaseLoss = "focal_tversky",
        slab_thickness: int | Sequence[int | None] | None = None,
        include_background: bool = True,
        to_onehot_y: bool = False,
        sigmoid: bool = False,
        softmax: bool = False,
        other_act: Callable[[torch.Tensor], torch.Tensor] | None = None,
        *,
        ties: str = "first",
        axis_weights: Sequence[float] | None = None,
        axis_reduction: str = "mean",
        backend: str = "auto",
        reduction: str = "mean",
    ) -> None:
        super().__init__(reduction=reduction)
        check_activation(sigmoid=sigmoid, softmax=softmax, other_act=other_act)
        check_reduction(reduction)
        _check_choice("ties", ties, ("first", "even"))
        _check_choice("axis_reduction", axis_reduction, ("mean", "sum"))
        check_backend(backend)
        if ties == "even" and backend == "triton":
            raise ValueError('backend="triton" gives ties to the first voxel; choose ties="first" or backend="auto"')
        _check_axes(axes)
        _check_weights(axis_weights, axes)
        _check_thickness(slab_thickness, axes)
        self.axes = None if axes is None else tuple(axes)
        self.base_loss = base_loss
        self._base = _find_base_loss(base_loss)
        self.slab_thickness = slab_thickness
        self.include_background, self.to_onehot_y = include_background, to_onehot_y
        self.sigmoid, self.softmax, self.other_act = sigmoid, softmax, other_act
        self.ties, self.backend = ties, backend
        self.axis_weights, self.axis_reduction = axis_weights, axis_reduction

    def forward(
        self,
        input: torch.Tensor,
        target: torch.Tensor | None = None,
        target_mips: Projections | None = None,
        mip_mask: Projections | None = None,
    ) -> torch.Tensor:
        """Compute the loss.

        Args:
            input: logits or probabilities, (B, C, H, W) or (B, C, H, W, D), any float type.
            target: one-hot or soft masks of the same shape, or class ids (B, 1, spatial...) with `to_onehot_y`; may be
                left out where `target_mips` has all axes.
            target_mips: projections by axis to use in place of the target's: (B, C, the other axes), or with the axis
                in its place, of length 1 (or as many as there are slabs), or repeated over the full extent as
                `LabelMIPd` gives them. Masks for all channels of the input, never class ids.
            mip_mask: in the same shapes, 0 where a pixel does not count, else 1. Such a pixel is a right background
                to the base loss; "bce" takes the mean over the others.

        Returns:
            A scalar, or values without reduction; float32, or float64 if the input is. NaN where the input holds NaN.

        Raises:
            ValueError: shapes or types do not fit, target holds an id without a channel, or an axis has no target.
        """
        check_scores(input, softmax=self.softmax)
        axes = self._find_axes(input)
        target_mips, mip_mask = dict(target_mips or {}), dict(mip_mask or {})
        check_axes_of({"target_mips": target_mips, "mip_mask": mip_mask}, axes)
        if target is not None:
            target = read_target(input, target, to_onehot_y=self.to_onehot_y)
        elif missing := [a for a in axes if a not in target_mips]:
            raise ValueError(f"target is None, but target_mips lacks axes {missing}; give either for every axis")
        with torch.autocast(input.device.type, enabled=False):
            return self._compute(input.as_subclass(torch.Tensor), axes, target, (target_mips, mip_mask))

    def _compute(
        self,
        input: torch.Tensor,
        axes: Sequence[int],
        target: torch.Tensor | None,
        given: tuple[Projections, Projections],
    ) -> torch.Tensor:
        first = 0 if self.include_background or input.shape[1] == 1 else 1
        slabs = self._each(self.slab_thickness, axes)
        preds = self._project(self._activate_before(input)[:, first:], axes, slabs)
        losses = []
        for axis, thickness, pred in zip(axes, slabs, preds, strict=True):
            mip, mask = (take_given(mips, axis, input, thickness) for mips in given)
            if mip is None and target is not None:
                mip = project_evenly(target, axis, thickness)
            mip, mask = (None if x is None else x[:, first:].to(pred) for x in (mip, mask))
            losses.append(self._axis_loss(pred, mip, mask))
        weights = self._each(self.axis_weights or 1.0, axes)
        total = torch.stack([weight * loss for weight, loss in zip(weights, losses, strict=True)]).sum(dim=0)
        return reduce(total / sum(weights) if self.axis_reduction == "mean" else total, self.reduction)

    def _project(
        self, scores: torch.Tensor, axes: Sequence[int], slabs: Sequence[int | None]
    ) -> Iterator[torch.Tensor]:
        """Projections in full precision, each with its axis in place."""
        if self.ties == "even":
            found = (project_evenly(scores, axis, slab) for axis, slab in zip(axes, slabs, strict=True))
        else:
            found = (mip.values for mip in max_projections(scores, axes, slab_thickness=slabs, backend=self.backend))
        return map(in_full_precision, found)

    def _activate_before(self, input: torch.Tensor) -> torch.Tensor:
        """Values to project: logits under a sigmoid, which does not change their order, else probabilities."""
        if self.softmax:
            return torch.softmax(in_full_precision(input), dim=1)
        return input if self.other_act is None else self.other_act(in_full_precision(input))

    def _axis_loss(self, pred: torch.Tensor, target: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Loss of one axis, (B, classes), or the one value of a loss object."""
        if self.base_loss == "bce":
            return _cross_entropy(pred, target, mask, logits=self.sigmoid)
        pred = torch.sigmoid(pred) if self.sigmoid else pred
        if mask is not None:
            pred, target = pred * mask, target * mask
        values = self._base(pred, target)
        return values.flatten(2).mean(2) if values.ndim > 2 else values

    def _find_axes(self, input: torch.Tensor) -> Sequence[int]:
        if input.ndim not in (4, 5):
            raise ValueError(f"input must have shape (B, C, H, W) or (B, C, H, W, D), got {tuple(input.shape)}")
        there = range(input.ndim - 2)
        axes = there if self.axes is None else self.axes
        if odd := [a for a in axes if a not in there]:
            raise ValueError(f"axes has {odd}, but input has spatial axes {list(there)}; leave axes out to use all")
        return list(axes)

    def _each(self, option: Any, axes: Sequence[int]) -> list[Any]:
        """One entry of an option for every axis."""
        if not isinstance(option, Sequence):
            return [option] * len(axes)
        if len(option) != len(axes):
            raise ValueError(
                f"axis_weights and slab_thickness need one entry for each of the axes {axes}, got {option}"
            )
        return list(option)


def _cross_entropy(
    pred: torch.Tensor, target: torch.Tensor, mask: torch.Tensor | None, *, logits: bool
) -> torch.Tensor:
    """Mean over the pixels that count; probabilities are kept 1e-7 away from the poles of the logarithm."""
    if logits:
        each = functional.binary_cross_entropy_with_logits(pred, target, reduction="none")
    else:
        each = -target * pred.clamp(min=1e-7).log() - (1 - target) * (1 - pred).clamp(min=1e-7).log()
    if mask is None:
        return each.flatten(2).mean(2)
    return (each * mask).flatten(2).sum(2) / mask.flatten(2).sum(2).clamp(min=1)


def _dice(pred: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    pred, target = pred.flatten(2), target.flatten(2)
    return 1 - (2 * (pred * target).sum(2) + 1) / (pred.sum(2) + target.sum(2) + 1)


def _find_base_loss(base_loss: str | BaseLoss) -> BaseLoss:
    if isinstance(base_loss, str):
        _check_choice("base_loss", base_loss, ("focal_tversky", "dice", "bce"))
        return _dice if base_loss == "dice" else FocalTverskyLoss(reduction="none")
    if not callable(base_loss):
        raise TypeError(f"base_loss must be a name or a loss object, got {type(base_loss).__name__}")
    for flag in ("sigmoid", "softmax", "to_onehot_y"):
        if getattr(base_loss, flag, False):
            raise ValueError(f"base_loss gets probabilities of projections, but has {flag} set; set it on the MIP loss")
    return base_loss


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def _check_axes(axes: Sequence[int] | None) -> None:
    if axes is not None and (not axes or len(set(axes)) < len(axes) or not set(axes) <= {0, 1, 2}):
        raise ValueError(f"axes must be different numbers of spatial axes, 0 to 2, or None for all, got {axes}")


def _check_weights(weights: Sequence[float] | None, axes: Sequence[int] | None) -> None:
    if weights is None:
        return
    if not all(math.isfinite(w) and w >= 0 for w in weights) or not sum(weights) > 0:
        raise ValueError(f"axis_weights must be finite numbers, at least 0 and not all 0, got {weights}")
    if axes is not None and len(weights) != len(axes):
        raise ValueError(f"axis_weights must have one entry for each of the axes {axes}, got {weights}")


def _check_thickness(thickness: int | Sequence[int | None] | None, axes: Sequence[int] | None) -> None:
    each = thickness if isinstance(thickness, Sequence) else [thickness]
    if any(t is not None and (not isinstance(t, int) or t < 1) for t in each):
        raise ValueError(f"slab_thickness must be whole numbers of voxels, at least 1, or None, got {thickness}")
    if isinstance(thickness, Sequence) and axes is not None and len(thickness) != len(axes):
        raise ValueError(f"slab_thickness must have one entry for each of the axes {axes}, got {thickness}")
