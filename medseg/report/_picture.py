"""What pictures of a mask on its image share: orientation, grey values, colours, panels, legend and scale bar.

Pictures are shown in the radiological convention (the patient's right on the left), after the axes were reordered and
flipped to the nearest anatomical ones; nothing is interpolated to undo an oblique acquisition. All panels share one
scale, so that a scale bar in one holds for all.
"""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from medseg.data.atomic import atomic_path
from medseg.report.statistics import check_affine, check_mask

CONVENTION = "radiological: patient's right is on the left"

# Okabe and Ito's colours, told apart with colour-blind eyes as well, without the black that would vanish on a scan.
_PALETTE = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#D55E00", "#CC79A7", "#0072B2")
_OPACITY = 0.3
_OUTLINE = 2
_LONGEST = (440, 640)
_PANEL = 300
_MARGIN, _LINE = 16, 24
_BACKGROUND, _TEXT, _DIM = (17, 19, 23), (236, 238, 241), (150, 156, 165)
_MAX_LEGEND = 30
# Name, the axis across the picture, and what is at the left, right, top and bottom edge.
_VIEWS = (("axial", 2, "RLAP"), ("coronal", 1, "RLSI"), ("sagittal", 0, "APSI"))

Grey = NDArray[np.float32]
Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Panel:
    """One picture with the text above it and the letters at its left, right, top and bottom edge."""

    caption: str
    letters: str
    picture: Image.Image


def label_colour(label: int) -> Colour:
    """The colour in which pictures and tables show a label: red, green and blue from 0 to 255.

    Args:
        label: the label's value, from 1.

    Returns:
        One of seven colours that colour-blind eyes tell apart; from the eighth label on, spread around the circle.

    Example:
        >>> label_colour(1)
        (230, 159, 0)
    """
    if 1 <= label <= len(_PALETTE):
        text = _PALETTE[label - 1]
        return int(text[1:3], 16), int(text[3:5], 16), int(text[5:7], 16)
    # Steps of the golden ratio around the colour circle keep neighbours far apart, however many there are.
    red, green, blue = colorsys.hsv_to_rgb((label * 0.618034) % 1.0, 0.6, 0.95)
    return round(red * 255), round(green * 255), round(blue * 255)


def check_png(path: str | Path) -> Path:
    """The path; ValueError unless it ends in .png."""
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ValueError(f"path must end in .png, got {path.name!r}")
    return path


