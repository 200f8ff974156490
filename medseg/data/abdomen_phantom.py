"""An abdomen with a liver, drawn in Hounsfield units: no two subjects have the same anatomy.

Ellipsoids in millimetres of body, fat, muscle, lungs, spine, ribs, liver (two lobes, with vessels and sometimes a
lesion), spleen, kidneys, stomach, bowel and great vessels; sizes, places, turns and densities vary with the seed, and
organs that touch are separated by whoever was drawn last. Made for experiments with simulated modalities
(`medseg.data.ConeBeamScan`), where no labelled scans of a subject in several modalities are at hand. It resembles an
abdomen as far as position, size and contrast go; it is not anatomy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import ndimage

ABDOMEN_LABELS = ("liver", "spleen", "kidneys", "stomach", "vessels", "bone")
Point = Sequence[float] | np.ndarray
_LABEL = {name: value for value, name in enumerate(ABDOMEN_LABELS, 1)}


def make_abdomen_phantom(
    shape: Sequence[int] = (64, 64, 8),
    *,
    spacing: Sequence[float] = (6.0, 6.0, 15.0),
    contrast: float = 1.0,
    noise: float = 10.0,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Draw one subject.

    Args:
        shape: three sizes in voxels; axes run to the subject's right, front and head.
        spacing: voxel size in mm; the default shape then covers 384 x 384 x 120 mm around the liver.
        contrast: how much contrast agent the organs hold; 0 is none, 1 about the portal-venous phase.
        noise: standard deviation of the noise in HU.
        seed: seed of the subject; the same seed with other `contrast` and `noise` is the same anatomy.

    Returns:
        The image in HU (float32) and the labels (uint8), numbered as in `ABDOMEN_LABELS` from 1 on.

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> image, label = make_abdomen_phantom((32, 32, 4), spacing=(12, 12, 30), seed=1)
        >>> image.shape, bool((label == 1).any()), bool(20 < image[label == 1].mean() < 160)
        ((32, 32, 4), True, True)
    """
    _check(shape, spacing, contrast, noise)
    random = np.random.default_rng([seed, 0])
    subject = _Subject(shape, spacing, contrast, random)
    for part in (_torso, _organs, _liver, _bones_and_vessels):
        part(subject, random)
    # A generator of its own, so that the anatomy does not depend on how noisy the scan is.
    grain = np.random.default_rng([seed, 1]).standard_normal(subject.image.shape)
    return (subject.image + noise * grain).astype(np.float32), subject.label


class _Subject:
    """What has been drawn so far; coordinates in mm from the middle, stretched by the subject's size."""

    def __init__(
        self, shape: Sequence[int], spacing: Sequence[float], contrast: float, random: np.random.Generator
    ) -> None:
        self.image = np.full(tuple(shape), -1000.0)
        self.label = np.zeros(tuple(shape), np.uint8)
        size = random.uniform(0.86, 1.1, 3)
        lines = [(np.arange(n) - (n - 1) / 2) * s / z for n, s, z in zip(shape, spacing, size, strict=True)]
        self.points = np.stack(np.meshgrid(*lines, indexing="ij"), axis=-1)
        # Nothing is a perfect ellipsoid: all of them bend with one smooth field.
        self.points += _smooth_field(shape, spacing, random)
        self.contrast = contrast
        self.cavity = np.ones(self.label.shape, bool)

    def inside(self, centre: Point, radii: Point, turn: float = 0.0) -> Any:
        """Voxels of an ellipsoid that is turned about the long axis of the body by so many degrees."""
        c, s = np.cos(np.deg2rad(turn)), np.sin(np.deg2rad(turn))
        offset = (self.points - np.asarray(centre)) @ np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]]).T
        return ((offset / np.asarray(radii)) ** 2).sum(-1) <= 1

    def paint(self, where: np.ndarray, density: float, uptake: float = 0.0, name: str | None = None) -> None:
        """Give voxels a density (HU) plus what the contrast agent adds, and a label or none."""
        self.image[where] = density + uptake * self.contrast
        self.label[where] = 0 if name is None else _LABEL[name]


def _torso(subject: _Subject, random: np.random.Generator) -> None:
    width, depth = random.uniform(150, 172), random.uniform(100, 122)
    fat = random.uniform(6, 26)
    tall = 1e4
    subject.paint(subject.inside((0, 0, 0), (width, depth, tall)), random.uniform(-115, -90))
    subject.paint(subject.inside((0, 0, 0), (width - fat, depth - fat, tall)), random.uniform(45, 60), 10)
    wall = fat + random.uniform(8, 14)
    subject.cavity = subject.inside((0, 4, 0), (width - wall, depth - wall, tall))
    subject.paint(subject.cavity, random.uniform(-110, -80))
    top = random.uniform(30, 60)
    for side in (-1, 1):
        lung = subject.inside((side * 75, 0, top + 70), (62, 88, 70 + random.uniform(-8, 8)))
        subject.paint(lung & (subject.image > -500), random.uniform(-880, -780))


