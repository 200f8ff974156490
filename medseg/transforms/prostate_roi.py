"""Cut or pad an image to the box that a network for prostate zones was trained on.

The box has a fixed size in voxels, so resample first: 168 x 168 x 32 voxels of 0.5 x 0.5 x 3 mm are 84 x 84 x 96 mm. It
lies around the centre of the image, or around a point in mm that a gland detector gives. What the image lacks is filled
with its minimum.

Source: Meyer, Rak, Schindele, Blaschke, Schostak, Fedorov, Hansen, "Towards Patient-Individual PI-RADS v2 Sector Map:
CNN for Automatic Segmentation of Prostatic Zones from T2-Weighted MRI" (ISBI 2019). Differs in that one series is
enough, where they intersect the fields of view of three, and in that size and centre are arguments.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from monai.config.type_definitions import KeysCollection, NdarrayOrTensor
from monai.data.meta_tensor import MetaTensor
from monai.transforms.croppad.array import Crop, Pad
from monai.transforms.inverse import InvertibleTransform
from monai.transforms.transform import MapTransform
from monai.utils.enums import TransformBackends
from monai.utils.type_conversion import convert_to_tensor

SIZE = (168, 168, 32)


class ProstateROI(InvertibleTransform):
    """Box of a fixed size around the centre of an image (C, spatial...), or around a point.

    Args:
        roi_size: voxels along each axis of the image, in its order.
        roi_center: a point in mm of the world (that of the affine: right, anterior, superior); None for the centre.

    Raises:
        ValueError: a size is not positive.

    Example:
        >>> import torch
        >>> image = MetaTensor(torch.ones(1, 200, 160, 20), affine=torch.diag(torch.tensor([0.5, 0.5, 3.0, 1.0])))
        >>> ProstateROI()(image).shape
        torch.Size([1, 168, 168, 32])
    """

    backend = [TransformBackends.TORCH]  # noqa: RUF012  (MONAI's protocol: a list on the class)

    def __init__(self, roi_size: Sequence[int] = SIZE, roi_center: Sequence[float] | None = None) -> None:
        if not roi_size or min(roi_size) < 1:
            raise ValueError(f"roi_size must be positive numbers of voxels, got {list(roi_size)}")
        self.roi_size, self.roi_center = tuple(map(int, roi_size)), roi_center
        # Each leaves its own trace on the image, so that the same two find it on the way back.
        self.crop, self.pad = Crop(), Pad()

    def __call__(self, img: NdarrayOrTensor, roi_center: Sequence[float] | None = None) -> MetaTensor:
        """Cut and pad an image.

        Args:
            img: (C, spatial...), with an affine; without one, of 1 mm from the first voxel on.
            roi_center: in place of the constructor's.

        Returns:
            The box (C, roi_size...).

        Raises:
            ValueError: the number of axes does not fit, or the box lies wholly outside of the image.
        """
        image: Any = convert_to_tensor(img, track_meta=True)
        if image.ndim != len(self.roi_size) + 1:
            raise ValueError(f"img must have {len(self.roi_size)} axes after the channel, got {tuple(image.shape)}")
        center = self.roi_center if roi_center is None else roi_center
        sizes, wanted = np.array(image.shape[1:]), np.array(self.roi_size)
        middle = (sizes - 1) / 2 if center is None else _to_voxel(center, image)
        start = np.floor(middle - (wanted - 1) / 2 + 0.5).astype(int)
        stop = start + wanted
        if (start >= sizes).any() or (stop <= 0).any():
            raise ValueError(
                f"roi_center {None if center is None else list(center)} lies at voxel {middle.round(1).tolist()}, so "
                f"far from the image of {sizes.tolist()} voxels that the box misses it; give a point in mm inside it"
            )
        lowest = float(image.min())
        first, last = np.maximum(start, 0).tolist(), np.minimum(stop, sizes).tolist()
        cut: Any = self.crop(image, self.crop.compute_slices(roi_start=first, roi_end=last))
        borders = np.stack([np.maximum(-start, 0), np.maximum(stop - sizes, 0)], axis=1).tolist()
        return self.pad(cut, [(0, 0), *map(tuple, borders)], mode="constant", value=lowest)  # type: ignore[return-value]

    def inverse(self, data: MetaTensor) -> MetaTensor:
        """Put a box back; what the box did not show is 0."""
        return self.crop.inverse(self.pad.inverse(data))


class ProstateROId(MapTransform, InvertibleTransform):
    """Dictionary form of `ProstateROI`; images and labels on one grid get the same box.

    Args:
        keys: keys of the images and labels.
        roi_size: as in `ProstateROI`.
        roi_center: as in `ProstateROI`.
        center_key: key of a point in mm, used where it is there.
        allow_missing_keys: whether a key that is not there is passed over.

    Raises:
        ValueError: as `ProstateROI`.

    Example:
        >>> import torch
        >>> cut = ProstateROId("image", roi_size=[4, 4], center_key="gland")
        >>> cut({"image": torch.arange(64.0).view(1, 8, 8), "gland": [1.0, 1.0]})["image"].shape
        torch.Size([1, 4, 4])
    """

    backend = ProstateROI.backend

    def __init__(
        self,
        keys: KeysCollection,
        roi_size: Sequence[int] = SIZE,
        roi_center: Sequence[float] | None = None,
        center_key: str | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.cut, self.center_key = ProstateROI(roi_size, roi_center), center_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Cut the images of a copy of the dictionary."""
        result = dict(data)
        center = None if self.center_key is None else data.get(self.center_key)
        for key in self.key_iterator(result):
            result[key] = self.cut(data[key], center)
        return result

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Put the boxes back."""
        result = dict(data)
        for key in self.key_iterator(result):
            result[key] = self.cut.inverse(data[key])
        return result


def _to_voxel(center: Sequence[float], image: MetaTensor) -> np.ndarray:
    """Voxel of a point in mm."""
    axes = image.ndim - 1
    point = np.zeros(3)
    point[: len(center)] = np.asarray(center, dtype=float)
    affine = np.asarray(image.affine.cpu(), dtype=float)
    return np.linalg.solve(affine, [*point, 1.0])[:axes]
