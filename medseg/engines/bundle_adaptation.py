"""Adapt a bundle's network to the images of a new site and write the result as a bundle of its own.

The source bundle is only read. The output folder holds, while the run lasts, its record (`adaptation/run.json`) and
`models/last.pt`, from which it can be resumed; at the end it becomes a complete bundle with its history in the metadata
and a report in `adaptation/`.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.bundle import ConfigParser
from monai.handlers import LrScheduleHandler
from monai.transforms import Activationsd

from medseg.bundles import Bundle
from medseg.data import Case, ClassRatioPrior
from medseg.engines.adaptation_data import UnlabelledCases, prepare_cases
from medseg.engines.adaptation_diagnostics import AdaptationDiagnostics
from medseg.engines.adaptation_methods import METHODS, Method, build_adapter
from medseg.engines.adapted_bundle import RECORD, write_adapted_bundle, write_json
from medseg.engines.config_errors import plain_config_errors
from medseg.engines.handlers import EpochSeeder, StopOnNonFiniteLoss, TrainingCheckpoint
from medseg.engines.predictor import Predictor
from medseg.engines.source_free_adapter import SourceFreeAdapter

# The published schedule: 0.9 times the rate every 20 epochs.
_STEP, _GAMMA = 20, 0.9


@dataclass(frozen=True)
class AdaptationOptions:
    """What decides the outcome of an adaptation, besides network, images and prior.

    Attributes:
        method: a name of `medseg.engines.adaptation_methods`.
        epochs: how many times the images are gone through.
        learning_rate: of Adam; it falls to 0.9 of itself every 20 epochs.
        batch_size: cases in a batch.
        crops: windows of each case in a batch, where cases are larger than a window.
        ema: decay of the running average of the weights, which is then the result; 0 for none.
        seed: of the order of the cases and of the windows.
    """

    method: Method = "kl"
    epochs: int = 20
    learning_rate: float = 1e-4
    batch_size: int = 4
    crops: int = 4
    ema: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        if self.method not in METHODS or self.method == "none":
            raise ValueError(
                f"method must be one of {', '.join(m for m in METHODS if m != 'none')}, got {self.method!r}"
            )
        for name in ("epochs", "batch_size", "crops"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.learning_rate < 1:
            raise ValueError(f"learning_rate must be in (0, 1), got {self.learning_rate}")


@dataclass(frozen=True)
class AdaptationResult:
    """What came out.

    Attributes:
        path: the new bundle.
        before: diagnostics of the source network on the images, whole cases.
        after: those of the adapted network.
        history: diagnostics of each epoch, in training.
        selected_epoch: the epoch whose weights were taken.
        notes: what a user should know, one sentence each.
    """

    path: Path
    before: AdaptationDiagnostics
    after: AdaptationDiagnostics
    history: Sequence[Mapping[str, Any]]
    selected_epoch: int
    notes: Sequence[str]


def adapt_bundle(
    bundle: Bundle,
    cases: Sequence[Case],
    prior: ClassRatioPrior,
    output: str | Path,
    *,
    options: AdaptationOptions | None = None,
    resume: bool = False,
    overwrite: bool = False,
    device: str = "auto",
    progress: Callable[[Mapping[str, Any]], None] | None = None,
) -> AdaptationResult:
    """Adapt a bundle to unlabelled images of a new site.

    Args:
        bundle: the trained bundle; its folder stays as it is.
        cases: the images.
        prior: expected share of each class of the network, background first.
        output: folder of the new bundle.
        options: method and budget.
        resume: go on with the run in the folder; images, prior and options must be those of the run.
        overwrite: start anew although the folder holds a run.
        device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
        progress: called with the diagnostics of each epoch.

    Returns:
        The new bundle and what was seen on the way.

    Raises:
        FileExistsError: the folder holds something, and neither `resume` nor `overwrite` fits.
        ValueError: the prior, the images or the run to resume do not fit.
        FloatingPointError: the loss is not finite; the last checkpoint is kept.
    """
    options, output = options or AdaptationOptions(), Path(output)
    settings = _describe(bundle, cases, prior, options)
    _check_output(bundle, output, settings, resume, overwrite)
    predictor = Predictor(bundle, device=device, engine="torch", precision="fp32", tta="none")
    if prior.num_classes != predictor.num_classes:
        raise ValueError(
            f"prior has {prior.num_classes} classes, the network of bundle {bundle.name} gives "
            f"{predictor.num_classes}, background included"
        )
    prepared = prepare_cases(predictor, cases, prior)
    with plain_config_errors():
        network, infer = _load(bundle, predictor.device)
    adapter, notes = _build(network, prior, prepared, options, sigmoid=_has_sigmoid(predictor))
    if options.method == "batch_norm" and not adapter.norm_layers:
        raise ValueError(f"method batch_norm has nothing to adapt: {notes[0]}; take another method")
    before = adapter.diagnose(prepared.whole_cases(), infer)
    if not resume:
        _clear(output)
    write_json(output / RECORD, settings)
    _run(adapter, prepared, options, output, resume, progress)
    weights = adapter.selected_state()
    network.load_state_dict(weights)
    after = adapter.diagnose(prepared.whole_cases(), infer)
    notes += _remarks(adapter, prior, after)
    result = AdaptationResult(output, before, after, adapter.history, adapter.selected_epoch, notes)
    write_adapted_bundle(bundle, cases, predictor, weights, settings, result)
    return result


def _describe(
    bundle: Bundle, cases: Sequence[Case], prior: ClassRatioPrior, options: AdaptationOptions
) -> dict[str, Any]:
    """What a run is about, as JSON gives it back."""
    images = {case.case_id: [[p.name, p.stat().st_size] for p in case.images] for case in cases}
    source = {"name": bundle.name, "version": bundle.version, "weights_sha256": bundle.weights_sha256()}
    content = {"source": source, "images": images, "prior": prior.to_dict(), "options": asdict(options)}
    return json.loads(json.dumps(content))


def _check_output(bundle: Bundle, output: Path, settings: Mapping[str, Any], resume: bool, overwrite: bool) -> None:
    here, there = output.resolve(), bundle.path.resolve()
    if here == there or here in there.parents or there in here.parents:
        raise ValueError(f"output {output} is or holds the bundle itself, or lies in it; the source stays untouched")
    if not output.exists() or not any(output.iterdir()):
        return
    record = output / RECORD
    if not record.is_file():
        raise FileExistsError(f"{output} is not empty and holds no adaptation; give another folder")
    if overwrite and not resume:
        return
    if not resume:
        raise FileExistsError(f"{output} holds an adaptation; use --resume to go on, or --overwrite to start anew")
    earlier = json.loads(record.read_text(encoding="utf-8"))
    for key in settings:
        if earlier.get(key) != settings[key]:
            raise ValueError(
                f"{output} was begun with other {key} ({_shorten(earlier.get(key))}) than asked for now "
                f"({_shorten(settings[key])}); resume with the same, or start anew in another folder"
            )


def _clear(output: Path) -> None:
    """Remove an earlier run, once it is certain that the new one can begin."""
    shutil.rmtree((output / RECORD).parent, ignore_errors=True)
    for name in (TrainingCheckpoint.LAST, TrainingCheckpoint.BEST):
        (output / "models" / name).unlink(missing_ok=True)


def _shorten(value: Any) -> str:
    names = ", ".join(value) if isinstance(value, dict) and len(value) > 4 else str(value)
    return names if len(names) < 200 else f"{names[:200]}..."


def _load(bundle: Bundle, device: torch.device) -> tuple[torch.nn.Module, Callable[..., torch.Tensor]]:
    """A network of its own for training, and the bundle's way to run it over whole cases."""
    parser = ConfigParser()
    parser.read_config(str(bundle.config_path("inference")))
    parser["bundle_root"] = str(bundle.path)
    network = parser.get_parsed_content("network_def")
    network.load_state_dict(torch.load(bundle.weights_path, map_location="cpu", weights_only=True))
    return network.to(device), parser.get_parsed_content("inferer")


