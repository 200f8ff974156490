"""Synthetic lesions outlined by experts who disagree, each in a way of their own that can be told from the image or
not.

An image holds one large lesion with two faint lobes on opposite sides, and some lesions so small that they can be
missed. The simulated raters:

    over           draws everything, both lobes too, one voxel too wide
    under          draws the bright part alone, one voxel too narrow
    misses_small   draws no lesion below a certain size
    first_lobe     takes one of the lobes for lesion
    second_lobe    takes the other one: these two outlines are not nested

Every rater's boundary also wavers smoothly by a fraction of a voxel, anew for each case. The truth that the drawing
started from is nobody's annotation, as in real data.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy import ndimage

from medseg.data.phantoms import describe_dataset, write_nifti

RATERS = ("over", "under", "misses_small", "first_lobe", "second_lobe")
_LARGE, _SMALL = (0.17, 0.21), (1.6, 2.4)  # radius of the large lesion by the smallest side; of small ones in voxels
_LOBE, _FAINT = 0.62, 0.5  # radius of a lobe by that of its lesion, and its contrast
_EDGE, _WAVER = 1.0, 0.35  # blur of edges and deviation of a rater's boundary, in voxels
_TRIES = 200


def make_rater_phantom(
    shape: Sequence[int] = (40, 40, 40),
    *,
    raters: Sequence[str] = RATERS,
    small_lesions: int = 2,
    noise: float = 0.15,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Draw one image and the annotations of several raters.

    Args:
        shape: two or three sizes in voxels, each at least 24.
        raters: who annotates, any of `over`, `under`, `misses_small`, `first_lobe` and `second_lobe`, in this order in
            the result; a name may occur twice.
        small_lesions: lesions of a few voxels beside the large one.
        noise: standard deviation of the noise, as a fraction of the contrast; its grain is about two voxels wide.
        seed: seed of lesions, noise and boundaries.

    Returns:
        The image (float32, about 0 outside and 1 inside) and the annotations (raters, shape...), uint8, 0 and 1.

    Raises:
        ValueError: an argument is out of range, a rater is unknown, or the lesions do not fit.

    Example:
        >>> image, annotations = make_rater_phantom((32, 32), raters=("over", "under"))
        >>> annotations.shape, bool(annotations[0].sum() > annotations[1].sum())
        ((2, 32, 32), True)
    """
    _check(shape, raters, small_lesions, noise)
    random = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1).astype(np.float64)
    large, lobes = _large_lesion(grid, shape, random)
    occupied = np.maximum(large, lobes.max(0))
    small = _small_lesions(grid, shape, occupied, small_lesions, random)
    depth = np.maximum(large, small)
    contrast = np.maximum(depth > 0, _FAINT * (lobes.max(0) > 0))
    grain = ndimage.gaussian_filter(random.standard_normal(shape), 0.8)
    image = ndimage.gaussian_filter(contrast.astype(np.float64), _EDGE) + noise * grain / grain.std()
    seen = {
        "over": np.maximum(depth, lobes.max(0)) + 1,
        "under": depth - 1,
        "misses_small": large,
        "first_lobe": np.maximum(depth, lobes[0]),
        "second_lobe": np.maximum(depth, lobes[1]),
    }
    annotations = np.stack([seen[rater] + _wavering(shape, random) > 0 for rater in raters])
    return image.astype(np.float32), annotations.astype(np.uint8)


