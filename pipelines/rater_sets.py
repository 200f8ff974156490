"""Images with several annotations each, to train and to test on: two discs, growing brains, phantoms of lesions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from medseg.data import make_rater_phantom

Batch = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Sample:
    """One image (1, spatial...) of mean 0 and deviation 1, and its annotations (M, spatial...), 0 and 1."""

    name: str
    image: np.ndarray
    annotations: np.ndarray


@dataclass(frozen=True)
class RaterSet:
    """Images to train and to test on, and the network that fits them."""

    train: Sequence[Sample]
    test: Sequence[Sample]
    features: int
    depth: int
    batch: int
    steps: int

    @property
    def spatial_dims(self) -> int:
        """2 or 3."""
        return self.train[0].annotations.ndim - 1


def load_discs(data: Path | None = None, *, cases: int = 8, side: int = 24) -> RaterSet:
    """Images with a bright disc on the left and a dark one on the right; one expert outlines this, the other that.

    Nothing in the image tells which of the two is meant, and the two masks share no voxel.
    """

    def draw(seed: int) -> Sample:
        random = np.random.default_rng(seed)
        y, x = np.mgrid[:side, :side] - (side - 1) / 2
        lift, radius = random.uniform(-4, 4), random.uniform(4.5, 6)
        discs = [np.hypot(x - sign * side / 4, y - lift) <= radius for sign in (-1, 1)]
        image = discs[0] * 1.0 - discs[1] + 0.3 * random.standard_normal((side, side))
        return Sample(f"discs {seed}", _normalise(image[None]), np.stack(discs).astype(np.uint8))

    return RaterSet([draw(s) for s in range(4 * cases)], [draw(1000 + s) for s in range(cases)], 8, 3, 4, 300)


def load_growth(data: Path | None) -> RaterSet:
    """Growing white matter of newborns' brains by seven raters: 21 cases train, the last 6 test."""
    if data is None:
        raise ValueError("data is needed for the set growth: the folder that holds brain_growth_multirater/")
    samples = []
    for path in sorted((data / "brain_growth_multirater").glob("case*.npz")):
        with np.load(path) as file:
            samples.append(Sample(path.stem, _normalise(file["image"][None]), file["masks"]))
    if len(samples) < 27:
        raise FileNotFoundError(f"{data / 'brain_growth_multirater'} holds {len(samples)} cases, expected 27")
    return RaterSet(samples[:21], samples[21:27], 8, 5, 3, 220)


def load_lesions(data: Path | None = None, *, cases: int = 8, side: int = 32, steps: int = 100) -> RaterSet:
    """Volumes with lesions, and five simulated raters; see `medseg.data.make_rater_phantom`."""

    def draw(seed: int) -> Sample:
        image, annotations = make_rater_phantom((side,) * 3, seed=seed)
        return Sample(f"lesions {seed}", _normalise(image[None]), annotations)

    return RaterSet([draw(s) for s in range(2 * cases)], [draw(1000 + s) for s in range(cases)], 6, 4, 2, steps)


SETS: dict[str, Callable[[Path | None], RaterSet]] = {
    "discs": load_discs,
    "growth": load_growth,
    "lesions": load_lesions,
}


def draw_batches(images: RaterSet, count: int, seed: int) -> Iterator[Batch]:
    """Random images, mirrored, brightened and dimmed; the same seed gives the same batches to every method."""
    random = np.random.default_rng(seed)
    for _ in range(count):
        items = [_augment(images.train[int(random.integers(len(images.train)))], random) for _ in range(images.batch)]
        image, label = (torch.from_numpy(np.stack(part)) for part in zip(*items, strict=True))
        yield {"image": image, "label": label}


def _augment(sample: Sample, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    axes = tuple(int(a) + 1 for a in np.flatnonzero(random.integers(2, size=sample.annotations.ndim - 1)))
    image, annotations = (np.flip(part, axes).copy() for part in (sample.image, sample.annotations))
    return image * np.float32(random.uniform(0.9, 1.1)) + np.float32(random.uniform(-0.1, 0.1)), annotations


def _normalise(image: np.ndarray) -> np.ndarray:
    image = image.astype(np.float32)
    return (image - image.mean()) / image.std()
