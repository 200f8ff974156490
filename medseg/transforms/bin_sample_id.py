"""Sample ids for random patches: the case and the part of its extent in which the patch lies.

    sample_id <- sample_id * bins + bin,    bin = floor(bins * t)

where t, 0 to 1, is where the patch's centre lies between the two ends of the whole volume, along one axis. A random
patch is no sample that comes again; its place along the slice axis is, and tells patches full of label from empty ones.

Source of the use: sample weights of Dong, Xie, Ward, "Adaptively Weighted Data Augmentation Consistency Regularization
for Robust Optimization under Concept Shift" (ICML 2023), who have whole slices as samples. The bins are ours.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
from monai.config.type_definitions import KeysCollection
from monai.data.meta_tensor import MetaTensor
from monai.transforms.transform import MapTransform
from monai.utils.enums import TransformBackends


class BinSampleIdd(MapTransform):
    """Turn the id of a case into that of a part of it: the case times `bins`, plus the bin of the patch's centre.

    Put it right after the random crop, before anything mirrors or turns the patch. The table then has as many entries
    as there are cases times bins; `medseg.data.sample_names(datalist, bins=...)` names them.

    Args:
        keys: key of the patch, with metadata as `LoadImaged` leaves them; one key.
        bins: number of equal parts of the volume's extent.
        axis: axis of the patch along which to divide, 0 the first after the channel; -1, the last, by default.
        id_key: key of the sample id.
        allow_missing_keys: whether a key that is not there is passed over.

    Raises:
        ValueError: an option is out of range.

    Example:
        >>> import torch
        >>> meta = {"spatial_shape": [4, 4, 40], "original_affine": torch.eye(4)}
        >>> shift = torch.eye(4)
        >>> shift[2, 3] = 25.0                                  # slices 25 to 32 of 40
        >>> patch = MetaTensor(torch.zeros(1, 4, 4, 8), affine=shift, meta=meta)
        >>> BinSampleIdd("image", bins=8)({"image": patch, "sample_id": 3})["sample_id"]
        29
    """

    backend = [TransformBackends.TORCH, TransformBackends.NUMPY]  # noqa: RUF012  (MONAI's protocol: a list on the class)

    def __init__(
        self,
        keys: KeysCollection,
        bins: int = 8,
        axis: int = -1,
        id_key: str = "sample_id",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if len(self.keys) != 1:
            raise ValueError(f"keys must be one key, that of the patch, got {self.keys}")
        if bins < 1:
            raise ValueError(f"bins must be at least 1, got {bins}")
        if axis not in range(-3, 3):
            raise ValueError(f"axis must be a spatial axis, 0 to 2 or -3 to -1, got {axis}")
        self.bins, self.axis, self.id_key = bins, axis, id_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Replace the sample id in a copy of the dictionary.

        Raises:
            ValueError: the sample id is no whole number, or the patch does not know its volume.
        """
        result = dict(data)
        for key in self.key_iterator(result):
            number = result.get(self.id_key)
            if isinstance(number, bool) or not isinstance(number, int | np.integer):
                raise ValueError(
                    f"{self.id_key} must be a whole number, got {number!r}; pass the list through "
                    "medseg.data.with_sample_ids first"
                )
            part = int(self.bins * self._place(result[key]))
            result[self.id_key] = int(number) * self.bins + min(max(part, 0), self.bins - 1)
        return result

    def _place(self, patch: Any) -> float:
        """Where the patch's centre lies between the ends of the volume, 0 to 1."""
        meta = patch.meta if isinstance(patch, MetaTensor) else {}
        if "spatial_shape" not in meta or "original_affine" not in meta:
            raise ValueError(
                "the patch has no metadata of its volume (spatial_shape and original_affine, as LoadImaged leaves "
                f"them), got {type(patch).__name__} with {sorted(map(str, meta))}"
            )
        affine, whole = (np.asarray(a, dtype=np.float64) for a in (patch.affine.cpu(), meta["original_affine"]))
        shape, size = np.asarray(meta["spatial_shape"])[:3].astype(float), np.asarray(patch.shape[1:], dtype=float)
        if len(size) != 3:
            raise ValueError(f"the patch must have shape (C, X, Y, Z), got {tuple(patch.shape)}")
        along = affine[:3, self.axis if self.axis >= 0 else 3 + self.axis]
        corners = np.array(list(itertools.product(*((-0.5, n - 0.5) for n in shape))))
        ends = (corners @ whole[:3, :3].T + whole[:3, 3]) @ along
        centre = ((size - 1) / 2 @ affine[:3, :3].T + affine[:3, 3]) @ along
        return float((centre - ends.min()) / (ends.max() - ends.min()))
