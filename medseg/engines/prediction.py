"""Segment a list of cases: read, predict, write each output whole, and go on when a case fails.

The mask is written last, so a mask on disk means that its case is complete. A JSON sidecar records what made it; with
`resume` a case is skipped only when the same input, weights and settings would make the same mask again.

While the network runs on one case, the next is read and preprocessed and the one before is cleaned and written, each in
a thread of its own. At most three cases are in memory; large ones are not read ahead.
"""

from __future__ import annotations

import hashlib
import json
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

import medseg
from medseg.data import (
    Case,
    OutputNames,
    Volume,
    VolumeError,
    check_same_grid,
    name_outputs,
    read_channels,
    read_image,
    read_mask,
)
from medseg.engines.cleanup import keep_largest_component, remove_small_components
from medseg.engines.memory_plan import MemoryPlan, available_memory
from medseg.engines.prediction_files import write_companions, write_json, write_masks
from medseg.engines.prediction_options import PredictionOptions
from medseg.engines.predictor import Prediction, Predictor, PreparedCase
from medseg.report import label_statistics, volume_spread

Status = Literal["ok", "failed", "skipped"]
# Memory that reading and preprocessing take for each voxel at their peak: the array, its copies, resampling in float64.
_BYTES_READING = 40
_SPREAD = "SampleVolumes"


@dataclass
class CaseResult:
    """How one case went.

    Attributes:
        case: the case.
        status: `ok`, `failed`, or `skipped` (complete from an earlier run).
        outputs: the files of the case, the mask (or masks) first.
        seconds: wall time.
        notes: what a user should know.
        reason: why it failed or was skipped.
        bad_input: it failed because of its input file.
        rows: label statistics, when asked for.
        details: traceback of a failure.
        plan: how the case was mapped back and the memory that was planned for, if the network ran.
    """

    case: Case
    status: Status
    outputs: list[Path] = field(default_factory=list)
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)
    reason: str | None = None
    bad_input: bool = False
    rows: list[dict[str, Any]] = field(default_factory=list)
    details: str = ""
    plan: MemoryPlan | None = None


@dataclass
class _Ready:
    """A case that was read and preprocessed, with what its outputs need."""

    case: Case
    names: OutputNames
    fingerprint: dict[str, Any]
    label_names: dict[int, str]
    masks: list[Path]
    volumes: list[Volume]
    prepared: PreparedCase
    seconds: float = 0.0
    prediction: Prediction = field(init=False)


def predict_cases(
    predictor: Predictor,
    cases: Sequence[Case],
    output: Path,
    options: PredictionOptions | None = None,
    *,
    resume: bool = False,
    on_windows: Callable[[Case, int, int], None] | None = None,
) -> Iterator[CaseResult]:
    """Predict cases one after the other.

    Args:
        predictor: the network.
        cases: what to segment.
        output: a mask file for a single case, else a folder (made when missing).
        options: what to write.
        resume: skip cases whose outputs are complete and would come out the same.
        on_windows: told which case runs, how many of its windows are done and how many there are.

    Yields:
        One result a case, in order, once its files are written; a case that fails leaves no file and does not stop the
        others.
    """
    stages = _Stages(predictor, output, options or PredictionOptions(), resume, on_windows)
    with ThreadPoolExecutor(1, "medseg-read") as reader, ThreadPoolExecutor(1, "medseg-write") as writer:
        try:
            yield from _overlapped(stages, cases, reader, writer)
        finally:
            # What is being written becomes whole; what has not begun is dropped.
            reader.shutdown(wait=True, cancel_futures=True)
            writer.shutdown(wait=True, cancel_futures=True)


def _overlapped(
    stages: _Stages, cases: Sequence[Case], reader: ThreadPoolExecutor, writer: ThreadPoolExecutor
) -> Iterator[CaseResult]:
    ahead: Future[_Ready | CaseResult] | None = None
    writing: Future[CaseResult] | None = None
    for index, case in enumerate(cases):
        ready = ahead.result() if ahead is not None else stages.read(case)
        following = cases[index + 1] if index + 1 < len(cases) else None
        ahead = reader.submit(stages.read, following) if following and stages.may_read_ahead(ready) else None
        done = stages.infer(ready) if isinstance(ready, _Ready) else ready
        if writing is not None:
            yield writing.result()
            writing = None
        if isinstance(done, CaseResult):
            yield done
        else:
            writing = writer.submit(stages.write, done)
    if writing is not None:
        yield writing.result()


