"""What a benchmark program measures of its own process, and what it notes of the machine it runs on."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


def keep_to_processors(threads: int) -> None:
    """Hold the process, whatever threads it starts, to as many processors as it may use."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[:threads]))


def release_free_memory() -> None:
    """Give memory that is freed, but kept for later, back to the system, so that taking it again counts (Linux)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def reset_peak() -> int:
    """Set the kernel's record of this process's peak memory back, and give what is resident now."""
    with contextlib.suppress(OSError):  # where it may not, the peak so far stays, and growth is a lower bound
        Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def read_peak() -> int:
    """Largest resident memory since the last reset."""
    return _status("VmHWM")


def describe_machine(packages: Sequence[str]) -> dict[str, Any]:
    """Versions, processor, load and date, for the record beside the results."""
    return {
        "packages": {name: _version(name) for name in packages},
        "python": platform.python_version(),
        "processor": platform.processor() or platform.machine(),
        "processors": os.cpu_count(),
        "load": os.getloadavg(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