def _organs(subject: _Subject, random: np.random.Generator) -> None:
    def shake(centre: Point, amount: float = 10.0) -> np.ndarray:
        return np.asarray(centre) + random.uniform(-amount, amount, 3)

    for _ in range(random.integers(6, 11)):
        spot = (*random.uniform((-100, -10), (100, 75)), random.uniform(-70, 5))
        gas = random.random() < 0.35
        subject.paint(subject.inside(spot, random.uniform(10, 24, 3)), -700 if gas else random.uniform(5, 50), 12)
    spleen = subject.inside(shake((-100, -45, 15)), random.uniform((22, 34, 35), (32, 50, 55)), random.uniform(-40, 10))
    subject.paint(spleen, random.uniform(40, 56), random.uniform(50, 80), "spleen")
    for side in (-1, 1):
        radii = random.uniform((20, 24, 42), (28, 32, 55))
        kidney = subject.inside(shake((side * 65, -50, -35)), radii, side * random.uniform(10, 40))
        subject.paint(kidney, random.uniform(28, 40), random.uniform(90, 140), "kidneys")
    place, radii = shake((-55, 35, 20), 14), random.uniform((30, 24, 30), (52, 40, 50))
    stomach = subject.inside(place, radii, random.uniform(-30, 30))
    subject.paint(stomach, random.uniform(5, 45), 5, "stomach")
    gas = stomach & (subject.points[..., 1] > place[1] + random.uniform(5, 25))
    subject.paint(gas, -850, 0, "stomach")


def _liver(subject: _Subject, random: np.random.Generator) -> None:
    right = random.uniform((48, 56, 55), (68, 82, 80))
    centre = np.array((68, 0, 12)) + random.uniform(-12, 12, 3)
    lobe = subject.inside(centre, right, random.uniform(-25, 15))
    reach = random.uniform(25, 75)
    left = subject.inside((centre[0] - reach, 42 + random.uniform(-8, 8), 25), (reach, random.uniform(18, 34), 38), -10)
    liver = (lobe | left) & subject.cavity
    fatty = 35 * random.random() ** 3
    density, uptake = random.uniform(48, 62) - fatty, random.uniform(35, 65)
    subject.paint(liver, density, uptake, "liver")
    for _ in range(random.integers(3, 7)):
        spot = centre + random.uniform(-40, 40, 3)
        vessel = subject.inside(spot, random.uniform((4, 4, 12), (7, 22, 40)), random.uniform(0, 180)) & liver
        subject.paint(vessel, 42, random.uniform(70, 120), "liver")
    if random.random() < 0.4:
        lesion = subject.inside(centre + random.uniform(-30, 30, 3), random.uniform(7, 22, 3)) & liver
        subject.paint(lesion, random.uniform(5, 40), random.uniform(0, 25), "liver")


def _bones_and_vessels(subject: _Subject, random: np.random.Generator) -> None:
    tall, y = 1e4, -60 + random.uniform(-6, 6)
    subject.paint(subject.inside((0, y, 0), (21, 17, tall)), random.uniform(180, 320), 0, "bone")
    subject.paint(subject.inside((0, y - 24, 0), (9, 8, tall)), 30)
    subject.paint(subject.inside((0, y - 40, 0), (5, 14, tall)), random.uniform(300, 500), 0, "bone")
    arterial = random.uniform(90, 160)
    aorta = subject.inside((-10, y + 27, 0), (random.uniform(8, 12),) * 2 + (tall,))
    subject.paint(aorta, 42, arterial, "vessels")
    cava = subject.inside((17, y + 28, 0), (12, 9, tall))
    subject.paint(cava, 42, 0.8 * arterial, "vessels")
    for angle in np.arange(10, 360, 36) + random.uniform(-8, 8):
        x, z = 142 * np.cos(np.deg2rad(angle)), random.uniform(-25, 25)
        rib = subject.inside((x, 96 * np.sin(np.deg2rad(angle)), z), (8, 8, 45))
        subject.paint(rib & (subject.image > -200), random.uniform(250, 550), 0, "bone")


def _smooth_field(shape: Sequence[int], spacing: Sequence[float], random: np.random.Generator) -> np.ndarray:
    """A displacement of a few mm that varies over some 50 mm."""
    sigma = [50 / s for s in spacing]
    field = np.stack([ndimage.gaussian_filter(random.standard_normal(tuple(shape)), sigma) for _ in range(3)], axis=-1)
    return 7 * field / np.abs(field).max()


def _check(shape: Sequence[int], spacing: Sequence[float], contrast: float, noise: float) -> None:
    if len(shape) != 3 or min(shape) < 1 or min(shape[:2]) < 16:
        raise ValueError(f"shape must have 3 sizes, the first two at least 16, got {tuple(shape)}")
    if len(spacing) != 3 or min(spacing) <= 0:
        raise ValueError(f"spacing must have 3 positive sizes in mm, got {tuple(spacing)}")
    if contrast < 0 or noise < 0:
        raise ValueError(f"contrast and noise must be 0 or more, got {contrast} and {noise}")
