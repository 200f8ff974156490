"""What is known of the sizes of structures before an image is labelled: the expected share of each class in it.

    q_c = scale * size_c / size of the image         for classes that may be present,   0 for those tagged as absent
    q_0 = 1 - sum of the others                      (background)

A size is a share of the image, a number of voxels, or mm3; the last comes from atlases and literature.

Source: Bateson, Kervadec, Dolz, Lombaert, Ben Ayed, "Source-Free Domain Adaptation for Image Segmentation" (Medical
Image Analysis, 2022).

Differs from the published files in that sizes which do not add up to the image are refused, and that nothing is
evaluated as code.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medseg.data.class_sizes import UNITS, ClassSizes, read_class_sizes
from medseg.data.datalist import strip_nifti_ending

if TYPE_CHECKING:
    import torch

ANY_IMAGE = "*"
_SUM_TOLERANCE = 1e-3

Tags = Sequence[bool | None] | Mapping[Any, bool | None]


class ClassRatioPrior:
    """Expected share of each class in an image.

    Sizes may be rough, but not too small: twice the size costs little, half of it shrinks what is found, and a class
    that is expected where it is absent does harm. Give tags where it is known which images show a structure.

    Args:
        sizes: one number a class, background first, for all images; or such a list for each image by its id, with "*"
            for those without one of their own. The background may be None, for what the others leave.
        unit: "ratio" (share of the image), "voxel" or "mm3" (mm2 in an image with two spatial axes).
        tags: for each image by its id, whether each class is present; None where that is not known.
        scale: factor on all sizes but the background's; above 1 errs on the safe side.

    Raises:
        ValueError: sizes are negative, missing, or, as ratios, do not sum to 1 within 0.001; `scale` is not above 0.

    Example:
        >>> prior = ClassRatioPrior([0.9, 0.1])
        >>> prior.ratio(), prior.ratio(tags=[True, False])
        (tensor([0.9000, 0.1000]), tensor([1., 0.]))
        >>> prior = ClassRatioPrior.from_volumes_mm3({1: (1500.0, 300.0)}, scale=1.2)
        >>> prior.ratio({"spatial_shape": (20, 30, 10), "spacing": (1.0, 1.0, 2.0)})
        tensor([0.8500, 0.1500])
    """

    def __init__(
        self,
        sizes: Sequence[float | None] | Mapping[str, Sequence[float | None] | ClassSizes],
        *,
        unit: str = "ratio",
        tags: Mapping[str, Sequence[bool | None]] | None = None,
        scale: float = 1.0,
    ) -> None:
        if not (math.isfinite(scale) and scale > 0):
            raise ValueError(f"scale must be a finite number above 0, got {scale}")
        self.scale = float(scale)
        by_image = sizes if isinstance(sizes, Mapping) else {ANY_IMAGE: sizes}
        if not by_image:
            raise ValueError("sizes is empty; give one number a class, background first")
        self.rows = {
            str(k): v if isinstance(v, ClassSizes) else ClassSizes(tuple(v), unit) for k, v in by_image.items()
        }
        self.num_classes = len(next(iter(self.rows.values())).sizes)
        for image_id, row in self.rows.items():
            _check_row(image_id, row, self.num_classes)
        self.tags = {str(k): self._read_tags(v, str(k)) for k, v in (tags or {}).items()}
        self.deviations: tuple[float, ...] | None = None

    @classmethod
    def uniform(cls, num_classes: int) -> ClassRatioPrior:
        """Equal shares: what methods assume that know nothing of anatomy."""
        return cls([1 / num_classes] * num_classes)

    @classmethod
    def from_labels(
        cls,
        labels: Iterable[Any],
        spacing: Sequence[float] | Sequence[Sequence[float]] | None = None,
        *,
        num_classes: int | None = None,
        masks: Iterable[Any] | None = None,
        scale: float = 1.0,
    ) -> ClassRatioPrior:
        """Take the mean size of each class over the label maps that hold it.

        Args:
            labels: arrays of class ids.
            spacing: mm between voxels, for all label maps or for each. With it sizes are in mm3 and fit images of any
                extent; without, they are shares of the image.
            num_classes: number of classes, background included; by default those found.
            masks: for each label map the voxels that count, such as a field of view.
            scale: as for the class.

        Returns:
            The prior.

        Raises:
            ValueError: no labels, ids that are no classes, or a class that no label map holds.
        """
        arrays = [np.asarray(label) for label in labels]
        inside = [None] * len(arrays) if masks is None else [np.asarray(m).astype(bool) for m in masks]
        if not arrays or len(inside) != len(arrays):
            raise ValueError(f"labels must hold at least one label map, and masks as many, got {len(arrays)}")
        found = [_count(a, m) for a, m in zip(arrays, inside, strict=True)]
        classes = max(len(c) for c in found) if num_classes is None else num_classes
        if max(len(c) for c in found) > classes:
            raise ValueError(f"labels hold class id {max(len(c) for c in found) - 1}, but num_classes is {classes}")
        counts = np.array([np.pad(c, (0, classes - len(c))) for c in found], dtype=float)
        sizes = counts / counts.sum(1, keepdims=True)
        if spacing is not None:
            per_map = np.broadcast_to(np.asarray(spacing, float), (len(arrays), np.shape(spacing)[-1]))
            sizes = counts * per_map.prod(1, keepdims=True)
        missing = [c for c in range(1, classes) if not counts[:, c].any()]
        if missing:
            raise ValueError(f"no label map holds class {missing}; give its size by hand, or fewer num_classes")
        means = [float(sizes[counts[:, c] > 0, c].mean()) for c in range(1, classes)]
        return cls([None, *means], unit="ratio" if spacing is None else "mm3", scale=scale)

    @classmethod
    def from_volumes_mm3(
        cls,
        volumes: Mapping[Any, float | Sequence[float]],
        *,
        num_classes: int | None = None,
        scale: float = 1.0,
    ) -> ClassRatioPrior:
        """Take volumes from literature or an atlas.

        Args:
            volumes: for each class id from 1 on its mean volume in mm3, or mean and standard deviation.
            num_classes: number of classes, background included; by default those given.
            scale: as for the class.

        Returns:
            The prior; `bounds` uses the standard deviations.

        Raises:
            ValueError: a class is missing, or a volume is not a number above 0.
        """
        given = {int(k): tuple(v) if isinstance(v, Sequence) else (float(v),) for k, v in volumes.items()}
        classes = max(given, default=0) + 1 if num_classes is None else num_classes
        if sorted(given) != list(range(1, classes)) or classes < 2:
            raise ValueError(f"volumes must name the classes 1 to {max(classes - 1, 1)}, got {sorted(given)}")
        for key, entry in given.items():
            if len(entry) not in (1, 2) or not all(math.isfinite(v) for v in entry) or entry[0] <= 0 or min(entry) < 0:
                raise ValueError(f"the volume of class {key} must be mm3 above 0, or (mean, sd), got {entry}")
        prior = cls([None, *(float(given[c][0]) for c in range(1, classes))], unit="mm3", scale=scale)
        if all(len(entry) == 2 for entry in given.values()):
            prior.deviations = (0.0, *(float(given[c][-1]) for c in range(1, classes)))
        return prior

    @classmethod
    def from_csv(cls, path: str | Path, *, num_classes: int | None = None, scale: float = 1.0) -> ClassRatioPrior:
        """Read sizes and tags of images from a table; see `medseg.data.class_sizes` for its columns.

        Args:
            path: the table.
            num_classes: number of classes that it must have, background included; any by default.
            scale: as for the class.

        Returns:
            The prior.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: a column is missing, or a cell cannot be read; the text names the line and the column.
        """
        return cls(read_class_sizes(Path(path), num_classes), scale=scale)

    def ratio(self, image_meta: Mapping[str, Any] | str | None = None, tags: Tags | None = None) -> torch.Tensor:
        """Give the expected share of each class in an image.

        Args:
            image_meta: what is known of the image: its id as `image_id`, `sample_id` or `filename_or_obj`, needed if
                images have sizes of their own; `spatial_shape`, or `voxels` for the number of those that count; and
                `spacing` or `affine` for sizes in mm3. Or the id alone.
            tags: whether each class is present, in order or by class id; None where that is not known. Replaces the
                tags that the prior holds for the image.

        Returns:
            Shape (C,), float32, summing to 1.

        Raises:
            ValueError: the image has no row, its size is needed and not given, or the sizes do not fit into it.
        """
        import torch  # here, so that reading and writing volumes stays light

        meta = {"image_id": image_meta} if isinstance(image_meta, str) else dict(image_meta or {})
        name, row = self._find(meta)
        shares = np.array([0.0 if v is None else v for v in row.sizes])
        if row.unit != "ratio":
            whole = _extent(meta, row.unit)
            if row.sizes[0] is not None and abs(shares.sum() / whole - 1) > _SUM_TOLERANCE:
                raise ValueError(
                    f"prior for image {name!r}: the sizes of all classes sum to {shares.sum():.6g} {row.unit}, but the "
                    f"image has {whole:.6g}; correct them, or leave the background empty"
                )
            shares = shares / whole
        shares[1:] *= self.scale
        for c, present in enumerate(self._tags_of(name, row, tags)):
            if present is False:
                shares[c] = 0
            elif present and c > 0 and shares[c] == 0:
                raise ValueError(f"prior for image {name!r}: class {c} is tagged as present, but its size is 0")
        shares[0] = 1 - shares[1:].sum()
        if shares[0] < 0:
            raise ValueError(
                f"prior for image {name!r}: the classes take up {shares[1:].sum():.3f} of the image, more than there "
                f"is; check the unit ({row.unit}), the image's extent and scale ({self.scale:g})"
            )
        return torch.from_numpy(shares).float()

    def bounds(
        self, image_meta: Mapping[str, Any] | None = None, *, deviations: float = 2.0
    ) -> tuple[list[float], list[float]]:
        """Give the range of shares within some standard deviations, as `medseg.losses.SizeBoundLoss` takes it.

        Args:
            image_meta: as in `ratio`; the bounds hold for images of this extent.
            deviations: how many standard deviations to either side.

        Returns:
            Least and largest share of each class; 0 and 1 for the background.

        Raises:
            ValueError: the prior has no standard deviations, or as `ratio`.
        """
        if self.deviations is None:
            raise ValueError("bounds need standard deviations; use ClassRatioPrior.from_volumes_mm3 with (mean, sd)")
        ratio = self.ratio(image_meta).double().numpy()
        spread = deviations * np.array(self.deviations) / _extent(dict(image_meta or {}), "mm3")
        lower, upper = np.clip(ratio - spread, 0, 1), np.clip(ratio + spread, 0, 1)
        return [0.0, *lower[1:].tolist()], [1.0, *upper[1:].tolist()]

    @staticmethod
    def class_weight(ratios: torch.Tensor) -> list[float]:
        """Give weights for the entropy that are inverse to the mean size of each class, summing to 1.

        Args:
            ratios: shares, (C,) or (images, C); images without a class do not count for it.

        Raises:
            ValueError: a class is absent from all images.

        Example:
            >>> import torch
            >>> [round(w, 3) for w in ClassRatioPrior.class_weight(torch.tensor([0.9, 0.1]))]
            [0.1, 0.9]
        """
        rows = ratios.double().reshape(-1, ratios.shape[-1]).cpu().numpy()
        absent = [c for c in range(rows.shape[1]) if not rows[:, c].any()]
        if absent:
            raise ValueError(f"every class must be present in some image, got none with class {absent}")
        inverse = (rows > 0).sum(0) / rows.sum(0)
        return (inverse / inverse.sum()).tolist()

    def to_dict(self) -> dict[str, Any]:
        """The prior as JSON types, to be recorded with a result."""
        rows = {
            k: {"sizes": list(r.sizes), "unit": r.unit, "tags": r.tags and list(r.tags)} for k, r in self.rows.items()
        }
        return {"rows": rows, "tags": {k: list(v) for k, v in self.tags.items()}, "scale": self.scale}

    def _find(self, meta: Mapping[str, Any]) -> tuple[str, ClassSizes]:
        name = find_image_id(meta)
        row = self.rows.get(name or ANY_IMAGE, self.rows.get(ANY_IMAGE))
        if row is None:
            known = ", ".join(sorted(self.rows)[:5])
            raise ValueError(
                f"image {name!r} has no row in the prior; it has {len(self.rows)}: {known}, ...; "
                f"add the image, or a row {ANY_IMAGE!r} for all others"
            )
        return name or ANY_IMAGE, row

    def _tags_of(self, name: str, row: ClassSizes, tags: Tags | None) -> tuple[bool | None, ...]:
        if tags is not None:
            return self._read_tags(tags, name)
        return self.tags.get(name) or row.tags or (None,) * self.num_classes

    def _read_tags(self, tags: Tags, name: str) -> tuple[bool | None, ...]:
        if isinstance(tags, Mapping):
            by_class = {int(k): v for k, v in tags.items()}
            unknown = sorted(set(by_class) - set(range(self.num_classes)))
            if unknown:
                raise ValueError(f"tags of image {name!r} name the classes {unknown}, the prior has {self.num_classes}")
            tags = [by_class.get(c) for c in range(self.num_classes)]
        if len(tags) != self.num_classes:
            raise ValueError(
                f"tags of image {name!r} must be one for each of {self.num_classes} classes, got {len(tags)}"
            )
        if tags[0] is False:
            raise ValueError(f"tags of image {name!r}: the background cannot be absent")
        return tuple(None if t is None else bool(t) for t in tags)


def find_image_id(meta: Mapping[str, Any]) -> str | None:
    """The id of an image from its metadata, None where there is none.

    Example:
        >>> find_image_id({"filename_or_obj": "scans/case_07.nii.gz"})
        'case_07'
    """
    for key in ("image_id", "sample_id"):
        if meta.get(key) is not None:
            return str(meta[key])
    file = meta.get("filename_or_obj")
    if file is None:
        return None
    name = Path(str(file)).name
    stem = strip_nifti_ending(name)
    return stem if stem != name else Path(name).stem


def _extent(meta: Mapping[str, Any], unit: str) -> float:
    """Number of voxels of an image, or its extent in mm3."""
    shape = meta.get("spatial_shape")
    voxels = meta.get("voxels", None if shape is None else np.prod(np.asarray(shape)))
    if voxels is None:
        raise ValueError(f"sizes in {unit} need the image's extent; give spatial_shape or voxels in image_meta")
    if unit == "voxel":
        return float(voxels)
    spacing, affine = meta.get("spacing"), meta.get("affine")
    if spacing is not None:
        return float(voxels) * float(np.prod(np.asarray(spacing, float)))
    if affine is None:
        raise ValueError("sizes in mm3 need the voxel size; give spacing or affine in image_meta")
    return float(voxels) * float(abs(np.linalg.det(np.asarray(affine, float)[:3, :3])))


def _count(label: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    values = label[mask] if mask is not None else label.ravel()
    ids = values.astype(np.int64)
    if values.size == 0 or (ids != values).any() or ids.min() < 0:
        raise ValueError("labels must hold class ids, whole numbers from 0 on, in at least one voxel that counts")
    return np.bincount(ids)


def _check_row(image_id: str, row: ClassSizes, classes: int) -> None:
    where = "sizes" if image_id == ANY_IMAGE else f"sizes of image {image_id!r}"
    if row.unit not in UNITS:
        raise ValueError(f"unit must be one of {', '.join(UNITS)}, got {row.unit!r}")
    if len(row.sizes) != classes or classes < 2:
        raise ValueError(f"{where} must hold one number for each of {max(classes, 2)} classes, got {len(row.sizes)}")
    if row.tags is not None and len(row.tags) != classes:
        raise ValueError(f"tags of image {image_id!r} must be one for each of {classes} classes, got {len(row.tags)}")
    known = [v for v in row.sizes if v is not None]
    if len(known) < classes - (row.sizes[0] is None) or not all(math.isfinite(v) and v >= 0 for v in known):
        raise ValueError(f"{where} must be finite numbers, at least 0, got {list(row.sizes)}")
    total = sum(known)
    if row.unit == "ratio" and (total > 1 + _SUM_TOLERANCE or (len(known) == classes and total < 1 - _SUM_TOLERANCE)):
        raise ValueError(f"{where} must sum to 1 as ratios, got a sum of {total:.6g} for {list(row.sizes)}")
