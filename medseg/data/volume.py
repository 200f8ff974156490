"""Read a NIfTI volume so that its numbers can be trusted.

Array, geometry and header are kept apart: the network sees a clean float32 array with a 4 x 4 matrix in millimetres,
while the writer (see `medseg.data.writing`) gets the untouched header back.
"""

from __future__ import annotations

import gzip
import itertools
import zlib
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.imageglobals import LoggingOutputSuppressor
from nibabel.nifti1 import Nifti1Extension
from nibabel.spatialimages import HeaderDataError

GRID_TOLERANCE_MM = 1e-3
# Writers pad files to a block now and then; more left over than this means the header's sizes are wrong.
PADDING_BYTES = 512
_MM_PER_UNIT = {1: 1000.0, 3: 0.001}  # NIfTI unit codes for metre and micrometre; 0 (unknown) and 2 are millimetres
_GZIP_MAGIC = b"\x1f\x8b"
# What nibabel and NumPy raise on bytes that are not what the header says.
_DAMAGE = (
    EOFError, OSError, zlib.error, ImageFileError, HeaderDataError, ValueError, TypeError, KeyError, IndexError,
    ArithmeticError, MemoryError, AttributeError,
)  # fmt: skip


class VolumeError(ValueError):
    """An image file that cannot be used; the text names the file, the problem and the remedy."""