class _Stages:
    """The three steps of a case; each returns a failed result instead of raising."""

    def __init__(
        self,
        predictor: Predictor,
        output: Path,
        options: PredictionOptions,
        resume: bool,
        on_windows: Callable[[Case, int, int], None] | None,
    ) -> None:
        self.predictor = predictor
        self.output = output
        self.options = options
        self.resume = resume
        self.on_windows = on_windows

    def may_read_ahead(self, current: _Ready | CaseResult) -> bool:
        """The next case may be read while this one runs, supposing that it is about as large."""
        if isinstance(current, CaseResult):
            return True
        voxels = current.volumes[0].array.size * len(current.volumes)
        return _BYTES_READING * voxels < 0.1 * available_memory(self.predictor.max_memory)

    def read(self, case: Case) -> _Ready | CaseResult:
        """Read and preprocess, or find the case complete."""
        start = time.perf_counter()
        try:
            ready = self._read(case)
        except Exception as error:  # one bad case, whatever is wrong with it, must not cost the user the others
            ready = _failed(case, error)
        ready.seconds = time.perf_counter() - start
        return ready

    def _read(self, case: Case) -> _Ready | CaseResult:
        names = name_outputs(case, self.output)
        fingerprint = _fingerprint(self.predictor, case, self.options)
        label_names = _chosen_names(self.predictor, self.options)
        masks = [names.split(n) for n in label_names.values()] if self.options.split else [names.mask]
        if self.resume and _is_complete(masks, names.sidecar, fingerprint):
            return _resumed(self.predictor, case, names, masks, label_names, self.options)
        volumes = read_case(case, len(self.predictor.bundle.input_channels))
        return _Ready(case, names, fingerprint, label_names, masks, volumes, self.predictor.prepare(volumes))

    def infer(self, ready: _Ready) -> _Ready | CaseResult:
        """Run the network."""
        start = time.perf_counter()
        try:
            ready.prediction = self.predictor.run(
                ready.prepared,
                probabilities=self.options.save_probabilities or self.options.save_uncertainty,
                threshold=self.options.threshold,
                on_windows=partial(self.on_windows, ready.case) if self.on_windows else None,
            )
        except Exception as error:  # as above
            return _failed(ready.case, error, ready.seconds + time.perf_counter() - start)
        # The preprocessed copy is not needed any more.
        ready.prepared.data = None
        ready.seconds += time.perf_counter() - start
        return ready

    def write(self, ready: _Ready) -> CaseResult:
        """Clean, measure and write."""
        start = time.perf_counter()
        try:
            result = _write_case(ready, self.predictor, self.options)
        except Exception as error:  # as above
            result = _failed(ready.case, error)
        result.seconds = ready.seconds + time.perf_counter() - start
        return result


def _failed(case: Case, error: Exception, seconds: float = 0.0) -> CaseResult:
    details = "".join(traceback.format_exception(error))
    bad_input = isinstance(error, VolumeError)
    return CaseResult(case, "failed", seconds=seconds, reason=_reason(error), bad_input=bad_input, details=details)


def read_case(case: Case, channels: int) -> list[Volume]:
    """Read all channels of a case.

    Args:
        case: the case; a single file stands for all channels (4D).
        channels: number of channels of the network.

    Returns:
        One volume a channel.

    Raises:
        VolumeError: a file is unusable, or the channels do not lie on one grid.
    """
    if len(case.images) == 1:
        return read_channels(case.images[0], channels)
    volumes = [read_image(path) for path in case.images]
    try:
        for other in volumes[1:]:
            check_same_grid(volumes[0], other)
    except ValueError as error:
        raise VolumeError(str(error)) from error
    return volumes