def _has_sigmoid(predictor: Predictor) -> bool:
    return any(isinstance(t, Activationsd) and any(t.sigmoid) for t in predictor.ending.transforms)


def _build(
    network: torch.nn.Module,
    prior: ClassRatioPrior,
    prepared: UnlabelledCases,
    options: AdaptationOptions,
    *,
    sigmoid: bool,
) -> tuple[SourceFreeAdapter, list[str]]:
    """The adapter, and what it says about normalisation that it finds nothing to adapt in."""
    ratios = torch.stack([item["class_ratio"] for item in prepared.items])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        adapter = build_adapter(
            options.method,
            network,
            prior,
            class_weight=None if sigmoid else ClassRatioPrior.class_weight(ratios),
            learning_rate=options.learning_rate,
            max_epochs=options.epochs,
            ema=options.ema,
            sigmoid=sigmoid,
            ratio_per=prepared.ratio_per,
        )
    return adapter, [str(w.message) for w in caught if "batch normalisation" in str(w.message)]


def _run(
    adapter: SourceFreeAdapter,
    prepared: UnlabelledCases,
    options: AdaptationOptions,
    output: Path,
    resume: bool,
    progress: Callable[[Mapping[str, Any]], None] | None,
) -> None:
    loader, cutting = prepared.train_loader(options.batch_size, options.crops)
    schedule: Any = torch.optim.lr_scheduler.StepLR(adapter.optimizer, _STEP, _GAMMA)
    saved = {"adapter": adapter, "lr_scheduler": schedule}
    handlers = [
        EpochSeeder(options.seed, cutting),
        StopOnNonFiniteLoss(),
        # Without steps of the optimizer there is no rate to follow.
        *([LrScheduleHandler(schedule, print_lr=False)] if adapter.trained else []),
        TrainingCheckpoint(str(output / "models"), saved, best=None, resume=resume),
    ]
    for handler in handlers:
        handler.attach(adapter)

    def report(engine: Engine) -> None:
        if progress is not None:
            progress({**adapter.history[-1], "epochs": options.epochs})

    adapter.add_event_handler(Events.EPOCH_COMPLETED, report)
    adapter.fit(loader)


def _remarks(adapter: SourceFreeAdapter, prior: ClassRatioPrior, after: AdaptationDiagnostics) -> list[str]:
    """What the reader of the result must know."""
    notes = []
    if after.contradicted:
        share = f"{after.contradicted:.0%} of the images"
        notes.append(f"{share} still lack a class that the prior expects, or show one that it excludes")
    if adapter.average is None and all(epoch["alarms"] for epoch in adapter.history):
        notes.append(
            "in every epoch the hard and the soft ratio of a class were far apart: do not use this network before its "
            "masks were looked at"
        )
    if not any(row.tags for row in prior.rows.values()) and not prior.tags:
        notes.append(
            "the prior has no tags: every image is expected to show every class. Where one does not, the result is "
            "worse than the source; add tag columns to the table"
        )
    return notes
