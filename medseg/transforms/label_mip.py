"""Projections of a whole label that survive random crops.

    mip_a[c, v] = max over axis a of label[c], repeated along a,      shape (C, spatial...) as the label

Repeated projections are views that take no more memory than the projection itself, and any crop that cuts image and
label cuts them alike; `medseg.losses.MIPLoss` takes them by `target_mips={0: batch["label_mip_0"], ...}`. A patch is
then asked for vessels that cross the projection outside of it, as in the published training; where whole labels are at
hand, the loss without `target_mips`, which projects the label over the patch, asks only for what the patch shows.

Source: Radhakrishna et al., "SPOCKMIP: Segmentation of Vessels in MRAs with Enhanced Continuity using Maximum Intensity
Projection as Loss" (2024). Differs in that a crop is cut by the transform that cuts the image, not by code of its own.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config.type_definitions import KeysCollection, NdarrayOrTensor
from monai.data.meta_tensor import MetaTensor
from monai.transforms.transform import MapTransform, Transform
from monai.utils.enums import TransformBackends
from monai.utils.type_conversion import convert_to_tensor


class LabelMIP(Transform):
    """Maximum projections of a whole label (C, spatial...), each repeated along its axis to the label's shape.

    Crop and flip them with the label. What mixes axes (90 degree and free rotations, transposing) must come before.

    Args:
        axes: spatial axes to project along, 0 the first after the channel; all by default.
        to_onehot: number of classes, background included, where the label holds class ids in one channel: of ids the
            maximum would keep the largest alone.

    Raises:
        ValueError: axes are out of range or repeated, or the number of classes is below 2.

    Example:
        >>> label = torch.zeros(1, 3, 4)
        >>> label[0, 1, 2] = 1
        >>> down, across = LabelMIP()(label)
        >>> down[0]
        tensor([[0., 0., 1., 0.],
                [0., 0., 1., 0.],
                [0., 0., 1., 0.]])
        >>> down.stride()           # repeated, not copied
        (4, 0, 1)
    """

    backend = [TransformBackends.TORCH]  # noqa: RUF012  (MONAI's protocol: a list on the class)

    def __init__(self, axes: Sequence[int] | None = None, to_onehot: int | None = None) -> None:
        if axes is not None and (not axes or len(set(axes)) < len(axes) or not set(axes) <= {0, 1, 2}):
            raise ValueError(f"axes must be different numbers of spatial axes, 0 to 2, or None for all, got {axes}")
        if to_onehot is not None and to_onehot < 2:
            raise ValueError(f"to_onehot must be a number of classes, at least 2, or None, got {to_onehot}")
        self.axes, self.to_onehot = axes, to_onehot

    def find_axes(self, label: NdarrayOrTensor) -> list[int]:
        """Give the spatial axes that a label (C, spatial...) is projected along.

        Raises:
            ValueError: an axis is not there.
        """
        there = list(range(label.ndim - 1))
        axes = there if self.axes is None else list(self.axes)
        if not axes or not set(axes) <= set(there):
            raise ValueError(f"axes {axes} are not all there: label has shape {tuple(label.shape)}, channel first")
        return axes

    def __call__(self, label: NdarrayOrTensor) -> list[torch.Tensor]:
        """Project a label.

        Args:
            label: masks (C, spatial...), or class ids (1, spatial...) with `to_onehot`.

        Returns:
            One tensor for each axis, (C, spatial...) in the label's type, or (classes, spatial...); MONAI's metadata
            stay. The tensors are views with stride 0: copy them before writing into them.

        Raises:
            ValueError: an axis is not there, or class ids have several channels or no class.
        """
        axes = self.find_axes(label)
        masks = convert_to_tensor(label, track_meta=isinstance(label, MetaTensor))
        masks = masks if self.to_onehot is None else _make_one_hot(masks, self.to_onehot)
        return [masks.amax(axis + 1, keepdim=True).expand(masks.shape) for axis in axes]


class LabelMIPd(MapTransform):
    """Dictionary form of `LabelMIP`: keeps the label and adds `{key}_mip_{axis}` for each axis, e.g. `label_mip_0`.

    Put it before random crops, and name the new keys in the crops and flips that follow.

    Args:
        keys: keys of the labels.
        axes: as in `LabelMIP`.
        to_onehot: as in `LabelMIP`.
        allow_missing_keys: whether a key that is not there is passed over.

    Raises:
        ValueError: as `LabelMIP`.

    Example:
        >>> data = LabelMIPd("label", axes=[0])({"label": torch.eye(3)[None]})
        >>> sorted(data)
        ['label', 'label_mip_0']
    """

    backend = LabelMIP.backend

    def __init__(
        self,
        keys: KeysCollection,
        axes: Sequence[int] | None = None,
        to_onehot: int | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.project = LabelMIP(axes, to_onehot)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Add the projections of the labels to a copy of the dictionary."""
        result = dict(data)
        for key in self.key_iterator(result):
            axes = self.project.find_axes(data[key])
            result |= {f"{key}_mip_{axis}": mip for axis, mip in zip(axes, self.project(data[key]), strict=True)}
        return result


def _make_one_hot(label: torch.Tensor, classes: int) -> torch.Tensor:
    """Masks (classes, spatial...) in the type of the class ids (1, spatial...)."""
    if len(label) != 1:
        raise ValueError(f"label must hold class ids in one channel for to_onehot, got shape {tuple(label.shape)}")
    if bool((label < 0).any()) or bool((label >= classes).any()):
        raise ValueError(
            f"label holds ids from {label.min().item():g} to {label.max().item():g}, but to_onehot is {classes}; "
            f"map the labels to 0 to {classes - 1} first"
        )
    ids = torch.arange(classes, device=label.device).view(-1, *(1,) * (label.ndim - 1))
    return (label == ids).to(label.dtype)
