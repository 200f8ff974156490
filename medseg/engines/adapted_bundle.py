"""Write an adapted network as a bundle: copies of the source's files, new weights, its history, and a report.

OUT/configs, docs, LICENSE, ...     of the source; metadata.json has a new version and `adaptation_history`
OUT/models/model.pt                 the adapted weights, written last, so that a bundle with weights is complete
OUT/adaptation/run.json             what the run is about, for resuming
OUT/adaptation/report.json          diagnostics before, after and of each epoch, and notes
OUT/adaptation/report.png           the same as curves
OUT/adaptation/CASE_before.png ...  masks of some cases before and after
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import medseg
from medseg.bundles import Bundle
from medseg.data import Case, atomic_path
from medseg.engines.prediction import read_case
from medseg.engines.predictor import Predictor
from medseg.report import draw_preview
from medseg.report.adaptation import draw_adaptation

if TYPE_CHECKING:
    from medseg.engines.bundle_adaptation import AdaptationResult

FOLDER = "adaptation"
RECORD = Path(FOLDER) / "run.json"
_COPIED = ("configs", "docs", "scripts", "LICENSE")
_PREVIEWS = 3


def write_adapted_bundle(
    source: Bundle,
    cases: Sequence[Case],
    predictor: Predictor,
    weights: Mapping[str, torch.Tensor],
    settings: Mapping[str, Any],
    result: AdaptationResult,
) -> None:
    """Complete the output folder of an adaptation.

    Args:
        source: the bundle that was adapted.
        cases: the images it was adapted to.
        predictor: the source's predictor, for the pictures of before.
        weights: the adapted weights, a flat state dict.
        settings: what the run is about.
        result: what came out; its `path` is written to.
    """
    output = result.path
    for name in _COPIED:
        if (source.path / name).is_dir():
            shutil.copytree(source.path / name, output / name, dirs_exist_ok=True)
        elif (source.path / name).is_file():
            shutil.copyfile(source.path / name, output / name)
    write_json(output / "configs" / "metadata.json", _extend(source.metadata, settings, result))
    write_json(output / FOLDER / "report.json", _report(settings, result))
    names = {0: "background", **source.labels}
    draw_adaptation(output / FOLDER / "report.png", [dict(e) for e in result.history], names)
    with atomic_path(output / "models" / "model.pt") as part:
        torch.save(dict(weights), part)
    _draw_previews(predictor, "before", cases, output)
    adapted = Predictor(Bundle.load(output), device=str(predictor.device), engine="torch", precision="fp32", tta="none")
    _draw_previews(adapted, "after", cases, output)


def write_json(path: Path, content: Any) -> None:
    """Write JSON whole or not at all, in a folder that is made when missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as part:
        part.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _extend(metadata: Mapping[str, Any], settings: Mapping[str, Any], result: AdaptationResult) -> dict[str, Any]:
    """Metadata of the source with a new version and one more entry of history."""
    earlier = list(metadata.get("adaptation_history", []))
    base = str(metadata.get("version", "0.0.0")).partition("+")[0]
    version = f"{base}+adapted.{len(earlier) + 1}"
    images, method = settings["images"], settings["options"]["method"]
    text = f"Adapted without labels ({method}) to {len(images)} images; not measured against labels"
    entry = {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "medseg": medseg.__version__,
        **{key: settings[key] for key in ("source", "prior", "options")},
        "images": sorted(images),
        "selected_epoch": result.selected_epoch,
        "before": result.before.to_dict(),
        "after": result.after.to_dict(),
        "notes": list(result.notes),
    }
    # The measured accuracy is that of the source's weights.
    kept = {key: value for key, value in metadata.items() if key != "eval_metrics"}
    changelog = {**kept.get("changelog", {}), version: text}
    return {**kept, "version": version, "changelog": changelog, "adaptation_history": [*earlier, entry]}


def _report(settings: Mapping[str, Any], result: AdaptationResult) -> dict[str, Any]:
    content = {key: value for key, value in asdict(result).items() if key != "path"}
    return {**settings, **content}


def _draw_previews(predictor: Predictor, when: str, cases: Sequence[Case], output: Path) -> None:
    for case in cases[:_PREVIEWS]:
        channels = read_case(case, len(predictor.bundle.input_channels))
        mask = predictor.predict(channels).labels
        path = output / FOLDER / f"{case.case_id}_{when}.png"
        title = f"{case.case_id}, {when} adaptation"
        draw_preview(path, channels[0].array, mask, channels[0].affine, names=predictor.bundle.labels, title=title)
