"""From the cases of a site to batches: prepared as the bundle says, cut into the windows its network is used to.

Where every case fits into one window, items are whole images, padded to the window. Otherwise they are random windows,
for 2D networks of random slices, which share the expected ratio of their case. Padding does not count.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from monai.data import DataLoader, Dataset
from monai.transforms import Compose, RandSpatialCropSamplesd, SpatialPadd, SqueezeDimd

from medseg.data import Case, ClassRatioPrior, Volume
from medseg.engines.prediction import read_case
from medseg.engines.predictor import Predictor

_KEYS = ("image", "mask")


@dataclass(frozen=True)
class UnlabelledCases:
    """Prepared cases, and how they are cut.

    Attributes:
        items: for each case `sample_id`, `image` and `mask` (1 where it counts), both (C, spatial...), `class_ratio`.
        window: extent of the items of a batch, None for whole images.
        slice_dim: the axis along which a 2D network sees single slices, None for other networks.
    """

    items: Sequence[dict[str, Any]]
    window: tuple[int, ...] | None
    slice_dim: int | None

    @property
    def ratio_per(self) -> str:
        """Whether an item is an image, or a patch of a case whose ratio it shares."""
        sizes = [item["image"].shape[1:] for item in self.items]
        whole = self.window is None or all(n <= w for size in sizes for n, w in zip(size, self.window, strict=True))
        return "image" if whole else "case"

    def train_loader(self, batch_size: int, crops: int) -> tuple[DataLoader, Compose]:
        """Batches of windows in random order, and the random transform that cuts them, to be seeded.

        Args:
            batch_size: cases in a batch; 1 where there are no windows, since whole images differ in extent.
            crops: windows of each case in a batch; 1 where the window holds all of it.
        """
        steps: list[Any] = []
        if self.window is not None:
            count = 1 if self.ratio_per == "image" else crops
            steps.append(SpatialPadd(_KEYS, self.window))
            steps.append(RandSpatialCropSamplesd(_KEYS, self.window, num_samples=count, random_size=False))
        if self.slice_dim is not None:
            steps.append(SqueezeDimd(_KEYS, dim=self.slice_dim + 1))
        cutting = Compose(steps)
        size = 1 if self.window is None else min(batch_size, len(self.items))
        loader = DataLoader(Dataset(list(self.items), cutting), batch_size=size, shuffle=True, drop_last=True)
        return loader, cutting

    def whole_cases(self) -> Iterable[dict[str, Any]]:
        """Every case by itself, as a batch of one."""
        for item in self.items:
            tensors = {key: item[key][None] for key in (*_KEYS, "class_ratio")}
            yield {"sample_id": [item["sample_id"]], **tensors}


def prepare_cases(predictor: Predictor, cases: Sequence[Case], prior: ClassRatioPrior) -> UnlabelledCases:
    """Read all cases and run the bundle's preprocessing on them; they stay in memory.

    Args:
        predictor: the bundle's predictor.
        cases: the images of the new site.
        prior: their expected ratios.

    Returns:
        The cases.

    Raises:
        VolumeError: a file is unusable.
        ValueError: a case has no contrast, or the prior has no answer for it.
    """
    items = []
    for case in cases:
        volumes = read_case(case, len(predictor.bundle.input_channels))
        items.append(_prepare(predictor, case, volumes, prior))
    windows, size = predictor.windows, tuple(items[0]["image"].shape[1:])
    window = windows.shape(size) if windows.streaming and windows.fixed_shape else None
    if window is None and windows.slice_dim is not None:
        raise ValueError("the bundle's slices must have a fixed roi_size, so that they can be batched; give one")
    return UnlabelledCases(items, window, windows.slice_dim)


def _prepare(predictor: Predictor, case: Case, volumes: Sequence[Volume], prior: ClassRatioPrior) -> dict[str, Any]:
    prepared = predictor.prepare(volumes)
    if prepared.data is None:
        raise ValueError(f"{volumes[0].path}: all voxels have the same value; leave it out")
    image = prepared.data["image"]
    meta = {"sample_id": case.case_id, "spatial_shape": tuple(image.shape[1:]), "affine": image.affine.numpy()}
    # A clone, because what was made in inference mode cannot take part in training.
    plain = image.as_tensor().clone()
    return {
        "sample_id": case.case_id,
        "image": plain,
        "mask": torch.ones_like(plain[:1]),
        "class_ratio": prior.ratio(meta),
    }
