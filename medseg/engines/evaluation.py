"""Evaluate predicted masks against references: one case or a folder of them, and two methods side by side.

Cases are read one after the other. Structures that are missed or hallucinated count as failures, not as gaps: see
`medseg.metrics.EmptyPolicy`. A file that cannot be used does not stop a folder; it is listed under `failures`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from medseg.data import check_same_grid, read_mask
from medseg.engines.case_metrics import METRICS, CaseMetrics, LabelMetrics, empty_metrics, measure_case
from medseg.engines.case_pairs import CasePair, list_some, match_cases
from medseg.engines.case_statistics import PairedComparison, compare_paired, nan_mean
from medseg.engines.case_topology import TOPOLOGY, draw_label
from medseg.metrics.empty import EmptyPolicy, Rule

Progress = Callable[[int, int, str], None]
Missing = Literal["error", "skip", "empty"]


@dataclass(frozen=True)
class Evaluation:
    """The metrics of all cases.

    Attributes:
        cases: one entry for each case that could be measured, sorted by case id.
        labels: label ids and their names, in ascending order.
        settings: the options that the numbers depend on, JSON-ready.
        unmatched_predictions: files that belong to no reference.
        unmatched_references: references without a prediction (left out, or counted as empty, see `settings`).
        failures: case id and reason for each case that could not be measured.
    """

    cases: tuple[CaseMetrics, ...]
    labels: dict[int, str]
    settings: dict[str, Any]
    unmatched_predictions: tuple[str, ...] = ()
    unmatched_references: tuple[str, ...] = ()
    failures: dict[str, str] = field(default_factory=dict)

    def metrics(self, case: CaseMetrics, label: int) -> LabelMetrics:
        """Give the metrics of a label in a case, also where neither mask holds it."""
        found = case.labels.get(label)
        if found is not None:
            return found
        return empty_metrics(case.shape, case.spacing, self.empty, topology=self.settings["topology"])

    def values(self, metric: str) -> np.ndarray:
        """Give a metric for all cases and labels, shape (cases, labels), nan where it does not count."""
        return np.array([[self.metrics(case, label)[metric] for label in self.labels] for case in self.cases], float)

    @property
    def metric_names(self) -> tuple[str, ...]:
        """The metrics that were measured."""
        return (*METRICS, *TOPOLOGY) if self.settings["topology"] else METRICS

    @property
    def empty(self) -> EmptyPolicy:
        """The rules for empty masks."""
        return EmptyPolicy.build(self.settings["empty"])

    @property
    def resampling(self) -> dict[str, int]:
        """Number of bootstrap resamples and their seed."""
        return {"resamples": self.settings["resamples"], "seed": self.settings["seed"]}

    def summary(self) -> dict[str, Any]:
        """Give everything as one JSON-ready mapping; see `medseg.engines.evaluation_files.summarise`."""
        from medseg.engines.evaluation_files import summarise

        return summarise(self)

    def write(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write JSON or CSV, by the ending of the path; see `medseg.engines.evaluation_files.write_evaluation`."""
        from medseg.engines.evaluation_files import write_evaluation

        return write_evaluation(self, Path(path), overwrite=overwrite)


@dataclass(frozen=True)
class Comparison:
    """Two evaluations on the same references, and their paired differences.

    Attributes:
        first: evaluation of the first predictions.
        second: evaluation of the second predictions.
        labels: for each label and metric the differences, first minus second.
        foreground: the same for the mean over labels of each case.
    """

    first: Evaluation
    second: Evaluation
    labels: dict[int, dict[str, PairedComparison]]
    foreground: dict[str, PairedComparison]


