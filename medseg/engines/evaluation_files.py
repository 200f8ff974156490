"""An evaluation as JSON (a superset of nnU-Net's `summary.json`) or as CSV.

JSON has no nan: what does not count is `null`. Keys that nnU-Net writes too: `foreground_mean`, `mean`,
`metric_per_case` with `metrics`, `prediction_file`, `reference_file`.
"""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from medseg.data.atomic import atomic_path
from medseg.engines.case_metrics import COUNTS, OVERLAP
from medseg.engines.case_statistics import bootstrap_ci, describe, nan_mean
from medseg.engines.evaluation import Comparison, Evaluation
from medseg.metrics.empty import CASES, name_case

_STATISTICS = ("median", "sd", "ci95", "n")


def summarise(evaluation: Evaluation) -> dict[str, Any]:
    """Give an evaluation as a JSON-ready mapping.

    Args:
        evaluation: the evaluation.

    Returns:
        `foreground_mean` and `foreground_ci95` (mean over labels); `mean`, `median`, `sd`, `ci95`, `n` (cases that
        count), `worst` (value and case) and `counts` (cases where the label is present, missed, ...) for each label;
        `metric_per_case`; `label_names`, `settings`, `unmatched_predictions`, `unmatched_references`, `failures`.
        Label ids are strings, as in any JSON.
    """
    names = evaluation.metric_names
    values = {metric: evaluation.values(metric) for metric in (*names, *COUNTS)}
    summary: dict[str, Any] = {
        "foreground_mean": {m: nan_mean(nan_mean(v, axis=0)) for m, v in values.items()},
        "foreground_ci95": {m: bootstrap_ci(values[m], **evaluation.resampling) for m in names},
        "mean": {},
        **{name: {} for name in _STATISTICS},
        "worst": {},
        "counts": {},
    }
    for column, label in enumerate(evaluation.labels):
        described = {m: describe(values[m][:, column], **evaluation.resampling) for m in names}
        counts = {m: nan_mean(values[m][:, column]) for m in COUNTS}
        summary["mean"][label] = {m: d["mean"] for m, d in described.items()} | counts
        for name in _STATISTICS:
            summary[name][label] = {m: d[name] for m, d in described.items()}
        summary["worst"][label] = {m: _worst(evaluation, m, values[m][:, column]) for m in names}
        summary["counts"][label] = count_cases(values["n_pred"][:, column], values["n_ref"][:, column])
    return plain_json(summary | _details(evaluation))


def compared(comparison: Comparison) -> dict[str, Any]:
    """Give a comparison as a JSON-ready mapping.

    Returns:
        `first` and `second` (see `summarise`), and under `comparison` for each label, and for `foreground`, the paired
        differences of each metric, first minus second.
    """
    differences: dict[Any, Any] = {
        label: {metric: c.to_dict() for metric, c in metrics.items()} for label, metrics in comparison.labels.items()
    }
    differences["foreground"] = {metric: c.to_dict() for metric, c in comparison.foreground.items()}
    return {
        "first": summarise(comparison.first),
        "second": summarise(comparison.second),
        "comparison": plain_json(differences),
    }


def count_cases(n_pred: np.ndarray, n_ref: np.ndarray) -> dict[str, int]:
    """Count in how many cases a label is present in both masks, in neither, missed, or hallucinated.

    Example:
        >>> count_cases(np.array([5, 0]), np.array([4, 4]))
        {'cases': 2, 'present': 1, 'both_empty': 0, 'missed': 1, 'hallucinated': 0}
    """
    kinds = [name_case(int(p), int(r)) for p, r in zip(n_pred, n_ref, strict=True)]
    return {"cases": len(kinds), **{case: kinds.count(case) for case in CASES}}


