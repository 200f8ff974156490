"""Images of one site to train on and of another to adapt to: a toy, retinal vessels, hippocampi.

Images are (C, spatial...) of mean 0 and deviation 1 over the voxels that count, masks hold class ids. Every set has
`source` samples with labels, `target` samples to adapt to, whose labels nobody but the test and the supervised ceiling
may see, and `test` samples of the target site, which are the target samples themselves where there are few.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage
from skimage.exposure import equalize_adapthist
from skimage.morphology import convex_hull_image

from medseg.data import read_image, read_mask

SIDE = 32  # of a toy image
# Contrast, shading from side to side, and noise of the toy's target images.
_SHIFTS = {"mild": (1.6, 0.5, 0.05), "severe": (2.5, 1.0, 0.09), "inverted": (1.0, 0.0, 0.09)}


@dataclass(frozen=True)
class Sample:
    """One image, its classes, and the voxels that count (a field of view, or what is no padding)."""

    name: str
    image: np.ndarray
    mask: np.ndarray
    inside: np.ndarray


@dataclass(frozen=True)
class ShiftedSet:
    """Samples of two sites.

    `patch` is the extent of training crops on the source, None for whole images; `tagged` says whether images may lack
    a class, so that tags mean something.
    """

    source: Sequence[Sample]
    target: Sequence[Sample]
    test: Sequence[Sample]
    classes: int = 2
    patch: int | None = None
    tagged: bool = False

    @property
    def is_apart(self) -> bool:
        """Whether the test images are others than those adapted to."""
        return self.test is not self.target


def load_toy(
    data: Path | None = None, *, counts: Sequence[int] = (400, 200, 100), shift: str = "severe", seed: int = 0
) -> ShiftedSet:
    """Draw a bright ellipse in a body with other discs; the target has another contrast, a shading and noise.

    Three quarters of the images hold the ellipse. The shift is "mild" (gamma 1.6, half the shading, noise as on the
    source), "severe" (gamma 2.5) or "inverted" (bright for dark).
    """
    random = np.random.default_rng(seed)
    source = [_draw_toy(random, f"source {i}", None) for i in range(counts[0])]
    target, test = ([_draw_toy(random, f"target {i}", shift) for i in range(n)] for n in counts[1:])
    return ShiftedSet(source, target, test, tagged=True)


def _draw_toy(random: np.random.Generator, name: str, shift: str | None) -> Sample:
    grid = np.stack(np.meshgrid(*[np.arange(SIDE)] * 2, indexing="ij")).astype(float)
    image = np.full((SIDE, SIDE), 0.25)
    image[_ellipse(grid, (SIDE / 2 - 0.5) + random.uniform(-2, 2, 2), random.uniform(10, 14, 2), random)] = 0.45
    for _ in range(3):
        image[_ellipse(grid, random.uniform(5, SIDE - 5, 2), [random.uniform(1.5, 3)] * 2, random)] = random.choice(
            [0.3, 0.62]
        )
    organ = np.zeros((SIDE, SIDE), bool)
    if random.random() < 0.75:
        organ = _ellipse(grid, random.uniform(10, SIDE - 10, 2), random.uniform(3.5, 6, 2), random)
        image[organ] = 0.72
    image += 0.05 * random.standard_normal(image.shape)
    if shift is not None:
        gamma, slope, noise = _SHIFTS[shift]
        image = 1 - image if shift == "inverted" else image
        image = np.maximum(image, 0.01) ** gamma * (1 + slope * (grid[1] / SIDE - 0.5))
        image += noise * random.standard_normal(image.shape)
    return _sample(name, image, organ, np.ones_like(organ))


def _ellipse(
    grid: np.ndarray, centre: np.ndarray, axes: Sequence[float] | np.ndarray, random: np.random.Generator
) -> np.ndarray:
    angle = random.uniform(0, np.pi)
    y, x = grid - np.reshape(centre, (2, 1, 1))
    along, across = np.cos(angle) * y + np.sin(angle) * x, np.cos(angle) * x - np.sin(angle) * y
    return (along / axes[0]) ** 2 + (across / axes[1]) ** 2 <= 1


def load_retina(data: Path, *, same_look: bool = True) -> ShiftedSet:
    """Vessels of DRIVE (14 + 14 images, first rater) and STARE (14 images), at half the resolution.

    STARE comes grey, standardised, with local contrast and gamma; with `same_look` DRIVE is brought to that look.
    """
    source = [_read_drive(path, same_look) for part in ("training", "test") for path in _drive_images(data, part)]
    target = [_read_stare(path) for path in sorted((data / "stare" / "images").glob("*.png"))]
    return ShiftedSet(source, target, target, patch=96)


def load_retina_choice(data: Path) -> ShiftedSet:
    """DRIVE's training part to its test part as if by another camera: to choose a learning rate without the target."""
    source = [_read_drive(path, same_look=True) for path in _drive_images(data, "training")]
    target = [_read_drive(path, same_look=True, shifted=True) for path in _drive_images(data, "test")]
    return ShiftedSet(source, target, target, patch=96)


def _drive_images(data: Path, part: str) -> list[Path]:
    return sorted((data / "drive" / part / "images").glob("*.png"))


