"""Synthetic vessel trees in three dimensions, imaged as by time-of-flight angiography, with label and centreline.

The trees of `_vessel_trees.py` follow Murray's law and do not touch each other. With the part c of a voxel that is
vessel (27 points a voxel), the radius r of the vessel, the path l along the tree, and the smallest voxel edge u,

    signal = (tissue + c * contrast * (1 - exp(-r / u)) * exp(-l / 200 u)) * bias field,    image = |signal + noise|

where the noise is complex, so that the image is Rician. Thin vessels are faint, as blood that flows slowly is.

Source of the noise: Gudbjartsson, Patz, "The Rician Distribution of Noisy MRI Data" (Magnetic Resonance in Medicine,
1995).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage
from scipy.spatial import KDTree
from skimage.morphology import skeletonize

from medseg.data._vessel_trees import STEP, Vessel, grow_trees
from medseg.data.phantoms import describe_dataset, write_nifti

_DECAY = 200.0  # path in smallest voxel edges over which the signal falls to 1 / e: blood loses it pulse by pulse
_FINE = 3  # points along each edge of a voxel that find how much of it is vessel


@dataclass(frozen=True)
class VesselPhantom:
    """A volume of vessel trees, its exact label and the lines in the middle of the vessels.

    Attributes:
        image: float32, about 0.4 in tissue; brighter by `contrast` in wide vessels.
        label: uint8, 1 where at least half of the voxel is vessel and where a centre line runs; one face-connected
            component for each tree.
        centreline: uint8, 1 on lines one voxel thin inside the label; one corner-connected piece for each tree.
        spacing: voxel edges in mm.
    """

    image: np.ndarray
    label: np.ndarray
    centreline: np.ndarray
    spacing: tuple[float, ...]


def make_vessel_phantom(
    shape: Sequence[int] = (64, 64, 64),
    *,
    num_trees: int = 2,
    radii: Sequence[float] = (1.0, 4.0),
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
    contrast: float = 0.6,
    bias: float = 0.15,
    noise: float = 0.06,
    seed: int | np.random.Generator = 0,
) -> VesselPhantom:
    """Draw vessel trees that do not touch, in tissue under a bias field and Rician noise.

    Args:
        shape: three sizes in voxels, each at least 16.
        num_trees: trees, 1 or more.
        radii: radius of the thinnest twig and of the widest trunk, in smallest voxel edges, 0.5 or more; trunks are
            drawn from the upper half of this range.
        spacing: voxel edges in mm; the vessels are drawn in mm, so a thick slice shows them squeezed.
        contrast: signal of wide vessels above tissue, whose signal is about 0.4.
        bias: standard deviation of the logarithm of the bias field, 0 or more.
        noise: standard deviation of each part of the complex noise, 0 or more.
        seed: seed, or a generator to draw from.

    Returns:
        Image, label, centreline and spacing.

    Raises:
        ValueError: an argument is out of range, or the trees find no room.

    Example:
        >>> phantom = make_vessel_phantom((32, 32, 32), num_trees=1, seed=1)
        >>> phantom.image.dtype.name, int(phantom.label.max()), bool((phantom.centreline <= phantom.label).all())
        ('float32', 1, True)
    """
    _check(shape, num_trees, radii, spacing, {"contrast": contrast, "bias": bias, "noise": noise})
    random = np.random.default_rng(seed)
    edges = np.array(spacing, float)
    vessels = grow_trees(shape, edges, num_trees, radii, random)
    cover, blood = np.zeros(shape), np.zeros(shape)
    for vessel in vessels:
        _draw(vessel, edges, cover, blood)
    line = _trace(vessels, shape, edges)
    label, centreline = _connected_to(line, (cover >= 0.5) | line), skeletonize(line) > 0
    signal = (_tissue(shape, edges, random) + contrast * blood) * _bias_field(shape, edges, bias, random)
    real, imaginary = noise * random.standard_normal((2, *shape))
    image = np.hypot(signal + real, imaginary)
    masks = (mask.astype(np.uint8) for mask in (label, centreline))
    return VesselPhantom(image.astype(np.float32), *masks, tuple(map(float, spacing)))


def write_vessel_phantoms(
    directory: str | Path,
    cases: int = 6,
    *,
    shape: Sequence[int] = (64, 64, 64),
    num_trees: int = 2,
    radii: Sequence[float] = (1.0, 4.0),
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
    contrast: float = 0.6,
    bias: float = 0.15,
    noise: float = 0.06,
    seed: int = 0,
) -> Path:
    """Write a training folder of vessel phantoms in the layout of the Medical Segmentation Decathlon.

    Args:
        directory: folder that gets `imagesTr/`, `labelsTr/` and `dataset.json`; made when absent.
        cases: number of image/label pairs, at least 1.
        shape: this and what follows but the seed: see `make_vessel_phantom`.
        num_trees: trees in each volume.
        radii: thinnest twig and widest trunk.
        spacing: voxel edges in mm.
        contrast: of wide vessels.
        bias: of the bias field.
        noise: of both parts of the noise.
        seed: seed of the first case; the next case has the next one.

    Returns:
        The folder.

    Raises:
        ValueError: `cases` is below 1, or an argument of the phantom is out of range.

    Example:
        >>> import tempfile
        >>> folder = write_vessel_phantoms(tempfile.mkdtemp(), 2, shape=(32, 32, 32), num_trees=1)
        >>> sorted(p.name for p in (folder / "labelsTr").iterdir())
        ['vessels_000.nii.gz', 'vessels_001.nii.gz']
    """
    if cases < 1:
        raise ValueError(f"cases must be at least 1, got {cases}")
    directory = Path(directory)
    names = [f"vessels_{index:03d}" for index in range(cases)]
    affine = np.diag([*spacing, 1.0])
    look = {"radii": radii, "spacing": spacing, "contrast": contrast, "bias": bias, "noise": noise}
    for index, name in enumerate(names):
        phantom = make_vessel_phantom(shape, num_trees=num_trees, seed=seed + index, **look)
        write_nifti(directory / "imagesTr" / f"{name}.nii.gz", phantom.image, affine)
        write_nifti(directory / "labelsTr" / f"{name}.nii.gz", phantom.label, affine)
    content = describe_dataset("decathlon", names, ["vessel"], title="vessel phantoms", modality="MRA")
    (directory / "dataset.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return directory


def _draw(vessel: Vessel, edges: np.ndarray, cover: np.ndarray, blood: np.ndarray) -> None:
    """Raise `cover`, the part of a voxel that is vessel, and `blood`, that part times the signal of the vessel."""
    low, high = vessel.points.min(axis=0) - vessel.radius, vessel.points.max(axis=0) + vessel.radius
    first = np.maximum(np.floor(low / edges), 0).astype(int)
    last = np.minimum(np.ceil(high / edges) + 1, cover.shape).astype(int)
    size = last - first
    if (size < 1).any():
        return
    tree = KDTree(vessel.points)
    voxels = np.indices(size).reshape(3, -1).T + first
    reach = vessel.radius + np.linalg.norm(edges) / 2
    voxels = voxels[np.isfinite(tree.query(voxels * edges, distance_upper_bound=reach)[0])]
    fine = (np.indices((_FINE,) * 3).reshape(3, -1).T + 0.5) / _FINE - 0.5
    distance, nearest = tree.query((voxels[:, None] + fine) * edges, distance_upper_bound=vessel.radius)
    unit, inside = edges.min(), np.isfinite(distance)
    travelled = vessel.travelled + STEP * unit * nearest
    signal = (1 - np.exp(-vessel.radius / unit)) * np.exp(-travelled / (_DECAY * unit))
    place = tuple(voxels.T)
    for volume, parts in ((cover, inside), (blood, inside * signal)):
        volume[place] = np.maximum(volume[place], parts.mean(axis=1))


def _trace(vessels: Sequence[Vessel], shape: Sequence[int], edges: np.ndarray) -> np.ndarray:
    """All voxels that the centrelines run through, each touching the next by a face."""
    line = np.zeros(shape, bool)
    for vessel in vessels:
        voxels = np.rint(vessel.points / edges).astype(int)
        voxels = voxels[((voxels >= 0) & (voxels < shape)).all(axis=1)]
        for axis in range(3):  # a diagonal step goes along one axis after the other
            line[tuple(np.concatenate([voxels[1:, : axis + 1], voxels[:-1, axis + 1 :]], axis=1).T)] = True
    return line


def _connected_to(line: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The parts of a mask that touch a line by faces; thin vessels shed single voxels."""
    parts, _ = ndimage.label(mask)  # type: ignore[misc]
    return np.isin(parts, np.unique(parts[line]))


