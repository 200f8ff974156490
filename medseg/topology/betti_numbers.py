"""Betti numbers of a binary mask: counts of components, tunnels and cavities.

Foreground is face-connected and background fully connected, as in the barcodes (V-construction):

    b0 = face-connected components of the foreground
    b_top = fully connected components of the background that do not reach the border
    b1 in 3D = b0 + b2 - chi,   chi = vertices - edges + squares - cubes with all corners in the foreground

An empty mask has no features at all: every number is 0.
"""

from __future__ import annotations

from itertools import combinations
from typing import Any

import cc3d
import numpy as np
from numpy.typing import ArrayLike, NDArray

from medseg.topology._inputs import check_images


def betti_numbers(mask: ArrayLike) -> tuple[int, ...]:
    """Count the components, loops and (in 3D) cavities of a binary mask.

    Args:
        mask: values 0 and 1 or booleans, shape (H, W) or (D, H, W).

    Returns:
        (b0, b1) in 2D, (b0, b1, b2) in 3D; zeros for an empty mask.

    Raises:
        ValueError: not 2 or 3 axes, an empty axis, values other than 0 and 1.

    Example:
        >>> ring = np.ones((3, 3))
        >>> ring[1, 1] = 0
        >>> betti_numbers(ring)
        (1, 1)
    """
    values = check_images(mask, "mask")
    if not np.isin(values, (0, 1)).all():
        raise ValueError("mask holds values other than 0 and 1; threshold it first, for instance by `mask > 0.5`.")
    if not values.any():
        return (0,) * values.ndim
    foreground = values != 0
    dims = foreground.ndim
    components = _count_components(foreground, 2 * dims)
    # A frame joins all background that reaches the border into one component.
    enclosed = _count_components(~np.pad(foreground, 1), 3**dims - 1) - 1
    if dims == 2:
        return components, enclosed
    return components, components + enclosed - euler_characteristic(foreground), enclosed


def euler_characteristic(foreground: NDArray[np.bool_]) -> int:
    """Alternating sum of the vertices, edges, squares and cubes whose corners are all in the foreground.

    Args:
        foreground: booleans, shape (H, W) or (D, H, W).

    Returns:
        b0 - b1 in 2D, b0 - b1 + b2 in 3D.

    Example:
        >>> ring = np.ones((3, 3), dtype=bool)
        >>> ring[1, 1] = False
        >>> euler_characteristic(ring)
        0
    """
    total = 0
    for dim in range(foreground.ndim + 1):
        for axes in combinations(range(foreground.ndim), dim):
            cells = foreground
            for axis in axes:
                ahead, behind = [slice(None)] * cells.ndim, [slice(None)] * cells.ndim
                ahead[axis], behind[axis] = slice(1, None), slice(None, -1)
                cells = cells[tuple(ahead)] & cells[tuple(behind)]
            total += (-1) ** dim * int(np.count_nonzero(cells))
    return total


def _count_components(mask: NDArray[np.bool_], connectivity: Any) -> int:
    return int(cc3d.connected_components(np.ascontiguousarray(mask), connectivity=connectivity, return_N=True)[1])
