"""Write masks and probabilities that lie exactly on the grid of an input volume, whole or not at all.

Shape, qform, sform, their codes and the units of what is written equal the input's bit for bit, since its header is
copied and only what describes the values is set anew.
"""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.nifti1 import Nifti1Extension

from medseg.data.atomic import atomic_path
from medseg.data.volume import Volume

_LABEL_INTENT = 1002
_GEOMETRY_FIELDS = (
    "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z",
    "srow_x", "srow_y", "srow_z", "xyzt_units",
)  # fmt: skip


def write_mask(path: str | Path, labels: np.ndarray, like: Volume, names: Mapping[int, str] | None = None) -> Path:
    """Write a label map on the grid of an input volume, whole or not at all.

    The dtype is the smallest unsigned integer that holds the labels; scale factors are unset. The same labels give the
    same bytes.

    Args:
        path: `.nii` or `.nii.gz`; the folder must exist.
        labels: non-negative whole numbers, shape of `like.array`.
        like: the input volume.
        names: label names, stored as a label table in a NIfTI extension (Workbench XML) when given.

    Returns:
        The path written.

    Raises:
        ValueError: another shape, or values that are not labels.
        OSError: the file cannot be written; nothing is left behind.
    """
    if labels.shape != like.array.shape:
        raise ValueError(f"labels has shape {labels.shape}, expected that of {like.path}: {like.array.shape}")
    if not np.issubdtype(labels.dtype, np.integer) or (labels.size and labels.min() < 0):
        raise ValueError(f"labels must be non-negative integers, got dtype {labels.dtype}")
    dtype = np.min_scalar_type(int(labels.max(initial=0)))
    extensions = [*([_label_table(names)] if names else []), *like.extensions]
    return _write(Path(path), labels.astype(dtype).reshape(like.file_shape), like, _LABEL_INTENT, extensions)


def write_probabilities(path: str | Path, probabilities: np.ndarray, like: Volume) -> Path:
    """Write class probabilities as a 4D float32 file on the grid of an input volume.

    Args:
        path: `.nii` or `.nii.gz`; the folder must exist.
        probabilities: shape (C, X, Y, Z); stored as (X, Y, Z, C).
        like: the input volume.

    Returns:
        The path written.

    Raises:
        ValueError: another spatial shape.
        OSError: the file cannot be written; nothing is left behind.
    """
    if probabilities.shape[1:] != like.array.shape:
        raise ValueError(f"probabilities has spatial shape {probabilities.shape[1:]}, expected {like.array.shape}")
    return _write(Path(path), np.moveaxis(probabilities.astype(np.float32), 0, -1), like, None, list(like.extensions))


def write_map(path: str | Path, values: np.ndarray, like: Volume) -> Path:
    """Write one number a voxel as a float32 file on the grid of an input volume.

    Args:
        path: `.nii` or `.nii.gz`; the folder must exist.
        values: shape of `like.array`.
        like: the input volume.

    Returns:
        The path written.

    Raises:
        ValueError: another shape.
        OSError: the file cannot be written; nothing is left behind.
    """
    if values.shape != like.array.shape:
        raise ValueError(f"values has shape {values.shape}, expected that of {like.path}: {like.array.shape}")
    return _write(Path(path), values.astype(np.float32).reshape(like.file_shape), like, None, list(like.extensions))


def _label_table(names: Mapping[int, str]) -> Nifti1Extension:
    from xml.etree import ElementTree

    root = ElementTree.Element("CaretExtension")
    information = ElementTree.SubElement(root, "VolumeInformation", Index="0")
    table = ElementTree.SubElement(information, "LabelTable")
    for label, name in sorted(names.items()):
        entry = ElementTree.SubElement(table, "Label", Key=str(label), Red="1", Green="1", Blue="1", Alpha="1")
        entry.text = name
    ElementTree.SubElement(information, "VolumeType").text = "Label"
    # Code 0 and first place: TotalSegmentator's reader takes the first extension and cannot open Workbench's own code.
    return Nifti1Extension(0, ElementTree.tostring(root, encoding="utf-8", xml_declaration=True))


def _write(path: Path, data: np.ndarray, like: Volume, intent: int | None, extensions: list[Nifti1Extension]) -> Path:
    if not path.name.lower().endswith((".nii", ".nii.gz")):
        raise ValueError(f"path must end in .nii or .nii.gz, got {path.name!r}")
    header = like.header.copy()
    header.set_data_dtype(data.dtype)
    header.set_slope_inter(1, 0)
    header["cal_max"] = header["cal_min"] = 0
    if intent is not None:
        header["intent_code"] = intent
    header.extensions[:] = extensions
    image_class = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
    image = image_class(data, None, header)
    for field in _GEOMETRY_FIELDS:  # nibabel derives some of them anew; the input's bits stay
        image.header[field] = like.header[field]
    image.header["pixdim"][1:4] = like.header["pixdim"][1:4]
    content = image.to_bytes()
    if path.name.lower().endswith(".gz"):
        content = gzip.compress(content, compresslevel=6, mtime=0)
    with atomic_path(path) as part:
        part.write_bytes(content)
    return path
