"""Volumes cut into 2D slices, many without label; subsets of them, and random views.

A slice is label-dense if at least 1 % of its pixels is foreground, else label-sparse. Subsets after those of Dong, Xie,
Ward (ICML 2023), though not their lists:

    full                  all slices
    half-volume           every second volume
    half-slice            every second slice of each volume
    half-volume-sparse    half-volume, and of the other volumes the sparse slices alone
    half-slice-sparse     half of each volume's slices, one in eight dense, or more where sparse ones run out
    volumes-N             the first N volumes
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from torch.nn import functional

from medseg.data import make_phantom

DENSE_SHARE = 0.01
ORGANS = {"liver": 5, "spleen": 1, "stomach": 6, "aorta": 52}


@dataclass(frozen=True)
class Slices:
    """Slices (N, 1, H, W) of mean 0 and deviation 1 over their volume, class ids of the same shape, names, volumes."""

    images: torch.Tensor
    labels: torch.Tensor
    names: list[str]
    volumes: np.ndarray

    @property
    def dense(self) -> np.ndarray:
        """Which slices are label-dense, (N,)."""
        return (self.labels > 0).flatten(1).float().mean(1).numpy() >= DENSE_SHARE

    def take(self, chosen: Sequence[int] | np.ndarray) -> Slices:
        """Some of the slices."""
        index = torch.as_tensor(np.asarray(chosen, dtype=np.int64))
        names = [self.names[i] for i in index.tolist()]
        return Slices(self.images[index], self.labels[index], names, self.volumes[index.numpy()])


@dataclass(frozen=True)
class Cohort:
    """Slices to train on; volumes to test on, each as its slices; mm of a voxel as (slice, row, column)."""

    train: Slices
    test: list[Slices]
    classes: list[str]
    spacing: tuple[float, float, float]


def choose_subset(slices: Slices, subset: str) -> np.ndarray:
    """Positions of a subset's slices, sorted."""
    volumes = np.unique(slices.volumes)
    if subset.startswith("volumes-"):
        return np.flatnonzero(np.isin(slices.volumes, volumes[: int(subset.removeprefix("volumes-"))]))
    chosen = {
        "full": lambda here, even: here,
        "half-volume": lambda here, even: here if even else here[:0],
        "half-slice": lambda here, even: here[::2],
        "half-volume-sparse": lambda here, even: here if even else here[~slices.dense[here]],
        "half-slice-sparse": lambda here, even: _sparse_half(here, slices.dense[here]),
    }[subset]
    parts = [chosen(np.flatnonzero(slices.volumes == v), place % 2 == 0) for place, v in enumerate(volumes)]
    return np.sort(np.concatenate(parts))