def write_rater_phantoms(
    directory: str | Path,
    layout: str = "decathlon",
    *,
    cases: int = 6,
    shape: Sequence[int] = (40, 40, 40),
    raters: Sequence[str] = RATERS,
    missing: float = 0.0,
    seed: int = 0,
) -> Path:
    """Write a training folder in which every image has several label files, as `load_datalist` reads it.

    Args:
        directory: folder to fill; made when absent.
        layout: `decathlon` (a `training` list) or `nnunet` (a `dataset` table), both with a list of label files.
        cases: number of images, at least 1.
        shape: three sizes in voxels.
        raters: see `make_rater_phantom`.
        missing: probability that a rater left out a case, in [0, 1); at least one annotation is always there.
        seed: seed of the first case; every case draws its own.

    Returns:
        The folder.

    Raises:
        ValueError: an argument is out of range.
    """
    if layout not in ("decathlon", "nnunet"):
        raise ValueError(f"layout must be 'decathlon' or 'nnunet', got {layout!r}")
    if cases < 1 or len(shape) != 3 or not 0 <= missing < 1:
        raise ValueError(
            "cases must be at least 1, shape have 3 sizes and missing lie in [0, 1), "
            f"got cases={cases}, shape={shape}, missing={missing}"
        )
    directory = Path(directory)
    entries: dict[str, dict] = {}
    for index in range(cases):
        name = f"phantom_{index:03d}"
        image, annotations = make_rater_phantom(shape, raters=raters, seed=seed + index)
        absent = np.random.default_rng([seed + index, 1]).random(len(raters)) < missing
        absent[index % len(raters)] = False
        image_file = f"imagesTr/{name}{'_0000' if layout == 'nnunet' else ''}.nii.gz"
        write_nifti(directory / image_file, image, np.eye(4))
        files = [None if gone else f"labelsTr/{name}_{k}.nii.gz" for k, gone in enumerate(absent)]
        for file, annotation in zip(files, annotations, strict=True):
            if file is not None:
                write_nifti(directory / file, annotation, np.eye(4))
        entries[name] = {"image": image_file, "label": files}
    content = describe_dataset("nnunet" if layout == "nnunet" else "decathlon", list(entries), ["lesion"])
    if layout == "nnunet":
        content["dataset"] = {name: {"images": [e["image"]], "label": e["label"]} for name, e in entries.items()}
    else:
        content["training"] = list(entries.values())
    (directory / "dataset.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return directory


def _large_lesion(grid: np.ndarray, shape: Sequence[int], random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Depth below the surface, in voxels, of the large lesion and of its two lobes."""
    radius = min(shape) * random.uniform(*_LARGE)
    centre = np.array(shape) / 2 + random.uniform(-0.1, 0.1, len(shape)) * min(shape)
    radii = radius * random.uniform(0.85, 1.1, len(shape))
    direction = random.standard_normal(len(shape))
    direction /= np.linalg.norm(direction)
    lobes = [_ball(grid, centre + side * radius * direction, _LOBE * radius) for side in (1, -1)]
    # Depth of an ellipsoid, exact at its surface's poles and close to it elsewhere.
    large = (1 - np.linalg.norm((grid - centre) / radii, axis=-1)) * radii.min()
    return large, np.stack(lobes)


def _small_lesions(
    grid: np.ndarray, shape: Sequence[int], occupied: np.ndarray, count: int, random: np.random.Generator
) -> np.ndarray:
    """Depth below the surface of small balls that lie apart from everything else and inside the image."""
    depth = np.full(shape, -np.inf)
    for _ in range(count):
        radius = random.uniform(*_SMALL)
        for _ in range(_TRIES):
            centre = random.uniform(radius + 1, np.array(shape) - radius - 2)
            ball = _ball(grid, centre, radius)
            if not ((ball > -2) & (np.maximum(occupied, depth) > 0)).any():
                break
        else:
            raise ValueError(f"{count} small lesions do not fit into shape {tuple(shape)}; ask for fewer")
        depth = np.maximum(depth, ball)
    return depth


def _ball(grid: np.ndarray, centre: np.ndarray, radius: float) -> np.ndarray:
    return radius - np.linalg.norm(grid - centre, axis=-1)


def _wavering(shape: Sequence[int], random: np.random.Generator) -> np.ndarray:
    field = ndimage.gaussian_filter(random.standard_normal(shape), 2.5)
    return _WAVER * field / field.std()


def _check(shape: Sequence[int], raters: Sequence[str], small_lesions: int, noise: float) -> None:
    if len(shape) not in (2, 3) or min(shape) < 24:
        raise ValueError(f"shape must have 2 or 3 sizes of at least 24 voxels, got {tuple(shape)}")
    unknown = [rater for rater in raters if rater not in RATERS]
    if unknown or not raters:
        raise ValueError(f"raters must be some of {', '.join(RATERS)}, got {list(raters)}")
    if small_lesions < 0 or noise < 0:
        raise ValueError(f"small_lesions and noise must be 0 or more, got {small_lesions} and {noise}")
