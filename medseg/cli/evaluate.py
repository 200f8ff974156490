"""`medseg evaluate`: hold predicted masks against references."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medseg.cli.console import EXIT_CASE_FAILED, EXIT_USAGE, errors_to_exit_codes, fail, note, warn

if TYPE_CHECKING:
    from medseg.engines.evaluation import Comparison, Evaluation


def evaluate(
    pred: Annotated[Path, typer.Argument(metavar="PRED", help="Predicted mask, or a folder of them.")],
    ref: Annotated[
        Path, typer.Argument(metavar="REF", help="Reference mask, or a folder: same names up to _seg, _dseg, ...")
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Write .json (all, with nnU-Net's keys) or .csv (a row a case and label)."),
    ] = None,
    compare: Annotated[
        Path | None,
        typer.Option(metavar="PRED2", help="Second predictions: paired differences PRED - PRED2 with Wilcoxon's p."),
    ] = None,
    labels: Annotated[
        str | None, typer.Option(help="Label ids or names to evaluate, e.g. 1,2.", show_default="all that occur")
    ] = None,
    names: Annotated[str | None, typer.Option(help="Names of labels, e.g. 1=head,2=body.")] = None,
    bundle: Annotated[str | None, typer.Option(help="Take label names from this bundle (name or folder).")] = None,
    nsd_tolerance: Annotated[
        float, typer.Option(min=0.0, help="Tolerance of the normalised surface Dice (NSD) in mm.")
    ] = 1.0,
    empty: Annotated[
        str,
        typer.Option(
            metavar="CASE=RULE,...",
            help="Rules for empty masks. Cases: both (in neither mask), missed (reference only), hallucinated "
            "(prediction only). Rules: nan (not counted), best, worst (overlap 0; distance: diagonal) or a number.",
            show_default="both=nan, others worst",
        ),
    ] = "both=nan,missed=worst,hallucinated=worst",
    missing: Annotated[
        str,
        typer.Option(
            metavar="error|skip|empty", help="References without a prediction: stop, leave out, or count as missed."
        ),
    ] = "error",
    resamples: Annotated[int, typer.Option(min=0, help="Bootstrap resamples for the 95 % intervals.")] = 2000,
    seed: Annotated[int, typer.Option(help="Seed of the bootstrap.")] = 0,
    topology: Annotated[
        bool,
        typer.Option(
            "--topology",
            help="Count wrong components, tunnels and cavities: Betti number errors (b0, b1, b2), and features without "
            "a partner (Betti matching error). Slow where structures fill a large volume.",
        ),
    ] = False,
    preview: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="With --topology, draw matched and unmatched features of PRED, a PNG a label."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing output file.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show tracebacks.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only errors on stderr.")] = False,
) -> None:
    """Measure Dice, IoU, HD95, ASD, NSD and volume errors of predicted masks, per label and case.

    A structure that was missed or hallucinated counts as a failure: overlap 0, distance the image diagonal. It is never
    left out and never scores 0 mm. Intervals are 95 % bootstrap intervals of the mean over cases.
    """
    with errors_to_exit_codes(verbose):
        known = _names(names, bundle)
        options: dict[str, Any] = {
            "names": known,
            "labels": _labels(labels, known),
            "nsd_tolerance_mm": nsd_tolerance,
            "empty": _policy(empty),
            "missing": _one_of(missing, "--missing", ("error", "skip", "empty")),
            "resamples": resamples,
            "seed": seed,
            "topology": topology,
            "preview": preview,
        }
        if preview is not None and not topology:
            fail("--preview draws topological features; give --topology with it", EXIT_USAGE)
        if output is not None:
            _check_target(output, overwrite)
        result = _run(pred, compare, ref, options, quiet)
        _show(result, output, overwrite, as_json)
        failed = _tell(result, quiet)
    if failed:
        raise typer.Exit(EXIT_CASE_FAILED)


def _run(pred: Path, other: Path | None, ref: Path, options: dict[str, Any], quiet: bool) -> Evaluation | Comparison:
    from medseg.engines import evaluation

    with _progress(quiet) as progress:
        if other is None:
            return evaluation.evaluate(pred, ref, progress=progress, **options)
        return evaluation.compare(pred, other, ref, progress=progress, **options)


def _show(result: Evaluation | Comparison, output: Path | None, overwrite: bool, as_json: bool) -> None:
    from medseg.engines.evaluation import Comparison
    from medseg.engines.evaluation_files import compared, summarise, write_evaluation
    from medseg.report.evaluation_tables import comparison_tables, evaluation_tables

    if output is not None:
        write_evaluation(result, output, overwrite=overwrite)
    content = compared(result) if isinstance(result, Comparison) else summarise(result)
    if as_json:
        typer.echo(json.dumps(content, allow_nan=False))
    else:
        typer.echo(comparison_tables(content) if isinstance(result, Comparison) else evaluation_tables(content))


def _tell(result: Evaluation | Comparison, quiet: bool) -> bool:
    """Report what was left out; True when a case failed."""
    from medseg.engines.evaluation import Comparison

    failed = False
    for evaluation in (result.first, result.second) if isinstance(result, Comparison) else (result,):
        if evaluation.unmatched_predictions and not quiet:
            warn(f"no reference for: {_some(evaluation.unmatched_predictions)}")
        if evaluation.unmatched_references and not quiet:
            fate = "counted as empty" if evaluation.settings["missing"] == "empty" else "left out"
            warn(f"no prediction, {fate}: {_some(evaluation.unmatched_references)}")
        for case, reason in evaluation.failures.items():
            note(f"Error: {case} was not evaluated: {reason}")
            failed = True
    return failed


def _names(names: str | None, bundle: str | None) -> dict[int, str]:
    known: dict[int, str] = {}
    if bundle is not None:
        from medseg.bundles import Bundle

        try:
            known.update(Bundle.load(bundle).labels)
        except (ValueError, FileNotFoundError) as error:
            fail(str(error), EXIT_USAGE)
    for part in filter(None, (names or "").split(",")):
        label, equals, name = (p.strip() for p in part.partition("="))
        if not equals or not label.isdigit() or not name:
            fail(f"--names must look like 1=head,2=body, got {part!r}", EXIT_USAGE)
        known[int(label)] = name
    return known


def _labels(text: str | None, names: dict[int, str]) -> list[int] | None:
    if text is None:
        return None
    ids = {name: label for label, name in names.items()}
    chosen = []
    for part in (p.strip() for p in text.split(",")):
        if not part.isdigit() and part not in ids:
            known = f"known names: {', '.join(ids)}" if ids else "give --names or --bundle to use names"
            fail(f"--labels: {part!r} is neither a label id nor a known name; {known}", EXIT_USAGE)
        chosen.append(int(part) if part.isdigit() else ids[part])
    if not all(chosen):
        fail("--labels must be ids above 0; 0 is the background", EXIT_USAGE)
    return chosen


def _policy(text: str) -> dict[str, Any]:
    from medseg.metrics.empty import EmptyPolicy

    try:
        return EmptyPolicy.build(text).to_dict()
    except ValueError as error:
        fail(f"--empty: {error}", EXIT_USAGE)


def _one_of(value: str, option: str, choices: tuple[str, ...]) -> str:
    if value not in choices:
        fail(f"{option} must be one of {', '.join(choices)}, got {value!r}", EXIT_USAGE)
    return value


def _check_target(output: Path, overwrite: bool) -> None:
    from medseg.engines.evaluation_files import check_target

    try:
        check_target(output, overwrite=overwrite)
    except (ValueError, FileExistsError) as error:
        fail(str(error), EXIT_USAGE)


@contextmanager
def _progress(quiet: bool) -> Iterator[Callable[[int, int, str], None] | None]:
    """A bar on a terminal, nothing elsewhere."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("reading")
        yield lambda done, total, case: bar.update(task, description=case, completed=done, total=total)


def _some(paths: tuple[str, ...], limit: int = 5) -> str:
    return ", ".join(paths[:limit]) + (f" and {len(paths) - limit} more" if len(paths) > limit else "")
