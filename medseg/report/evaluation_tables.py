"""Plain text tables of an evaluation: nothing is cut off, and they fit 80 columns unless names are long."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

# Key in the summary -> what the table calls it. Lengths in mm, volumes in mm3.
_ROWS = {
    "Dice": "Dice",
    "IoU": "IoU",
    "HD95": "HD95 mm",
    "ASD": "ASD mm",
    "NSD": "NSD",
    "RelativeVolumeError": "rel. vol.",
    "VolumeError_mm3": "vol. mm3",
    "AbsoluteVolumeError_mm3": "|vol.| mm3",
    "BettiNumberError_0": "b0 error",
    "BettiNumberError_1": "b1 error",
    "BettiNumberError_2": "b2 error",
    "BettiMatchingError": "unmatched",
}
_VOLUMES = ("RelativeVolumeError", "VolumeError_mm3", "AbsoluteVolumeError_mm3")  # no mean over labels
_NOTHING = "-"


def evaluation_tables(summary: Mapping[str, Any]) -> str:
    """Lay out a summary as text.

    Args:
        summary: what `medseg.engines.evaluation_files.summarise` gives.

    Returns:
        A header with the settings, one row for each label and metric, and the counts of empty masks.

    Example:
        >>> print(format_table(["label", "Dice"], [["head", "0.9"]]))
        label  Dice
        head    0.9
    """
    settings = summary["settings"]
    rules = ", ".join(f"{case}={rule}" for case, rule in settings["empty"].items())
    head = (
        f"{_count(len(summary['metric_per_case']), 'case')}, {_count(len(summary['label_names']), 'label')}; "
        f"NSD tolerance {settings['nsd_tolerance_mm']:g} mm\nempty masks: {rules}"
    )
    return "\n\n".join([head, _metric_table(summary), _count_table(summary)])


def comparison_tables(content: Mapping[str, Any]) -> str:
    """Lay out a comparison as text.

    Args:
        content: what `medseg.engines.evaluation_files.compared` gives.

    Returns:
        One row for each label and metric: both means, the mean paired difference with interval, p, and n.
    """
    names = content["first"]["label_names"]
    rows = []
    for label, metrics in content["comparison"].items():
        means = [_means(content[side], label) for side in ("first", "second")]
        for metric, paired in metrics.items():
            rows.append(
                [
                    _label(label, names) if metric == "Dice" else "",
                    _ROWS[metric],
                    *(number(mean[metric]) for mean in means),
                    number(paired["mean_difference"]),
                    interval(paired["ci95"]),
                    _NOTHING if paired["p_wilcoxon"] is None else f"{paired['p_wilcoxon']:.2g}",
                    str(paired["n"]),
                ]
            )
    table = format_table(["label", "metric", "PRED", "PRED2", "diff.", "95 % CI", "p", "n"], rows, text_columns=2)
    return f"{table}\n\ndiff.: mean of PRED - PRED2 over cases; p: Wilcoxon signed-rank, not corrected for many tests"


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]], text_columns: int = 1) -> str:
    """Align columns with spaces: the first ones to the left, numbers to the right."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = []
    for row in [header, *rows]:
        cells = [
            c.ljust(w) if i < text_columns else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def number(value: float | None) -> str:
    """Write a number with about four significant digits, and a dash for one that does not count.

    Example:
        >>> number(0.90312), number(1755.4), number(None)
        ('0.9031', '1755', '-')
    """
    if value is None:
        return _NOTHING
    size = abs(value)
    return f"{value:.{4 if size < 1 else 3 if size < 10 else 2 if size < 100 else 1 if size < 1000 else 0}f}"


def interval(ends: Sequence[float | None]) -> str:
    """Write an interval.

    Example:
        >>> interval([0.5, 0.75])
        '0.5000 .. 0.7500'
    """
    return _NOTHING if None in ends else " .. ".join(number(end) for end in ends)


def _metric_table(summary: Mapping[str, Any]) -> str:
    rows = []
    for label in summary["label_names"]:
        for metric in summary["worst"][label]:
            worst = summary["worst"][label][metric]
            rows.append(
                [
                    _label(label, summary["label_names"]) if metric == "Dice" else "",
                    _ROWS[metric],
                    *(number(summary[statistic][label][metric]) for statistic in ("mean", "median", "sd")),
                    interval(summary["ci95"][label][metric]),
                    number(None if worst is None else worst["value"]),
                    str(summary["n"][label][metric]),
                ]
            )
    shown = [metric for metric in summary["foreground_ci95"] if metric not in _VOLUMES]
    for metric in shown if len(summary["label_names"]) > 1 else []:
        mean, ci = summary["foreground_mean"][metric], summary["foreground_ci95"][metric]
        rows.append(
            ["all labels" if metric == "Dice" else "", _ROWS[metric], number(mean), "", "", interval(ci), "", ""]
        )
    return format_table(["label", "metric", "mean", "median", "sd", "95 % CI", "worst", "n"], rows, text_columns=2)


def _count_table(summary: Mapping[str, Any]) -> str:
    columns = {"present": "in both", "missed": "missed", "hallucinated": "hallucinated", "both_empty": "in neither"}
    rows = [
        [_label(label, summary["label_names"]), *(str(counts[key]) for key in columns)]
        for label, counts in summary["counts"].items()
    ]
    return format_table(["cases by label", *columns.values()], rows)


def _means(summary: Mapping[str, Any], label: str) -> Mapping[str, float | None]:
    return summary["foreground_mean"] if label == "foreground" else summary["mean"][label]


def _label(label: str, names: Mapping[str, str]) -> str:
    if label == "foreground":
        return "all labels"
    return label if names[label] == label else f"{label} {names[label]}"


def _count(number_of: int, what: str) -> str:
    return f"{number_of} {what}{'' if number_of == 1 else 's'}"
