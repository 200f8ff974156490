"""Four ways from finished slabs on the network's grid to labels on the input grid.

| way | classes are mapped back | memory for K classes |
|---|---|---|
| `streamed` | interpolated, a slab and a class at a time | K slabs as deep as a window |
| `classwise` | interpolated, a class at a time | K volumes on the network's grid |
| `whole` | by the bundle's own postprocessing, all at once | K volumes on both grids, twice |
| `low` | not at all: the best class is taken first, labels go back by nearest neighbour | K slabs as deep as a window |

The first three give the same labels to rounding. `streamed` needs a preprocessing that only reorients and resamples,
and a volume without rotation or shear between the two grids; `classwise` any that `Invertd` can invert. All but `whole`
need a postprocessing of softmax (or nothing), `Invertd` and an `AsDiscreted` with argmax. What keeps the best class may
stand between the last two, and is left out unless probabilities are wanted: a softmax, as in nnU-Net, which
interpolates logits and then takes `whole`, and `TemperatureScaledd`, which calibrates probabilities and goes with every
way, save that a threshold on them takes `whole`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Literal

import torch
from monai.data import MetaTensor
from monai.transforms import Activationsd, AsDiscreted, Compose, Invertd

from medseg.inferers import GridMap, Slab, SlabMapper, softmax_
from medseg.transforms import TemperatureScaledd

Way = Literal["streamed", "classwise", "whole", "low"]
# Invertible transforms whose effect on the grid is all in the affine; crops and pads also say what lies outside.
_RESAMPLING = ("Orientation", "Spacing", "SpatialResample")
# Planes of the input that are calibrated together.
_PART = 16


@dataclass(frozen=True)
class Ending:
    """A bundle's postprocessing, taken apart.

    Attributes:
        transforms: all of it, writing left out.
        softmax: it begins with a softmax.
        invert: its `Invertd`.
        after: what follows on the label map.
        splits: it is softmax (or nothing), `Invertd`, argmax and what follows, so that classes can be mapped singly.
        late: what stands between `Invertd` and argmax and keeps the best class.
    """

    transforms: tuple[Callable[[dict], dict], ...]
    softmax: bool = False
    invert: Invertd | None = None
    after: tuple[Callable[[dict], dict], ...] = ()
    splits: bool = False
    late: tuple[Callable[[dict], dict], ...] = ()

    @classmethod
    def of(cls, postprocessing: Compose) -> Ending:
        """Take a postprocessing apart."""
        transforms = tuple(postprocessing.transforms)
        softmax = _is_softmax(transforms[:1])
        core = transforms[softmax:]
        late = tuple(takewhile(_keeps_best_class, core[1:]))
        steps = (*core[:1], *core[1 + len(late) :])
        invert, discrete = (*steps[:2], None, None)[:2]
        splits = (
            isinstance(invert, Invertd)
            and isinstance(discrete, AsDiscreted)
            and discrete.argmax == (True,)
            and not any(discrete.to_onehot)
            and not any(invert.nearest_interp)
        )
        if not splits:
            found = next((t for t in transforms if isinstance(t, Invertd)), None)
            return cls(transforms, softmax, found)
        return cls(transforms, softmax, invert, steps[2:], True, late)  # type: ignore[arg-type]

    @property
    def calibrates(self) -> bool:
        """It changes probabilities by temperatures, wherever."""
        return any(isinstance(t, TemperatureScaledd) for t in self.transforms)

    def is_calibrated_for_others(self, weights_sha256: str) -> bool:
        """Whether it says that its temperatures were fitted to other weights."""
        known = [t.network_sha256 for t in self.transforms if isinstance(t, TemperatureScaledd)]
        return any(sha256 not in (None, weights_sha256) for sha256 in known)

    def needs_whole(self, keep: bool, threshold: float | None) -> bool:
        """Whether what is wanted of the classes is only known when all are on the input grid."""
        afterwards = self.softmax and all(isinstance(t, TemperatureScaledd) for t in self.late)
        return bool(self.late) and (threshold is not None or (keep and not afterwards))

    def calibrate(self, kept: torch.Tensor | None) -> torch.Tensor | None:
        """Apply `late` to probabilities on the input grid, in place, a part at a time."""
        for part in () if kept is None or not self.late else kept.split(_PART, dim=1):
            data: dict[str, Any] = {"pred": part}
            for transform in self.late:
                data = transform(data)
            part.copy_(data["pred"])
        return kept


def _keeps_best_class(transform: object) -> bool:
    return isinstance(transform, TemperatureScaledd) or _is_softmax((transform,))


def _is_softmax(transforms: Sequence[object]) -> bool:
    """Whether the first of them is a softmax and nothing else."""
    first = next(iter(transforms), None)
    return isinstance(first, Activationsd) and first.softmax == (True,) and not any(first.sigmoid + first.other)


@dataclass(frozen=True)
class Task:
    """What every way needs to know of a case.

    Attributes:
        data: the preprocessed case, `image` with its trace of transforms.
        ending: the bundle's postprocessing.
        axis: axis along which the slabs are cut.
        num_classes: K.
        grid: the input's voxels on the network's grid, where `streamed` is possible.
        keep: return class probabilities as well.
        threshold: voxels whose best class is below this become background.
    """

    data: dict[str, Any]
    ending: Ending
    axis: int
    num_classes: int
    grid: GridMap | None
    keep: bool = False
    threshold: float | None = None


def grid_of(image: MetaTensor, affine: Any, shape: tuple[int, ...], ending: Ending) -> GridMap | None:
    """Map from the input grid to that of a preprocessed image, or None where `streamed` would not be exact."""
    if not ending.splits:
        return None
    for operation in image.applied_operations:
        info = operation["extra_info"]
        plain = info.get("mode", "bilinear") == "bilinear" and info.get("padding_mode", "border") == "border"
        if operation["class"] not in _RESAMPLING or not plain:
            return None
    return GridMap.between(affine, shape, image.affine.numpy(), tuple(image.shape[1:]))


def map_back(way: Way, slabs: Iterable[Slab], task: Task) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Turn slabs into labels on the input grid.

    Args:
        way: one of the four.
        slabs: finished parts of the logits, in order.
        task: the case.

    Returns:
        The label map as the bundle's postprocessing leaves it, shape (1, X, Y, Z), and the class probabilities on the
        input grid, shape (K, X, Y, Z), if they are to be kept.
    """
    return _WAYS[way](slabs, task)


