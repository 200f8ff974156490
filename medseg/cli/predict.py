"""`medseg predict`: volumes in, masks out."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medseg.cli.console import (
    EXIT_BAD_INPUT,
    EXIT_CASE_FAILED,
    EXIT_INTERRUPTED,
    EXIT_MISSING,
    EXIT_USAGE,
    errors_to_exit_codes,
    fail,
    note,
    steps_on_stderr,
    warn,
)
from medseg.cli.predict_options import (
    check_outputs,
    check_samples,
    choose_model,
    find_inputs,
    parse_bytes,
    parse_labels,
    parse_preview,
    parse_size,
)

if TYPE_CHECKING:
    from medseg.engines import CaseResult, PredictionOptions, Predictor
    from medseg.report import RunReport


class PrecisionName(str, Enum):
    """Arithmetic of the network."""

    auto = "auto"
    fp32 = "fp32"
    fp16 = "fp16"
    bf16 = "bf16"
    int8 = "int8"


class EngineName(str, Enum):
    """What runs the network."""

    auto = "auto"
    torch = "torch"
    openvino = "openvino"


class TtaName(str, Enum):
    """Test-time augmentation."""

    auto = "auto"
    none = "none"
    mirror = "mirror"


class MemoryName(str, Enum):
    """How probabilities are brought back to the input grid."""

    auto = "auto"
    normal = "normal"
    low = "low"


def predict(
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="INPUT", help="NIfTI files, folders, patterns, a BIDS data set, or .txt/.csv/.json lists."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="A folder, or a .nii.gz file for a single case."),
    ] = None,
    bundle: Annotated[
        str | None,
        typer.Option(help="Name or folder of the bundle; may be left out while only one is installed."),
    ] = None,
    nnunet: Annotated[
        list[Path] | None,
        typer.Option(metavar="DIR", help="Instead of a bundle: a trained nnU-Net folder, TRAINER__PLANS__CONFIG."),
    ] = None,
    folds: Annotated[
        str | None, typer.Option(metavar="0,1", help="Folds of the nnU-Net model to average.", show_default="all")
    ] = None,
    channels: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=FILE", help="One channel of a single case; repeat for each channel."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Skip complete cases.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing outputs.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps; an absent device is an error.")] = "auto",
    engine: Annotated[
        EngineName, typer.Option(help="auto is OpenVINO on a CPU if it can convert the network, else PyTorch.")
    ] = EngineName.auto,
    precision: Annotated[
        PrecisionName,
        typer.Option(
            help="auto is fp16 on CUDA, bf16 on a CPU that has units for it, else fp32; int8 needs a bundle of "
            "`medseg bundle quantize`."
        ),
    ] = PrecisionName.auto,
    overlap: Annotated[float | None, typer.Option(help="Window overlap in [0, 1).", show_default="bundle's")] = None,
    roi_size: Annotated[
        str | None,
        typer.Option(metavar="X,Y,Z", help="Window size in voxels.", show_default="bundle's"),
    ] = None,
    sw_batch_size: Annotated[int | None, typer.Option(min=1, help="Windows per pass.", show_default="bundle's")] = None,
    tta: Annotated[TtaName, typer.Option(help="Average over mirror images; auto: as the bundle says.")] = TtaName.auto,
    memory: Annotated[
        MemoryName,
        typer.Option(help="low: needs less, by mapping labels back instead of probabilities."),
    ] = MemoryName.auto,
    max_memory: Annotated[
        str | None, typer.Option(metavar="12GB", help="What the whole process may take.", show_default="what is free")
    ] = None,
    skip_empty: Annotated[
        bool | None,
        typer.Option(
            "--skip-empty/--no-skip-empty",
            help="Skip windows whose voxels all have the volume's lowest value.",
            show_default="bundle's",
        ),
    ] = None,
    fast: Annotated[
        bool,
        typer.Option("--fast", help="Same as --overlap 0.25 --tta none --memory low."),
    ] = False,
    labels: Annotated[
        str | None,
        typer.Option(metavar="A,B", help="Keep only these labels (names or numbers)."),
    ] = None,
    largest_component: Annotated[
        bool,
        typer.Option("--largest-component", help="Keep the largest piece of each label."),
    ] = False,
    remove_small: Annotated[float, typer.Option(metavar="MM3", min=0.0, help="Remove pieces below this volume.")] = 0.0,
    threshold: Annotated[
        float | None,
        typer.Option(min=0.0, max=1.0, help="Background where the best class is less likely."),
    ] = None,
    split: Annotated[bool, typer.Option("--split/--one-file", help="One mask per label, or one label map.")] = False,
    label_table: Annotated[
        bool, typer.Option("--label-table", help="Store names inside the mask (NIfTI XML).")
    ] = False,
    save_probabilities: Annotated[
        bool, typer.Option("--save-probabilities", help="Write 4D class probabilities.")
    ] = False,
    samples: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Draw N segmentations of each case; needs a probabilistic network."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the samples.")] = 0,
    save_uncertainty: Annotated[
        bool, typer.Option("--save-uncertainty", help="Write mean probabilities, entropy and variance of the samples.")
    ] = False,
    save_samples: Annotated[bool, typer.Option("--save-samples", help="Write the mask of every sample.")] = False,
    stats: Annotated[Path | None, typer.Option(help="Volumes and more of every label (.json, .csv).")] = None,
    preview: Annotated[
        str | None,
        typer.Option(
            metavar="[KIND=]PATH",
            help="Picture: a .png for a single case, or a folder. slices (default): three slices through the largest "
            "label; mip: maximum intensity projections along three axes. A kind alone goes beside the mask.",
        ),
    ] = None,
    report: Annotated[Path | None, typer.Option(help="What ran, on what, with what result (.json).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per case on stdout.")] = False,
    fail_fast: Annotated[bool, typer.Option("--fail-fast", help="Stop at the first failure.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show tracebacks.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only errors on stderr.")] = False,
) -> None:
    """Segment volumes with a bundle's network.

    Masks lie exactly on the grid of their input. A case that fails leaves no file and does not stop the others.
    """
    if output is None:
        fail("-o is missing: give a folder, or a .nii.gz file for a single case", EXIT_USAGE)
    if fast:
        overlap, tta, memory = overlap or 0.25, TtaName.none, MemoryName.low
    with errors_to_exit_codes(verbose), steps_on_stderr(quiet), choose_model(bundle, nnunet, folds, quiet) as model:
        check_samples(samples, save_uncertainty=save_uncertainty, save_samples=save_samples)
        window = parse_size(roi_size)
        byte_limit = parse_bytes(max_memory)
        keep = parse_labels(labels, model)
        cases = find_inputs(inputs or [], channels or [], model)
        preview_kind, preview_path = parse_preview(preview, output)
        check_outputs(cases, output, model, split, resume or overwrite, stats, preview_path, report)

        from medseg.engines import DeviceNotFoundError, PredictionOptions, Predictor, predict_cases

        try:
            predictor = Predictor(
                model,
                device=device,
                engine=engine.value,
                precision=precision.value,
                overlap=overlap,
                roi_size=window,
                sw_batch_size=sw_batch_size,
                tta=tta.value,
                memory=memory.value,
                max_memory=byte_limit,
                skip_empty=skip_empty,
                samples=samples,
                seed=seed,
            )
        except DeviceNotFoundError as error:
            fail(str(error), EXIT_MISSING)
        options = PredictionOptions(
            labels=keep,
            split=split,
            largest_component=largest_component,
            remove_small=remove_small,
            threshold=threshold,
            save_probabilities=save_probabilities,
            save_uncertainty=save_uncertainty,
            save_samples=save_samples,
            label_table=label_table,
            statistics=stats is not None or as_json,
            preview=preview_path,
            preview_kind=preview_kind,
        )
        if not quiet:
            note(
                f"{model.name} {model.version} on {predictor.device} ({predictor.device_reason}), "
                f"{predictor.backend.name} {predictor.precision}"
            )
            for text in predictor.backend.notes:
                warn(text)
        # Made before the first case: its clock tells how long the run takes.
        run = _begin_report(predictor, options)
        before = {id(case): index for index, case in enumerate(cases)}
        with _progress_bar(len(cases), quiet) as advance:
            results = predict_cases(
                predictor,
                cases,
                output,
                options,
                resume=resume,
                on_windows=lambda case, done, total: advance(before[id(case)] + done / total),
            )
            finished = _follow(results, len(cases), advance, as_json, fail_fast, verbose, quiet)
        _write_summaries(finished, run, stats, report)
    raise typer.Exit(_exit_code(finished, len(cases)))


def _follow(
    results: Iterable[CaseResult],
    total: int,
    advance: Callable[[float], None],
    as_json: bool,
    fail_fast: bool,
    verbose: bool,
    quiet: bool,
) -> list[CaseResult]:
    """Print results as they come; on Ctrl-C return what is done."""
    finished: list[CaseResult] = []
    try:
        for result in results:
            finished.append(result)
            advance(len(finished))
            _print_result(result, len(finished), total, as_json=as_json, verbose=verbose, quiet=quiet)
            if fail_fast and result.status == "failed":
                break
    except KeyboardInterrupt:
        note(f"interrupted after {len(finished)} of {total} cases; run again with --resume to go on")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    failed = [r for r in finished if r.status == "failed"]
    if failed and total > 1:
        note(f"{len(failed)} of {total} cases failed:")
        for result in failed:
            note(f"  {result.case.case_id}: {result.reason}")
    return finished


@contextmanager
def _progress_bar(total: int, quiet: bool) -> Iterator[Callable[[float], None]]:
    """A bar over cases and the windows of the running one; gives a function that takes the number of cases done."""
    if quiet or not sys.stderr.isatty():
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("predict"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("predict", total=total)
        furthest = 0.0

        def advance(done: float) -> None:
            # A case is reported while windows of the next are already done.
            nonlocal furthest
            furthest = max(furthest, done)
            progress.update(task, completed=furthest)

        yield advance


def _print_result(result: CaseResult, index: int, total: int, *, as_json: bool, verbose: bool, quiet: bool) -> None:
    if as_json:
        content = {
            "case": result.case.case_id,
            "status": result.status,
            "outputs": [str(p) for p in result.outputs],
            "seconds": round(result.seconds, 3),
            "notes": result.notes,
            "reason": result.reason,
            "statistics": result.rows,
        }
        typer.echo(json.dumps(content, allow_nan=False))
    elif result.status != "failed":
        typer.echo(str(result.outputs[0]))
    if result.status == "failed":
        note(f"Error: {result.case.case_id}: {result.reason}")
        if verbose:
            note(result.details)
    elif not quiet:
        for text in result.notes:
            warn(f"{result.case.case_id}: {text}")
        if not sys.stderr.isatty():
            note(f"[{index}/{total}] {result.case.case_id}: {result.status}, {result.seconds:.1f} s")


def _begin_report(predictor: Predictor, options: PredictionOptions) -> RunReport:
    from medseg.report import RunReport

    return RunReport(
        bundle=predictor.bundle.name,
        bundle_version=predictor.bundle.version,
        weights_sha256=predictor.weights_sha256,
        device=str(predictor.device),
        engine=predictor.backend.name,
        precision=predictor.precision,
        options={**predictor.settings, **vars(options)},
    )


def _write_summaries(results: Sequence[CaseResult], run: RunReport, stats: Path | None, report: Path | None) -> None:
    from medseg.report import write_statistics

    if stats is not None:
        write_statistics(stats, {r.case.case_id: r.rows for r in results if r.status != "failed"})
    if report is None:
        return
    for r in results:
        run.add_case(
            [str(p) for p in r.case.images],
            output=[str(p) for p in r.outputs],
            status=r.status,
            seconds=r.seconds,
            notes=r.notes,
            reason=r.reason,
            memory_plan={"way": r.plan.way, "estimate_bytes": r.plan.bytes, "available_bytes": r.plan.available}
            if r.plan
            else None,
        )
    run.write(report)


def _exit_code(results: Sequence[CaseResult], total: int) -> int:
    failed = [r for r in results if r.status == "failed"]
    if not failed:
        return 0
    return EXIT_BAD_INPUT if len(failed) == total and all(r.bad_input for r in failed) else EXIT_CASE_FAILED