def _sparse_half(here: np.ndarray, dense: np.ndarray) -> np.ndarray:
    half = len(here) // 2
    wanted = max(half - int((~dense).sum()), -(-half // 8))
    return np.concatenate((_spread(here[dense], wanted), _spread(here[~dense], half - wanted)))


def _spread(items: np.ndarray, count: int) -> np.ndarray:
    """So many of the items, evenly spaced."""
    return items[((np.arange(count) + 0.5) * len(items) / max(count, 1)).astype(int)]


def load_hippocampus(data: Path, train: int = 8) -> Cohort:
    """Sagittal slices of hippocampus crops, 48 x 48 mm; training cases evenly spaced in the list, all that validate."""
    folder = data / "hippocampus_msd"
    split = json.loads((folder / "splits.json").read_text(encoding="utf-8"))
    cases = split["train"][:: len(split["train"]) // train][:train]

    def read(case: str) -> tuple[np.ndarray, np.ndarray]:
        files = (folder / kind / f"{case}.nii.gz" for kind in ("images", "labels"))
        image, label = (np.asarray(nib.as_closest_canonical(nib.load(f)).dataobj, np.float32) for f in files)
        return image, label

    slices = _join([_cut(*read(case), case, number, 48) for number, case in enumerate(cases)])
    test = [_cut(*read(case), case, number, 48) for number, case in enumerate(split["val"])]
    return Cohort(slices, test, ["head", "body"], (1.0, 1.0, 1.0))


def load_abdomen(data: Path) -> Cohort:
    """Axial slices at 6 mm: one CT trains, a slab of 40 mm of another patient tests; labels made by a network."""
    import SimpleITK as sitk

    folder = data / "abdomen_ct_mr"
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([str(f) for f in sorted((folder / "ct_dicom").glob("*.dcm"))])
    pairs = {
        "full": (sitk.ReadImage(str(folder / "ct_full_3mm.nii.gz")), folder / "ct_full_3mm_seg.nii.gz"),
        "slab": (reader.Execute(), folder / "ct_dicom_seg.nii.gz"),
    }
    slices, spacing = {}, 0.0
    for number, (name, (image, label)) in enumerate(pairs.items()):
        grid = _axial_grid(image, pixels=64, size=6.0)
        spacing = grid.GetSpacing()[2]
        on_grid = [
            sitk.GetArrayFromImage(sitk.Resample(source, grid, sitk.Transform(), mode, outside))
            for source, mode, outside in (
                (image, sitk.sitkLinear, -1024),
                (sitk.ReadImage(str(label)), sitk.sitkNearestNeighbor, 0),
            )
        ]
        ids = np.sum([(c + 1) * (on_grid[1] == value) for c, value in enumerate(ORGANS.values())], axis=0)
        slices[name] = _cut(np.clip(on_grid[0], -150, 250), ids, name, number, 64)
    return Cohort(slices["full"], [slices["slab"]], list(ORGANS), (spacing, 6.0, 6.0))


def _axial_grid(image, pixels: int, size: float):  # noqa: ANN001, ANN202  (SimpleITK is imported where it is used)
    """Square axial slices around the image's centre, at its own distance between slices."""
    import SimpleITK as sitk

    middle = image.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in image.GetSize()])
    count, thick = image.GetSize()[2], image.GetSpacing()[2]
    grid = sitk.Image(pixels, pixels, count, sitk.sitkFloat32)
    grid.SetSpacing((size, size, thick))
    extents = (pixels * size, pixels * size, count * thick)
    grid.SetOrigin([m - (e - s) / 2 for m, e, s in zip(middle, extents, grid.GetSpacing(), strict=True)])
    return grid


def load_phantoms(train: int = 4, test: int = 3) -> Cohort:
    """Nested balls, drawn; the outer slices are empty."""

    def draw(seed: int, number: int) -> Slices:
        image, label = make_phantom("nested", shape=(20, 24, 24), seed=seed, noise=0.6)
        return _cut(image, label, f"phantom {seed}", number, 32)

    volumes = [draw(seed, seed) for seed in range(train)]
    return Cohort(_join(volumes), [draw(1000 + s, s) for s in range(test)], ["shell", "core"], (1.0, 1.0, 1.0))


def _cut(image: np.ndarray, label: np.ndarray, name: str, number: int, size: int) -> Slices:
    """Slices along the first axis, cropped or padded to size x size, normalised over the volume before that."""
    image = (image - image.mean()) / image.std()
    planes = [torch.from_numpy(np.ascontiguousarray(a, np.float32))[:, None] for a in (image, label)]
    missing = [size - n for n in planes[0].shape[2:]]
    # Padding below zero crops.
    around = [m // 2 + extra for m in reversed(missing) for extra in (0, m % 2)]
    images, labels = (functional.pad(p, around) for p in planes)
    names = [f"{name}, slice {i}" for i in range(len(images))]
    return Slices(images, labels.to(torch.uint8), names, np.full(len(images), number))


def _join(parts: Sequence[Slices]) -> Slices:
    images, labels = (torch.cat([getattr(p, key) for p in parts]) for key in ("images", "labels"))
    return Slices(images, labels, [n for p in parts for n in p.names], np.concatenate([p.volumes for p in parts]))


def draw_views(random: np.random.Generator, count: int) -> torch.Tensor:
    """Matrices (count, 3, 3) for `affine_grid`: a quarter turn and a flip, or up to 20 degrees, as published."""
    matrices = np.tile(np.eye(3), (count, 1, 1))
    for matrix in matrices:
        if random.integers(2):
            angle, mirrored = random.integers(4) * np.pi / 2, int(random.integers(2))
        else:
            angle, mirrored = np.deg2rad(random.integers(-20, 20)), None
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        if mirrored is not None:
            turn[mirrored] *= -1
        matrix[:2, :2] = turn
    return torch.from_numpy(matrices).float()


def show(images: torch.Tensor, labels: torch.Tensor, matrices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Views of square slices: bilinear images, nearest labels as int64."""
    grid = functional.affine_grid(matrices[:, :2], list(images.shape), align_corners=False)
    views = functional.grid_sample(images, grid, padding_mode="border", align_corners=False)
    ids = functional.grid_sample(labels.float(), grid, mode="nearest", align_corners=False)
    return views, ids.long()