def _streamed(slabs: Iterable[Slab], task: Task) -> tuple[torch.Tensor, torch.Tensor | None]:
    assert task.grid is not None
    kept = torch.zeros((task.num_classes, *task.grid.input_shape)) if task.keep else None
    mapper = SlabMapper(
        task.grid,
        task.axis,
        task.num_classes,
        softmax=task.ending.softmax,
        threshold=task.threshold,
        probabilities=kept,
    )
    for slab in slabs:
        mapper.add(slab)
    return finish_labels(mapper.labels[None], task), task.ending.calibrate(kept)


def _classwise(slabs: Iterable[Slab], task: Task) -> tuple[torch.Tensor, torch.Tensor | None]:
    classes = gather_slabs(slabs, task)
    if task.ending.softmax:
        softmax_(classes)
    invert = task.ending.invert
    assert invert is not None
    best: torch.Tensor | None = None
    labels: torch.Tensor | None = None
    kept = []
    for k, values in enumerate(classes):
        mapped = invert({**task.data, "pred": MetaTensor(values[None])})["pred"].as_tensor().float()
        if task.keep:
            kept.append(mapped[0])
        if best is None or labels is None:
            best, labels = mapped, torch.zeros(mapped.shape, dtype=torch.uint8 if len(classes) <= 256 else torch.int32)
            continue
        labels.masked_fill_(mapped > best, k)
        best = torch.maximum(best, mapped)
    assert best is not None
    assert labels is not None
    if task.threshold is not None:
        labels.masked_fill_(best < task.threshold, 0)
    return finish_labels(labels, task), task.ending.calibrate(torch.stack(kept) if kept else None)


def _whole(slabs: Iterable[Slab], task: Task) -> tuple[torch.Tensor, torch.Tensor | None]:
    data = {**task.data, "pred": MetaTensor(gather_slabs(slabs, task))}
    kept: torch.Tensor | None = None
    for transform in task.ending.transforms:
        data = transform(data)
        later = kept is not None and isinstance(transform, (Activationsd, TemperatureScaledd))
        if (isinstance(transform, Invertd) or later) and (task.keep or task.threshold is not None):
            kept = data["pred"].as_tensor().clone()
    labels = data["pred"].as_tensor()
    if task.threshold is not None and kept is not None:
        labels = labels.masked_fill(kept.amax(dim=0, keepdim=True) < task.threshold, 0)
    return labels, kept if task.keep else None


def _low(slabs: Iterable[Slab], task: Task) -> tuple[torch.Tensor, torch.Tensor | None]:
    labels = torch.zeros(
        (1, *task.data["image"].shape[1:]), dtype=torch.uint8 if task.num_classes <= 256 else torch.int32
    )
    for slab in slabs:
        labels.narrow(task.axis + 1, slab.start, slab.stop - slab.start).copy_(slab.logits.argmax(dim=0, keepdim=True))
    nearest = copy.copy(task.ending.invert)
    assert nearest is not None
    nearest.nearest_interp = tuple(True for _ in nearest.keys)
    labels = nearest({**task.data, "pred": MetaTensor(labels)})["pred"].as_tensor()
    return finish_labels(labels, task), None


_WAYS = {"streamed": _streamed, "classwise": _classwise, "whole": _whole, "low": _low}


def gather_slabs(slabs: Iterable[Slab], task: Task) -> torch.Tensor:
    """Put slabs together, (K, spatial...) on the network's grid."""
    shape = task.data["image"].shape[1:]
    whole: torch.Tensor | None = None
    for slab in slabs:
        if whole is None:
            whole = torch.zeros((slab.logits.shape[0], *shape))
        whole.narrow(task.axis + 1, slab.start, slab.stop - slab.start).copy_(slab.logits)
    assert whole is not None
    return whole


def finish_labels(labels: torch.Tensor, task: Task) -> torch.Tensor:
    """Run what the bundle does with the label map."""
    if not task.ending.after:
        return labels
    data = {**task.data, "pred": MetaTensor(labels, affine=task.data["image"].meta["original_affine"])}
    for transform in task.ending.after:
        data = transform(data)
    return data["pred"].as_tensor()
