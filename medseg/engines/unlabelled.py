"""Batches of images without labels: what a loader gives, with the class ratios that are expected of each image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from monai.data import MetaTensor
from monai.utils.enums import CommonKeys

from medseg.data import ClassRatioPrior


@dataclass(frozen=True)
class UnlabelledBatch:
    """One batch of new images.

    Attributes:
        image: (B, channels, spatial...), on the network's device.
        ratio: expected share of each class, (B, C), on the CPU.
        mask: the voxels that count, (B, 1, spatial...), or None for all.
        ids: an id for each item, or None where the batch holds none.
    """

    image: torch.Tensor
    ratio: torch.Tensor
    mask: torch.Tensor | None
    ids: tuple[str, ...] | None


def read_unlabelled(
    item: Any, prior: ClassRatioPrior, device: torch.device, *, non_blocking: bool = False
) -> UnlabelledBatch:
    """Bring one batch of a loader to the device, with its expected ratios.

    Args:
        item: a dictionary with `image`, and optionally `sample_id`, `mask`, `class_ratio` (used in place of the prior)
            and `tags` (B, C); or the images alone.
        prior: the expected ratios.
        device: where the network is.
        non_blocking: copy without waiting, from pinned memory.

    Returns:
        The batch.

    Raises:
        ValueError: the prior has no answer for an image.

    Example:
        >>> batch = read_unlabelled(torch.zeros(2, 1, 4, 4), ClassRatioPrior([0.9, 0.1]), torch.device("cpu"))
        >>> batch.ratio.shape, batch.ids
        (torch.Size([2, 2]), None)
    """
    item = item if isinstance(item, Mapping) else {CommonKeys.IMAGE: item}
    image, mask, ratio = item[CommonKeys.IMAGE], item.get("mask"), item.get("class_ratio")
    ids = _find_ids(item, image)
    if ratio is None:
        ratio = torch.stack([prior.ratio(*_describe(item, ids, number)) for number in range(len(image))])
    if mask is not None:
        mask = torch.as_tensor(mask).as_subclass(torch.Tensor).to(device, non_blocking=non_blocking)
    plain = image.as_tensor() if isinstance(image, MetaTensor) else image
    return UnlabelledBatch(plain.to(device, non_blocking=non_blocking), torch.as_tensor(ratio).float().cpu(), mask, ids)


def list_samples(loader: Any) -> list[str] | None:
    """Sorted ids of the images behind a loader of a MONAI data set, None where they cannot be told.

    Example:
        >>> from monai.data import DataLoader, Dataset
        >>> list_samples(DataLoader(Dataset([{"sample_id": "b"}, {"sample_id": "a"}])))
        ['a', 'b']
    """
    data = getattr(getattr(loader, "dataset", None), "data", None)
    if not isinstance(data, Sequence) or not all(isinstance(d, Mapping) for d in data):
        return None
    ids = [d.get("sample_id", d.get(CommonKeys.IMAGE)) for d in data]
    return sorted({str(i) for i in ids}) if all(isinstance(i, (str, int)) for i in ids) else None


def finest(logits: Any, image: torch.Tensor) -> torch.Tensor:
    """The prediction at full resolution, where a network gives several under deep supervision."""
    if isinstance(logits, (list, tuple)):
        return logits[0]
    return logits[:, 0] if logits.ndim == image.ndim + 1 else logits


def _find_ids(item: Mapping[str, Any], image: torch.Tensor) -> tuple[str, ...] | None:
    ids = item.get("sample_id")
    if ids is None and isinstance(image, MetaTensor):
        ids = image.meta.get("filename_or_obj")
    if ids is None or isinstance(ids, str):
        return None if ids is None else (ids,)
    return tuple(str(i) for i in (ids.tolist() if isinstance(ids, torch.Tensor) else ids))


def _describe(item: Mapping[str, Any], ids: Sequence[str] | None, number: int) -> tuple[dict[str, Any], Any]:
    """What the prior needs to know of one image, and its tags."""
    image, mask, tags = item[CommonKeys.IMAGE], item.get("mask"), item.get("tags")
    meta: dict[str, Any] = {"spatial_shape": tuple(image.shape[2:])}
    if ids is not None:
        meta["sample_id"] = ids[number]
    if mask is not None:
        meta["voxels"] = float(torch.as_tensor(mask[number]).sum())
    affine = image.meta.get("affine") if isinstance(image, MetaTensor) else None
    if affine is not None:
        meta["affine"] = affine[number] if affine.ndim == 3 else affine
    return meta, None if tags is None else [bool(t) for t in tags[number]]