@dataclass(frozen=True)
class Volume:
    """A 3D image and where it lies in space.

    Attributes:
        array: voxel values, shape (X, Y, Z) in the voxel order of the file; a 2D file has Z = 1.
        affine: 4 x 4, voxel indices to world millimetres (right, anterior, superior positive).
        header: the header as read; the writer copies it.
        path: the file.
        file_shape: shape as stored, e.g. (X, Y) or (X, Y, Z, 1); masks are written in this shape.
        notes: what was found odd and how it was handled, one sentence each.
        extensions: NIfTI header extensions as read.
    """

    array: np.ndarray
    affine: np.ndarray
    header: nib.Nifti1Header
    path: Path
    file_shape: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()
    extensions: tuple[Nifti1Extension, ...] = ()

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size along the array axes in millimetres."""
        x, y, z = np.sqrt((self.affine[:3, :3] ** 2).sum(axis=0)).tolist()
        return x, y, z

    @property
    def voxel_volume(self) -> float:
        """Volume of a voxel in mm3; on a sheared grid less than the product of the spacings."""
        return abs(float(np.linalg.det(self.affine[:3, :3])))


def read_image(path: str | Path) -> Volume:
    """Read a scalar 3D image as finite float32 values.

    Scale factors are applied. NaN and infinite voxels take the smallest finite value, with a note that counts them.

    Args:
        path: a `.nii` or `.nii.gz` file; 2D and 4D with a single volume are accepted.

    Returns:
        The volume, with notes on anything odd.

    Raises:
        VolumeError: the file is missing, damaged, no NIfTI, not scalar, has several volumes, or no finite voxel.
    """
    (volume,) = read_channels(path, channels=1)
    return volume


def read_channels(path: str | Path, channels: int) -> list[Volume]:
    """Read a file that holds one volume, or as many volumes (4D) as the network takes channels.

    Args:
        path: a `.nii` or `.nii.gz` file.
        channels: the number of volumes expected in the file.

    Returns:
        One volume a channel; each has the file's header and is laid out as if it stood alone.

    Raises:
        VolumeError: as `read_image`, or another number of volumes.
    """
    path = Path(path)
    image = _open(path)
    shape = _checked_shape(path, image, channels)
    affine, notes = _affine(path, image)
    data = _values(path, image, np.float32)
    data = data.reshape(shape) if channels == 1 else data.reshape(*shape, channels)
    file_shape = image.shape if channels == 1 else image.shape[:3]
    volumes = []
    for channel in np.moveaxis(data, -1, 0) if channels > 1 else [data]:
        array, cleaning = _finite(path, np.ascontiguousarray(channel))
        volumes.append(
            Volume(array, affine, image.header, path, file_shape, (*notes, *cleaning), tuple(image.header.extensions))
        )
    return volumes


def read_mask(path: str | Path) -> Volume:
    """Read a label map as integers.

    Args:
        path: a `.nii` or `.nii.gz` file whose values are whole numbers, in any numeric dtype.

    Returns:
        The volume; the array has the smallest unsigned dtype that holds it (int64 where labels are negative).

    Raises:
        VolumeError: as `read_image`, or values that are not whole numbers.
    """
    path = Path(path)
    image = _open(path)
    shape = _checked_shape(path, image, channels=1)
    affine, notes = _affine(path, image)
    values = _values(path, image, None)
    labels = values
    if not np.issubdtype(values.dtype, np.integer):
        with np.errstate(invalid="ignore"):
            labels = values.astype(np.int64)
        wrong = int(np.count_nonzero(labels != values))
        if wrong:
            raise VolumeError(
                f"{path}: expected a label map, but {wrong} of {values.size} voxels are not whole numbers; "
                "give a mask, not an image or a probability map"
            )
    labels = labels.reshape(shape)
    dtype = np.int64 if labels.size and labels.min() < 0 else np.min_scalar_type(int(labels.max(initial=0)))
    return Volume(labels.astype(dtype), affine, image.header, path, image.shape, notes, tuple(image.header.extensions))


def check_same_grid(first: Volume, second: Volume) -> None:
    """Check that two volumes have the same shape and lie at the same place.

    Args:
        first: a volume.
        second: the volume to compare with; the corner voxels may differ by 1e-3 mm.

    Raises:
        ValueError: shape or position differ.
    """
    if first.array.shape != second.array.shape:
        raise ValueError(
            f"{second.path} has shape {second.array.shape}, but {first.path} has {first.array.shape}; "
            "both must be on one grid: resample one to the other"
        )
    distance = _corner_distance(first.affine, second.affine, first.array.shape)
    if distance > GRID_TOLERANCE_MM:
        raise ValueError(
            f"{second.path} lies up to {distance:.3g} mm away from {first.path} (allowed: {GRID_TOLERANCE_MM} mm); "
            "both must be on one grid: resample one to the other, or correct the header that is wrong"
        )


def _open(path: Path) -> nib.Nifti1Image:
    """Parse a file whole, so that a wrong checksum or a missing end is seen before any voxel is used."""
    if not path.is_file():
        raise VolumeError(f"{path}: no such file; check the path")
    try:
        content = path.read_bytes()
        if content[:2] == _GZIP_MAGIC:
            content = gzip.decompress(content)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise VolumeError(
            f"{path}: the gzip stream is damaged or cut off ({error}); copy or convert it again"
        ) from error
    except OSError as error:
        raise VolumeError(f"{path}: cannot be read ({error.strerror or error})") from error
    header_size = {int.from_bytes(content[:4], order) for order in ("little", "big")}
    image_class = nib.Nifti1Image if 348 in header_size else nib.Nifti2Image if 540 in header_size else None
    if image_class is None or len(content) < 348:
        raise VolumeError(f"{path}: not a NIfTI file (no NIfTI header found); convert it to .nii or .nii.gz first")
    try:
        with LoggingOutputSuppressor(), np.errstate(all="ignore"):
            image = image_class.from_bytes(content)
            _check_size(path, image, len(content))
    except VolumeError:
        raise
    except _DAMAGE as error:
        raise VolumeError(f"{path}: the NIfTI header is damaged ({error}); convert the original again") from error
    return image


def _check_size(path: Path, image: nib.Nifti1Image, size: int) -> None:
    shape = image.shape
    if not shape or any(n <= 0 for n in shape):
        raise VolumeError(f"{path}: the header gives the shape {shape}; expected positive sizes; the header is damaged")
    itemsize = image.header.get_data_dtype().itemsize
    expected = int(np.prod([int(n) for n in shape], dtype=object)) * itemsize
    # nibabel clears the offset in the header it has read; extensions, some long, stand before the voxels.
    offset = int(image.dataobj.offset)  # type: ignore[attr-defined]
    surplus = size - offset - expected
    if surplus < 0 or surplus > PADDING_BYTES:
        raise VolumeError(
            f"{path}: the header promises {expected} bytes of voxels (shape {shape}), the file holds {size - offset}; "
            "the file is cut off or its header is damaged: copy or convert it again"
        )


def _checked_shape(path: Path, image: nib.Nifti1Image, channels: int) -> tuple[int, int, int]:
    dtype = image.header.get_data_dtype()
    if dtype.fields:
        raise VolumeError(
            f"{path}: holds colour voxels ({', '.join(dtype.fields)}); convert it to one grey value a voxel"
        )
    if np.issubdtype(dtype, np.complexfloating):
        raise VolumeError(f"{path}: holds complex voxels; convert it to magnitude first")
    shape = image.shape
    volumes = int(np.prod(shape[3:], dtype=np.int64))
    if volumes != channels:
        raise VolumeError(
            f"{path}: has shape {shape}, that is {volumes} volumes; expected {channels}: "
            + ("extract the volume to segment" if channels == 1 else "one volume for each channel of the network")
        )
    x, y, z = (*shape[:3], 1, 1)[:3]
    return x, y, z


def _affine(path: Path, image: nib.Nifti1Image) -> tuple[np.ndarray, tuple[str, ...]]:
    header, notes = image.header, []
    qform_code, sform_code = int(header["qform_code"]), int(header["sform_code"])
    try:
        qform = header.get_qform(coded=True)[0]
    except _DAMAGE as error:
        if sform_code <= 0:
            raise VolumeError(f"{path}: the qform is damaged ({error}); write a valid affine first") from error
        qform, sform_only = None, f"the qform is not valid ({error}); the sform is used"
        notes.append(sform_only)
    affine = np.asarray(image.affine, dtype=np.float64)
    spatial_shape = (*image.shape[:3], 1, 1)[:3]
    if sform_code > 0 and qform is not None:
        distance = _corner_distance(np.asarray(header.get_sform()), qform, spatial_shape)
        if not distance <= GRID_TOLERANCE_MM:
            notes.append(f"qform and sform disagree by up to {distance:.3g} mm; the sform is used")
    if sform_code <= 0 and qform_code <= 0:
        notes.append("the header gives no orientation (qform and sform codes are 0); axes are taken as they are stored")
    unit = int(header["xyzt_units"]) & 7
    scale = _MM_PER_UNIT.get(unit, 1.0)
    if scale != 1.0:
        notes.append(
            f"the header's unit is {'metre' if scale > 1 else 'micrometre'}; sizes were converted to millimetres"
        )
        affine = np.diag([scale, scale, scale, 1.0]) @ affine
    _check_affine(path, affine)
    return affine, tuple(notes)


def _check_affine(path: Path, affine: np.ndarray) -> None:
    if not np.isfinite(affine).all():
        raise VolumeError(f"{path}: the affine holds NaN or infinite values; write a valid affine first")
    lengths = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    if lengths.min() < 1e-6 or lengths.max() > 1e4:
        raise VolumeError(
            f"{path}: the voxel size is {' x '.join(f'{v:.3g}' for v in lengths)} mm; expected 1e-6 to 1e4 mm: "
            "the header is damaged or the affine is wrong"
        )
    if abs(np.linalg.det(affine[:3, :3] / lengths)) < 1e-3:
        raise VolumeError(f"{path}: the affine maps the volume to a plane (no inverse); write a valid affine first")


def _values(path: Path, image: nib.Nifti1Image, dtype: type[np.floating] | None) -> np.ndarray:
    try:
        with np.errstate(all="ignore"):
            values = np.asanyarray(image.dataobj)
            return values if dtype is None else values.astype(dtype, copy=False)
    except _DAMAGE as error:
        raise VolumeError(f"{path}: the voxels cannot be read ({error}); copy or convert it again") from error


def _finite(path: Path, array: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    finite = np.isfinite(array)
    bad = array.size - int(np.count_nonzero(finite))
    if not bad:
        return array, ()
    if bad == array.size:
        raise VolumeError(f"{path}: no voxel has a finite value; there is nothing to segment")
    smallest = array[finite].min()
    note = (
        f"{bad} of {array.size} voxels are NaN or infinite; they were set to the smallest finite value, {smallest:.6g}"
    )
    return np.where(finite, array, smallest), (note,)


def _corner_distance(first: np.ndarray, second: np.ndarray, shape: tuple[int, ...]) -> float:
    """Largest distance in mm between the same corner voxel under two affines."""
    corners = np.array([(*c, 1.0) for c in itertools.product(*((0, n - 1) for n in shape))]).T
    with np.errstate(all="ignore"):
        return float(np.linalg.norm(((first - second) @ corners)[:3], axis=0).max())
