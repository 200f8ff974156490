"""Segment a list of cases: read, predict, write each output whole, and go on when a case fails.

The mask is written last, so a mask on disk means that its case is complete. A JSON sidecar records what made it; with
`resume` a case is skipped only when the same input, weights and settings would make the same mask again.
"""

from __future__ import annotations

import hashlib
import json
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

import medseg
from medseg.data import (
    Case,
    OutputNames,
    Volume,
    VolumeError,
    atomic_path,
    check_same_grid,
    name_outputs,
    read_channels,
    read_image,
    read_mask,
    write_mask,
    write_probabilities,
)
from medseg.engines.cleanup import keep_largest_component, remove_small_components
from medseg.engines.predictor import Prediction, Predictor
from medseg.report import draw_preview, label_colour, label_statistics

Status = Literal["ok", "failed", "skipped"]


@dataclass(frozen=True)
class PredictionOptions:
    """What to keep, clean and write for every case.

    Attributes:
        labels: label values to keep; None keeps all.
        split: write one mask a label instead of one label map.
        largest_component: keep the largest connected component of each label.
        remove_small: remove connected components below this volume in mm3.
        threshold: probability below which the best class gives way to background.
        save_probabilities: write class probabilities as a 4D float32 file.
        label_table: store the label names inside the mask file as well.
        statistics: measure every label.
        preview: draw a picture; its path where only one case is predicted, else a folder, or None.
    """

    labels: tuple[int, ...] | None = None
    split: bool = False
    largest_component: bool = False
    remove_small: float = 0.0
    threshold: float | None = None
    save_probabilities: bool = False
    label_table: bool = False
    statistics: bool = False
    preview: Path | None = None


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


def predict_cases(
    predictor: Predictor,
    cases: Sequence[Case],
    output: Path,
    options: PredictionOptions | None = None,
    *,
    resume: bool = False,
) -> Iterator[CaseResult]:
    """Predict cases one after the other.

    Args:
        predictor: the network.
        cases: what to segment.
        output: a mask file for a single case, else a folder (made when missing).
        options: what to write.
        resume: skip cases whose outputs are complete and would come out the same.

    Yields:
        One result a case, in order; a case that fails leaves no file and does not stop the others.
    """
    options = options or PredictionOptions()
    for case in cases:
        start = time.perf_counter()
        try:
            result = _predict_case(predictor, case, name_outputs(case, output), options, resume)
        except Exception as error:  # one bad case, whatever is wrong with it, must not cost the user the others
            result = CaseResult(case, "failed", reason=_reason(error), bad_input=isinstance(error, VolumeError))
            result.details = traceback.format_exc()
        result.seconds = time.perf_counter() - start
        yield result


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


def _predict_case(
    predictor: Predictor, case: Case, names: OutputNames, options: PredictionOptions, resume: bool
) -> CaseResult:
    fingerprint = _fingerprint(predictor, case, options)
    label_names = _chosen_names(predictor, options)
    masks = [names.split(n) for n in label_names.values()] if options.split else [names.mask]
    if resume and _is_complete(masks, names.sidecar, fingerprint):
        return _resumed(predictor, case, names, masks, label_names, options)
    volumes = read_case(case, len(predictor.bundle.input_channels))
    first = volumes[0]
    prediction = predictor.predict(volumes, probabilities=options.save_probabilities, threshold=options.threshold)
    labels = _clean(prediction.labels, first, options)
    notes = [*dict.fromkeys(n for v in volumes for n in v.notes), *prediction.notes]
    result = CaseResult(case, "ok", notes=notes)
    if options.statistics:
        result.rows = _statistics(labels, first, label_names)
    names.mask.parent.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    try:
        for path in _write_companions(names, prediction, labels, first, label_names, options):
            written.append(path)
        _write_json(names.sidecar, _sidecar(predictor, case, label_names, fingerprint, notes))
        written.append(names.sidecar)
        for path in _write_masks(masks, labels, first, label_names, options):
            written.append(path)
    except BaseException:
        for path in written:
            path.unlink(missing_ok=True)
        raise
    result.outputs = [*masks, *(path for path in written if path not in masks)]
    return result


def _write_companions(
    names: OutputNames,
    prediction: Prediction,
    labels: np.ndarray,
    first: Volume,
    label_names: Mapping[int, str],
    options: PredictionOptions,
) -> Iterator[Path]:
    """Write what goes with a mask; yield each path once it is whole."""
    if options.save_probabilities and prediction.probabilities is not None:
        yield write_probabilities(names.probabilities, prediction.probabilities, first)
    if options.preview is not None:
        path = _preview_path(names, options.preview)
        yield draw_preview(path, first.array, labels, first.affine, names=label_names, title=names.mask.name)
    if names.table is not None:
        _describe_derivatives(names.mask)
        yield _write_table(names.table, label_names)


def _write_table(path: Path, label_names: Mapping[int, str]) -> Path:
    rows = [("index", "name", "color"), ("0", "background", "#000000")]
    rows += [
        (str(label), name, "#{:02x}{:02x}{:02x}".format(*label_colour(label))) for label, name in label_names.items()
    ]
    with atomic_path(path) as part:
        part.write_text("".join("\t".join(row) + "\n" for row in rows), encoding="utf-8")
    return path


def _write_masks(
    masks: Sequence[Path], labels: np.ndarray, first: Volume, label_names: Mapping[int, str], options: PredictionOptions
) -> Iterator[Path]:
    if not options.split:
        yield write_mask(masks[0], labels, first, label_names if options.label_table else None)
        return
    for path, (value, name) in zip(masks, label_names.items(), strict=True):
        binary = (labels == value).astype(np.uint8)
        yield write_mask(path, binary, first, {1: name} if options.label_table else None)


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


def _statistics(labels: np.ndarray, image: Volume, names: Mapping[int, str]) -> list[dict[str, Any]]:
    return label_statistics(labels, image.affine, names=names, image=image.array)


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
        result.rows = _statistics(labels, image, label_names)
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
    del settings["statistics"], settings["preview"]
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


def _preview_path(names: OutputNames, preview: Path) -> Path:
    if preview.suffix.lower() == ".png":
        preview.parent.mkdir(parents=True, exist_ok=True)
        return preview
    if names.table is not None:
        return names.preview
    preview.mkdir(parents=True, exist_ok=True)
    return preview / names.preview.name


def _describe_derivatives(mask: Path) -> None:
    """Write the description that every BIDS derivative data set needs, at its root."""
    root = next(p for p in mask.parents if p.name == "medseg" and p.parent.name == "derivatives")
    generated_by = [{"Name": "medseg", "Version": medseg.__version__}]
    content = {"Name": "medseg", "BIDSVersion": "1.10.0", "DatasetType": "derivative", "GeneratedBy": generated_by}
    _write_json(root / "dataset_description.json", content)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    with atomic_path(path) as part:
        part.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _reason(error: Exception) -> str:
    if isinstance(error, (VolumeError, OSError)):
        return str(error)
    text = " ".join(str(error).split()) or "no message"
    return text if isinstance(error, (ValueError, MemoryError)) else f"{type(error).__name__}: {text}"
