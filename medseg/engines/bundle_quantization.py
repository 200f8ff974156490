"""Give a bundle an int8 model for CPUs, calibrated on windows of real images.

OUT/configs, docs, LICENSE, ...     of the source; metadata.json has a new version and `quantization`
OUT/models/model.pt                 the float weights, as they are: other precisions run as before
OUT/models/int8/                    the quantised model and what it was made from

The windows are those that the network would see in prediction: the bundle's preprocessing and inferer run on every
image, mirroring included, and of its windows some are drawn at random. The folder takes its name when it is whole.
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import medseg
from medseg.bundles import Bundle
from medseg.data import Case
from medseg.engines.prediction import read_case
from medseg.engines.predictor import Predictor
from medseg.inferers.int8_backend import write_manifest
from medseg.inferers.int8_quantization import Int8Summary, quantize_int8

_COPIED = ("configs", "docs", "scripts", "LICENSE")
_FEWEST_CASES = 4


@dataclass(frozen=True)
class QuantizationResult:
    """What came out of a quantisation.

    Attributes:
        path: the new bundle.
        cases: ids of the images that the ranges come from.
        windows: number of windows.
        summary: layers, sizes, and how far the answers on these windows moved.
    """

    path: Path
    cases: tuple[str, ...]
    windows: int
    summary: Int8Summary


def quantize_bundle(
    bundle: Bundle,
    cases: Sequence[Case],
    output: str | Path,
    *,
    windows: int = 24,
    seed: int = 0,
    overwrite: bool = False,
    progress: Callable[[str], None] | None = None,
) -> QuantizationResult:
    """Write a copy of a bundle that `medseg predict --precision int8` can run.

    Args:
        bundle: the bundle, with weights.
        cases: images like those it will be used on, four or more, best of several scanners; no labels are needed.
        output: folder of the new bundle.
        windows: how many windows the ranges are measured on, at least 8; as many of each image, or one less of some.
        seed: of their choice.
        overwrite: replace the folder.
        progress: told what is done, one sentence each.

    Returns:
        Where it is, and how far the answers moved on the windows used.

    Raises:
        FileExistsError: the folder exists and is not to be replaced.
        ValueError: there are too few images or windows, the bundle has no window of a fixed size, or its network cannot
            be quantised.
        ModuleNotFoundError: NNCF is not installed; the text names the extra.

    Example:
        >>> quantize_bundle(Bundle.load("hippocampus_segmentation"), cases, "hippocampus_int8")  # doctest: +SKIP
    """
    output = Path(output)
    _check_arguments(bundle, cases, output, windows, overwrite)
    predictor = Predictor(bundle, device="cpu", engine="torch", precision="fp32")
    if predictor.windows.fixed_shape is None:
        raise ValueError(
            f"bundle {bundle.name}: its windows have no fixed size, which an int8 model needs; set roi_size"
        )
    sample = _draw_windows(predictor, cases, windows, seed, progress or _say_nothing)
    part = output.with_name(f".{output.name}.{uuid.uuid4().hex}.part")
    try:
        folder = part / "models" / "int8"
        folder.mkdir(parents=True)
        (progress or _say_nothing)(f"quantising with {len(sample)} windows")
        summary = quantize_int8(predictor.backend.network, sample, folder)  # type: ignore[attr-defined]
        record = _record(bundle, cases, sample, seed, summary)
        write_manifest(folder, record)
        _copy_parts(bundle, part, record)
        if overwrite:
            shutil.rmtree(output, ignore_errors=True)
        part.rename(output)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return QuantizationResult(output, tuple(case.case_id for case in cases), len(sample), summary)


def _check_arguments(bundle: Bundle, cases: Sequence[Case], output: Path, windows: int, overwrite: bool) -> None:
    here, there = output.resolve(), bundle.path.resolve()
    if here == there or here in there.parents or there in here.parents:
        raise ValueError(f"output {output} is or holds the bundle itself, or lies in it; the source stays untouched")
    for image in (path.resolve() for case in cases for path in case.images):
        if here in image.parents:  # overwriting would remove it
            raise ValueError(f"output {output} holds the image {image}; give another folder")
    if output.exists() and not overwrite:
        raise FileExistsError(f"{output} exists; give another folder, or --overwrite to replace it")
    if output.exists() and not output.is_dir():
        raise FileExistsError(f"{output} is a file; give a folder")
    if len(cases) < _FEWEST_CASES:
        raise ValueError(
            f"cases: got {len(cases)}, expected at least {_FEWEST_CASES}, since ranges of fewer images do not hold for "
            "others; give a folder with more"
        )
    if windows < max(8, len(cases)):
        raise ValueError(
            f"windows must be at least 8 and at least one of each of the {len(cases)} images, got {windows}"
        )


def _draw_windows(
    predictor: Predictor, cases: Sequence[Case], count: int, seed: int, progress: Callable[[str], None]
) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sample: list[torch.Tensor] = []
    for number, case in enumerate(cases, 1):
        progress(f"[{number}/{len(cases)}] {case.case_id}: choosing windows")
        # The first images give what does not divide, so that none is left out.
        share = count // len(cases) + (number <= count % len(cases))
        data = predictor.prepare(read_case(case, len(predictor.bundle.input_channels))).data
        if data is None:
            raise ValueError(f"{case.images[0]}: all voxels have the same value; leave this image out")
        image = data["image"].as_tensor()[None]
        draw = _WindowDraw(share, predictor.num_classes, generator)
        for _ in predictor.windows.slabs(image, draw, predictor.windows.axis(tuple(image.shape[2:]))):
            pass
        sample += draw.kept
    return sample


class _WindowDraw:
    """Stands in for a network, and keeps some of the windows it is given, each with the same chance.

    The windows of a large volume do not fit into memory at once: the draw is that of a reservoir (J. S. Vitter, "Random
    sampling with a reservoir", 1985).
    """

    def __init__(self, count: int, classes: int, generator: torch.Generator) -> None:
        self.kept: list[torch.Tensor] = []
        self._count, self._classes, self._generator, self._seen = count, classes, generator, 0

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        for window in x:
            self._seen += 1
            if len(self.kept) < self._count:
                self.kept.append(window.clone())
                continue
            place = int(torch.randint(self._seen, (1,), generator=self._generator))
            if place < self._count:
                self.kept[place] = window.clone()
        return x.new_zeros(len(x), self._classes, *x.shape[2:])


def _record(
    bundle: Bundle, cases: Sequence[Case], sample: Sequence[torch.Tensor], seed: int, summary: Int8Summary
) -> dict[str, Any]:
    from importlib.metadata import version

    return {
        "weights_sha256": bundle.weights_sha256(),
        "window": list(sample[0].shape),
        "cases": [case.case_id for case in cases],
        "windows": len(sample),
        "seed": seed,
        **asdict(summary),
        **{name: version(name) for name in ("nncf", "openvino", "torch")},
        "medseg": medseg.__version__,
    }


def _copy_parts(bundle: Bundle, folder: Path, record: dict[str, Any]) -> None:
    for name in _COPIED:
        if (bundle.path / name).is_dir():
            shutil.copytree(bundle.path / name, folder / name)
        elif (bundle.path / name).is_file():
            shutil.copyfile(bundle.path / name, folder / name)
    shutil.copyfile(bundle.weights_path, folder / "models" / "model.pt")
    base = bundle.version
    version = f"{base}.int8" if "+" in base else f"{base}+int8"
    text = f"Quantised to int8 with {record['windows']} windows of {len(record['cases'])} images"
    changes = {**bundle.metadata.get("changelog", {}), version: text}
    metadata = {**bundle.metadata, "version": version, "changelog": changes, "quantization": record}
    path = folder / "configs" / "metadata.json"
    path.write_text(json.dumps(metadata, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _say_nothing(text: str) -> None:
    """Take the place of a progress that nobody asked for."""
