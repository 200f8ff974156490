"""Draw which topological features of a prediction and its target match: marked slices, and the barcodes below.

A component is marked where it is brightest (its birth), a loop or cavity where it closes (its death), which lies inside
it; the longer the bar, the larger the mark. Matched features are green and carry the same number on both sides; the
others are vermilion. In the barcodes a bar reaches from the value at which a feature appears to that at which it is
merged or filled.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFont

from medseg.data.atomic import atomic_path
from medseg.topology import BettiMatching, betti_matching

_MATCHED, _UNMATCHED = (0, 158, 115), (213, 94, 0)
_BACKGROUND, _TEXT, _DIM = (17, 19, 23), (236, 238, 241), (150, 156, 165)
_PANEL, _MARGIN, _LINE, _BAR = 380, 16, 22, 5
_MOST_MARKS, _MOST_BARS, _MOST_SLICES = 200, 24, 3
_NAMES = ("components", "loops", "cavities")
_Voxel = tuple[int, ...]


class _Feature(NamedTuple):
    """A feature of one image; `number` is above 0 and the same on both sides if it is matched."""

    dim: int
    number: int
    place: _Voxel
    birth: float
    death: float


def draw_topology(
    path: str | Path,
    pred: ArrayLike,
    target: ArrayLike,
    *,
    filtration: str = "superlevel",
    dims: Sequence[int] | None = None,
    image_bars: str = "all",
    axis: int = 0,
    slices: Sequence[int] | None = None,
    title: str = "",
) -> Path:
    """Draw prediction and target side by side with their matched and unmatched features, as a PNG.

    Args:
        path: the PNG to write; its folder is made when missing.
        pred: probabilities or a mask, shape (H, W) or (D, H, W).
        target: the same for the target.
        filtration: "superlevel" (features of the foreground) or "sublevel" (of the background).
        dims: dimensions to draw, all by default.
        image_bars: "all" or "positive", see `medseg.topology.betti_matching`.
        axis: of a volume, the axis along which slices are cut.
        slices: of a volume, the slices to draw; by default the three with most unmatched features.
        title: text above the pictures, such as the name of the case.

    Returns:
        The path written.

    Raises:
        ValueError: the path does not end in .png, an option is unknown, a slice lies outside, or images do not fit.

    Example:
        >>> draw_topology("topology.png", probabilities, mask)  # doctest: +SKIP
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ValueError(f"path must end in .png, got {path.name!r}")
    if filtration not in ("superlevel", "sublevel"):
        raise ValueError(f"filtration must be 'superlevel' or 'sublevel' for a picture, got {filtration!r}")
    options = {"filtration": filtration, "dims": dims, "image_bars": image_bars, "include_essential": True}
    images = np.asarray(pred, np.float32), np.asarray(target, np.float32)
    features = _list_features(betti_matching(*images, **options), images)
    if images[0].ndim == 3:
        chosen = _check_slices(slices, axis, images[0].shape) or _busiest(features, images[0].shape, axis)
        rows = [_Cut(axis, index) for index in chosen]
    else:
        rows = [_Cut(None, 0)]
    picture = _compose(images, features, rows, title)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as part:
        picture.save(part, format="PNG")
    return path


class _Cut(NamedTuple):
    """A slice of a volume, or all of an image where there is no axis."""

    axis: int | None
    index: int

    def image(self, values: NDArray[Any]) -> NDArray[Any]:
        return values if self.axis is None else np.take(values, self.index, axis=self.axis)

    def place(self, voxel: _Voxel) -> _Voxel | None:
        """Row and column of a voxel, None where the slice does not hold it."""
        if self.axis is None:
            return voxel
        if voxel[self.axis] != self.index:
            return None
        return tuple(c for a, c in enumerate(voxel) if a != self.axis)


