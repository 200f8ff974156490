"""The persistence barcode of one image: where components, loops and cavities appear and vanish.

The image is a cubical complex whose vertices are the voxels (V-construction); an edge, square or cube enters with the
last of its corners. Superlevel: the threshold falls, so bars describe bright structures; sublevel: it rises. A bar is
the pair of voxels at which a feature appears (birth) and is filled or merged (death).

Sources: Kaji, Sudo, Ahara, "Cubical Ripser" (2020); Garin et al., "Duality in persistent homology of images" (2020);
Stucki, Bürgin, Paetzold, Bauer, "Efficient Betti Matching Enables Topology-Aware 3D Segmentation via Persistent
Homology" (2024), whose order of cells is kept so that ties come out the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medseg.topology._inputs import (
    ascending,
    check_dims,
    check_images,
    frame_images,
    list_directions,
    sort_rows,
    to_coordinates,
)
from medseg.topology._pairing import pair_image


class Barcode(NamedTuple):
    """The bars of one image in one dimension and one direction.

    Attributes:
        dim: 0 components, 1 loops (tunnels in 3D), 2 cavities.
        filtration: "superlevel" or "sublevel".
        bars: voxel coordinates (N, 2, D), int64: birth, death; rows sorted lexicographically.
        essential: birth voxel of the infinite bar (1, D) if asked for and dim is 0, else (0, D).
    """

    dim: int
    filtration: str
    bars: NDArray[np.int64]
    essential: NDArray[np.int64]


def persistence_barcode(
    image: ArrayLike,
    filtration: str = "superlevel",
    dims: Sequence[int] | None = None,
    *,
    boundary: str = "none",
    include_essential: bool = False,
) -> tuple[Barcode, ...]:
    """Compute the persistence barcode of an image as voxel coordinates.

    Args:
        image: finite values, shape (H, W) or (D, H, W); computed in float32.
        filtration: "superlevel", "sublevel" or "bothlevels" (superlevel entries first, then sublevel).
        dims: dimensions wanted, each below the number of axes; all by default.
        boundary: "none", or a frame one voxel wide of "background" (0) or "foreground" (1) on every side; a frame
            voxel has a coordinate of -1 or n.
        include_essential: also give the birth voxel of the one infinite bar.

    Returns:
        One `Barcode` for each direction and dimension; bars of length zero are left out.

    Raises:
        ValueError: not 2 or 3 axes, an empty axis, NaN or infinite values, unknown option.

    Example:
        >>> ring = np.ones((3, 3))
        >>> ring[1, 1] = 0
        >>> components, loops = persistence_barcode(ring)
        >>> loops.bars.tolist()
        [[[2, 2], [1, 1]]]
    """
    framed = frame_images(check_images(image, "image"), boundary)
    wanted = check_dims(dims, framed.ndim)
    return tuple(
        barcode
        for direction in list_directions(filtration)
        for barcode in _barcodes(framed, direction, wanted, boundary, include_essential)
    )


def _barcodes(
    framed: NDArray[np.float32], direction: str, dims: tuple[int, ...], boundary: str, include_essential: bool
) -> list[Barcode]:
    u = ascending(framed[None], direction)[0]
    bars = pair_image(u, framed.shape, dims)
    oldest = np.array([[u.argmin()]], np.int64)
    return [
        Barcode(
            dim,
            direction,
            to_coordinates(sort_rows(bars[dim]), framed.shape, boundary),
            to_coordinates(oldest[: int(include_essential and dim == 0)], framed.shape, boundary)[:, 0],
        )
        for dim in dims
    ]
