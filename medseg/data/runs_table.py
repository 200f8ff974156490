"""Read a table of finished runs: what was varied, such as the number of cases, and what it gave, such as Dice."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np


def read_runs(path: str | Path, x: str = "cases", y: str = "dice") -> tuple[np.ndarray, np.ndarray]:
    """Read two columns of a CSV file with one line for each run.

    Args:
        path: the file; its first line names the columns.
        x: name of the column with what was varied.
        y: name of the column with the result.

    Returns:
        Both columns, (runs,); lines where either is empty are left out.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a column is missing, or a value is no number.
    """
    path = Path(path)
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file, skipinitialspace=True)
        names = [name.strip() for name in rows.fieldnames or []]
        rows.fieldnames = names
        for column in (x, y):
            if column not in names:
                known = ", ".join(names) or "none"
                raise ValueError(f"{path} has no column {column!r}; there are: {known}")
        found = [(_number(row[x], path, rows.line_num), _number(row[y], path, rows.line_num)) for row in rows]
    table = np.array([pair for pair in found if None not in pair], dtype=np.float64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def _number(text: str | None, path: Path, line: int) -> float | None:
    if text is None or not text.strip():
        return None
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{path}, line {line}: {text.strip()!r} is no number") from None
