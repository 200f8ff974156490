"""Run one program in a fresh process and measure it from outside: wall time and peak memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[1]
# Looking for the end is cheap; adding up a family of processes reads the whole process table, so it is done seldom.
_POLL_SECONDS = 0.02
_POLLS_PER_SAMPLE = 25


@dataclass(frozen=True)
class Measured:
    """How a process went.

    Attributes:
        exit_code: 0 is well.
        wall: seconds from start to end, imports included.
        processor: seconds on processors, of it and of its children.
        peak_bytes: largest resident memory.
        log: what it said on both streams.
    """

    exit_code: int
    wall: float
    processor: float
    peak_bytes: int
    log: str

    @property
    def last_line(self) -> str:
        """The last thing it said, which is the error where there was one."""
        lines = [line for line in self.log.splitlines() if line.strip()]
        return lines[-1].strip() if lines else "no output"


def run_measured(command: Sequence[str], environment: Mapping[str, str], log: Path) -> Measured:
    """Run a command to its end.

    The peak is what the kernel kept for the process, or the largest sum over it and its children that was seen by
    looking twice a second, whichever is more, so that memory in worker processes counts as well.

    Args:
        command: program and arguments.
        environment: all its environment variables.
        log: file for its output.
    """
    sampled = polls = 0
    with log.open("wb") as stream:
        start = time.perf_counter()
        process = subprocess.Popen(command, env=dict(environment), stdout=stream, stderr=subprocess.STDOUT)
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        while not pid:
            if polls % _POLLS_PER_SAMPLE == 0:
                sampled = max(sampled, _resident(process.pid))
            polls += 1
            time.sleep(_POLL_SECONDS)
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        wall = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    kept = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    text = log.read_text(encoding="utf-8", errors="replace")
    processor = usage.ru_utime + usage.ru_stime
    return Measured(process.returncode, wall, processor, max(kept, sampled), text)


def run_program(program: Path, arguments: Sequence[str], folder: Path) -> dict[str, Any]:
    """Run a Python program that writes what it found as JSON to the path that it gets as last argument.

    Returns:
        What it found, and its `peak_bytes`.

    Raises:
        RuntimeError: it failed; the text is the last thing it said.
    """
    result = folder / "result.json"
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    command = [sys.executable, str(program), *arguments, str(result)]
    measured = run_measured(command, os.environ | {"PYTHONPATH": path}, folder / "log.txt")
    if measured.exit_code:
        raise RuntimeError(f"exit code {measured.exit_code}: {measured.last_line}")
    return json.loads(result.read_text(encoding="utf-8")) | {"peak_bytes": measured.peak_bytes}


def _resident(pid: int) -> int:
    try:
        process = psutil.Process(pid)
        family = [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    total = 0
    for member in family:
        try:
            total += member.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total
