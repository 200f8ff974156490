"""Count what a mask holds: volume, intensity, position and pieces of every label.

Volumes come from the determinant of the affine, so they hold for anisotropic, oblique and sheared grids alike.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cc3d
import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from medseg.data.atomic import atomic_path

_INTENSITY_KEYS = ("intensity_mean", "intensity_sd", "intensity_min", "intensity_max")
_FORMATS = (".json", ".csv")
# find_objects keeps one entry for every value up to the largest: above this, values are made compact first.
_MAX_DIRECT_LABEL = 65535


def label_statistics(
    mask: ArrayLike,
    affine: ArrayLike,
    *,
    names: Mapping[int, str],
    image: ArrayLike | None = None,
) -> list[dict[str, Any]]:
    """Measure every label of a mask.

    Args:
        mask: integer labels, (X, Y, Z); 0 is background.
        affine: (4, 4), voxel index to world millimetres (RAS+).
        names: label values and their names; every one but 0 gets a row, with or without voxels. Labels of the mask
            that are not named get a row as `label_<value>`.
        image: intensities on the mask's grid, (X, Y, Z). Without it the intensity columns are None. Voxels that are
            not finite are left out of them.

    Returns:
        One dictionary a label, in ascending order, with the keys `label`, `name`, `voxels`, `volume_mm3`, `volume_ml`,
        `intensity_mean`, `intensity_sd` (of the population), `intensity_min`, `intensity_max`, `centroid_mm` (three
        world coordinates), `bbox_voxel` (lowest and highest index of each axis, both inside), `bbox_mm` (extent along
        the three voxel axes), `components` (26-connected) and `touches_border` (a voxel lies on the first or last
        index of an axis longer than one). What an empty label does not have is None.

    Raises:
        ValueError: the mask is not a 3D integer array, the image is on another grid, or the affine is not usable.

    Example:
        >>> mask = np.zeros((5, 5, 5), np.uint8)
        >>> mask[1:3, 1:3, 1:3] = 1
        >>> row = label_statistics(mask, np.diag([2.0, 1.0, 1.0, 1.0]), names={1: "vessel"})[0]
        >>> row["volume_mm3"], row["centroid_mm"], row["bbox_mm"]
        (16.0, [3.0, 1.5, 1.5], [4.0, 2.0, 2.0])
    """
    labels = check_mask(np.asarray(mask))
    matrix = check_affine(np.asarray(affine, dtype=np.float64))
    values = None if image is None else np.asarray(image)
    if values is not None and values.shape != labels.shape:
        raise ValueError(f"image has shape {values.shape} but mask has shape {labels.shape}; give both on one grid")
    boxes = _bounding_boxes(labels)
    rows = []
    for label in sorted(({int(v) for v in names} - {0}) | set(boxes)):
        row: dict[str, Any] = {"label": label, "name": str(names.get(label, f"label_{label}"))}
        box = boxes.get(label)
        inside = None if box is None else labels[box] == label
        intensities = None if values is None or box is None else values[box][inside]
        rows.append(row | _geometry(inside, box, labels.shape, matrix) | _intensity(intensities))
    return rows


def write_statistics(path: str | Path, cases: Mapping[str, Sequence[Mapping[str, Any]]]) -> Path:
    """Write the rows of `label_statistics` for any number of cases, whole or not at all.

    JSON holds `{"cases": [{"case": ..., "labels": [...]}]}` with null for what a label does not have. CSV has one line
    for each case and label, the case in the first column, vectors spread over columns (`centroid_mm_x`, ...), and empty
    fields for None.

    Args:
        path: a file ending in `.json` or `.csv`; its folder is made when missing.
        cases: name of each case and what `label_statistics` returned for it.

    Returns:
        The path written.

    Raises:
        ValueError: another ending.

    Example:
        >>> write_statistics("stats.csv", {"sub-01": rows})  # doctest: +SKIP
    """
    path = Path(path)
    if path.suffix.lower() not in _FORMATS:
        raise ValueError(f"path must end in .json or .csv, got {path.name!r}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as part:
        if path.suffix.lower() == ".json":
            content = {"cases": [{"case": c, "labels": [finite(dict(r)) for r in rows]} for c, rows in cases.items()]}
            part.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        else:
            _write_csv(part, cases)
    return path


def finite(value: Any) -> Any:
    """The value with numpy scalars as Python numbers and NaN or infinity as None, so that it is valid JSON.

    Example:
        >>> finite({"a": [np.float32(1.0), float("nan")]})
        {'a': [1.0, None]}
    """
    if isinstance(value, Mapping):
        return {str(k): finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _bounding_boxes(labels: NDArray[Any]) -> dict[int, tuple[slice, ...]]:
    """Box of every label that has voxels, in one pass over the volume."""
    if labels.min() >= 0 and labels.max() <= _MAX_DIRECT_LABEL:
        found = enumerate(ndimage.find_objects(labels), start=1)
        return {label: box for label, box in found if box is not None}
    values, compact = np.unique(labels, return_inverse=True)
    found = zip(values.tolist(), ndimage.find_objects(compact.reshape(labels.shape) + 1), strict=True)
    return {label: box for label, box in found if label != 0}


def _geometry(
    inside: NDArray[np.bool_] | None, box: tuple[slice, ...] | None, shape: tuple[int, ...], affine: NDArray[np.float64]
) -> dict[str, Any]:
    if inside is None or box is None:
        nothing = dict.fromkeys(("centroid_mm", "bbox_voxel", "bbox_mm"))
        counts = {"voxels": 0, "volume_mm3": 0.0, "volume_ml": 0.0}
        return counts | dict.fromkeys(_INTENSITY_KEYS) | nothing | {"components": 0, "touches_border": False}
    voxels = int(inside.sum())
    volume = voxels * abs(float(np.linalg.det(affine[:3, :3])))
    low, high = np.array([s.start for s in box]), np.array([s.stop - 1 for s in box])
    centroid = affine[:3, :3] @ (np.argwhere(inside).mean(axis=0) + low) + affine[:3, 3]
    extent = (high - low + 1) * np.linalg.norm(affine[:3, :3], axis=0)
    border = [n > 1 and (a == 0 or b == n - 1) for a, b, n in zip(low, high, shape, strict=True)]
    # As bytes: the boolean path of cc3d 4.1 fails on single voxels in boxes of odd size.
    components = int(cc3d.connected_components(inside.view(np.uint8), connectivity=26, return_N=True)[1])
    return {
        "voxels": voxels,
        "volume_mm3": volume,
        "volume_ml": volume / 1000.0,
        **dict.fromkeys(_INTENSITY_KEYS),
        "centroid_mm": [float(c) for c in centroid],
        "bbox_voxel": [[int(a), int(b)] for a, b in zip(low, high, strict=True)],
        "bbox_mm": [float(e) for e in extent],
        "components": components,
        "touches_border": bool(any(border)),
    }


def _intensity(values: NDArray[Any] | None) -> dict[str, float | None]:
    if values is not None:
        values = values[np.isfinite(values)].astype(np.float64)
    if values is None or values.size == 0:
        return dict.fromkeys(_INTENSITY_KEYS)
    numbers = (values.mean(), values.std(), values.min(), values.max())
    return {key: float(number) for key, number in zip(_INTENSITY_KEYS, numbers, strict=True)}


def check_mask(mask: NDArray[Any]) -> NDArray[Any]:
    """The mask with booleans as integers; ValueError unless it is a 3D array of integers with at least one voxel."""
    if mask.ndim != 3:
        raise ValueError(f"mask must be 3D, got shape {mask.shape}; take one volume, or add an axis of length 1")
    if mask.size == 0:
        raise ValueError(f"mask has no voxels, got shape {mask.shape}; give a mask with at least one voxel")
    if mask.dtype == bool:
        return mask.astype(np.uint8)
    if not np.issubdtype(mask.dtype, np.integer):
        raise ValueError(f"mask must hold integer labels, got {mask.dtype}; round it or take the argmax first")
    return mask


def check_affine(affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """The affine; ValueError unless it is a finite, invertible (4, 4) matrix."""
    if affine.shape != (4, 4) or not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
        raise ValueError(f"affine must be a finite, invertible (4, 4) matrix, got {affine.tolist()}")
    return affine


def _write_csv(path: Path, cases: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    flat = [{"case": case} | _flatten(finite(dict(row))) for case, rows in cases.items() for row in rows]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(flat[0]) if flat else ["case"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(flat)


def _flatten(row: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in row.items():
        if key == "bbox_voxel":
            for axis, name in enumerate("ijk"):
                flat[f"{key}_{name}_min"], flat[f"{key}_{name}_max"] = value[axis] if value else (None, None)
        elif key in ("centroid_mm", "bbox_mm"):
            # The centroid is along world axes, the extent along voxel axes.
            for axis, name in enumerate("xyz" if key == "centroid_mm" else "ijk"):
                flat[f"{key}_{name}"] = value[axis] if value else None
        else:
            flat[key] = value
    return flat