def _list_features(
    matching: Iterable[BettiMatching], images: tuple[NDArray[Any], NDArray[Any]]
) -> tuple[list[_Feature], list[_Feature]]:
    """Features of prediction and target, longest first; matched ones are numbered by the prediction's length."""
    pred, target = images
    sides: tuple[list[_Feature], list[_Feature]] = ([], [])
    number = 0
    for found in matching:
        sides[0].extend(_feature(found.dim, 0, bar, pred) for bar in found.unmatched_pred)
        sides[1].extend(_feature(found.dim, 0, bar, target) for bar in found.unmatched_target)
        for bars in found.matched:
            number += 1
            sides[0].append(_feature(found.dim, number, bars[:2], pred))
            sides[1].append(_feature(found.dim, number, bars[2:], target))
        for births in found.essential:
            present = [image.max() > image.min() for image in images]
            number += all(present)
            for side, image, birth, is_there in zip(sides, images, births, present, strict=True):
                if is_there:
                    side.append(_endless(birth, number if all(present) else 0, image))
    for side in sides:
        side.sort(key=lambda f: (f.dim, -abs(f.birth - f.death), f.place))
    return sides


def _feature(dim: int, number: int, bar: NDArray[np.int64], image: NDArray[Any]) -> _Feature:
    birth, death = (tuple(int(c) for c in voxel) for voxel in bar)
    return _Feature(dim, number, death if dim else birth, float(image[birth]), float(image[death]))


def _endless(birth: NDArray[np.int64], number: int, image: NDArray[Any]) -> _Feature:
    """The one infinite bar, drawn to the other end of the image's values."""
    place = tuple(int(c) for c in birth)
    value = float(image[place])
    end = float(image.min()) if value == image.max() else float(image.max())
    return _Feature(0, number, place, value, end)


def _check_slices(slices: Sequence[int] | None, axis: int, shape: tuple[int, ...]) -> list[int]:
    if axis not in (0, 1, 2):
        raise ValueError(f"axis must be 0, 1 or 2 for a volume, got {axis}")
    wrong = [index for index in slices or () if not 0 <= index < shape[axis]]
    if wrong:
        raise ValueError(f"slices must lie in 0 to {shape[axis] - 1} along axis {axis}, got {wrong}")
    return list(slices or ())


