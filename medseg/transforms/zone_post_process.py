"""Clean a zone map: one piece a class, and no hole between them.

    1. of every class, background included, the largest component stays (neighbours share a face);
    2. every other voxel goes to the class whose kept component is nearest; at a tie to the first zone, background last.

Source: Meyer, Rak, Schindele, Blaschke, Schostak, Fedorov, Hansen, "Towards Patient-Individual PI-RADS v2 Sector Map:
CNN for Automatic Segmentation of Prostatic Zones from T2-Weighted MRI" (ISBI 2019), and its published code, which
visits the voxels one by one. Distances are in voxels, as there; `spacing` takes them in mm, which on thick slices is
what the eye expects.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import cc3d
import edt
import numpy as np
import torch
from monai.config.type_definitions import KeysCollection, NdarrayOrTensor
from monai.transforms.transform import MapTransform, Transform
from monai.utils.enums import TransformBackends
from monai.utils.type_conversion import convert_to_dst_type


class ZonePostProcess(Transform):
    """Keep the largest piece of every class of a label map (1, spatial...) and give the rest to the nearest class.

    Args:
        num_classes: classes, background (label 0) included.
        spacing: voxel edges in mm for "nearest"; None measures in voxels, as published.
        min_size: zones whose largest piece has fewer voxels than this vanish.

    Raises:
        ValueError: an option is out of range.

    Example:
        >>> label = torch.tensor([[[1, 1, 2, 2, 1, 0, 0]]])
        >>> ZonePostProcess(num_classes=3)(label)       # the single 1 lies as far from 2 as from 0
        tensor([[[1, 1, 2, 2, 2, 0, 0]]])
    """

    backend = [TransformBackends.NUMPY]  # noqa: RUF012  (MONAI's protocol: a list on the class)

    def __init__(self, num_classes: int = 5, spacing: Sequence[float] | None = None, min_size: int = 0) -> None:
        if not 2 <= num_classes <= 255:
            raise ValueError(f"num_classes must lie in 2 to 255, got {num_classes}")
        if min_size < 0:
            raise ValueError(f"min_size must be 0 or more voxels, got {min_size}")
        if spacing is not None and not all(edge > 0 for edge in spacing):
            raise ValueError(f"spacing must be positive voxel edges in mm, got {list(spacing)}")
        self.num_classes, self.spacing, self.min_size = num_classes, spacing, min_size

    def __call__(self, label: NdarrayOrTensor) -> NdarrayOrTensor:
        """Clean a label map.

        Args:
            label: ids (1, spatial...), in 2D or 3D, of any type.

        Returns:
            The map in the type it came in; the input itself where every class is in one piece.

        Raises:
            ValueError: the shape or a value does not fit.
        """
        ids = read_labels(label, self.num_classes)
        if self.spacing is not None and len(self.spacing) != ids.ndim:
            raise ValueError(f"spacing must have {ids.ndim} voxel edges for this label, got {list(self.spacing)}")
        kept = self._largest_pieces(ids)
        if kept.all():
            return label
        cleaned = ids.copy()
        cleaned[~kept] = self._nearest(ids, kept)
        return convert_to_dst_type(cleaned[None], label)[0]

    def _largest_pieces(self, ids: np.ndarray) -> np.ndarray:
        """Voxels that stay."""
        # Components of 0 are not counted, so background becomes 1.
        pieces = cc3d.connected_components(ids + 1, connectivity=6 if ids.ndim == 3 else 4)
        sizes = np.bincount(pieces.ravel())
        of_class = np.zeros(len(sizes), np.int64)
        of_class[pieces.ravel()] = ids.ravel()
        stays = np.zeros(len(sizes), bool)
        for value in range(self.num_classes):
            own = np.flatnonzero((of_class == value) & (sizes > 0))
            if len(own) and (value == 0 or sizes[own].max() >= self.min_size):
                stays[own[sizes[own].argmax()]] = True
        return stays[pieces]

    def _nearest(self, ids: np.ndarray, kept: np.ndarray) -> np.ndarray:
        """Class of each voxel that does not stay."""
        edges = (1.0,) * ids.ndim if self.spacing is None else tuple(map(float, self.spacing))
        order = np.roll(np.arange(self.num_classes), -1)
        lost = ~kept
        squares = np.full((self.num_classes, int(lost.sum())), np.inf, np.float32)
        for row, value in enumerate(order):
            piece = kept & (ids == value)
            if piece.any():
                far = edt.edtsq(np.ascontiguousarray(~piece), anisotropy=edges, black_border=False, parallel=1)
                squares[row] = far[lost]
        # With nothing kept at all, which min_size can do, all is background.
        return np.where(np.isfinite(squares).any(axis=0), order[squares.argmin(axis=0)], 0)


class ZonePostProcessd(MapTransform):
    """Dictionary form of `ZonePostProcess`.

    Args:
        keys: keys of the label maps.
        num_classes: as in `ZonePostProcess`.
        spacing: as in `ZonePostProcess`.
        min_size: as in `ZonePostProcess`.
        allow_missing_keys: whether a key that is not there is passed over.

    Raises:
        ValueError: as `ZonePostProcess`.

    Example:
        >>> data = ZonePostProcessd("pred", num_classes=2)({"pred": torch.tensor([[[1, 1, 0, 0, 0, 1]]])})
        >>> data["pred"]
        tensor([[[1, 1, 0, 0, 0, 0]]])
    """

    backend = ZonePostProcess.backend

    def __init__(
        self,
        keys: KeysCollection,
        num_classes: int = 5,
        spacing: Sequence[float] | None = None,
        min_size: int = 0,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.clean = ZonePostProcess(num_classes, spacing, min_size)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Clean the label maps of a copy of the dictionary."""
        result = dict(data)
        for key in self.key_iterator(result):
            result[key] = self.clean(data[key])
        return result


def read_labels(label: NdarrayOrTensor, num_classes: int) -> np.ndarray:
    """Ids (spatial...) as bytes, of a label map (1, spatial...).

    Raises:
        ValueError: several channels, values that are no ids, or ids out of range.
    """
    if label.ndim not in (3, 4) or len(label) != 1:
        raise ValueError(
            f"label must be a label map (1, spatial...) in 2D or 3D, got shape {tuple(label.shape)}; take the argmax "
            "of probabilities first"
        )
    values = np.asarray(label.cpu() if isinstance(label, torch.Tensor) else label)[0]
    ids = values.astype(np.uint8)
    if (ids != values).any() or ids.max(initial=0) >= num_classes:
        raise ValueError(
            f"label must hold ids 0 to {num_classes - 1}, got values from {values.min():g} to {values.max():g}; map "
            "the labels first, or change num_classes"
        )
    return ids
