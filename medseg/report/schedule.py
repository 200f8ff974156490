"""Draw learning-rate schedules, one line each, as PNG."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import ArrayLike

from medseg.data import atomic_path
from medseg.report._picture import check_png


def draw_schedule(path: str | Path, schedules: Mapping[str, ArrayLike], *, log: bool = False) -> None:
    """Draw the factors of one or several schedules over the optimizer steps.

    Args:
        path: the PNG to write.
        schedules: name and factors of each, (steps,), such as `medseg.core.schedules.schedule_factors` gives.
        log: logarithmic vertical axis; factors of 0 are left out then.

    Raises:
        ImportError: matplotlib is missing.
        ValueError: there is nothing to draw, or the path does not end in .png.
    """
    path = check_png(path)
    if not schedules:
        raise ValueError("schedules is empty; give a name and the factors of each, such as {'linear': factors}")
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg  # pyright: ignore[reportMissingImports]
        from matplotlib.figure import Figure  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError('drawing a schedule needs matplotlib; install it with: pip install "medseg[plot]"') from error
    figure = Figure(figsize=(6.4, 3.2), layout="constrained")
    axis: Any = figure.subplots()
    for name, factors in schedules.items():
        axis.plot(factors, label=name, linewidth=1.5)
    axis.set(xlabel="optimizer step", ylabel="share of the peak rate")
    if log:
        axis.set_yscale("log", nonpositive="mask")
    else:
        axis.set_ylim(bottom=0)
    axis.legend(fontsize=8)
    with atomic_path(path) as part:
        FigureCanvasAgg(figure).print_png(str(part))