def _write_case(ready: _Ready, predictor: Predictor, options: PredictionOptions) -> CaseResult:
    first, prediction, names = ready.volumes[0], ready.prediction, ready.names
    labels = _clean(prediction.labels, first, options)
    notes = [*dict.fromkeys(n for v in ready.volumes for n in v.notes), *prediction.notes]
    result = CaseResult(ready.case, "ok", notes=notes, plan=prediction.plan)
    spread: dict[int, dict[str, Any]] = {}
    if prediction.samples is not None:
        prediction.samples.masks = np.stack([_clean(mask, first, options) for mask in prediction.samples.masks])
        spread = volume_spread(prediction.samples.masks, first.affine, ready.label_names)
    if options.statistics:
        result.rows = _statistics(labels, first, ready.label_names, spread)
    names.mask.parent.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    try:
        for path in write_companions(names, prediction, labels, first, ready.label_names, options):
            written.append(path)
        content = _sidecar(predictor, ready.case, ready.label_names, ready.fingerprint, notes)
        # Kept for a later run that asks for statistics and finds the case complete.
        write_json(names.sidecar, content | ({_SPREAD: spread} if spread else {}))
        written.append(names.sidecar)
        for path in write_masks(ready.masks, labels, first, ready.label_names, options):
            written.append(path)
    except BaseException:
        for path in written:
            path.unlink(missing_ok=True)
        raise
    result.outputs = [*ready.masks, *(path for path in written if path not in ready.masks)]
    return result


def _clean(labels: np.ndarray, like: Volume, options: PredictionOptions) -> np.ndarray:
    if options.labels is not None:
        labels = np.where(np.isin(labels, options.labels), labels, 0).astype(labels.dtype)
    if options.largest_component:
        labels = keep_largest_component(labels)
    if options.remove_small > 0:
        labels = remove_small_components(labels, options.remove_small, like.voxel_volume)
    return labels


def _chosen_names(predictor: Predictor, options: PredictionOptions) -> dict[int, str]:
    names = predictor.bundle.labels
    return names if options.labels is None else {i: n for i, n in names.items() if i in options.labels}


def _statistics(
    labels: np.ndarray, image: Volume, names: Mapping[int, str], spread: Mapping[int, dict[str, Any]]
) -> list[dict[str, Any]]:
    rows = label_statistics(labels, image.affine, names=names, image=image.array)
    return [row | spread.get(row["label"], {}) for row in rows]


def _resumed(
    predictor: Predictor,
    case: Case,
    names: OutputNames,
    masks: list[Path],
    label_names: Mapping[int, str],
    options: PredictionOptions,
) -> CaseResult:
    result = CaseResult(case, "skipped", [*masks, names.sidecar], reason="complete from an earlier run")
    if options.statistics:
        labels = read_mask(masks[0]).array
        if options.split:
            labels = np.zeros(labels.shape, dtype=np.int64)
            for path, value in zip(masks, label_names, strict=True):
                labels[read_mask(path).array > 0] = value
        image = read_case(case, len(predictor.bundle.input_channels))[0]
        spread = json.loads(names.sidecar.read_text(encoding="utf-8")).get(_SPREAD, {})
        result.rows = _statistics(labels, image, label_names, {int(k): v for k, v in spread.items()})
    return result


def _is_complete(masks: Sequence[Path], sidecar: Path, fingerprint: Mapping[str, Any]) -> bool:
    if not (sidecar.is_file() and all(m.is_file() for m in masks)):
        return False
    try:
        return json.loads(sidecar.read_text(encoding="utf-8"))["MadeFrom"] == fingerprint
    except (ValueError, KeyError, TypeError):
        return False


def _fingerprint(predictor: Predictor, case: Case, options: PredictionOptions) -> dict[str, Any]:
    """Everything that decides the bytes of a mask."""
    settings = asdict(options)
    del settings["statistics"], settings["preview"], settings["preview_kind"]
    settings["labels"] = list(options.labels) if options.labels is not None else None
    return {
        "medseg": medseg.__version__,
        "bundle": predictor.bundle.name,
        "bundle_version": predictor.bundle.version,
        "weights_sha256": predictor.weights_sha256,
        "input_sha256": [_sha256(path) for path in case.images],
        "predictor": predictor.settings,
        "options": settings,
    }


def _sidecar(
    predictor: Predictor, case: Case, label_names: Mapping[int, str], fingerprint: dict[str, Any], notes: list[str]
) -> dict[str, Any]:
    return {
        "Labels": {str(i): name for i, name in label_names.items()},
        "Sources": [p.name for p in case.images],
        "Description": f"Segmentation by the bundle {predictor.bundle.name} {predictor.bundle.version}",
        "Notes": notes,
        "MadeFrom": fingerprint,
    }


def _sha256(path: Path) -> str:
    if not path.is_file():
        raise VolumeError(f"{path}: no such file; check the path")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _reason(error: Exception) -> str:
    if isinstance(error, (VolumeError, OSError)):
        return str(error)
    text = " ".join(str(error).split()) or "no message"
    return text if isinstance(error, (ValueError, MemoryError)) else f"{type(error).__name__}: {text}"
