"""Read the course of a metric from the log of a training: TensorBoard events, JSON, or JSON lines.

JSON may be a list of objects, one for each validation, such as `[{"epoch": 5, "val_mean_dice": 0.71}, ...]`, the same
with one object a line, or an object of lists, `{"epoch": [5, ...], "val_mean_dice": [0.71, ...]}`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

_STEPS = ("epoch", "step", "iteration", "t")
_USUAL = "val_mean_dice"


@dataclass(frozen=True)
class TrainingCurve:
    """A metric over a training.

    Attributes:
        metric: its name in the log.
        steps: epochs or steps, ascending, (n,).
        values: the metric, (n,).
    """

    metric: str
    steps: np.ndarray
    values: np.ndarray


def read_training_curve(path: str | Path, metric: str | None = None) -> TrainingCurve:
    """Read a metric from a log.

    Args:
        path: a `.json` or `.jsonl` file, a TensorBoard event file, or a folder that holds event files at any depth,
            such as the run folder of `medseg train`.
        metric: name of the metric; by default `val_mean_dice`, or the only one there is.

    Returns:
        The finite values by ascending step; of a step that was logged twice (a resumed run), the later one.

    Raises:
        FileNotFoundError: there is no such file, or no event file in the folder.
        ValueError: the file is no such log, or holds no such metric.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; give a log in JSON, an event file, or the folder of a run")
    courses = _read_json(path) if path.suffix.lower() in (".json", ".jsonl") else _read_events(path)
    name = _choose(courses, metric, path)
    last = {step: value for step, value in courses[name] if np.isfinite(value)}
    steps = np.array(sorted(last), dtype=np.float64)
    if len(steps) < 2:
        raise ValueError(f"{path} holds {len(steps)} finite values of {name!r}; at least 2 are needed")
    return TrainingCurve(name, steps, np.array([last[step] for step in steps.tolist()]))


def _choose(courses: Mapping[str, Any], metric: str | None, path: Path) -> str:
    known = ", ".join(courses) or "none"
    if metric is not None:
        if metric not in courses:
            raise ValueError(f"{path} holds no metric {metric!r}; there are: {known}")
        return metric
    if _USUAL in courses or len(courses) == 1:
        return _USUAL if _USUAL in courses else next(iter(courses))
    raise ValueError(f"{path} holds several metrics or none, say which: {known}")


def _read_json(path: Path) -> dict[str, list[tuple[float, float]]]:
    text = path.read_text(encoding="utf-8")
    try:
        content = json.loads(text)
    except json.JSONDecodeError:
        try:
            content = [json.loads(line) for line in text.splitlines() if line.strip()]
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is neither JSON nor JSON lines: {error}") from None
    if isinstance(content, dict):
        lists = {key: value for key, value in content.items() if isinstance(value, list)}
        if len({len(value) for value in lists.values()}) > 1:
            raise ValueError(f"{path}: the lists {', '.join(lists)} differ in length; give one value for each step")
        content = [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)]
    if not isinstance(content, list) or not all(isinstance(row, dict) for row in content):
        raise ValueError(f"{path} must hold a list of objects, or an object of lists; see the help")
    key = next((k for k in _STEPS if any(k in row for row in content)), None)
    if key is None:
        raise ValueError(f"{path} must name the step of each value {' or '.join(_STEPS)}")
    courses: dict[str, list[tuple[float, float]]] = {}
    for row in content:
        for name, value in row.items():
            if name not in _STEPS and key in row and isinstance(value, int | float) and not isinstance(value, bool):
                courses.setdefault(name, []).append((float(row[key]), float(value)))
    return courses


def _read_events(path: Path) -> dict[str, list[tuple[float, float]]]:
    files = sorted(path.rglob("*tfevents*"), key=lambda file: file.name) if path.is_dir() else [path]
    if not files:
        raise FileNotFoundError(f"{path} holds no TensorBoard event file; give the folder of a run, or a log in JSON")

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    courses: dict[str, list[tuple[float, float]]] = {}
    for file in files:
        log = EventAccumulator(str(file), size_guidance={"scalars": 0})
        log.Reload()
        for name in log.Tags()["scalars"]:
            courses.setdefault(name, []).extend((float(e.step), float(e.value)) for e in log.Scalars(name))
    return courses
