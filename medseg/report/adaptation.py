"""Curves of an adaptation without labels: the loss and its terms, and the shares of each class, epoch by epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from medseg.report._picture import check_png, label_colour, save_png

_SIZE = (420, 220)
_LEFT, _TOP, _RIGHT, _BOTTOM = 58, 52, 14, 28
_PAPER, _TEXT, _GRID = (255, 255, 255), (30, 30, 30), (222, 222, 222)
_TERMS = {"loss": (0, 0, 0), "entropy": (86, 180, 233), "kl": (213, 94, 0)}
_COLUMNS = 2

Line = tuple[str, tuple[int, int, int], list[float], int]


def draw_adaptation(path: str | Path, history: Sequence[Mapping[str, Any]], names: Mapping[int, str]) -> Path:
    """Draw how an adaptation went, as PNG.

    One panel shows the loss, the entropy and the divergence of the ratios; then there is one for each class, with the
    expected share as a thin line, the share by probabilities, and the share by the class chosen in each voxel.

    Args:
        path: the file to write; its folder is made when missing.
        history: the diagnostics of each epoch, see `medseg.engines.AdaptationDiagnostics.to_dict`, with `epoch`.
        names: class ids and their names; the background, 0, is left out.

    Returns:
        The path written.

    Raises:
        ValueError: the path does not end in .png, or there is no epoch.

    Example:
        >>> draw_adaptation("report.png", history, {1: "vessel"})  # doctest: +SKIP
    """
    path = check_png(path)
    if not history:
        raise ValueError("history is empty; there must be one epoch at least")
    epochs = [int(entry["epoch"]) for entry in history]
    terms: list[Line] = [(name, colour, _values(history, name), 2) for name, colour in _TERMS.items()]
    panels = [_panel("loss and its terms", epochs, [line for line in terms if line[2]])]
    channels = len(history[0]["soft_ratio"])
    for c in sorted(names):
        if 0 < c <= channels and (channels > 1 or c == 1):
            panels.append(
                _panel(f"share of class {c}, {names[c]}", epochs, _shares(history, c if channels > c else 0, c))
            )
    rows = -(-len(panels) // _COLUMNS)
    columns = min(len(panels), _COLUMNS)
    page = Image.new("RGB", (columns * _SIZE[0], rows * _SIZE[1]), _PAPER)
    for number, panel in enumerate(panels):
        page.paste(panel, (number % _COLUMNS * _SIZE[0], number // _COLUMNS * _SIZE[1]))
    return save_png(path, page)


def _values(history: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    found = [entry.get(name) for entry in history]
    return [] if any(v is None for v in found) else [float(v) for v in found if v is not None]


def _shares(history: Sequence[Mapping[str, Any]], channel: int, label: int) -> list[Line]:
    kinds = {"expected": ((150, 150, 150), 1), "soft": ((90, 90, 90), 2), "hard": (label_colour(label), 3)}
    return [
        (name, colour, [float(entry[f"{name}_ratio"][channel]) for entry in history], width)
        for name, (colour, width) in kinds.items()
    ]


def _panel(title: str, epochs: Sequence[int], lines: Sequence[Line]) -> Image.Image:
    font, small = ImageFont.load_default(14), ImageFont.load_default(11)
    panel = Image.new("RGB", _SIZE, _PAPER)
    draw = ImageDraw.Draw(panel)
    draw.text((10, 6), title, _TEXT, font)
    x = _LEFT
    for name, colour, _, width in lines:
        draw.line((x, 37, x + 18, 37), colour, width)
        draw.text((x + 23, 30), name, _TEXT, small)
        x += 35 + round(small.getlength(name))
    high = max((max(values) for _, _, values, _ in lines), default=0.0) or 1.0
    low = min(0.0, min((min(values) for _, _, values, _ in lines), default=0.0))
    _axes(draw, epochs, low, high, small)
    for _, colour, values, width in lines:
        points = [_place(e, v, epochs, low, high) for e, v in zip(epochs, values, strict=True)]
        if len(points) > 1:
            draw.line(points, colour, width, joint="curve")
        for at_x, at_y in points if len(points) < 2 else ():
            draw.ellipse((at_x - 2, at_y - 2, at_x + 2, at_y + 2), colour)
    return panel


def _axes(draw: ImageDraw.ImageDraw, epochs: Sequence[int], low: float, high: float, font: Any) -> None:
    for value in (low, (low + high) / 2, high):
        _, y = _place(epochs[0], value, epochs, low, high)
        draw.line((_LEFT, y, _SIZE[0] - _RIGHT, y), _GRID, 1)
        draw.text((_LEFT - 6, y), f"{value:.3g}", _TEXT, font, anchor="rm")
    for epoch, anchor in ((epochs[0], "la"), (epochs[-1], "ra")):
        x, y = _place(epoch, low, epochs, low, high)
        draw.text((x, y + 5), f"epoch {epoch}", _TEXT, font, anchor=anchor)


def _place(epoch: int, value: float, epochs: Sequence[int], low: float, high: float) -> tuple[float, float]:
    width, height = _SIZE[0] - _LEFT - _RIGHT, _SIZE[1] - _TOP - _BOTTOM
    across = (epoch - epochs[0]) / max(epochs[-1] - epochs[0], 1)
    return _LEFT + across * width, _TOP + (high - value) / (high - low) * height
