"""Betti numbers of a binary mask: counts of components, tunnels and cavities.

Foreground is face-connected and background fully connected, as in the barcodes (V-construction):

    b0 = face-connected components of the foreground
    b_top = fully connected components of the background that do not reach the border
    b1 in 3D = b0 + b2 - chi,   chi = vertices - edges + squares - cubes with all corners in the foreground

An empty mask has no features at all: every number is 0.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from medseg.topology._inputs import check_images, frame_images
from medseg.topology._pairing import pair_image


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
    # A frame of background closes every cavity, and hides nothing: all bars are now from 0 to 1.
    u = 1 - frame_images(values, "background").reshape(-1)
    bars = pair_image(u, [n + 2 for n in values.shape], tuple(range(values.ndim)))
    return tuple(len(bars[dim]) + (dim == 0) for dim in bars)