def _read_drive(path: Path, same_look: bool, *, shifted: bool = False) -> Sample:
    parts = {kind: _pixels(path.parents[1] / kind / path.name) for kind in ("images", "fov", "rater1")}
    grey = parts["images"] @ [0.299, 0.587, 0.114]
    inside = parts["fov"] > 127
    if same_look:
        grey = (grey - grey[inside].mean()) / grey[inside].std()
        grey = np.clip((grey + 3) / 6, 0, 1)  # three deviations to either side
        # Tiles and clipping as in the common recipe: 8 x 8 tiles, histogram clipped at twice its mean.
        grey = equalize_adapthist(grey, kernel_size=[n // 8 for n in grey.shape], clip_limit=2 / 256) ** (1 / 1.2)
    if shifted:
        grey = scan_elsewhere(grey, np.random.default_rng(int(path.stem)))
    return _half(f"DRIVE {path.stem}", grey, parts["rater1"] > 127, inside)


def _read_stare(path: Path) -> Sample:
    grey = _pixels(path)
    # There is no field of view: the hull of what is bright when smoothed covers about three quarters of each picture.
    bright = ndimage.binary_opening(ndimage.gaussian_filter(grey, 5) > 100, iterations=3)
    mask = _pixels(path.parents[1] / "rater1" / path.name) > 127
    return _half(f"STARE {path.stem}", grey, mask, convex_hull_image(bright))


def _pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture, dtype=float)


def _half(name: str, image: np.ndarray, mask: np.ndarray, inside: np.ndarray) -> Sample:
    """Mean of 2 x 2 pixels, padded to multiples of 8; a pixel is a vessel where half of it was."""
    smaller = [_mean_pool(np.asarray(a, float)) for a in (image, mask, inside)]
    return _padded(
        name, smaller[0], (smaller[1] >= 0.5).astype(int), smaller[2] >= 0.5, [-n % 8 for n in smaller[0].shape]
    )


def load_hippocampus(data: Path, *, train: int = 24, test: int = 16) -> ShiftedSet:
    """Head and body of the hippocampus at 2 mm; the target cases are imaged as if by another scanner."""
    folder = data / "hippocampus_msd"
    splits = json.loads((folder / "splits.json").read_text(encoding="utf-8"))
    target = [_read_hippocampus(folder, case, shifted=True) for case in splits["val"][:test]]
    source = [_read_hippocampus(folder, case, shifted=False) for case in splits["train"][:train]]
    return ShiftedSet(source, target, target, classes=3)


def _read_hippocampus(folder: Path, case: str, *, shifted: bool) -> Sample:
    volume = read_image(folder / "images" / f"{case}.nii.gz").array.astype(float)
    label = read_mask(folder / "labels" / f"{case}.nii.gz").array.astype(int)
    low, high = np.percentile(volume, (0.5, 99.5))
    volume = np.clip((volume - low) / (high - low), 0, 1)
    if shifted:
        volume = scan_elsewhere(volume, np.random.default_rng(int(case.rsplit("_", 1)[-1])))
    one_hot = np.stack([_mean_pool(label == c) for c in range(3)])
    inside = np.ones(one_hot.shape[1:], bool)
    return _padded(
        case,
        _mean_pool(volume),
        one_hot.argmax(0),
        inside,
        [s - n for s, n in zip((24, 32, 24), inside.shape, strict=True)],
    )


def scan_elsewhere(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Another scanner, values in [0, 1]: contrast (gamma), bias field (up to a third either way), noise as Rician.

    In 3D it also has slices of three voxels along the last axis.
    """
    gamma = random.uniform(1.8, 2.4)
    axes = [np.linspace(-1, 1, n) for n in image.shape]
    slopes = random.uniform(-0.33, 0.33, image.ndim)
    grids = np.meshgrid(*axes, indexing="ij")
    field = 1 + sum(s * a for s, a in zip(slopes, grids, strict=True)) / np.sqrt(image.ndim)
    scanned = image**gamma * field
    if image.ndim == 3:
        thick = ndimage.uniform_filter1d(scanned, 3, axis=2)[:, :, 1::3]
        scanned = np.repeat(thick, 3, axis=2)
        scanned = np.pad(scanned, [(0, 0), (0, 0), (0, max(0, image.shape[2] - scanned.shape[2]))], mode="edge")
        scanned = scanned[:, :, : image.shape[2]]
    real, imaginary = 0.08 * random.standard_normal((2, *image.shape))
    return np.hypot(scanned + real, imaginary)


def _mean_pool(array: np.ndarray) -> np.ndarray:
    """Mean of blocks of two along every axis; a block that is cut off is left out."""
    even = np.asarray(array, float)[tuple(slice(0, n // 2 * 2) for n in array.shape)]
    shape = [size for n in even.shape for size in (n // 2, 2)]
    return even.reshape(shape).mean(axis=tuple(range(1, 2 * even.ndim, 2)))


def _padded(name: str, image: np.ndarray, mask: np.ndarray, inside: np.ndarray, missing: Sequence[int]) -> Sample:
    """Pad at the far end of each axis to a size that the network can halve; padding does not count."""
    widths = [(0, n) for n in missing]
    return _sample(name, np.pad(image, widths, mode="edge"), np.pad(mask, widths), np.pad(inside, widths))


def _sample(name: str, image: np.ndarray, mask: np.ndarray, inside: np.ndarray) -> Sample:
    values = image[inside]
    scaled = ((image - values.mean()) / values.std()).astype(np.float32)
    return Sample(name, scaled[None], (mask * inside).astype(np.int64), inside)


SETS: dict[str, Callable[[Path], ShiftedSet]] = {
    "toy": load_toy,
    "toy-mild": partial(load_toy, shift="mild"),
    "toy-inverted": partial(load_toy, shift="inverted"),
    "retina": load_retina,
    "retina-raw": partial(load_retina, same_look=False),
    "retina-choice": load_retina_choice,
    "hippocampus": load_hippocampus,
}
DRAWN = ("toy", "toy-mild", "toy-inverted")
