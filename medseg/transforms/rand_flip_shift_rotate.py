"""Mirror, shift or rotate a slice: at most one of them at a time.

With probability p one of four, each as likely: mirroring along the first axis, along the second (each then happens with
probability 0.8), a shift by whole pixels with reflected borders, a rotation with repeated borders.

Source: Haseljic et al., "Liver segmentation using Turbolift learning for CT and cone-beam C-arm perfusion imaging"
(Computers in Biology and Medicine, 2023), whose code calls it MegaMix.

Differs from the published code: there the shift of at most 32 pixels reaches 16, since its offset counts the image as
one wide where the sampling grid counts two; 16 is the default here. Labels are rotated by nearest neighbours instead of
linearly with a threshold, which holds for any number of classes. In 3D the first two axes are meant.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config.type_definitions import KeysCollection, NdarrayOrTensor, SequenceStr
from monai.data.meta_tensor import MetaTensor
from monai.transforms import Affine, Flip, Rotate
from monai.transforms.inverse import InvertibleTransform
from monai.transforms.transform import MapTransform, RandomizableTransform
from monai.utils.enums import TraceKeys, TransformBackends
from monai.utils.misc import ensure_tuple_rep
from monai.utils.type_conversion import convert_to_tensor

_KINDS = ("mirror the first axis", "mirror the second axis", "shift", "rotate")


class RandFlipShiftRotate(RandomizableTransform, InvertibleTransform):
    """Mirror, shift or rotate an image in its first two axes, one of them at a time.

    Args:
        prob: probability that one of the four is chosen.
        flip_prob: probability that a chosen mirroring happens.
        max_shift: largest shift in pixels along each axis.
        max_angle: largest rotation in degrees, either way.
        mode: interpolation of the rotation, "bilinear" for images, "nearest" for labels.

    Raises:
        ValueError: an option is out of range.

    Example:
        >>> mirror = RandFlipShiftRotate(prob=1.0).set_random_state(seed=1)
        >>> mirror(np.arange(4.0).reshape(1, 2, 2)).shape
        torch.Size([1, 2, 2])
    """

    backend = [TransformBackends.TORCH, TransformBackends.NUMPY]  # noqa: RUF012  (MONAI's protocol: a list on the class)

    def __init__(
        self,
        prob: float = 0.75,
        *,
        flip_prob: float = 0.8,
        max_shift: int = 16,
        max_angle: float = 45.0,
        mode: str = "bilinear",
    ) -> None:
        RandomizableTransform.__init__(self, prob)
        if not (0 <= prob <= 1 and 0 <= flip_prob <= 1):
            raise ValueError(f"prob and flip_prob must lie in [0, 1], got {prob} and {flip_prob}")
        if max_shift < 0 or max_angle < 0:
            raise ValueError(f"max_shift and max_angle must be 0 or more, got {max_shift} and {max_angle}")
        self.flip_prob, self.max_shift, self.max_angle, self.mode = flip_prob, int(max_shift), float(max_angle), mode
        self._kind, self._shift, self._angle = 0, (0, 0), 0.0

    def randomize(self, data: Any = None) -> None:
        """Draw what is done to the next image."""
        super().randomize(None)
        self._kind = int(self.R.randint(len(_KINDS)))
        flips = self.R.rand() < self.flip_prob
        self._do_transform = self._do_transform and (self._kind > 1 or bool(flips))
        down, along = self.R.randint(-self.max_shift, self.max_shift + 1, 2)
        self._shift = (int(down), int(along))
        self._angle = float(np.deg2rad(self.R.uniform(-self.max_angle, self.max_angle)))

    def __call__(self, img: NdarrayOrTensor, randomize: bool = True, mode: str | None = None) -> torch.Tensor:
        """Change one image.

        Args:
            img: (C, H, W) or (C, H, W, D).
            randomize: draw anew; else do what was done last.
            mode: in place of the constructor's.

        Returns:
            A tensor of the same shape, with a trace for the inverse.
        """
        if randomize:
            self.randomize()
        image: Any = convert_to_tensor(img, track_meta=True).clone()
        inner: dict[str, Any] = {}
        if self._do_transform:
            dims = image.ndim - 1
            image = self._build(dims, mode or self.mode)(image)
            inner = self.pop_transform(image, check=False)
        self.push_transform(image, extra_info={"kind": self._kind, "inner": inner})
        return image

    def inverse(self, data: torch.Tensor) -> torch.Tensor:
        """Undo the last change of an image; what left its borders is lost."""
        trace = self.pop_transform(data)
        if not trace[TraceKeys.DO_TRANSFORM]:
            return data
        assert isinstance(data, MetaTensor)
        # Undone by another object of the same class, which MONAI refuses unless the trace names none.
        data.applied_operations.append({**trace[TraceKeys.EXTRA_INFO]["inner"], TraceKeys.ID: TraceKeys.NONE})
        kind = trace[TraceKeys.EXTRA_INFO]["kind"]
        undo = Flip(kind) if kind < 2 else Affine(padding_mode="zeros") if kind == 2 else Rotate(0.0)
        return undo.inverse(data)

    def _build(self, dims: int, mode: str) -> Any:
        """The deterministic transform that was drawn."""
        if self._kind < 2:
            return Flip(self._kind)
        if self._kind == 2:
            shift = [*self._shift, *[0] * (dims - 2)]
            return Affine(translate_params=shift, mode="nearest", padding_mode="reflection", image_only=True)
        angle = self._angle if dims == 2 else (0.0, 0.0, self._angle)
        return Rotate(angle, keep_size=True, mode=mode, padding_mode="border")


class RandFlipShiftRotated(MapTransform, RandomizableTransform, InvertibleTransform):
    """Dictionary form of `RandFlipShiftRotate`: the same change for all keys.

    Args:
        keys: keys of images and labels of one size.
        prob: probability that one of the four is chosen.
        flip_prob: probability that a chosen mirroring happens.
        max_shift: largest shift in pixels along each axis.
        max_angle: largest rotation in degrees, either way.
        mode: interpolation of the rotation, one for all keys or one each, such as ["bilinear", "nearest"].
        allow_missing_keys: whether a key that is not there is passed over.

    Raises:
        ValueError: an option is out of range.

    Example:
        >>> augment = RandFlipShiftRotated(["image", "label"], mode=["bilinear", "nearest"]).set_random_state(seed=0)
        >>> item = {"image": np.zeros((1, 8, 8)), "label": np.zeros((1, 8, 8))}
        >>> sorted(augment(item))
        ['image', 'label']
    """

    backend = RandFlipShiftRotate.backend

    def __init__(
        self,
        keys: KeysCollection,
        prob: float = 0.75,
        *,
        flip_prob: float = 0.8,
        max_shift: int = 16,
        max_angle: float = 45.0,
        mode: SequenceStr = "bilinear",
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, 1.0)
        self.change = RandFlipShiftRotate(prob, flip_prob=flip_prob, max_shift=max_shift, max_angle=max_angle)
        self.mode = ensure_tuple_rep(mode, len(self.keys))

    def set_random_state(
        self, seed: int | None = None, state: np.random.RandomState | None = None
    ) -> RandFlipShiftRotated:
        """Seed what is drawn."""
        super().set_random_state(seed, state)
        self.change.set_random_state(seed, state)
        return self

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Change all keys of a copy of the dictionary alike."""
        result = dict(data)
        self.change.randomize()
        for key, mode in self.key_iterator(result, self.mode):
            result[key] = self.change(result[key], randomize=False, mode=mode)
        return result

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Undo the last change of all keys."""
        result = dict(data)
        for key in self.key_iterator(result):
            result[key] = self.change.inverse(result[key])
        return result
