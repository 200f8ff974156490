"""Keep what is needed to say later how a result was made: versions, weights, options, and how each case went."""

from __future__ import annotations

import json
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, get_args

from medseg.data.atomic import atomic_path
from medseg.report.statistics import finite

Status = Literal["ok", "failed", "skipped"]
PACKAGES = ("medseg", "torch", "monai", "openvino", "numpy", "nibabel", "scikit-image")


class RunReport:
    """Collect the facts of a run and write them as JSON.

    Args:
        bundle: name of the bundle.
        bundle_version: its version.
        weights_sha256: digest of its weights.
        device: where the network ran, such as `"cpu"` or `"cuda:0"`.
        engine: what ran the network, such as `"torch"`.
        precision: the arithmetic used, such as `"fp32"`.
        options: every other choice that can change the result.

    Example:
        >>> report = RunReport(bundle="hippocampus_segmentation", device="cpu", precision="fp32")
        >>> report.add_case("scan.nii.gz", output="out/scan_seg.nii.gz", status="ok", seconds=1.25)
        >>> report.to_dict()["totals"]["ok"]
        1
    """

    def __init__(
        self,
        *,
        bundle: str | None = None,
        bundle_version: str | None = None,
        weights_sha256: str | None = None,
        device: str | None = None,
        engine: str | None = None,
        precision: str | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.bundle = bundle
        self.bundle_version = bundle_version
        self.weights_sha256 = weights_sha256
        self.device = device
        self.engine = engine
        self.precision = precision
        self.options = dict(options or {})
        self.cases: list[dict[str, Any]] = []
        self._started = datetime.now(timezone.utc)
        self._clock = time.monotonic()

    def add_case(
        self,
        source: str | Path | Sequence[str | Path],
        *,
        status: Status,
        output: str | Path | Sequence[str | Path] | None = None,
        seconds: float | None = None,
        notes: Sequence[str] = (),
        reason: str | None = None,
        memory_plan: Mapping[str, Any] | None = None,
    ) -> None:
        """Add how one case went.

        Args:
            source: the input file, or the files of its channels.
            status: `"ok"`, `"failed"` or `"skipped"`.
            output: what was written, None when nothing was.
            seconds: wall time of the case.
            notes: warnings and remarks a reader should know.
            reason: why it failed or was skipped; needed for these.
            memory_plan: the way the labels took back to the input grid, and the memory it was expected to need.

        Raises:
            ValueError: another status, or a failed or skipped case without a reason.
        """
        if status not in get_args(Status):
            raise ValueError(f"status must be one of {', '.join(get_args(Status))}, got {status!r}")
        if status != "ok" and not reason:
            raise ValueError(f"reason must say why the case is {status}: {source}")
        self.cases.append(
            {
                "input": _paths(source),
                "output": _paths(output),
                "status": status,
                "seconds": None if seconds is None else round(float(seconds), 3),
                "notes": [str(n) for n in notes],
                "reason": reason,
                "memory_plan": dict(memory_plan) if memory_plan else None,
            }
        )

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON types, keys in a fixed order."""
        counts = {status: sum(c["status"] == status for c in self.cases) for status in get_args(Status)}
        content = {
            "software": {
                "python": platform.python_version(),
                "platform": platform.platform(),
                "packages": {name: installed_version(name) for name in PACKAGES},
            },
            "bundle": {"name": self.bundle, "version": self.bundle_version, "weights_sha256": self.weights_sha256},
            "device": self.device,
            "engine": self.engine,
            "precision": self.precision,
            "command": [str(a) for a in sys.argv],
            "options": {key: self.options[key] for key in sorted(self.options)},
            "started": self._started.isoformat(timespec="seconds"),
            "cases": self.cases,
            "totals": {
                "cases": len(self.cases),
                **counts,
                "seconds": round(time.monotonic() - self._clock, 3),
                "peak_memory_mb": peak_memory_mb(),
            },
        }
        return finite(content)

    def write(self, path: str | Path) -> Path:
        """Write the report as JSON, whole or not at all; the folder is made when missing.

        Returns:
            The path written.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as part:
            text = json.dumps(self.to_dict(), indent=2, allow_nan=False, default=str)
            part.write_text(text + "\n", encoding="utf-8")
        return path


def installed_version(name: str) -> str | None:
    """Version of an installed package without importing it, None when it is not installed.

    Example:
        >>> installed_version("no-such-package") is None
        True
    """
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def peak_memory_mb() -> float | None:
    """The largest resident memory of this process so far in MiB, None where the system does not say.

    Example:
        >>> (peak_memory_mb() or 1.0) > 0
        True
    """
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts in KiB, macOS in bytes.
    return round(peak / (1024 * 1024 if sys.platform == "darwin" else 1024), 1)


def _paths(source: str | Path | Sequence[str | Path] | None) -> str | list[str] | None:
    if source is None:
        return None
    return str(source) if isinstance(source, (str, Path)) else [str(p) for p in source]
