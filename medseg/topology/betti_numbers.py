"""Betti numbers of a binary mask: counts of components, tunnels and cavities.

Foreground is face-connected and background fully connected, as in the barcodes (V-construction):

    b0 = face-connected components of the foreground
    b_top = fully connected components of the background that do not reach the border
    b1 in 3D = b0 + b2 - chi,   chi = vertices - edges + squares - cubes with all corners in the foreground

An empty mask has no features at all: every number is 0.
"""

from __future__ import annotations

from numpy.typing import ArrayLike


def betti_numbers(mask: ArrayLike) -> tuple[int, ...]:
    """Count the components, loops and (in 3D) cavities of a binary mask.

    Args:
        mask: values 0 and 1 or booleans, shape (H, W) or (D, H, W).

    Returns:
        (b0, b1) in 2D, (b0, b1, b2) in 3D; zeros for an empty mask.

    Raises:
        ValueError: not 2 or 3 axes, an empty axis, values other than 0 and 1.
    """
    raise NotImplementedError
