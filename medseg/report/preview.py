"""Draw a mask on its image as one picture: three orthogonal slices through the largest label, legend, orientation.

The slices are shown in the radiological convention (the patient's right on the left), after the axes were reordered and
flipped to the nearest anatomical ones; nothing is interpolated to undo an oblique acquisition. All panels share one
scale, so that a scale bar in one holds for all.
"""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cc3d
import nibabel
import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from medseg.data.atomic import atomic_path
from medseg.report.statistics import check_affine, check_mask

# Okabe and Ito's colours, told apart with colour-blind eyes as well, without the black that would vanish on a scan.
_PALETTE = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#D55E00", "#CC79A7", "#0072B2")
_OPACITY = 0.3
_OUTLINE = 2
_LONGEST = (440, 640)
_PANEL = 300
_MARGIN, _LINE = 16, 24
_BACKGROUND, _TEXT, _DIM = (17, 19, 23), (236, 238, 241), (150, 156, 165)
_CONVENTION = "radiological: patient's right is on the left"
_MAX_LEGEND = 30
# Name, the axis cut, and what is at the left, right, top and bottom edge.
_VIEWS = (("axial", 2, "RLAP"), ("coronal", 1, "RLSI"), ("sagittal", 0, "APSI"))

_Grey = NDArray[np.float32]
_Colour = tuple[int, int, int]


@dataclass(frozen=True)
class _Panel:
    caption: str
    letters: str
    picture: Image.Image


def draw_preview(
    path: str | Path,
    image: ArrayLike,
    mask: ArrayLike,
    affine: ArrayLike,
    *,
    names: Mapping[int, str],
    title: str = "",
) -> Path:
    """Draw three orthogonal slices of an image with its mask, as a PNG.

    The slices go through the centroid of the largest piece of the label with most voxels; through the middle when
    there is no label. Directions that have a single slice are left out.

    Args:
        path: the PNG to write; its folder is made when missing.
        image: intensities, (X, Y, Z), shown from the 1st to the 99th percentile.
        mask: integer labels on the same grid; 0 is background.
        affine: (4, 4), voxel index to world millimetres (RAS+).
        names: label values and their names, for the legend; colours are those of `label_colour`.
        title: text above the slices, such as the name of the case.

    Returns:
        The path written.

    Raises:
        ValueError: the path does not end in .png, or image, mask and affine do not fit each other.

    Example:
        >>> draw_preview("preview.png", image, mask, affine, names={1: "head"})  # doctest: +SKIP
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ValueError(f"path must end in .png, got {path.name!r}")
    values, labels, spacing = _canonical(image, mask, affine)
    found, counts = np.unique(labels[labels != 0], return_counts=True)
    volumes = dict.fromkeys(sorted({int(v) for v in names} - {0}), 0.0)
    voxel = abs(float(np.linalg.det(np.asarray(affine, dtype=np.float64)[:3, :3])))
    volumes |= {int(label): float(count) * voxel for label, count in zip(found, counts, strict=True)}
    colours = {label: label_colour(label) for label in volumes}
    position = _position(labels, int(found[counts.argmax()]) if found.size else None)
    scale = float(np.clip(max(labels.shape), *_LONGEST)) / max(
        n * s for n, s in zip(labels.shape, spacing, strict=True)
    )
    panels = [_panel(values, labels, view, position, spacing, scale, colours) for view in _views(labels.shape)]
    legend = [(colours[v], f"{names.get(v, f'label_{v}')}  {_amount(volumes[v])}") for v in sorted(volumes)]
    picture = _compose(panels, title, legend, bool(found.size), scale)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as part:
        picture.save(part, format="PNG")
    return path


def label_colour(label: int) -> _Colour:
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


def _canonical(image: ArrayLike, mask: ArrayLike, affine: ArrayLike) -> tuple[_Grey, NDArray[Any], list[float]]:
    """Grey values in [0, 1], labels and spacing with the axes in the order and direction nearest to RAS."""
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
    return _window(reorient(values, orientation)), reorient(labels, orientation), spacing


def _window(values: NDArray[Any]) -> _Grey:
    values = values.astype(np.float32, copy=False)
    finite = values[np.isfinite(values)]
    if finite.size == 0:
        return np.zeros_like(values)
    low, high = np.percentile(finite[:: max(1, finite.size // 1_000_000)], (1, 99))
    if high <= low:
        low, high = float(finite.min()), float(finite.max())
    width = float(high - low) or 1.0
    grey = (np.nan_to_num(values, nan=low, posinf=high, neginf=low) - np.float32(low)) / np.float32(width)
    return np.clip(grey, 0.0, 1.0).astype(np.float32, copy=False)


def _views(shape: Sequence[int]) -> list[tuple[str, int, str]]:
    """The views that show an area: a direction with one voxel gives only a line."""
    return [v for v in _VIEWS if all(n > 1 for axis, n in enumerate(shape) if axis != v[1])] or list(_VIEWS)


def _position(labels: NDArray[Any], largest: int | None) -> list[int]:
    """Index of the three slices; each holds the largest piece of the label, even if its centroid is beside it."""
    if largest is None:
        return [n // 2 for n in labels.shape]
    # As bytes: the boolean path of cc3d 4.1 fails on single voxels in boxes of odd size.
    pieces = cc3d.connected_components(np.ascontiguousarray(labels == largest).view(np.uint8), connectivity=26)
    piece = pieces == np.bincount(pieces.ravel())[1:].argmax() + 1
    indices = np.nonzero(piece)
    return [int(axis[np.abs(axis - axis.mean()).argmin()]) for axis in indices]


def _panel(
    values: _Grey,
    labels: NDArray[Any],
    view: tuple[str, int, str],
    position: Sequence[int],
    spacing: Sequence[float],
    scale: float,
    colours: Mapping[int, _Colour],
) -> _Panel:
    name, axis, letters = view
    width, height = (max(1, round(labels.shape[a] * spacing[a] * scale)) for a in range(3) if a != axis)
    grey = Image.fromarray(_upright(values, axis, position[axis])).resize((width, height), Image.Resampling.BICUBIC)
    rgb = np.repeat(np.clip(np.asarray(grey), 0, 1)[..., None] * 255, 3, axis=2)
    cut = _nearest(_upright(labels, axis, position[axis]), (height, width))
    size = 2 * _OUTLINE + 1
    edge = ndimage.maximum_filter(cut, size, mode="nearest") != ndimage.minimum_filter(cut, size, mode="nearest")
    for label in np.unique(cut[cut != 0]).tolist():
        colour = np.array(colours[label], dtype=np.float32)
        inside = cut == label
        rgb[inside] += _OPACITY * (colour - rgb[inside])
        rgb[inside & edge] = colour
    caption = f"{name}, slice {position[axis] + 1} of {labels.shape[axis]}"
    return _Panel(caption, letters, Image.fromarray(rgb.round().astype(np.uint8)))


def _upright(volume: NDArray[Any], axis: int, index: int) -> NDArray[Any]:
    """One slice of a RAS volume as rows and columns of a radiological picture: first row superior or anterior."""
    return np.ascontiguousarray(np.take(volume, index, axis=axis)[::-1, ::-1].T)


def _nearest(labels: NDArray[Any], shape: tuple[int, int]) -> NDArray[Any]:
    """Labels at picture size by picking voxels; works for any integer type, which Pillow's modes do not."""
    rows, columns = (((np.arange(n) + 0.5) * m / n).astype(int) for n, m in zip(shape, labels.shape, strict=True))
    return labels[np.ix_(rows, columns)]


