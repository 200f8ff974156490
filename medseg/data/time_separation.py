"""Perfusion scans with a C-arm: sweep after sweep while contrast agent flows by, separated into time and space.

A sweep takes seconds, so that no two views see the same image. The time separation technique writes the attenuation as
a few functions of time with an unknown image each, fits them to the measured line integrals, and reconstructs them:

    m(x, t) = sum over i of  w_i(x) b_i(t),     P w_i (a, s) = least-squares fit of b_i(t_k(a)) to p(a, s, k), k = sweep

b_0 is constant; the others are the leading singular vectors of a family of contrast curves.

Sources: Bannasch et al., "Time separation technique: Accurate solution for 4D C-Arm-CT perfusion imaging using a
temporal decomposition model" (Medical Physics, 2018); Kulvait, Hoelter, Frysch et al., on the technique with functions
from prior knowledge (2022). Ours is a simulation for training networks, with the simple scanner of
`medseg.data.ConeBeamScan`; every change of the image by an organ's uptake follows one gamma-shaped curve.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from medseg.data.cone_beam import ConeBeamScan

_PEAKS = np.linspace(6.0, 40.0, 30)  # seconds to the peak, of the curves that the functions of time come from


@dataclass(frozen=True)
class PerfusionScan:
    """How a C-arm scans a perfusion: several sweeps, back and forth, and a few images out.

    Attributes:
        scan: the arm; its `motion` changes from sweep to sweep.
        sweeps: how many, at least as many as there are components.
        seconds: of one sweep, the turn of the arm included.
        components: functions of time, the constant one included.

    Raises:
        ValueError: an option is out of range.

    Example:
        >>> rest, flow = np.full((16, 16, 1), 40.0), np.full((16, 16, 1), 60.0)
        >>> perfusion = PerfusionScan(ConeBeamScan(views=16), sweeps=4)
        >>> images = perfusion.simulate(rest, [flow], [12.0], spacing=10.0)
        >>> images.shape, perfusion.image_at(images, 12.0).shape
        ((3, 16, 16, 1), (16, 16, 1))
    """

    scan: ConeBeamScan
    sweeps: int = 8
    seconds: float = 5.0
    components: int = 3

    def __post_init__(self) -> None:
        """Refuse more unknowns than measurements."""
        if not 1 <= self.components <= self.sweeps:
            raise ValueError(f"components must be in [1, sweeps = {self.sweeps}], got {self.components}")
        if self.seconds <= 0:
            raise ValueError(f"seconds must be positive, got {self.seconds}")

    def simulate(
        self,
        baseline: np.ndarray,
        uptakes: Sequence[np.ndarray],
        peaks: Sequence[float],
        *,
        spacing: float,
        seed: int | Sequence[int] = 0,
    ) -> np.ndarray:
        """Scan a perfusion and separate it.

        Args:
            baseline: (X, Y, Z) in HU before the contrast agent comes.
            uptakes: what the agent adds at its peak, in HU, an array for each group of tissues.
            peaks: seconds to the peak of each group.
            spacing: voxel size in mm within a slice.
            seed: seed of photons and motion.

        Returns:
            (components, X, Y, Z) in HU, float32: the constant image, then what belongs to the other functions of time.

        Raises:
            ValueError: shapes or lengths do not fit.
        """
        if len(uptakes) != len(peaks) or any(u.shape != baseline.shape for u in uptakes) or baseline.ndim != 3:
            raise ValueError(
                f"uptakes must be as many arrays as peaks, {len(peaks)}, of the baseline's shape (X, Y, Z) = "
                f"{baseline.shape}, got {[u.shape for u in uptakes]}"
            )
        random = np.random.default_rng(seed)
        ways = [self.scan.draw_motion(random) for _ in range(self.sweeps)]
        slices = []
        for z in range(baseline.shape[-1]):
            parts = [uptake[..., z] for uptake in uptakes]
            measured = self._measure(np.maximum(baseline[..., z], -1000), parts, peaks, spacing, ways, random)
            slices.append(self._separate(measured, baseline.shape[:2], spacing))
        return np.stack(slices, axis=-1)

    def image_at(self, images: np.ndarray, time: float) -> np.ndarray:
        """The image at a time in seconds since the first view, (X, Y, Z) in HU, from what `simulate` gave."""
        return np.tensordot(self.functions(np.array([time]))[:, 0], images, axes=1).astype(np.float32)

    def functions(self, times: np.ndarray) -> np.ndarray:
        """Values (components, times...) of the functions of time."""
        grid = np.linspace(0, self.sweeps * self.seconds, 200)
        curves = np.stack([contrast_curve(grid, peak) for peak in _PEAKS])
        vectors = np.linalg.svd(curves - curves.mean(axis=1, keepdims=True))[2][: self.components - 1]
        # As large as a curve, so that an image is in HU of enhancement.
        vectors = vectors / np.abs(vectors).max(axis=1, keepdims=True)
        return np.stack([np.ones_like(times, float), *(np.interp(times, grid, vector) for vector in vectors)])

    def view_times(self) -> np.ndarray:
        """Seconds at which each view of each sweep is taken, (sweeps, views); every other sweep runs backwards."""
        forth = (np.arange(self.scan.views) + 0.5) / self.scan.views
        return np.stack([self.seconds * (k + (forth[::-1] if k % 2 else forth)) for k in range(self.sweeps)])

    def _measure(
        self,
        rest: np.ndarray,
        parts: Sequence[np.ndarray],
        peaks: Sequence[float],
        spacing: float,
        ways: Sequence[np.ndarray],
        random: np.random.Generator,
    ) -> np.ndarray:
        """Line integrals (sweeps, detector pixels, views) of one slice."""
        still = self.scan.project(rest, spacing)
        flowing = [self.scan.project(part, spacing, offset=0.0) for part in parts]
        sweeps = []
        for times, way in zip(self.view_times(), ways, strict=True):
            now = [contrast_curve(times, peak) * p for peak, p in zip(peaks, flowing, strict=True)]
            sweeps.append(self.scan.detect(still + sum(now), spacing, way, random))
        return np.stack(sweeps)

    def _separate(self, measured: np.ndarray, shape: Sequence[int], spacing: float) -> np.ndarray:
        """Images (components, X, Y) of one slice."""
        values = self.functions(self.view_times())
        fits = [np.linalg.lstsq(values[:, :, v].T, measured[:, :, v], rcond=None)[0] for v in range(measured.shape[-1])]
        integrals = np.stack(fits, axis=-1)
        offsets = [1000.0, *[0.0] * (self.components - 1)]
        pairs = zip(integrals, offsets, strict=True)
        return np.stack([self.scan.reconstruct(p, shape, spacing, offset) for p, offset in pairs])


def contrast_curve(times: np.ndarray, peak: float) -> np.ndarray:
    """Contrast over time: 0 before the injection, 1 at the peak, then a slow decline (a gamma variate).

    Args:
        times: in seconds since the injection.
        peak: seconds to the peak.

    Returns:
        Values in [0, 1] of the shape of `times`.

    Example:
        >>> contrast_curve(np.array([0.0, 10.0]), 10.0).tolist()
        [0.0, 1.0]
    """
    if peak <= 0:
        raise ValueError(f"peak must be positive, got {peak}")
    ratio = np.clip(times / peak, 0, None)
    return (ratio * np.exp(1 - ratio)) ** 2