def evaluate(
    pred: str | Path,
    ref: str | Path,
    *,
    labels: Sequence[int] | None = None,
    names: Mapping[int, str] | None = None,
    nsd_tolerance_mm: float = 1.0,
    empty: EmptyPolicy | Mapping[str, Rule] | str | None = None,
    missing: Missing = "error",
    resamples: int = 2000,
    seed: int = 0,
    topology: bool = False,
    preview: str | Path | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Evaluate a predicted mask, or a folder of them, against references.

    In folders a prediction belongs to the reference with the same name up to a suffix such as `_seg` or `_dseg`.

    Args:
        pred: mask file or folder of mask files.
        ref: the same for the references, on the same grids.
        labels: label ids to evaluate; None takes all ids above 0 found in any file, and those that have a name.
        names: names of labels.
        nsd_tolerance_mm: tolerance of the normalised surface Dice in mm.
        empty: rules for empty masks, see `EmptyPolicy.build`.
        missing: references without a prediction are an `"error"`, left out (`"skip"`), or compared with an empty mask
            (`"empty"`), so that a method does not gain by failing.
        resamples: bootstrap resamples for the 95 % intervals; 0 leaves them out.
        seed: seed of the bootstrap.
        topology: whether to count topological errors: Betti numbers and Betti matching. The time follows the size of
            the structures' joint box, and reaches minutes for a label that fills a large volume.
        preview: with `topology`, a folder for pictures of the features of each case and label.
        progress: called with (cases done, all cases, case id) after each case.

    Returns:
        The evaluation.

    Raises:
        FileNotFoundError: a path does not exist.
        ValueError: an option does not fit, nothing matches, predictions are missing, or no case could be measured.

    Example:
        >>> evaluate("out/", "labels/").values("Dice").mean()  # doctest: +SKIP
    """
    policy = EmptyPolicy.build(empty)
    _check_options(labels, nsd_tolerance_mm, missing, resamples)
    if preview is not None and not topology:
        raise ValueError("preview draws topological features; give topology=True (--topology) with it")
    pairs, surplus = match_cases(Path(pred), Path(ref))
    without = [pair for pair in pairs if pair.prediction is None]
    if without and missing == "error":
        raise ValueError(
            f"{len(without)} of {len(pairs)} references have no prediction in {pred}: "
            f"{list_some(p.case for p in without)}; predict them, or give missing='skip' (--missing skip) to "
            "leave them out, or 'empty' to count them as missed"
        )
    chosen = [pair for pair in pairs if pair.prediction is not None or missing == "empty"]
    options = {"labels": labels, "nsd_tolerance_mm": nsd_tolerance_mm, "empty": policy, "topology": topology}
    pictures = None if preview is None else (Path(preview), dict(names or {}))
    failures: dict[str, str] = {}
    cases = tuple(_measure_all(chosen, options, pictures, failures, progress))
    if not cases:
        case, reason = next(iter(failures.items()))
        raise ValueError(reason if len(failures) == 1 else f"none of {len(failures)} cases worked; {case}: {reason}")
    return Evaluation(
        cases=cases,
        labels=_name_labels(cases, labels, names or {}),
        settings={
            "nsd_tolerance_mm": nsd_tolerance_mm,
            "empty": policy.to_dict(),
            "missing": missing,
            "resamples": resamples,
            "seed": seed,
            "topology": topology,
        },
        unmatched_predictions=tuple(str(path) for path in surplus),
        unmatched_references=tuple(str(pair.reference) for pair in without),
        failures=failures,
    )


def compare(pred: str | Path, other: str | Path, ref: str | Path, **options: Any) -> Comparison:
    """Compare two sets of predictions on the same references, case by case.

    Args:
        pred: mask file or folder of the first method.
        other: mask file or folder of the second method.
        ref: the references.
        **options: as `evaluate`.

    Returns:
        Both evaluations and, for each label and metric, the mean difference (first minus second) with its 95 %
        bootstrap interval and the p of the Wilcoxon signed-rank test. p values are not corrected for the number of
        labels and metrics.

    Raises:
        ValueError: as `evaluate`, or no case was measured for both.

    Example:
        >>> compare("ours/", "theirs/", "labels/").labels[1]["Dice"].mean_difference  # doctest: +SKIP
    """
    first = evaluate(pred, ref, **options)
    second = evaluate(other, ref, **{**options, "preview": None})  # pictures are of the first method
    rows = {case.case: i for i, case in enumerate(second.cases)}
    shared = [(i, rows[case.case]) for i, case in enumerate(first.cases) if case.case in rows]
    if not shared:
        raise ValueError(f"{pred} and {other} have no case in common that could be measured; nothing to compare")
    names = {**second.labels, **first.labels}
    labels = {label: names[label] for label in sorted(names)}
    first, second = (_with_labels(evaluation, labels) for evaluation in (first, second))
    index = np.array(shared)
    by_label: dict[int, dict[str, PairedComparison]] = {label: {} for label in labels}
    foreground = {}
    for metric in first.metric_names:
        a, b = first.values(metric)[index[:, 0]], second.values(metric)[index[:, 1]]
        for column, label in enumerate(labels):
            by_label[label][metric] = compare_paired(a[:, column], b[:, column], **first.resampling)
        foreground[metric] = compare_paired(nan_mean(a, axis=1), nan_mean(b, axis=1), **first.resampling)
    return Comparison(first, second, by_label, foreground)


def _check_options(labels: Sequence[int] | None, tolerance: float, missing: str, resamples: int) -> None:
    if labels is not None and (not labels or any(label <= 0 for label in labels)):
        raise ValueError(f"labels must be ids above 0 (0 is background), got {list(labels)}")
    if not 0 <= tolerance < float("inf"):
        raise ValueError(f"nsd_tolerance_mm must be a finite number of mm, at least 0, got {tolerance}")
    if missing not in ("error", "skip", "empty"):
        raise ValueError(f"missing must be 'error', 'skip' or 'empty', got {missing!r}")
    if resamples < 0:
        raise ValueError(f"resamples must be at least 0, got {resamples}")


def _measure_all(
    pairs: list[CasePair],
    options: dict[str, Any],
    pictures: tuple[Path, dict[int, str]] | None,
    failures: dict[str, str],
    progress: Progress | None,
) -> Iterator[CaseMetrics]:
    for done, pair in enumerate(pairs, start=1):
        try:
            yield _measure(pair, options, pictures)
        except (ValueError, OSError) as error:
            failures[pair.case] = str(error)
        if progress is not None:
            progress(done, len(pairs), pair.case)


def _measure(pair: CasePair, options: dict[str, Any], pictures: tuple[Path, dict[int, str]] | None) -> CaseMetrics:
    ref = read_mask(pair.reference)
    if pair.prediction is None:
        pred_array = np.zeros_like(ref.array)
    else:
        pred = read_mask(pair.prediction)
        check_same_grid(ref, pred)
        pred_array = pred.array
    measured = measure_case(pred_array, ref.array, ref.spacing, voxel_volume=ref.voxel_volume, **options)
    if pictures is not None:
        folder, names = pictures
        for label in (label for label, m in measured.items() if m["n_pred"] or m["n_ref"]):
            draw_label(folder, pair.case, label, names.get(label, str(label)), pred_array, ref.array)
    return CaseMetrics(
        pair.case, str(pair.prediction or ""), str(pair.reference), ref.array.shape, ref.spacing, measured
    )


def _name_labels(
    cases: Sequence[CaseMetrics], labels: Sequence[int] | None, names: Mapping[int, str]
) -> dict[int, str]:
    found = {label for case in cases for label in case.labels}
    wanted = found | {label for label in names if label > 0} if labels is None else set(labels)
    if not wanted:
        raise ValueError("no file holds a label above 0: nothing to evaluate; name the labels that were expected")
    return {label: names.get(label, str(label)) for label in sorted(wanted)}


def _with_labels(evaluation: Evaluation, labels: dict[int, str]) -> Evaluation:
    return replace(evaluation, labels=labels)
