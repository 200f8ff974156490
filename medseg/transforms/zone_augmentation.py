"""Random small movements of an image and its zone map, the map by its shape.

One of five, each as likely, around the centre of the volume:

    rotation about each axis with a shift,   mirroring left to right,   shift,   scaling alike along all axes,   none

Images are sampled linearly, label maps by signed distances (`medseg.transforms.ShapeBasedResampleToMatch`): with
nearest neighbours a urethra of three voxels comes out in shreds.

Source: Meyer, Ghosh, Schindele et al., "Uncertainty-Aware Temporal Self-Learning (UATS)" (Artificial Intelligence in
Medicine, 2021), and its published code. Differs in that angles are drawn evenly about all three axes; there those about
the slice axis are clipped by a slip.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config.type_definitions import KeysCollection
from monai.data.meta_tensor import MetaTensor
from monai.transforms.transform import MapTransform, Randomizable
from monai.transforms.utils import create_rotate
from monai.utils.enums import TransformBackends
from monai.utils.type_conversion import convert_to_tensor

from medseg.transforms.shape_resample import resample_shape, sample_linearly
from medseg.transforms.zone_distance import find_spacing
from medseg.transforms.zone_post_process import read_labels

KINDS = ("rotate", "flip", "shift", "scale", "none")


class RandShapeAffined(MapTransform, Randomizable):
    """Move images and label maps (C, X, Y, Z) together by one of five random movements.

    Arrays keep their size; what comes in from outside is the image's border, and background. The first axis is taken
    for left to right, as after `Orientationd(axcodes="RAS")`.

    Args:
        keys: keys of images and label maps, all on one grid.
        label_keys: those of them that are label maps.
        num_classes: classes of the label maps, background included.
        rotate_range: largest angle about each axis, in radians.
        translate_mm: largest shift along each axis, in mm.
        scale_range: smallest and largest factor.
        allow_missing_keys: whether a key that is not there is passed over.

    Raises:
        ValueError: an option is out of range.

    Example:
        >>> move = RandShapeAffined(["image", "label"], label_keys="label")
        >>> data = {"image": torch.rand(1, 8, 8, 4), "label": torch.ones(1, 8, 8, 4)}
        >>> move.set_random_state(0)(data)["label"].shape
        torch.Size([1, 8, 8, 4])
    """

    backend = [TransformBackends.TORCH]  # noqa: RUF012  (MONAI's protocol: a list on the class)

    def __init__(
        self,
        keys: KeysCollection,
        label_keys: str | Sequence[str] = (),
        num_classes: int = 5,
        rotate_range: float = 0.1745,
        translate_mm: Sequence[float] = (4.0, 4.0, 6.0),
        scale_range: Sequence[float] = (0.9, 1.1),
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.label_keys = (label_keys,) if isinstance(label_keys, str) else tuple(label_keys)
        if strangers := set(self.label_keys) - set(self.keys):
            raise ValueError(f"label_keys must be among keys {self.keys}, got also {sorted(map(str, strangers))}")
        if len(translate_mm) != 3 or min(translate_mm) < 0 or rotate_range < 0:
            raise ValueError(
                "translate_mm must be three numbers of mm and rotate_range radians, 0 or more, got "
                f"{list(translate_mm)} and {rotate_range}"
            )
        if len(scale_range) != 2 or not 0 < scale_range[0] <= scale_range[1]:
            raise ValueError(f"scale_range must be the smallest and the largest factor, got {list(scale_range)}")
        self.num_classes, self.rotate_range = num_classes, rotate_range
        self.translate_mm, self.scale_range = tuple(translate_mm), (float(scale_range[0]), float(scale_range[1]))

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Move the images and label maps of a copy of the dictionary.

        Raises:
            ValueError: an image is not (C, X, Y, Z), or a label map holds odd values.
        """
        result = dict(data)
        movement = self._draw()
        for key in self.key_iterator(result):
            image: Any = convert_to_tensor(data[key], track_meta=isinstance(data[key], MetaTensor))
            if image.ndim != 4:
                raise ValueError(f"{key} must have shape (C, X, Y, Z), got {tuple(image.shape)}")
            if movement is not None:
                moved = self._move(image, movement, is_label=key in self.label_keys)
                image = MetaTensor(moved, meta=image.meta) if isinstance(image, MetaTensor) else moved
            result[key] = image
        return result

    def _draw(self) -> np.ndarray | None:
        """Matrix in mm about the centre, from the new place to the old; None for no movement."""
        kind = KINDS[self.R.randint(len(KINDS))]
        shift, matrix = np.array([self.R.uniform(-t, t) for t in self.translate_mm]), np.eye(4)
        angles = self.R.uniform(-self.rotate_range, self.rotate_range, 3)
        low, high = self.scale_range
        factor = self.R.uniform(low, high)
        if kind == "rotate":
            matrix = np.asarray(create_rotate(3, angles.tolist()))
        if kind in ("rotate", "shift"):
            matrix[:3, 3] = shift
        if kind == "flip":
            matrix[0, 0] = -1
        if kind == "scale":
            matrix[:3, :3] /= factor
        return None if kind == "none" else matrix

    def _move(self, image: torch.Tensor, movement: np.ndarray, *, is_label: bool) -> torch.Tensor:
        shape, spacing = image.shape[1:], find_spacing(image, None)
        to_mm = np.diag([*spacing, 1.0])
        to_mm[:3, 3] = -(np.array(shape) - 1) / 2 * spacing
        matrix = np.linalg.solve(to_mm, movement @ to_mm)
        if is_label:
            ids = read_labels(image, self.num_classes)
            return torch.from_numpy(resample_shape(ids, spacing, matrix, shape, self.num_classes))[None].to(image.dtype)
        plain = image.as_subclass(torch.Tensor)
        return sample_linearly(plain if plain.is_floating_point() else plain.float(), matrix, shape)[0]
