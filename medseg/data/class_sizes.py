"""Expected sizes of classes in images, and the table that they are read from, one image a row.

    image_id,class_0,class_1,class_2,unit,tag_1,tag_2
    case_01,0.90,0.06,0.04,ratio,yes,yes
    case_02,,5200,3100,mm3,yes,no
    *,,5000,3000,mm3,,

* `image_id`: name of the image file without its ending; `*` stands for all images without a row of their own.
* `class_0` (background), `class_1`, ...: sizes. An empty `class_0` takes what the others leave.
* `unit` (may be left out): `ratio`, `voxel` or `mm3`; a ratio by default.
* `tag_1`, ... (may be left out): whether the image shows the class: yes or no, true or false, 1 or 0; empty if unknown.

Cells are read as numbers and words, never evaluated.
"""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from pathlib import Path

UNITS = ("ratio", "voxel", "mm3")
_YES, _NO = ("yes", "true", "1", "present"), ("no", "false", "0", "absent")


@dataclass(frozen=True)
class ClassSizes:
    """Expected sizes in one image.

    Attributes:
        sizes: one number a class; that of the background may be None, for what the others leave.
        unit: "ratio" (share of the image), "voxel" or "mm3" (mm2 in an image with two spatial axes).
        tags: for each class whether it is present, None where that is not known; None if nothing is known.
    """

    sizes: tuple[float | None, ...]
    unit: str = "ratio"
    tags: tuple[bool | None, ...] | None = None


def read_class_sizes(path: Path, num_classes: int | None = None) -> dict[str, ClassSizes]:
    """Read a table.

    Args:
        path: a CSV file as the module describes it.
        num_classes: number of classes that it must have; any by default.

    Returns:
        Sizes by image id.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a column is missing or unknown, or a cell cannot be read; the text names line and column.
    """
    if not path.is_file():
        raise FileNotFoundError(f"prior: {path} does not exist; give a CSV file with image_id, class_0, class_1, ...")
    reader = csv.DictReader(path.read_text(encoding="utf-8-sig").splitlines(), strict=True)
    classes = _check_columns(path, [str(c).strip() for c in reader.fieldnames or []], num_classes)
    reader.fieldnames = [str(c).strip() for c in reader.fieldnames or []]
    rows: dict[str, ClassSizes] = {}
    for number, cells in enumerate(reader, start=2):
        where = f"prior {path}, line {number}"
        if None in cells or None in cells.values():
            raise ValueError(f"{where}: has another number of cells than the header; separate them by commas")
        image_id = cells["image_id"].strip()
        if not image_id or image_id in rows:
            raise ValueError(f"{where}: image_id {image_id!r} is empty or was there before; give every image one row")
        rows[image_id] = _read_row(f"{where} (image {image_id!r})", cells, classes)
    if not rows:
        raise ValueError(f"prior {path} has no rows; give one for each image, or one with image_id *")
    return rows


def _check_columns(path: Path, columns: list[str], num_classes: int | None) -> int:
    classes = sum(bool(re.fullmatch(r"class_\d+", c)) for c in columns)
    needed = ["image_id", *(f"class_{c}" for c in range(classes))]
    known = {*needed, "unit", *(f"tag_{c}" for c in range(1, classes))}
    odd = [c for c in columns if c not in known]
    if classes < 2 or not set(needed) <= set(columns) or odd or len(set(columns)) < len(columns):
        raise ValueError(
            f"prior {path} has the columns {columns}; expected image_id, class_0, class_1, ... without gaps, and "
            "optionally unit, tag_1, ..., separated by commas"
        )
    if num_classes is not None and classes != num_classes:
        raise ValueError(
            f"prior {path} has {classes} classes (class_0 to class_{classes - 1}), but the network gives "
            f"{num_classes}, background included"
        )
    return classes


def _read_row(where: str, cells: dict[str, str], classes: int) -> ClassSizes:
    unit = cells.get("unit", "").strip().lower() or "ratio"
    if unit not in UNITS:
        raise ValueError(f"{where}, column unit: must be {', '.join(UNITS)}, got {unit!r}")
    sizes = tuple(_read_size(where, f"class_{c}", cells, may_be_empty=c == 0) for c in range(classes))
    tags = tuple(None if c == 0 else _read_tag(where, f"tag_{c}", cells) for c in range(classes))
    return ClassSizes(sizes, unit, tags if any(t is not None for t in tags) else None)


def _read_size(where: str, column: str, cells: dict[str, str], *, may_be_empty: bool) -> float | None:
    text = cells[column].strip()
    if not text and may_be_empty:
        return None
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{where}, column {column}: expected a number such as 0.05, got {text!r}") from None


def _read_tag(where: str, column: str, cells: dict[str, str]) -> bool | None:
    text = cells.get(column, "").strip().lower()
    if not text:
        return None
    if text not in (*_YES, *_NO):
        raise ValueError(f"{where}, column {column}: expected yes, no or nothing, got {text!r}")
    return text in _YES
