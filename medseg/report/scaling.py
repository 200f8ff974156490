"""Draw what a scaling law or an extrapolated learning curve predicts, with its interval, as PNG."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from medseg.core.scaling import CurvePosterior, ScalingFit
from medseg.data import atomic_path
from medseg.report._picture import check_png

_BLUE, _RED = "#0072b2", "#d55e00"


def draw_annotation_budget(
    path: str | Path,
    fit: ScalingFit,
    *,
    target: float | None = None,
    largest: float | None = None,
    truth: tuple[float, float] | None = None,
    score: str = "Dice",
) -> None:
    """Draw a score over the number of labelled cases: runs, law and interval.

    Args:
        path: the PNG to write.
        fit: a law of one input, fitted to 1 - score.
        target: score wanted, drawn as a line.
        largest: end of the axis; 4 times the largest number of cases by default.
        truth: number of cases and score of a run that the fit has not seen.
        score: name of the score.

    Raises:
        ImportError: matplotlib is missing.
        ValueError: the path does not end in .png.
    """
    path = check_png(path)
    figure, axis = _new_figure()
    end = min(largest or 4 * fit.x.max(), 8 * fit.x.max())
    cases = np.geomspace(fit.x.min(), end, 120)
    law = fit.predict(cases)
    axis.fill_between(cases, 1 - law.upper, 1 - law.lower, color=_BLUE, alpha=0.2, linewidth=0, label="90 % interval")
    axis.plot(cases, 1 - law.mean, color=_BLUE, label=fit.law.name)
    axis.scatter(fit.x[:, 0], 1 - fit.y, s=14, color="0.2", zorder=3, label="runs")
    if truth is not None:
        axis.scatter(*truth, s=50, color=_RED, marker="*", zorder=4, label="not seen by the fit")
    if target is not None:
        axis.axhline(target, color=_RED, linestyle=":", label=f"target {target:g}")
    axis.set(xscale="log", xlabel="labelled cases", ylabel=score)
    axis.legend(fontsize=8, loc="lower right")
    _save(figure, path)


def draw_extrapolation(
    path: str | Path,
    steps: ArrayLike,
    values: ArrayLike,
    posterior: CurvePosterior,
    *,
    metric: str = "metric",
    incumbent: float | None = None,
) -> None:
    """Draw a learning curve so far and where it may end.

    Args:
        path: the PNG to write.
        steps: steps of the validations, (n,).
        values: the metric there, (n,).
        posterior: what `medseg.core.scaling.CurveExtrapolator` gave for them.
        metric: its name.
        incumbent: value to beat, drawn as a line.

    Raises:
        ImportError: matplotlib is missing.
        ValueError: the path does not end in .png.
    """
    path = check_png(path)
    figure, axis = _new_figure()
    at = np.linspace(float(np.min(np.asarray(steps))), posterior.t_max, 120)
    low, middle, high = posterior.quantile([0.05, 0.5, 0.95], at)
    axis.fill_between(at, low, high, color=_BLUE, alpha=0.2, linewidth=0, label="90 % interval")
    axis.plot(at, middle, color=_BLUE, label="median")
    axis.scatter(np.asarray(steps), np.asarray(values), s=12, color="0.2", zorder=3, label="validations")
    if incumbent is not None:
        axis.axhline(incumbent, color=_RED, linestyle=":", label=f"to beat {incumbent:.4g}")
    axis.set(xlabel="step", ylabel=metric)
    axis.legend(fontsize=8)
    _save(figure, path)


def _new_figure() -> tuple[Any, Any]:
    try:
        from matplotlib.figure import Figure  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError('drawing needs matplotlib; install it with: pip install "medseg[plot]"') from error
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    return figure, figure.subplots()


def _save(figure: Any, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # pyright: ignore[reportMissingImports]

    with atomic_path(path) as part:
        FigureCanvasAgg(figure).print_png(str(part))
