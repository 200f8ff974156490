"""nnU-Net's preprocessing as one invertible MONAI transform, and its way from region scores to labels.

Axes in nnU-Net's order, crop to the box of non-zero voxels, normalise, resample. The inverse resamples logits linearly
into the crop and fills the rest with background.

Source: Isensee et al., "nnU-Net: a self-configuring method for deep learning-based biomedical image segmentation"
(2021), code of version 2.8.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config.type_definitions import KeysCollection
from monai.data.meta_tensor import MetaTensor
from monai.transforms.inverse import InvertibleTransform
from monai.transforms.transform import MapTransform
from monai.transforms.utils import generate_spatial_bounding_box
from monai.utils.enums import TraceKeys
from scipy.ndimage import binary_fill_holes

from medseg.nnunet.resampling import find_slice_axis, resample_image, resample_scores, scaled_shape

NORMALIZATIONS = (
    "ZScoreNormalization",
    "CTNormalization",
    "NoNormalization",
    "RescaleTo01Normalization",
    "RGBTo01Normalization",
)
_EPS = 1e-8
# Logit of a class that is not there: outside of the crop, background is certain.
_CERTAINLY_NOT = -30.0


class NNUNetPreprocessd(MapTransform, InvertibleTransform):
    """Bring a volume to the grid and the intensities of an nnU-Net network, and scores back.

    Args:
        keys: images (C, X, Y, Z) with an affine, axes as NIfTI stores them.
        spacing: of the network's grid in mm, in nnU-Net's order of axes (slices first); two numbers for a 2D network,
            which keeps the spacing between slices.
        transpose: `transpose_forward` of the plans.
        normalization: names of nnU-Net's schemes, one for each channel.
        use_mask: `use_mask_for_norm` of the plans, one for each channel.
        intensities: for `CTNormalization`, mean, std, percentile_00_5 and percentile_99_5 of each channel.
        order: of the splines that resample the image.
        force_separate_z: see `medseg.nnunet.resampling.find_slice_axis`.
        regions: scores are those of regions, all of them absent outside of the crop; else of classes, background first.
        allow_missing_keys: as in MONAI.

    Raises:
        ValueError: a scheme is unknown or lacks its intensities, or lengths do not fit.
    """

    def __init__(
        self,
        keys: KeysCollection,
        spacing: Sequence[float],
        *,
        transpose: Sequence[int] = (0, 1, 2),
        normalization: Sequence[str] = ("ZScoreNormalization",),
        use_mask: Sequence[bool] = (False,),
        intensities: Sequence[Mapping[str, float]] | None = None,
        order: int = 3,
        force_separate_z: bool | None = None,
        regions: bool = False,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if len(spacing) not in (2, 3) or sorted(transpose) != [0, 1, 2]:
            raise ValueError(f"spacing must have 2 or 3 numbers and transpose 0, 1, 2, got {spacing} and {transpose}")
        if unknown := [name for name in normalization if name not in NORMALIZATIONS]:
            raise ValueError(f"normalization must be of {', '.join(NORMALIZATIONS)}, got {', '.join(unknown)}")
        if len(use_mask) != len(normalization) or (intensities and len(intensities) != len(normalization)):
            raise ValueError(
                f"use_mask and intensities need an entry for each of {len(normalization)} channels, got "
                f"{len(use_mask)} and {len(intensities or [])}"
            )
        if "CTNormalization" in normalization and not intensities:
            raise ValueError("CTNormalization needs intensities, foreground_intensity_properties_per_channel of plans")
        self.spacing, self.order, self.force_separate_z = tuple(map(float, spacing)), order, force_separate_z
        self.normalization, self.use_mask = tuple(normalization), tuple(use_mask)
        self.intensities = intensities
        self.regions = regions
        # nnU-Net reads arrays with the slices first, NIfTI stores them last.
        self.axes = tuple(2 - axis for axis in transpose)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Prepare the images.

        Args:
            data: images by key.

        Returns:
            The same dictionary with new images.

        Raises:
            ValueError: an image is no (C, X, Y, Z), or has another number of channels.
        """
        out = dict(data)
        for key in self.key_iterator(out):
            out[key] = self._prepare(out[key])
        return out

    def _prepare(self, image: MetaTensor) -> MetaTensor:
        if image.ndim != 4 or image.shape[0] != len(self.normalization):
            raise ValueError(
                f"image must have shape ({len(self.normalization)}, X, Y, Z) for this network, got {tuple(image.shape)}"
            )
        before = np.linalg.norm(np.asarray(image.affine)[:3, :3], axis=0)[list(self.axes)]
        array = image.as_tensor().numpy().astype(np.float32).transpose(0, *(a + 1 for a in self.axes))
        mask = np.asarray(binary_fill_holes((array != 0).any(axis=0)))
        box = _bounding_box(mask)
        crop = np.stack([self._normalize(c, part, mask[box]) for c, part in enumerate(array[(slice(None), *box)])])
        target = (before[0], *self.spacing) if len(self.spacing) == 2 else self.spacing
        shape = scaled_shape(crop.shape[1:], before, target)
        axis = find_slice_axis(before, target, self.force_separate_z)
        new = MetaTensor(torch.from_numpy(resample_image(crop, shape, axis, self.order)), meta=image.meta)
        new.applied_operations = list(image.applied_operations)
        extra = {
            # Under this name, because `Invertd` sets it to "nearest" for labels.
            "mode": "linear",
            "shape": array.shape[1:],
            "box": [(s.start, s.stop) for s in box],
            "slice_axis": find_slice_axis(target, before, self.force_separate_z),
        }
        self.push_transform(new, extra_info=extra)
        return new

    def _normalize(self, channel: int, image: np.ndarray, mask: np.ndarray) -> np.ndarray:
        scheme = self.normalization[channel]
        if scheme == "ZScoreNormalization":
            inside = mask if self.use_mask[channel] else np.ones_like(mask)
            values = image[inside]
            image = image.copy()
            image[inside] = (values - values.mean()) / max(values.std(), _EPS)
        elif scheme == "CTNormalization":
            known = (self.intensities or [])[channel]
            image = image.clip(known["percentile_00_5"], known["percentile_99_5"])
            image = (image - known["mean"]) / max(known["std"], _EPS)
        elif scheme == "RescaleTo01Normalization":
            image = image - image.min()
            image = image / max(image.max(), _EPS)
        elif scheme == "RGBTo01Normalization":
            image = image / 255
        return image.astype(np.float32, copy=False)

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Bring scores or labels back to the grid that came.

        Args:
            data: (K, X, Y, Z) by key, with the trace of this transform.

        Returns:
            The same dictionary, on the grid of the input, background outside of the crop.
        """
        out = dict(data)
        for key in self.key_iterator(out):
            info = self.pop_transform(out[key])[TraceKeys.EXTRA_INFO]
            out[key] = self._restore(out[key], info)
        return out

    def _restore(self, scores: MetaTensor, info: Mapping[str, Any]) -> MetaTensor:
        box = [slice(start, stop) for start, stop in info["box"]]
        shape = [s.stop - s.start for s in box]
        values = resample_scores(scores.as_tensor(), shape, info["slice_axis"], nearest=info["mode"] == "nearest")
        whole = values.new_zeros((len(values), *info["shape"]))
        if len(values) > 1:
            whole[0 if self.regions else 1 :] = _CERTAINLY_NOT
        whole[(slice(None), *box)] = values
        back = np.argsort(self.axes)
        new = MetaTensor(whole.permute(0, *(int(a) + 1 for a in back)).contiguous(), meta=scores.meta)
        new.applied_operations = scores.applied_operations
        return new


class RegionsToLabelsd(MapTransform):
    """Turn probabilities of overlapping regions into labels: later ones are written over earlier ones.

    Args:
        keys: probabilities (R, X, Y, Z).
        order: label of each region, `regions_class_order` of nnU-Net's dataset.json.
        threshold: a voxel belongs to a region above it.
        allow_missing_keys: as in MONAI.

    Example:
        >>> scores = torch.tensor([0.9, 0.8, 0.1, 0.2]).view(2, 2, 1, 1)
        >>> RegionsToLabelsd("pred", [1, 2])({"pred": scores})["pred"].flatten().tolist()
        [1, 1]
    """

    def __init__(
        self, keys: KeysCollection, order: Sequence[int], threshold: float = 0.5, allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.order, self.threshold = tuple(order), threshold

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Write the labels.

        Args:
            data: probabilities by key.

        Returns:
            The same dictionary with labels (1, X, Y, Z), uint8 or int32.

        Raises:
            ValueError: there are more or fewer regions than labels.
        """
        out = dict(data)
        for key in self.key_iterator(out):
            scores = out[key]
            if len(scores) != len(self.order):
                raise ValueError(f"{key} holds {len(scores)} regions for the labels {list(self.order)}")
            labels = torch.zeros_like(scores[:1], dtype=torch.uint8 if max(self.order) < 256 else torch.int32)
            for region, label in zip(scores, self.order, strict=True):
                labels[0][region > self.threshold] = label
            out[key] = labels
        return out


def _bounding_box(mask: np.ndarray) -> tuple[slice, ...]:
    """Smallest box around all that is true; all of the volume where nothing is."""
    if not mask.any():
        return tuple(slice(0, n) for n in mask.shape)
    return tuple(slice(start, stop) for start, stop in zip(*generate_spatial_bounding_box(mask[None]), strict=True))
