"""Synthetic prostates with four zones, imaged as by axial T2-weighted MRI: thick slices, bias field, Rician noise.

Drawn in millimetres, axes right, anterior, superior, from bent ellipsoids (a smooth displacement moves every surface):

    gland    ellipsoid;      TZ    smaller ellipsoid inside, towards front and top;      PZ    what is left of the gland
    AFS      cap of the gland in front, near the midline, away from both ends
    DPU      tube near the midline from the lower end to the middle of the gland; it runs through PZ and TZ

so that DPU is missing in the upper slices, TZ in the lowest, AFS in both. A slice averages three thinner ones, the
plane is blurred, and

    image = |(signal + texture) * bias field + complex noise|

Labels are those at the voxel centres. Muscle at the sides, fat around and a rectum behind are there to be told apart.

Source of the noise: Gudbjartsson, Patz, "The Rician Distribution of Noisy MRI Data" (Magnetic Resonance in Medicine,
1995). Sizes are those of an adult's gland, rounded; nothing here was fitted to patients.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage

from medseg.data.phantoms import describe_dataset, write_nifti

PROSTATE_ZONES = ("PZ", "TZ", "DPU", "AFS")
_GLAND, _TRANSITION = (23.0, 16.0, 19.0), (15.0, 11.0, 14.0)  # radii in mm: right, anterior, superior
_URETHRA = (3.5, 4.5)  # range of radii in mm
_SIGNAL = {0: 0.45, 1: 0.85, 2: 0.55, 3: 0.75, 4: 0.28}
_MUSCLE, _RECTUM, _FAT = 0.2, 0.1, 0.7
_FINE = 3  # thinner slices in one


@dataclass(frozen=True)
class ZonePhantom:
    """A volume around a prostate and the zone of every voxel.

    Attributes:
        image: float32, (X, Y, Z), between 0 and about 1.
        label: uint8, 0 outside, then PZ, TZ, DPU, AFS.
        spacing: voxel edges in mm.
    """

    image: np.ndarray
    label: np.ndarray
    spacing: tuple[float, ...]


def make_zone_phantom(
    shape: Sequence[int] = (168, 168, 32),
    *,
    spacing: Sequence[float] = (0.5, 0.5, 3.0),
    bias: float = 0.15,
    noise: float = 0.05,
    blur: float = 0.6,
    seed: int | np.random.Generator = 0,
) -> ZonePhantom:
    """Draw one prostate.

    Args:
        shape: three sizes in voxels, each at least 8; last the slices.
        spacing: voxel edges in mm.
        bias: standard deviation of the logarithm of the bias field, 0 or more.
        noise: standard deviation of each part of the complex noise, 0 or more.
        blur: standard deviation of the blur in the plane in mm, 0 or more.
        seed: seed, or a generator to draw from.

    Returns:
        Image, label and spacing.

    Raises:
        ValueError: an argument is out of range, or the volume is too small to show every zone.

    Example:
        >>> phantom = make_zone_phantom((40, 40, 12), spacing=(1.5, 1.5, 4.0))
        >>> phantom.image.dtype.name, sorted(set(phantom.label.ravel().tolist()))
        ('float32', [0, 1, 2, 3, 4])
    """
    _check(shape, spacing, {"bias": bias, "noise": noise, "blur": blur})
    random = np.random.default_rng(seed)
    edges = np.asarray(spacing, float)
    anatomy = _Anatomy.draw(random)
    bend = np.stack([1.5 * _smooth(shape, 10 / edges, random) for _ in range(3)])
    thin = [_offsets(shape, edges, (k + 0.5) / _FINE - 0.5) + bend for k in range(_FINE)]
    found = [anatomy.zones(offset) for offset in thin]
    label = found[_FINE // 2]
    missing = [name for value, name in enumerate(PROSTATE_ZONES, 1) if not (label == value).any()]
    if missing:
        extent = " x ".join(f"{n * e:g}" for n, e in zip(shape, spacing, strict=True))
        raise ValueError(f"shape and spacing show {extent} mm, in which {', '.join(missing)} is not seen; show more")
    signal = np.mean([anatomy.signal(zones, offset) for zones, offset in zip(found, thin, strict=True)], axis=0)
    signal = ndimage.gaussian_filter(signal, (blur / edges[0], blur / edges[1], 0))
    signal += _texture(label, shape, edges, random)
    field = np.exp(bias * _smooth(shape, max(shape * edges) / 4 / edges, random))
    real, imaginary = noise * random.standard_normal((2, *shape))
    image = np.hypot(signal * field + real, imaginary)
    return ZonePhantom(image.astype(np.float32), label.astype(np.uint8), tuple(map(float, spacing)))


def write_zone_phantoms(
    directory: str | Path,
    cases: int = 8,
    *,
    shape: Sequence[int] = (168, 168, 32),
    spacing: Sequence[float] = (0.5, 0.5, 3.0),
    bias: float = 0.15,
    noise: float = 0.05,
    blur: float = 0.6,
    seed: int = 0,
) -> Path:
    """Write a training folder of prostates in the layout of the Medical Segmentation Decathlon.

    Args:
        directory: folder that gets `imagesTr/`, `labelsTr/` and `dataset.json`; made when absent.
        cases: number of image/label pairs, at least 1.
        shape: this and what follows but the seed: see `make_zone_phantom`.
        spacing: voxel edges in mm.
        bias: of the bias field.
        noise: of both parts of the noise.
        blur: in the plane.
        seed: seed of the first case; the next case has the next one.

    Returns:
        The folder.

    Raises:
        ValueError: `cases` is below 1, or an argument of the phantom is out of range.

    Example:
        >>> import tempfile
        >>> folder = write_zone_phantoms(tempfile.mkdtemp(), 2, shape=(40, 40, 12), spacing=(1.5, 1.5, 4.0))
        >>> sorted(p.name for p in (folder / "labelsTr").iterdir())
        ['prostate_000.nii.gz', 'prostate_001.nii.gz']
    """
    if cases < 1:
        raise ValueError(f"cases must be at least 1, got {cases}")
    directory = Path(directory)
    names = [f"prostate_{index:03d}" for index in range(cases)]
    look = {"spacing": spacing, "bias": bias, "noise": noise, "blur": blur}
    for index, name in enumerate(names):
        phantom = make_zone_phantom(shape, seed=seed + index, **look)
        write_nifti(directory / "imagesTr" / f"{name}.nii.gz", phantom.image, np.diag([*spacing, 1.0]))
        write_nifti(directory / "labelsTr" / f"{name}.nii.gz", phantom.label, np.diag([*spacing, 1.0]))
    content = describe_dataset("decathlon", names, PROSTATE_ZONES, title="prostate phantoms", modality="T2w MRI")
    (directory / "dataset.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return directory


@dataclass(frozen=True)
class _Anatomy:
    """Sizes and places of one prostate in mm, by the centre of the volume; what each tissue looks like."""

    centre: np.ndarray
    gland: np.ndarray
    transition: np.ndarray
    transition_shift: np.ndarray
    urethra: tuple[float, float]  # radius, and how far in front of the gland's centre its upper end lies
    front: float  # where the cap begins, as a part of the gland's radius
    signal_shift: dict[int, float]

    @classmethod
    def draw(cls, random: np.random.Generator) -> _Anatomy:
        size = random.uniform(0.88, 1.12)
        return cls(
            centre=random.uniform(-1, 1, 3) * (4, 4, 3),
            gland=size * np.array(_GLAND) * random.uniform(0.93, 1.07, 3),
            transition=size * np.array(_TRANSITION) * random.uniform(0.88, 1.12, 3),
            transition_shift=np.array([random.uniform(-1, 1), random.uniform(2, 4), random.uniform(2, 5)]),
            urethra=(random.uniform(*_URETHRA), random.uniform(-1, 3)),
            front=random.uniform(0.45, 0.6),
            signal_shift={value: random.uniform(-0.05, 0.05) for value in _SIGNAL},
        )

    def zones(self, offset: np.ndarray) -> np.ndarray:
        """Zone at each place (3, spatial...) in mm by the centre of the volume."""
        x, y, z = place = offset - self.centre.reshape(3, 1, 1, 1)
        gland = _inside(place, self.gland)
        within = _inside(place - self.transition_shift.reshape(3, 1, 1, 1), self.transition)
        cap = (y > self.front * self.gland[1]) & (abs(x) < 0.45 * self.gland[0]) & (abs(z) < 0.6 * self.gland[2])
        radius, ahead = self.urethra
        middle = ahead * np.clip(z / self.gland[2] + 1, 0, 1) - 1
        tube = (np.hypot(x, y - middle) < radius) & (z < 0.1 * self.gland[2])
        return np.select([gland & tube, gland & cap, gland & within, gland], [3, 4, 2, 1], 0)

    def signal(self, zones: np.ndarray, offset: np.ndarray) -> np.ndarray:
        """Signal of every zone, and of what lies around the gland."""
        x, y, _ = offset - self.centre.reshape(3, 1, 1, 1)
        wide, deep, _ = self.gland
        muscle = (abs(abs(x) - wide - 5) < 3) & (abs(y) < deep)
        rectum = np.hypot(x / 12, (y + deep + 11) / 9) < 1
        fat = np.hypot(x / (wide + 4), y / (deep + 4)) > 1
        around = np.select([rectum, muscle, fat], [_RECTUM, _MUSCLE, _FAT], _SIGNAL[0])
        levels = np.array([_SIGNAL[value] + self.signal_shift[value] for value in sorted(_SIGNAL)])
        return np.where(zones > 0, levels[zones], around)


def _inside(place: np.ndarray, radii: np.ndarray) -> np.ndarray:
    return ((place / radii.reshape(3, 1, 1, 1)) ** 2).sum(axis=0) < 1


def _offsets(shape: Sequence[int], edges: np.ndarray, part: float) -> np.ndarray:
    """Places of the voxels in mm by the centre of the volume, (3, spatial...), `part` of a slice off the middle."""
    axes = [(np.arange(n) - (n - 1) / 2) * edge for n, edge in zip(shape, edges, strict=True)]
    axes[2] = axes[2] + part * edges[2]
    return np.stack(np.meshgrid(*axes, indexing="ij"))


def _texture(label: np.ndarray, shape: Sequence[int], edges: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Nodules in the transition zone, and a fine grain everywhere."""
    nodules, grain = _smooth(shape, 2.5 / edges, random), _smooth(shape, 1 / edges, random)
    return 0.08 * nodules * (label == 2) + 0.03 * grain


def _smooth(shape: Sequence[int], sigma: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Noise of mean 0 and deviation 1 whose grain is `sigma` voxels wide."""
    field = ndimage.gaussian_filter(random.standard_normal(shape), sigma, mode="reflect")
    return (field - field.mean()) / field.std()


def _check(shape: Sequence[int], spacing: Sequence[float], amounts: dict[str, float]) -> None:
    if len(shape) != 3 or min(shape) < 8:
        raise ValueError(f"shape must have 3 sizes of at least 8 voxels, got {tuple(shape)}")
    if len(spacing) != 3 or not all(edge > 0 for edge in spacing):
        raise ValueError(f"spacing must have 3 positive sizes in mm, got {tuple(spacing)}")
    for name, value in amounts.items():
        if not value >= 0:
            raise ValueError(f"{name} must be 0 or more, got {value}")