def save_png(path: Path, picture: Image.Image) -> Path:
    """Write a picture whole or not at all, in a folder that is made when missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as part:
        picture.save(part, format="PNG")
    return path


def to_ras(image: ArrayLike, mask: ArrayLike, affine: ArrayLike) -> tuple[NDArray[Any], NDArray[Any], list[float]]:
    """Image, labels and spacing with the axes in the order and direction nearest to RAS."""
    labels = check_mask(np.asarray(mask))
    values = np.asarray(image)
    if values.shape != labels.shape:
        raise ValueError(f"image has shape {values.shape} but mask has shape {labels.shape}; give both on one grid")
    matrix = check_affine(np.asarray(affine, dtype=np.float64))
    orientation = nibabel.orientations.io_orientation(matrix)
    spacing = [0.0, 0.0, 0.0]
    for source, (target, _) in enumerate(orientation):
        spacing[int(target)] = float(np.linalg.norm(matrix[:3, source]))
    reorient = nibabel.orientations.apply_orientation
    return reorient(values, orientation), reorient(labels, orientation), spacing


def stretch(values: NDArray[Any], high: float = 99.0) -> Grey:
    """Grey values in [0, 1] from the 1st percentile to the one given; what is not finite goes to an end."""
    values = values.astype(np.float32, copy=False)
    finite = values[np.isfinite(values)]
    if finite.size == 0:
        return np.zeros_like(values)
    low, high = np.percentile(finite[:: max(1, finite.size // 1_000_000)], (1, high))
    if high <= low:
        low, high = float(finite.min()), float(finite.max())
    width = float(high - low) or 1.0
    grey = (np.nan_to_num(values, nan=low, posinf=high, neginf=low) - np.float32(low)) / np.float32(width)
    return np.clip(grey, 0.0, 1.0).astype(np.float32, copy=False)


def measure_volumes(labels: NDArray[Any], affine: ArrayLike, names: Mapping[int, str]) -> dict[int, float]:
    """Volume in mm3 of every label that is named or found, in ascending order."""
    found, counts = np.unique(labels[labels != 0], return_counts=True)
    voxel = abs(float(np.linalg.det(np.asarray(affine, dtype=np.float64)[:3, :3])))
    volumes = dict.fromkeys({int(v) for v in names} - {0}, 0.0)
    volumes |= {int(label): float(count) * voxel for label, count in zip(found, counts, strict=True)}
    return dict(sorted(volumes.items()))


def find_scale(shape: Sequence[int], spacing: Sequence[float]) -> float:
    """Picture points a millimetre."""
    return float(np.clip(max(shape), *_LONGEST)) / max(n * s for n, s in zip(shape, spacing, strict=True))


def find_views(shape: Sequence[int]) -> list[tuple[str, int, str]]:
    """The views that show an area: a direction with one voxel gives only a line."""
    return [v for v in _VIEWS if all(n > 1 for axis, n in enumerate(shape) if axis != v[1])] or list(_VIEWS)


def find_size(shape: Sequence[int], spacing: Sequence[float], axis: int) -> tuple[int, int]:
    """Width and height in picture points of the view across an axis."""
    scale = find_scale(shape, spacing)
    width, height = (max(1, round(shape[a] * spacing[a] * scale)) for a in range(3) if a != axis)
    return width, height


def upright(plane: NDArray[Any]) -> NDArray[Any]:
    """A plane of a RAS volume as rows and columns of a radiological picture: first row superior or anterior."""
    return np.ascontiguousarray(plane[::-1, ::-1].T)


def paint(grey: Grey, labels: NDArray[Any], size: tuple[int, int]) -> Image.Image:
    """Upright grey values with labels shaded and outlined, at a width and height."""
    resized = Image.fromarray(grey).resize(size, Image.Resampling.BICUBIC)
    rgb = np.repeat(np.clip(np.asarray(resized), 0, 1)[..., None] * 255, 3, axis=2)
    cut = _nearest(labels, (size[1], size[0]))
    width = 2 * _OUTLINE + 1
    edge = ndimage.maximum_filter(cut, width, mode="nearest") != ndimage.minimum_filter(cut, width, mode="nearest")
    for label in np.unique(cut[cut != 0]).tolist():
        colour = np.array(label_colour(label), dtype=np.float32)
        inside = cut == label
        rgb[inside] += _OPACITY * (colour - rgb[inside])
        rgb[inside & edge] = colour
    return Image.fromarray(rgb.round().astype(np.uint8))


def _nearest(labels: NDArray[Any], shape: tuple[int, int]) -> NDArray[Any]:
    """Labels at picture size by picking voxels; works for any integer type, which Pillow's modes do not."""
    rows, columns = (((np.arange(n) + 0.5) * m / n).astype(int) for n, m in zip(shape, labels.shape, strict=True))
    return labels[np.ix_(rows, columns)]