def _compose(
    panels: Sequence[_Panel], title: str, legend: Sequence[tuple[_Colour, str]], any_label: bool, scale: float
) -> Image.Image:
    font, small = ImageFont.load_default(17), ImageFont.load_default(14)
    cells = [max(_PANEL, p.picture.width) for p in panels]
    height = max(_PANEL, *(p.picture.height for p in panels))
    needed = max(small.getlength(_CONVENTION) + small.getlength("x" * 24), font.getlength(title))
    width = max(sum(cells) + _MARGIN * (len(cells) + 1), round(needed) + 2 * _MARGIN)
    rows = _wrap(legend, small, width - 2 * _MARGIN) if any_label else []
    top = _MARGIN + (_LINE + 4 if title else 0)
    bottom = top + _LINE + height + 10
    canvas = Image.new("RGB", (width, bottom + _LINE * (len(rows) + (not any_label) + 1) + _MARGIN), _BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    draw.text((_MARGIN, _MARGIN - 2), title, _TEXT, font)
    left = (width - sum(cells) - _MARGIN * (len(cells) - 1)) // 2
    for panel, cell in zip(panels, cells, strict=True):
        _place(canvas, panel, (left, top, cell, height), small)
        left += cell + _MARGIN
    if not any_label:
        draw.text((_MARGIN, bottom), "no label found", _TEXT, font)
    for number, row in enumerate(rows):
        _draw_row(draw, row, bottom + number * _LINE, small)
    foot = canvas.height - _MARGIN - 14
    draw.text((_MARGIN, foot), _CONVENTION, _DIM, small)
    _scale_bar(draw, (width - _MARGIN, foot + 13), scale, small)
    return canvas


def _place(canvas: Image.Image, panel: _Panel, cell: tuple[int, int, int, int], font: Any) -> None:
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


def _wrap(legend: Sequence[tuple[_Colour, str]], font: Any, width: int) -> list[list[tuple[int, _Colour | None, str]]]:
    """Rows of (x, colour, text) that fit the width."""
    entries: list[tuple[_Colour | None, str]] = list(legend[:_MAX_LEGEND])
    if len(legend) > _MAX_LEGEND:
        entries.append((None, f"and {len(legend) - _MAX_LEGEND} more"))
    rows: list[list[tuple[int, _Colour | None, str]]] = []
    x = width + 1
    for colour, text in entries:
        needed = 22 + round(font.getlength(text)) + 28
        if x + needed - 28 > width:
            rows.append([])
            x = 0
        rows[-1].append((_MARGIN + x, colour, text))
        x += needed
    return rows


def _draw_row(draw: ImageDraw.ImageDraw, row: list[tuple[int, _Colour | None, str]], y: int, font: Any) -> None:
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
