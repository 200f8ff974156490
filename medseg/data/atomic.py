"""Write a file whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary sibling of `path` that takes its name when the block ends without an error.

    The temporary name keeps the ending (`mask.part.nii.gz`), since writers choose the format by it. It is removed when
    the block raises, so that neither a truncated file nor debris stays behind.

    Args:
        path: the file to be written; its folder must exist.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "a.txt"
        >>> with atomic_path(target) as part:
        ...     _ = part.write_text("whole")
        >>> target.read_text(), list(target.parent.iterdir()) == [target]
        ('whole', True)
    """
    path = Path(path)
    stem, dot, ending = path.name.partition(".")
    # Hidden, so that what a killed process leaves is never taken for a result.
    part = path.with_name(f".{stem}.{os.getpid()}.part{dot}{ending}")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
