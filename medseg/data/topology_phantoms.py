"""Synthetic volumes whose components, tunnels and cavities are known: closed tubes and hollow balls under noise.

With r rings and s hollow balls, none touching another, the label has the Betti numbers

    b0 = r + s components,    b1 = r tunnels,    b2 = s cavities

for a face-connected foreground. In the image a tube fades at a few places and a wall becomes thin, while the label
stays closed: a network that follows brightness alone opens rings and balls there, for few voxels and little Dice.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

_RING, _TUBE = (4.0, 5.5), 1.6  # radius of a ring, and of the tube around its centre line, in voxels
_BALL, _WALL = (4.5, 6.0), 2.0  # outer radius of a hollow ball, and its wall: no diagonal step leads through 1.8 voxels
_FADED, _GAP = 0.15, 2.6  # contrast that is left in a gap, and the gap's radius in voxels
_MARGIN, _TRIES = 1.5, 100


def make_topology_phantom(
    shape: Sequence[int] = (40, 40, 40),
    *,
    rings: int = 2,
    balls: int = 2,
    gaps: int = 1,
    noise: float = 0.4,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Draw rings and hollow balls that do not touch, and their label of known topology.

    Args:
        shape: three sizes in voxels; 16 voxels hold one object.
        rings: closed tubes, 0 or more; each is one component with one tunnel.
        balls: hollow balls, 0 or more; each is one component with one cavity.
        gaps: places of each object at which it fades in the image, but not in the label.
        noise: standard deviation of the noise, as a fraction of the contrast; its grain is about two voxels wide.
        seed: seed of places, directions, gaps and noise.

    Returns:
        The image (float32, about 0 outside and 1 inside) and the label (uint8, 0 and 1).

    Raises:
        ValueError: an argument is out of range, or the objects do not fit.

    Example:
        >>> from medseg.topology import betti_numbers
        >>> image, label = make_topology_phantom((32, 32, 32), rings=2, balls=1)
        >>> betti_numbers(label)
        (3, 2, 1)
    """
    _check(shape, rings, balls, gaps, noise)
    random = np.random.default_rng(seed)
    radii = [*random.uniform(*_RING, rings), *random.uniform(*_BALL, balls)]
    reach = [r + _TUBE for r in radii[:rings]] + radii[rings:]
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1).astype(np.float64)
    label, contrast = np.zeros(shape, bool), np.ones(shape)
    for index, centre in enumerate(_place(reach, shape, random)):
        draw = _ring if index < rings else _hollow_ball
        inside, middle = draw(grid - centre, radii[index], random)
        label |= inside
        for point in random.choice(np.argwhere(middle), gaps, replace=False):
            distance = np.linalg.norm(grid - point, axis=-1)
            contrast = np.where(inside & (distance <= _GAP), _FADED, contrast)
    grain = ndimage.gaussian_filter(random.standard_normal(shape), 0.8)
    image = label * contrast + noise * grain / grain.std()
    return image.astype(np.float32), label.astype(np.uint8)


def _ring(offset: np.ndarray, radius: float, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A closed tube in a random plane, and the voxels on its centre line."""
    normal = random.standard_normal(3)
    along = offset @ (normal / np.linalg.norm(normal))
    across = np.sqrt(np.maximum((offset**2).sum(axis=-1) - along**2, 0))
    from_line = np.hypot(across - radius, along)
    return from_line <= _TUBE, from_line <= 0.8


def _hollow_ball(offset: np.ndarray, radius: float, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A ball with a cavity, and the voxels in the middle of its wall."""
    distance = np.linalg.norm(offset, axis=-1)
    return (distance <= radius) & (distance > radius - _WALL), np.abs(distance - radius + _WALL / 2) <= 0.5


def _place(reach: Sequence[float], shape: Sequence[int], random: np.random.Generator) -> np.ndarray:
    """Centres at which balls of these radii lie inside the grid and apart from each other."""
    outer = np.array(reach) + _MARGIN
    fits = not reach or 2 * outer.max() <= min(shape) - 1
    for _ in range(_TRIES if fits else 0):
        centres = np.empty((0, 3))
        for radius in outer:
            tries = random.uniform(radius, np.array(shape) - 1 - radius, (_TRIES, 3))
            apart = outer[: len(centres)] + radius - _MARGIN
            free = (np.linalg.norm(tries[:, None] - centres, axis=-1) >= apart).all(axis=1)
            if not free.any():
                break
            centres = np.vstack([centres, tries[free.argmax()]])
        if len(centres) == len(reach):
            return centres
    raise ValueError(f"{len(reach)} objects do not fit into shape {tuple(shape)}; ask for fewer, or a larger shape")


def _check(shape: Sequence[int], rings: int, balls: int, gaps: int, noise: float) -> None:
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"shape must have 3 positive sizes in voxels, got {tuple(shape)}")
    if min(rings, balls, gaps) < 0:
        raise ValueError(f"rings, balls and gaps must be 0 or more, got {rings}, {balls} and {gaps}")
    if noise < 0:
        raise ValueError(f"noise must be 0 or more, got {noise}")
