"""`medseg train`: train a bundle on a data folder."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medseg.cli.console import EXIT_CASE_FAILED, EXIT_MISSING, EXIT_USAGE, errors_to_exit_codes, fail, note

if TYPE_CHECKING:
    from medseg.engines import TrainingProgress


def train(
    data: Annotated[
        Path, typer.Option(help="Decathlon folder, nnU-Net raw folder, or a folder with images/ and labels/.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Run folder; becomes a bundle that `medseg predict` can use.")
    ],
    bundle: Annotated[str, typer.Option(help="Name or folder of the bundle whose training is run.")],
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in the folder.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Start anew although the folder holds a run.")] = False,
    finetune: Annotated[
        bool, typer.Option("--finetune", help="Start from the bundle's weights instead of random ones.")
    ] = False,
    epochs: Annotated[int | None, typer.Option(min=1, help="Number of epochs.", show_default="bundle's")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the run.", show_default="bundle's")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="ID=VALUE", help="Replace an entry of the config; repeat as needed."),
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show tracebacks.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only errors on stderr.")] = False,
) -> None:
    """Train a bundle's network; the best and the last state are kept, and a killed run can be resumed.

    Start it with `torchrun --nproc_per_node N -m medseg train ...` to use several GPUs or processes.
    """
    changes = _parse_overrides(overrides or [])
    changes |= {key: value for key, value in (("max_epochs", epochs), ("seed", seed)) if value is not None}
    with errors_to_exit_codes(verbose):
        from medseg.bundles import Bundle

        try:
            source = Bundle.load(bundle)
        except (ValueError, FileNotFoundError) as error:
            fail(str(error), EXIT_USAGE)

        from medseg.engines import DeviceNotFoundError, train_bundle

        with _progress(quiet) as progress:
            try:
                folder = train_bundle(
                    source,
                    data,
                    output,
                    resume=resume,
                    overwrite=overwrite,
                    finetune=finetune,
                    device=device,
                    overrides=changes,
                    progress=progress,
                )
            except FileExistsError as error:
                fail(str(error), EXIT_USAGE)
            except DeviceNotFoundError as error:
                fail(str(error), EXIT_MISSING)
            except FloatingPointError as error:
                fail(str(error), EXIT_CASE_FAILED)
    typer.echo(str(folder))


def _parse_overrides(texts: list[str]) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            fail(f"--set must look like ID=VALUE, such as --set learning_rate=0.0005, got {text!r}", EXIT_USAGE)
        try:
            changes[key] = json.loads(value)
        except json.JSONDecodeError:
            changes[key] = value
    return changes


@contextmanager
def _progress(quiet: bool) -> Iterator[Callable[[TrainingProgress], None] | None]:
    """A live bar on a terminal, a line an epoch elsewhere."""
    if quiet:
        yield None
        return
    if not sys.stderr.isatty():
        yield _print_epoch
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("starting")

        def show(state: TrainingProgress) -> None:
            done = (state.epoch - 1) * state.epoch_length + state.iteration
            total = state.max_epochs * state.epoch_length
            bar.update(task, description=_describe(state), completed=done, total=total)

        yield show


def _print_epoch(state: TrainingProgress) -> None:
    if state.epoch_done:
        note(_describe(state))


def _describe(state: TrainingProgress) -> str:
    text = f"epoch {state.epoch}/{state.max_epochs}, loss {state.loss:.4f}"
    if state.stage is not None:
        text = f"stage {state.stage}, {text}"
    if state.best_metric is not None:
        text += f", best {state.best_metric:.4f} (epoch {state.best_epoch})"
    return text
