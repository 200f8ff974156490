"""Small synthetic volumes with exact labels, and training folders made of them, for tests and examples.

The shapes are drawn in world millimetres, so that an anisotropic grid shows the same object. Position and size vary
with the seed by a few per cent; the same arguments give the same voxels and, on disk, the same bytes.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np

PhantomKind = Literal["ball", "balls", "nested", "torus", "tube"]
Layout = Literal["decathlon", "nnunet", "plain"]

_CONTRAST = 100.0


def make_phantom(
    kind: PhantomKind = "nested",
    *,
    shape: Sequence[int] = (24, 28, 20),
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
    seed: int = 0,
    noise: float = 0.1,
) -> tuple[np.ndarray, np.ndarray]:
    """Draw one synthetic volume and its labels.

    Kinds: `ball` (label 1), `balls` (two separate balls, labels 1 and 2), `nested` (a core, label 2, inside a shell,
    label 1), `torus` (a ring with one hole, label 1), `tube` (a thin bent tube along the last axis, label 1).

    Args:
        kind: what to draw.
        shape: voxels along each axis, two or three of them, each at least 8.
        spacing: voxel size in mm along each axis, as many as `shape` has.
        seed: seed of position, size and noise.
        noise: standard deviation of the noise, as a fraction of the step between two labels.

    Returns:
        The image (float32, 100 for background, 100 more for each label, plus noise) and the labels (uint8).

    Raises:
        ValueError: `kind` is unknown, or `shape`, `spacing` or `noise` are out of range.

    Example:
        >>> image, label = make_phantom("nested", shape=(16, 16, 16), seed=1)
        >>> image.dtype.name, label.dtype.name, sorted(set(label.ravel().tolist()))
        ('float32', 'uint8', [0, 1, 2])
    """
    _check_grid(kind, shape, spacing, noise)
    random = np.random.default_rng(seed)
    size = np.array(shape) * np.array(spacing)
    centre = size / 2 * (1 + random.uniform(-0.06, 0.06, len(size)))
    radius = size.min() * random.uniform(0.26, 0.30)
    axes = np.meshgrid(*((np.arange(n) + 0.5) * s for n, s in zip(shape, spacing, strict=True)), indexing="ij")
    offset = np.stack([axis - c for axis, c in zip(axes, centre, strict=True)])
    label = _DRAW[kind](offset, radius).astype(np.uint8)
    image = _CONTRAST * (1 + label + noise * random.standard_normal(label.shape))
    return image.astype(np.float32), label


def write_phantom_dataset(
    directory: str | Path,
    layout: Layout = "plain",
    *,
    cases: int = 6,
    kind: PhantomKind = "nested",
    shape: Sequence[int] = (24, 28, 20),
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
    seed: int = 0,
    noise: float = 0.1,
) -> Path:
    """Write a training folder of phantoms in one of the layouts `load_datalist` understands.

    Args:
        directory: folder to fill; made when absent.
        layout: `plain` (`images/`, `labels/`), `decathlon` or `nnunet` (both `imagesTr/`, `labelsTr/`, `dataset.json`).
        cases: number of image/label pairs, at least 1.
        kind: what to draw, see `make_phantom`.
        shape: three sizes in voxels.
        spacing: voxel size in mm.
        seed: seed of the first case; every case draws its own.
        noise: see `make_phantom`.

    Returns:
        The folder.

    Raises:
        ValueError: `layout` is unknown, `cases` is below 1, or the grid is not three-dimensional.

    Example:
        >>> import tempfile
        >>> folder = write_phantom_dataset(tempfile.mkdtemp(), cases=2, shape=(8, 8, 8))
        >>> sorted(p.name for p in (folder / "images").iterdir())
        ['phantom_000.nii.gz', 'phantom_001.nii.gz']
    """
    if layout not in ("decathlon", "nnunet", "plain"):
        raise ValueError(f"layout must be 'decathlon', 'nnunet' or 'plain', got {layout!r}")
    if cases < 1 or len(shape) != 3:
        raise ValueError(f"cases must be at least 1 and shape must have 3 sizes, got cases={cases}, shape={shape}")
    directory = Path(directory)
    images, labels = ("images", "labels") if layout == "plain" else ("imagesTr", "labelsTr")
    suffix = "_0000" if layout == "nnunet" else ""
    affine = np.diag([*spacing, 1.0])
    names = [f"phantom_{index:03d}" for index in range(cases)]
    for index, name in enumerate(names):
        image, label = make_phantom(kind, shape=shape, spacing=spacing, seed=seed + index, noise=noise)
        write_nifti(directory / images / f"{name}{suffix}.nii.gz", image, affine)
        write_nifti(directory / labels / f"{name}.nii.gz", label, affine)
    if layout != "plain":
        content = describe_dataset(layout, names, _LABEL_NAMES[kind])
        (directory / "dataset.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return directory


def _distance(offset: np.ndarray) -> np.ndarray:
    return np.sqrt((offset**2).sum(axis=0))


def _ball(offset: np.ndarray, radius: float) -> np.ndarray:
    return _distance(offset) <= radius


def _balls(offset: np.ndarray, radius: float) -> np.ndarray:
    shift = np.zeros((offset.shape[0], *[1] * (offset.ndim - 1)))
    shift[0] = 0.8 * radius
    first, second = (_distance(offset + s) <= 0.65 * radius for s in (shift, -shift))
    return first + 2 * second


def _nested(offset: np.ndarray, radius: float) -> np.ndarray:
    distance = _distance(offset)
    return (distance <= radius).astype(int) + (distance <= 0.6 * radius)


def _torus(offset: np.ndarray, radius: float) -> np.ndarray:
    from_ring = _distance(offset[:2]) - radius
    return _distance(np.stack([from_ring, *offset[2:]])) <= 0.42 * radius


def _tube(offset: np.ndarray, radius: float) -> np.ndarray:
    bend = 0.5 * radius * np.sin(2 * np.pi * offset[-1] / np.ptp(offset[-1]))
    across = np.stack([offset[0] - bend, *offset[1:-1]])
    return _distance(across) <= 0.3 * radius


_DRAW: dict[str, Callable[[np.ndarray, float], np.ndarray]] = {
    "ball": _ball,
    "balls": _balls,
    "nested": _nested,
    "torus": _torus,
    "tube": _tube,
}
_LABEL_NAMES: dict[str, tuple[str, ...]] = {
    "ball": ("ball",),
    "balls": ("first", "second"),
    "nested": ("shell", "core"),
    "torus": ("torus",),
    "tube": ("tube",),
}


def _check_grid(kind: str, shape: Sequence[int], spacing: Sequence[float], noise: float) -> None:
    if kind not in _DRAW:
        raise ValueError(f"kind must be one of {', '.join(map(repr, sorted(_DRAW)))}, got {kind!r}")
    if len(shape) not in (2, 3) or min(shape) < 8:
        raise ValueError(f"shape must have 2 or 3 sizes of at least 8 voxels, got {tuple(shape)}")
    if len(spacing) != len(shape) or min(spacing) <= 0:
        raise ValueError(f"spacing must have {len(shape)} positive sizes in mm, one an axis, got {tuple(spacing)}")
    if noise < 0:
        raise ValueError(f"noise must be 0 or more, got {noise}")


def write_nifti(path: Path, array: np.ndarray, affine: np.ndarray) -> None:
    """Write a compressed volume, its folder made when absent; the same voxels give the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
    # mtime 0 keeps the date out of the file: the same arguments give the same bytes.
    path.write_bytes(gzip.compress(image.to_bytes(), compresslevel=6, mtime=0))


def describe_dataset(
    layout: Layout, names: Sequence[str], labels: Sequence[str], *, title: str = "phantoms", modality: str = "phantom"
) -> dict[str, Any]:
    """Content of `dataset.json` for images named `names` whose labels 1, 2, ... are named `labels`."""
    if layout == "nnunet":
        return {
            "channel_names": {"0": modality},
            "labels": {"background": 0, **{name: value for value, name in enumerate(labels, 1)}},
            "numTraining": len(names),
            "file_ending": ".nii.gz",
        }
    return {
        "name": title,
        "modality": {"0": modality},
        "labels": {"0": "background", **{str(value): name for value, name in enumerate(labels, 1)}},
        "numTraining": len(names),
        "training": [{"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in names],
        "test": [],
    }