def _busiest(features: tuple[list[_Feature], list[_Feature]], shape: tuple[int, ...], axis: int) -> list[int]:
    """The slices with most unmatched features; where there is none, that with most features, else the middle."""
    unmatched, all_features = np.zeros(shape[axis], int), np.zeros(shape[axis], int)
    for feature in (*features[0], *features[1]):
        unmatched[feature.place[axis]] += not feature.number
        all_features[feature.place[axis]] += 1
    if not all_features.any():
        return [shape[axis] // 2]
    if not unmatched.any():
        return [int(all_features.argmax())]
    order = np.argsort(-unmatched, kind="stable")[:_MOST_SLICES]
    return sorted(int(i) for i in order if unmatched[i])


def _compose(
    images: tuple[NDArray[Any], NDArray[Any]],
    features: tuple[list[_Feature], list[_Feature]],
    rows: list[_Cut],
    title: str,
) -> Image.Image:
    font, small = ImageFont.load_default(17), ImageFont.load_default(14)
    ends = float(min(i.min() for i in images)), float(max(i.max() for i in images))
    sides = list(zip(images, features, strict=True))
    columns = [[_draw_slice(image, cut, side, ends, small) for cut in rows] for image, side in sides]
    barcodes = [_draw_barcode(side, ends, small) for side in features]
    heights = [max(column[i].height for column in columns) for i in range(len(rows))]
    top = _MARGIN + (_LINE + 6 if title else 0)
    body = _LINE + sum(h + _LINE for h in heights) + max(b.height for b in barcodes)
    canvas = Image.new("RGB", (2 * _PANEL + 3 * _MARGIN, top + body + _LINE + _MARGIN), _BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    draw.text((_MARGIN, _MARGIN - 2), title, _TEXT, font)
    for number, (name, column) in enumerate(zip(("prediction", "target"), columns, strict=True)):
        left, y = _MARGIN + number * (_PANEL + _MARGIN), top
        draw.text((left + _PANEL / 2, y), name, _TEXT, small, anchor="ma")
        y += _LINE
        for cut, panel, height in zip(rows, column, heights, strict=True):
            canvas.paste(panel, (left + (_PANEL - panel.width) // 2, y + (height - panel.height) // 2))
            caption = "" if cut.axis is None else f"slice {cut.index} of axis {cut.axis}"
            draw.text((left + _PANEL / 2, y + height + 2), caption, _DIM, small, anchor="ma")
            y += height + _LINE
        canvas.paste(barcodes[number], (left, y))
    _draw_legend(draw, canvas.height - _MARGIN - 14, small)
    return canvas


def _draw_slice(
    image: NDArray[Any], cut: _Cut, features: list[_Feature], ends: tuple[float, float], font: Any
) -> Image.Image:
    values = (cut.image(image) - ends[0]) / ((ends[1] - ends[0]) or 1.0)
    scale = _PANEL / max(values.shape)
    grey = Image.fromarray((40 + 190 * np.clip(values, 0, 1)).astype(np.uint8))
    height, width = (max(1, round(n * scale)) for n in values.shape)
    picture = grey.resize((width, height), Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.BOX).convert(
        "RGB"
    )
    draw = ImageDraw.Draw(picture)
    full = float(np.clip(scale * 0.4, 4, 9))
    # The longest come last, so that they lie on top.
    for feature in sorted(features, key=lambda f: abs(f.birth - f.death))[-_MOST_MARKS:]:
        place = cut.place(feature.place)
        if place is not None:
            x, y = (place[1] + 0.5) * scale, (place[0] + 0.5) * scale
            length = abs(feature.birth - feature.death) / ((ends[1] - ends[0]) or 1.0)
            _draw_mark(draw, (x, y), full * (0.3 + 0.7 * length), feature, font)
    return picture


def _draw_mark(draw: ImageDraw.ImageDraw, at: tuple[float, float], radius: float, feature: _Feature, font: Any) -> None:
    x, y = at
    colour = _MATCHED if feature.number else _UNMATCHED
    box = (x - radius, y - radius, x + radius, y + radius)
    if feature.dim == 0:
        draw.ellipse(box, fill=colour, outline=(0, 0, 0))
    elif feature.dim == 1:
        draw.rectangle(box, fill=colour, outline=(0, 0, 0))
    else:
        draw.polygon([(x, y - radius), (x + radius, y + radius), (x - radius, y + radius)], colour, (0, 0, 0))
    if feature.number:
        text = (x + radius + 2, y)
        draw.text(text, str(feature.number), _TEXT, font, anchor="lm", stroke_width=2, stroke_fill=(0, 0, 0))


def _draw_barcode(features: list[_Feature], ends: tuple[float, float], font: Any) -> Image.Image:
    """Bars from the largest value on the left to the smallest on the right, grouped by dimension."""
    groups = [(dim, [f for f in features if f.dim == dim]) for dim in sorted({f.dim for f in features})]
    height = sum(_LINE + _BAR * min(len(bars), _MOST_BARS) + 8 for _, bars in groups) + _LINE
    picture = Image.new("RGB", (_PANEL, height), _BACKGROUND)
    draw = ImageDraw.Draw(picture)
    width = (ends[1] - ends[0]) or 1.0
    y = 0
    for dim, bars in groups:
        unmatched = sum(not f.number for f in bars)
        more = f", the {_MOST_BARS} longest" if len(bars) > _MOST_BARS else ""
        draw.text((0, y), f"{_NAMES[dim]}: {len(bars) - unmatched} matched, {unmatched} not{more}", _TEXT, font)
        y += _LINE
        for feature in bars[:_MOST_BARS]:
            left, right = sorted((ends[1] - v) / width * (_PANEL - 1) for v in (feature.birth, feature.death))
            draw.rectangle((left, y, right, y + _BAR - 2), fill=_MATCHED if feature.number else _UNMATCHED)
            y += _BAR
        y += 8
    draw.text((0, y), f"{ends[1]:.3g}", _DIM, font)
    draw.text((_PANEL, y), f"{ends[0]:.3g}", _DIM, font, anchor="ra")
    return picture


def _draw_legend(draw: ImageDraw.ImageDraw, y: int, font: Any) -> None:
    x = float(_MARGIN)
    for colour, text in ((_MATCHED, "matched, same number"), (_UNMATCHED, "no partner")):
        draw.rounded_rectangle((x, y + 2, x + 13, y + 15), radius=3, fill=colour)
        draw.text((x + 20, y), text, _TEXT, font)
        x += 20 + font.getlength(text) + 20
    draw.text((x, y), "circle: component, square: loop, triangle: cavity", _DIM, font)