def compose(
    rows: Sequence[Sequence[Panel]],
    title: str,
    names: Mapping[int, str],
    volumes: Mapping[int, float],
    scale: float,
    foot: str = CONVENTION,
) -> Image.Image:
    """Rows of equally many panels below a title; below them the legend, a line of text and the scale bar."""
    font, small = ImageFont.load_default(17), ImageFont.load_default(14)
    legend = [(label_colour(v), f"{names.get(v, f'label_{v}')}  {_amount(volumes[v])}") for v in volumes]
    any_label = any(volumes.values())
    cells = [max(_PANEL, *(p.picture.width for p in column)) for column in zip(*rows, strict=True)]
    heights = [max(_PANEL, *(p.picture.height for p in row)) for row in rows]
    needed = max(small.getlength(foot) + small.getlength("x" * 24), font.getlength(title))
    width = max(sum(cells) + _MARGIN * (len(cells) + 1), round(needed) + 2 * _MARGIN)
    entries = _wrap(legend, small, width - 2 * _MARGIN) if any_label else []
    top = _MARGIN + (_LINE + 4 if title else 0)
    bottom = top + sum(_LINE + height + 10 for height in heights)
    canvas = Image.new("RGB", (width, bottom + _LINE * (len(entries) + (not any_label) + 1) + _MARGIN), _BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    draw.text((_MARGIN, _MARGIN - 2), title, _TEXT, font)
    for row, height in zip(rows, heights, strict=True):
        left = (width - sum(cells) - _MARGIN * (len(cells) - 1)) // 2
        for panel, cell in zip(row, cells, strict=True):
            _place(canvas, panel, (left, top, cell, height), small)
            left += cell + _MARGIN
        top += _LINE + height + 10
    if not any_label:
        draw.text((_MARGIN, bottom), "no label found", _TEXT, font)
    for number, entry in enumerate(entries):
        _draw_row(draw, entry, bottom + number * _LINE, small)
    end = canvas.height - _MARGIN - 14
    draw.text((_MARGIN, end), foot, _DIM, small)
    _scale_bar(draw, (width - _MARGIN, end + 13), scale, small)
    return canvas


def _place(canvas: Image.Image, panel: Panel, cell: tuple[int, int, int, int], font: Any) -> None:
    left, top, width, height = cell
    draw = ImageDraw.Draw(canvas)
    draw.text((left + width / 2, top), panel.caption, _DIM, font, anchor="ma")
    top += _LINE
    draw.rectangle((left, top, left + width - 1, top + height - 1), fill=(0, 0, 0))
    x, y = left + (width - panel.picture.width) // 2, top + (height - panel.picture.height) // 2
    canvas.paste(panel.picture, (x, y))
    middle, centre = left + width / 2, top + height / 2
    spots = (
        (left + 6, centre, "lm"),
        (left + width - 6, centre, "rm"),
        (middle, top + 5, "ma"),
        (middle, top + height - 5, "md"),
    )
    for letter, (at_x, at_y, anchor) in zip(panel.letters, spots, strict=True):
        draw.text((at_x, at_y), letter, (255, 255, 255), font, anchor=anchor, stroke_width=2, stroke_fill=(0, 0, 0))


def _wrap(legend: Sequence[tuple[Colour, str]], font: Any, width: int) -> list[list[tuple[int, Colour | None, str]]]:
    """Rows of (x, colour, text) that fit the width."""
    entries: list[tuple[Colour | None, str]] = list(legend[:_MAX_LEGEND])
    if len(legend) > _MAX_LEGEND:
        entries.append((None, f"and {len(legend) - _MAX_LEGEND} more"))
    rows: list[list[tuple[int, Colour | None, str]]] = []
    x = width + 1
    for colour, text in entries:
        needed = 22 + round(font.getlength(text)) + 28
        if x + needed - 28 > width:
            rows.append([])
            x = 0
        rows[-1].append((_MARGIN + x, colour, text))
        x += needed
    return rows


def _draw_row(draw: ImageDraw.ImageDraw, row: list[tuple[int, Colour | None, str]], y: int, font: Any) -> None:
    for x, colour, text in row:
        if colour is not None:
            draw.rounded_rectangle((x, y + 2, x + 13, y + 15), radius=3, fill=colour)
        draw.text((x + 22, y), text, _TEXT, font)


def _scale_bar(draw: ImageDraw.ImageDraw, corner: tuple[int, int], scale: float, font: Any) -> None:
    """A bar of a round length between about 40 and 100 picture points, its right end at the corner."""
    lengths = [m * 10.0**e for e in range(-3, 4) for m in (1, 2, 5)]
    length = max((n for n in lengths if n * scale <= 100), default=lengths[0])
    right, y = corner
    left = right - round(length * scale)
    draw.line((left, y - 4, right, y - 4), fill=_TEXT, width=3)
    draw.text((left - 8, y + 4), f"{length:g} mm", _DIM, font, anchor="rd")


def _amount(volume_mm3: float) -> str:
    if volume_mm3 == 0:
        return "not found"
    return f"{volume_mm3 / 1000:.2f} ml" if volume_mm3 >= 100 else f"{volume_mm3:.3g} mm3"
