"""Scan a CT volume again as a C-arm would: few views, a limited sweep, scatter, truncation, motion, metal.

Slice by slice, in parallel geometry, with m the attenuation in 1/mm and angles a_1, ..., a_n over the sweep:

    m = m_water (1 + HU / 1000),   p(a, s) = line integrals of m,   detector shifted by the motion at the time of a
    I = exp(-p / (1 + b p)),   I' = Poisson(N (I + r min_s I)) / N,   p' = -log I'
    truncation: outside the field of view p' is continued from its edges;   image = filtered back-projection of p'

b bends line integrals as beam hardening does, r is the ratio of scattered to primary intensity in a view's deepest
shadow; both make the middle of the body too dark (cupping), and behind metal both leave streaks.

Sources: Kak, Slaney, "Principles of Computerized Tomographic Imaging" (1988), for projection and reconstruction, which
are scikit-image's `radon` and `iradon`. What is left out of a C-arm: the cone's angle, and with it everything that
mixes slices, the detector's lag and glare, and the corrections that vendors apply.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from skimage.transform import iradon, radon

WATER = 0.02  # attenuation of water in 1/mm, about that at 70 keV
_FEWEST = 1e-5  # of all photons; a detector never counts less


@dataclass(frozen=True)
class ConeBeamScan:
    """How a C-arm scans: a volume in HU in, a volume in HU with the artefacts of such a scan out.

    Attributes:
        views: projections in a sweep, at least 2.
        sweep: degrees the arm turns, in (0, 180]; parallel views need 180 for a complete scan.
        photons: photons that reach an unshadowed detector pixel; fewer make more noise.
        scatter: scattered over primary intensity in the deepest shadow of a view, 0 for none.
        hardening: bend of line integrals, 0 for none, 0.02 for a visible cupping.
        field_of_view: width of the detector in mm; None sees everything.
        motion: largest shift of the subject in mm, a sine over the sweep along a random direction.

    Raises:
        ValueError: an option is out of range.

    Example:
        >>> water = np.full((32, 32, 1), -1000.0)
        >>> water[8:24, 8:24] = 0
        >>> seen = ConeBeamScan(views=90, photons=1e6).simulate(water, spacing=8.0, seed=0)
        >>> abs(float(seen[12:20, 12:20].mean())) < 30
        True
    """

    views: int = 120
    sweep: float = 180.0
    photons: float = 1e5
    scatter: float = 0.0
    hardening: float = 0.0
    field_of_view: float | None = None
    motion: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what no arm can do."""
        if self.views < 2 or not 0 < self.sweep <= 180:
            raise ValueError(f"views must be at least 2 and sweep in (0, 180], got {self.views} and {self.sweep}")
        if self.photons <= 0 or (self.field_of_view is not None and self.field_of_view <= 0):
            raise ValueError(f"photons and field_of_view must be positive, got {self.photons} and {self.field_of_view}")
        for name in ("scatter", "hardening", "motion"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}")

    @property
    def angles(self) -> np.ndarray:
        """Angles of the views in degrees."""
        return np.arange(self.views) * self.sweep / self.views

    def simulate(self, volume: np.ndarray, *, spacing: float, seed: int | Sequence[int] = 0) -> np.ndarray:
        """Scan a volume.

        Args:
            volume: (X, Y, Z) in HU, taken as air below -1000; slices along the last axis.
            spacing: voxel size in mm within a slice, equal along both axes.
            seed: seed of photons and motion.

        Returns:
            The reconstruction in HU, float32, of the same shape.

        Raises:
            ValueError: the volume does not have three axes, or the spacing is not positive.
        """
        _check_volume(volume, spacing)
        random = np.random.default_rng(seed)
        way = self.draw_motion(random)
        slices = []
        for z in range(volume.shape[-1]):
            p = self.project(np.maximum(volume[..., z], -1000), spacing)
            slices.append(self.reconstruct(self.detect(p, spacing, way, random), volume.shape[:2], spacing))
        return np.stack(slices, axis=-1)

    def draw_motion(self, random: np.random.Generator) -> np.ndarray:
        """Shifts (views, 2) in mm within the slice, one for each view."""
        turn, phase = random.uniform(0, 2 * np.pi, 2)
        wave = self.motion * np.sin(np.linspace(0, 2 * np.pi, self.views) + phase)
        return wave[:, None] * np.array([np.cos(turn), np.sin(turn)])

    def project(self, image: np.ndarray, spacing: float, offset: float = 1000.0) -> np.ndarray:
        """Line integrals (detector pixels, views) of a slice in HU; `offset` 0 for a change of HU."""
        attenuation = WATER * (_square(image, -offset) + offset) / 1000
        return radon(attenuation, self.angles, circle=False, preserve_range=True) * spacing

    def detect(self, p: np.ndarray, spacing: float, way: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """Line integrals as they are measured: with motion, hardening, scatter, noise and truncation."""
        angle = np.deg2rad(self.angles)
        # A shift of the subject shifts each parallel projection by its component along the detector.
        shifts = (way[:, 1] * np.cos(angle) - way[:, 0] * np.sin(angle)) / spacing
        place = np.arange(len(p))
        p = np.stack([np.interp(place - s, place, column) for s, column in zip(shifts, p.T, strict=True)], axis=1)
        counts = self._count(p / (1 + self.hardening * np.clip(p, 0, None)), random)
        return self._truncate(-np.log(counts), spacing)

    def reconstruct(
        self, integrals: np.ndarray, shape: Sequence[int], spacing: float, offset: float = 1000.0
    ) -> np.ndarray:
        """A slice in HU (float32) from its line integrals; `offset` 0 for those of a change of HU."""
        size = max(shape)
        attenuation = iradon(integrals / spacing, self.angles, output_size=size, circle=False, preserve_range=True)
        # `iradon` divides by the number of views as if they covered 180 degrees.
        image = 1000 * attenuation * self.sweep / 180 / WATER - offset
        margins = [((size - n) // 2, (size - n) // 2 + n) for n in shape]
        return image[margins[0][0] : margins[0][1], margins[1][0] : margins[1][1]].astype(np.float32)

    def _count(self, p: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """Fractions of the photons that arrive, scattered ones included."""
        primary = np.exp(-p)
        # Scatter is nearly even over a detector, so that it weighs most in the deepest shadow.
        arriving = primary + self.scatter * primary.min(axis=0, keepdims=True)
        return np.clip(random.poisson(self.photons * arriving) / self.photons, _FEWEST, None)

    def _truncate(self, p: np.ndarray, spacing: float) -> np.ndarray:
        if self.field_of_view is None:
            return p
        half = self.field_of_view / spacing / 2
        place = np.arange(len(p)) - (len(p) - 1) / 2
        seen = np.flatnonzero(np.abs(place) <= half)
        if len(seen) < 2:
            raise ValueError(f"field_of_view must span at least 2 voxels, got {self.field_of_view} mm of {spacing} mm")
        filled = p[np.clip(np.arange(len(p)), seen[0], seen[-1])]
        beyond = np.clip((np.abs(place) - half) / half, 0, 1)
        return filled * np.cos(np.pi / 2 * beyond)[:, None] ** 2


def add_metal(
    volume: np.ndarray,
    inside: np.ndarray,
    *,
    pieces: int = 2,
    radius: float = 1.2,
    density: float = 8000.0,
    seed: int | Sequence[int] = 0,
) -> np.ndarray:
    """Put balls of metal, such as embolisation coils, into a volume, before it is scanned.

    Args:
        volume: (X, Y, Z) in HU.
        inside: mask of where they may lie, of the same shape.
        pieces: how many.
        radius: of each in voxels, within the slice of its middle.
        density: in HU.
        seed: seed of their places.

    Returns:
        A copy with metal in it.

    Raises:
        ValueError: `inside` is empty or has another shape.

    Example:
        >>> metal = add_metal(np.zeros((8, 8, 2)), np.ones((8, 8, 2), bool), pieces=1)
        >>> bool(metal.max() == 8000)
        True
    """
    if inside.shape != volume.shape or not inside.any():
        raise ValueError(f"inside must be a non-empty mask of shape {volume.shape}, got shape {inside.shape}")
    spots = np.argwhere(inside)
    result = np.array(volume, copy=True)
    for x, y, z in np.random.default_rng(seed).choice(spots, pieces):
        grid = np.hypot(*np.ogrid[-x : volume.shape[0] - x, -y : volume.shape[1] - y])
        result[grid <= radius, z] = density
    return result


def _square(image: np.ndarray, around: float) -> np.ndarray:
    """A slice with margins of one value, so that both sides are equal."""
    size = max(image.shape)
    before = [(size - n) // 2 for n in image.shape]
    widths = [(b, size - n - b) for b, n in zip(before, image.shape, strict=True)]
    return np.pad(np.asarray(image, float), widths, constant_values=around)


def _check_volume(volume: np.ndarray, spacing: float) -> None:
    if volume.ndim != 3 or spacing <= 0:
        raise ValueError(f"volume must have axes (X, Y, Z) and spacing be positive, got {volume.shape} and {spacing}")
