"""The files of a predicted case besides its statistics: mask or masks, probabilities, preview, label names."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import medseg
from medseg.data import OutputNames, Volume, atomic_path, write_map, write_mask, write_probabilities
from medseg.engines.prediction_options import PredictionOptions
from medseg.engines.predictor import Prediction
from medseg.report import draw_mip_preview, draw_preview, label_colour


def write_companions(
    names: OutputNames,
    prediction: Prediction,
    labels: np.ndarray,
    first: Volume,
    label_names: Mapping[int, str],
    options: PredictionOptions,
) -> Iterator[Path]:
    """Write what goes with a mask; yield each path once it is whole."""
    if prediction.probabilities is not None:
        yield write_probabilities(names.probabilities, prediction.probabilities, first)
    if prediction.samples is not None and options.save_uncertainty:
        yield write_map(names.map_of("entropy"), prediction.samples.entropy, first)
        yield write_map(names.map_of("variance"), prediction.samples.variance, first)
    if prediction.samples is not None and options.save_samples:
        table = label_names if options.label_table else None
        for number, mask in enumerate(prediction.samples.masks, start=1):
            yield write_mask(names.sample(number), mask, first, table)
    if options.preview is not None:
        path = _preview_path(names, options.preview, options.preview_kind)
        draw = {"slices": draw_preview, "mip": draw_mip_preview}[options.preview_kind]
        yield draw(path, first.array, labels, first.affine, names=label_names, title=names.mask.name)
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


def write_masks(
    masks: Sequence[Path], labels: np.ndarray, first: Volume, label_names: Mapping[int, str], options: PredictionOptions
) -> Iterator[Path]:
    """Write the label map, or one mask a label; yield each path once it is whole."""
    if not options.split:
        yield write_mask(masks[0], labels, first, label_names if options.label_table else None)
        return
    for path, (value, name) in zip(masks, label_names.items(), strict=True):
        binary = (labels == value).astype(np.uint8)
        yield write_mask(path, binary, first, {1: name} if options.label_table else None)


def _preview_path(names: OutputNames, preview: Path, kind: str) -> Path:
    if preview.suffix.lower() == ".png":
        preview.parent.mkdir(parents=True, exist_ok=True)
        return preview
    own = names.preview if kind == "slices" else names.preview_of(kind)
    if names.table is not None:
        return own
    preview.mkdir(parents=True, exist_ok=True)
    return preview / own.name


def _describe_derivatives(mask: Path) -> None:
    """Write the description that every BIDS derivative data set needs, at its root."""
    root = next(p for p in mask.parents if p.name == "medseg" and p.parent.name == "derivatives")
    generated_by = [{"Name": "medseg", "Version": medseg.__version__}]
    content = {"Name": "medseg", "BIDSVersion": "1.10.0", "DatasetType": "derivative", "GeneratedBy": generated_by}
    write_json(root / "dataset_description.json", content)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON whole or not at all."""
    with atomic_path(path) as part:
        part.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