def _tissue(shape: Sequence[int], edges: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Three kinds of tissue in rounded regions, with a fine grain."""
    unit = edges.min()
    regions = _smooth_noise(shape, 6 * unit / edges, random)
    levels = np.select([regions < -0.8, regions < 0.6], [0.25, 0.4], 0.5)
    grain = _smooth_noise(shape, 1.5 * unit / edges, random)
    return ndimage.gaussian_filter(levels, unit / edges) + 0.02 * grain


def _bias_field(shape: Sequence[int], edges: np.ndarray, deviation: float, random: np.random.Generator) -> np.ndarray:
    return np.exp(deviation * _smooth_noise(shape, max(shape * edges) / 4 / edges, random))


def _smooth_noise(shape: Sequence[int], sigma: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Noise of mean 0 and deviation 1 whose grain is `sigma` voxels wide."""
    noise = ndimage.gaussian_filter(random.standard_normal(shape), sigma, mode="reflect")
    return (noise - noise.mean()) / noise.std()


def _check(
    shape: Sequence[int],
    num_trees: int,
    radii: Sequence[float],
    spacing: Sequence[float],
    amounts: dict[str, float],
) -> None:
    if len(shape) != 3 or min(shape) < 16:
        raise ValueError(f"shape must have 3 sizes of at least 16 voxels, got {tuple(shape)}")
    if num_trees < 1:
        raise ValueError(f"num_trees must be 1 or more, got {num_trees}")
    if len(radii) != 2 or not 0.5 <= radii[0] <= radii[1]:
        raise ValueError(f"radii must be the thinnest and the widest, 0.5 voxel or more, got {tuple(radii)}")
    if len(spacing) != 3 or not all(edge > 0 for edge in spacing):
        raise ValueError(f"spacing must have 3 positive sizes in mm, got {tuple(spacing)}")
    for name, value in amounts.items():
        if not value >= 0:
            raise ValueError(f"{name} must be 0 or more, got {value}")