def write_evaluation(evaluation: Evaluation | Comparison, path: Path, *, overwrite: bool = False) -> Path:
    """Write an evaluation, whole or not at all.

    Args:
        evaluation: the evaluation, or a comparison.
        path: `.json` for everything, `.csv` for one row a case and label (a comparison: one row a label and metric).
        overwrite: whether to replace an existing file.

    Returns:
        The path.

    Raises:
        ValueError: another ending.
        FileExistsError: the file exists and `overwrite` is off.
    """
    check_target(path, overwrite=overwrite)
    with atomic_path(path) as part:
        if path.suffix.lower() == ".csv":
            rows = comparison_rows(evaluation) if isinstance(evaluation, Comparison) else case_rows(evaluation)
            _write_csv(part, rows)
        else:
            content = compared(evaluation) if isinstance(evaluation, Comparison) else summarise(evaluation)
            part.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    return path


def check_target(path: Path, *, overwrite: bool = False) -> None:
    """Check that results can go to a path, before any work is done.

    Raises:
        ValueError: the ending is neither `.json` nor `.csv`.
        FileNotFoundError: the folder does not exist.
        FileExistsError: the file exists and `overwrite` is off.
    """
    if path.suffix.lower() not in (".json", ".csv"):
        raise ValueError(f"output must end in .json or .csv, got {str(path)!r}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"output: the folder {path.parent} does not exist; make it first")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists; choose another name or overwrite it (--overwrite)")


def case_rows(evaluation: Evaluation) -> list[dict[str, Any]]:
    """Give one row for each case and label: ids, which masks are empty, metrics, counts, files."""
    rows = []
    for case in evaluation.cases:
        for label, name in evaluation.labels.items():
            metrics = evaluation.metrics(case, label)
            rows.append(
                {
                    "case": case.case,
                    "label": label,
                    "name": name,
                    "kind": name_case(int(metrics["n_pred"]), int(metrics["n_ref"])),
                    **metrics,
                    "prediction_file": case.prediction,
                    "reference_file": case.reference,
                }
            )
    return rows


def comparison_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """Give one row for each label and metric, and for the mean over labels (label `foreground`)."""
    blocks = [(label, comparison.first.labels[label], metrics) for label, metrics in comparison.labels.items()]
    rows = []
    for label, name, metrics in [*blocks, ("foreground", "mean over labels", comparison.foreground)]:
        for metric, paired in metrics.items():
            fields = paired.to_dict()
            low, high = paired.ci95
            del fields["ci95"]
            rows.append({"label": label, "name": name, "metric": metric, **fields, "ci95_low": low, "ci95_high": high})
    return rows


def plain_json(value: Any) -> Any:
    """Turn a nested value into strict JSON: string keys, lists, plain numbers, and null for nan and infinity.

    Example:
        >>> plain_json({1: (np.float64("nan"), 2)})
        {'1': [None, 2]}
    """
    if isinstance(value, dict):
        return {str(key): plain_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_json(item) for item in value]
    if isinstance(value, (float, np.floating, np.ndarray)):
        number = float(value)
        return number if math.isfinite(number) else None
    return value


def _details(evaluation: Evaluation) -> dict[str, Any]:
    return {
        "label_names": evaluation.labels,
        "metric_per_case": [
            {
                "case": case.case,
                "prediction_file": case.prediction,
                "reference_file": case.reference,
                "metrics": {label: evaluation.metrics(case, label) for label in evaluation.labels},
            }
            for case in evaluation.cases
        ],
        "settings": evaluation.settings,
        "unmatched_predictions": evaluation.unmatched_predictions,
        "unmatched_references": evaluation.unmatched_references,
        "failures": [{"case": case, "reason": reason} for case, reason in evaluation.failures.items()],
    }


def _worst(evaluation: Evaluation, metric: str, values: np.ndarray) -> dict[str, Any] | None:
    """Value and case id of the worst case: the smallest overlap, the largest distance or volume error."""
    if np.isnan(values).all():
        return None
    index = int(np.nanargmin(values) if metric in OVERLAP else np.nanargmax(np.abs(values)))
    return {"value": values[index], "case": evaluation.cases[index].case}


def _write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        for row in rows:
            writer.writerow({k: "" if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()})
