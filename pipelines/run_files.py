"""What every experiment does beside its science: say how far it is, write files whole, and find its finished runs."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from medseg.data import atomic_path


def say(line: str) -> None:
    """Put a line with the time on stderr."""
    print(f"{time.strftime('%H:%M:%S')}  {line}", file=sys.stderr, flush=True)


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    with atomic_path(path) as part:
        part.write_text(text, encoding="utf-8")


def read_record(path: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """The record of a finished run with these settings, if there is one."""
    record = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    return record if record and record["settings"] == settings else None
