"""Vessel trees that grow in a box: trunks enter through faces, and vessels divide by Murray's law and keep apart.

A vessel of radius r0 divides into radii r1 and r2, at the angles t1 and t2 to its direction that cost the least work:

    r0^3 = r1^3 + r2^3,    cos t1 = (r0^4 + r1^4 - r2^4) / (2 r0^2 r1^2),    t2 likewise

Source: Murray, "The Physiological Principle of Minimum Work" I and II (1926).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.spatial.distance import cdist

STEP = 0.25  # between points of a centreline; this and all lengths below in smallest voxel edges
_CLEARANCE = 2.5  # between the walls of two vessels
_LENGTH = (8.0, 14.0)  # of a vessel, times the square root of its radius
_BEND, _WAVE = 0.5, 0.2  # deviations of the sideways part of the direction: growing to the end, and there and back
_TRUNK_TRIES, _TRIES = 50, 12


@dataclass(frozen=True)
class Vessel:
    """A tube of one radius around a line."""

    points: np.ndarray  # (N, 3) in mm from the centre of the first voxel
    radius: float  # mm
    travelled: float  # mm along the tree to the first point
    tree: int


def grow_trees(
    shape: Sequence[int], edges: np.ndarray, num_trees: int, radii: Sequence[float], random: np.random.Generator
) -> list[Vessel]:
    """Grow trees in a box.

    Args:
        shape: voxels of the box.
        edges: voxel edges in mm.
        num_trees: number of trunks.
        radii: of the thinnest twig and the widest trunk, in smallest voxel edges.
        random: where places, directions and radii are drawn from.

    Returns:
        The vessels, each after the one that it branches off from.

    Raises:
        ValueError: a trunk finds no room.
    """
    return _Grower(np.array(shape), edges, radii, random).grow(num_trees)


class _Grower:
    """Trees that grow in a box, each vessel apart from all others but those it branches off with."""

    def __init__(
        self, shape: np.ndarray, edges: np.ndarray, radii: Sequence[float], random: np.random.Generator
    ) -> None:
        self.low, self.high = -edges / 2, (shape - 0.5) * edges
        self.unit = edges.min()
        self.thinnest, self.widest = np.array(radii) * self.unit
        self.random = random
        self.vessels: list[Vessel] = []

    def grow(self, num_trees: int) -> list[Vessel]:
        # All trunks before the branches: the first tree would take the room of the last.
        queue = [self._trunk(tree) for tree in range(num_trees)]
        while queue:
            children = self._branch(queue.pop(0))
            queue.extend(children)
        return self.vessels

    def _trunk(self, tree: int) -> Vessel:
        for _ in range(_TRUNK_TRIES):
            radius = self.random.uniform((self.thinnest + self.widest) / 2, self.widest)
            axis, side = self.random.integers(3), self.random.integers(2)
            inward = np.eye(3)[axis] * (1 - 2 * side)
            start = self.random.uniform(0.75 * self.low + 0.25 * self.high, 0.25 * self.low + 0.75 * self.high)
            start[axis] = (self.low, self.high)[side][axis]
            direction = _unit(inward + 0.4 * self.random.standard_normal(3))
            vessel = self._try_vessel(start - 2 * radius * direction, direction, radius, 0.0, tree)
            if vessel and self._has_room(vessel, []):
                self.vessels.append(vessel)
                return vessel
        raise ValueError(f"num_trees={tree + 1} trees find no room; ask for fewer, thinner radii or a larger shape")

    def _branch(self, parent: Vessel) -> list[Vessel]:
        """Both branches of a vessel, or none where they would be too thin, leave the volume, or find no room."""
        largest_share = 1 - (self.thinnest / parent.radius) ** 3
        end = parent.points[-1]
        if largest_share < 0.5 or not self._inside(end):
            return []
        travelled = parent.travelled + _length(parent.points)
        along = _unit(end - parent.points[-2])
        for _ in range(_TRIES):
            share = self.random.uniform(0.5, min(largest_share, 0.9))
            radii = parent.radius * np.cbrt([share, 1 - share])
            side = _across(along, self.random)
            family = [parent]
            for radius, angle in zip(radii, murray_angles(parent.radius, *radii), strict=True):
                direction = np.cos(angle) * along + np.sin(angle) * side
                child = self._try_vessel(end, direction, radius, travelled, parent.tree)
                side = -side
                if child and self._has_room(child, family):
                    family.append(child)
            if len(family) == 3:
                self.vessels += family[1:]
                return family[1:]
        return []

    def _try_vessel(
        self, start: np.ndarray, direction: np.ndarray, radius: float, travelled: float, tree: int
    ) -> Vessel | None:
        """A slightly bent vessel, or None if it stays outside; one that leaves the volume ends a diameter behind it."""
        length = self.random.uniform(*_LENGTH) * np.sqrt(radius * self.unit) + 2 * radius
        along = np.linspace(0, 1, max(int(length / (STEP * self.unit)), 2))[:, None]
        bend, wave = (s * self.random.standard_normal() * _across(direction, self.random) for s in (_BEND, _WAVE))
        steps = direction + along * bend + np.sin(2 * np.pi * along) * wave
        steps *= STEP * self.unit / np.linalg.norm(steps, axis=1, keepdims=True)
        points = start + np.cumsum(steps, axis=0) - steps[0]
        inside = self._inside(points)
        if not inside.any():
            return None
        entry = inside.argmax()
        left = entry + (~inside[entry:]).argmax()
        if left > entry:  # straight on, as a bent end might come back
            more = np.arange(int(2 * radius / (STEP * self.unit)))[:, None]
            points = np.vstack([points[:left], points[left] + more * steps[left]])
        return Vessel(points, radius, travelled, tree)

    def _has_room(self, vessel: Vessel, family: Sequence[Vessel]) -> bool:
        """Whether a vessel keeps clear of all others; of parent and sibling, once it has left the branching."""
        for other in [*self.vessels, *family[1:]]:
            apart = vessel.radius + other.radius + _CLEARANCE * self.unit
            points = vessel.points
            if any(other is relative for relative in family):
                points = points[int(1.2 * apart / (STEP * self.unit)) :]
            if len(points) and cdist(points[::2], other.points[::2]).min() < apart:
                return False
        return True

    def _inside(self, points: np.ndarray) -> np.ndarray:
        return np.all((points >= self.low) & (points < self.high), axis=-1)


def murray_angles(r0: float, r1: float, r2: float) -> tuple[float, float]:
    """Angles in radians at which branches of radii `r1` and `r2` leave the direction of a vessel of radius `r0`."""
    cosines = [(r0**4 + a**4 - b**4) / (2 * r0**2 * a**2) for a, b in ((r1, r2), (r2, r1))]
    first, second = np.arccos(np.clip(cosines, -1, 1))
    return first, second


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


def _across(direction: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """A random unit vector at a right angle."""
    return _unit(np.cross(direction, random.standard_normal(3)))


def _length(points: np.ndarray) -> float:
    return float(np.linalg.norm(np.diff(points, axis=0), axis=1).sum())
