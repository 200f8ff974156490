"""`medseg bundle`: list, describe, check and quantise bundles."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from medseg.cli.console import (
    EXIT_CASE_FAILED,
    EXIT_USAGE,
    errors_to_exit_codes,
    fail,
    note,
)

app = typer.Typer(no_args_is_help=True, help="List, describe, check and quantise bundles.")

_NAME = typer.Argument(metavar="DIR|NAME", help="Folder or name of a bundle.", show_default=False)
_JSON = typer.Option("--json", help="JSON on stdout.")


@app.command("list")
def list_all(as_json: Annotated[bool, _JSON] = False) -> None:
    """List the bundles that can be called by name."""
    from medseg.bundles import list_bundles

    with errors_to_exit_codes():
        bundles = list_bundles()
        if as_json:
            typer.echo(json.dumps([_describe(b) for b in bundles], indent=2))
            return
        for bundle in bundles:
            typer.echo(f"{bundle.name} {bundle.version}: {bundle.title}")
        if not bundles:
            note("no bundle found; name the folder around your bundles in MEDSEG_BUNDLES")


@app.command("info")
def info(name: Annotated[str, _NAME], as_json: Annotated[bool, _JSON] = False) -> None:
    """Show what a bundle takes, gives and is meant for."""
    with errors_to_exit_codes():
        facts = _describe(_load(name))
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    for key, value in facts.items():
        if isinstance(value, dict):
            value = ", ".join(f"{k} {v}" for k, v in value.items())
        typer.echo(f"{(key.replace('_', ' ') + ':').ljust(16)} {value if value is not None else 'none'}")


@app.command("check")
def check(
    name: Annotated[str, _NAME],
    dry_run: Annotated[
        bool, typer.Option("--dry-run/--no-dry-run", help="Segment a small synthetic volume as well.")
    ] = True,
    as_json: Annotated[bool, _JSON] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show tracebacks.")] = False,
) -> None:
    """Check files, metadata, configs, weights and a dry run, offline.

    The bundle's configs are run, and a config can execute code: check only what you would run. Exit code 1 when there
    is an error.
    """
    with errors_to_exit_codes(verbose):
        bundle = _load(name)

        from medseg.bundles import check_bundle

        findings = check_bundle(bundle.path, dry_run=dry_run)
    errors = sum(f.level == "error" for f in findings)
    if as_json:
        rows = [{"level": f.level, "where": f.where, "message": f.message} for f in findings]
        typer.echo(json.dumps({"bundle": bundle.name, "errors": errors, "findings": rows}, indent=2))
    else:
        for finding in findings:
            typer.echo(f"{finding.level}: {finding.where}: {finding.message}")
        typer.echo(f"{bundle.name} {bundle.version}: {errors} errors, {len(findings) - errors} warnings")
    if errors:
        raise typer.Exit(EXIT_CASE_FAILED)


@app.command("quantize")
def quantize(
    name: Annotated[str, _NAME],
    images: Annotated[
        list[str],
        typer.Option(help="Four or more images like those to segment: files, folders, patterns; repeat as needed."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the new bundle.")],
    windows: Annotated[int, typer.Option(min=8, help="Windows that the ranges are measured on.")] = 24,
    seed: Annotated[int, typer.Option(min=0, help="Seed of their choice.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the folder.")] = False,
    as_json: Annotated[bool, _JSON] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show tracebacks.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only errors on stderr.")] = False,
) -> None:
    """Write a copy of a bundle with an int8 model for CPUs, for `medseg predict --precision int8`.

    No labels are needed and nothing is trained. Measure the new bundle with `medseg evaluate` before you use it.
    """
    with errors_to_exit_codes(verbose):
        source = _load(name)

        from medseg.data import find_cases
        from medseg.engines import quantize_bundle

        cases = find_cases(images, channel_names=list(source.input_channels.values()))
        say = None if quiet else note
        try:
            result = quantize_bundle(
                source, cases, output, windows=windows, seed=seed, overwrite=overwrite, progress=say
            )
        except FileExistsError as error:
            fail(str(error), EXIT_USAGE)
    summary = result.summary
    if as_json:
        content = {"bundle": str(result.path), "cases": list(result.cases), "windows": result.windows}
        typer.echo(json.dumps({**content, **asdict(summary)}))
        return
    if not quiet:
        note(
            f"{summary.int8_layers} convolutions in int8, {summary.float_layers} in float32; weights "
            f"{summary.float_bytes / 1e6:.1f} MB to {summary.int8_bytes / 1e6:.1f} MB; on the windows used "
            f"{summary.changed_voxels:.2%} of voxels changed class"
        )
    typer.echo(str(result.path))


def _load(name: str) -> Any:
    from medseg.bundles import Bundle

    try:
        return Bundle.load(name)
    except (ValueError, FileNotFoundError) as error:
        fail(str(error), EXIT_USAGE)


def _describe(bundle: Any) -> dict[str, Any]:
    metadata = bundle.metadata
    try:
        channels, labels = bundle.input_channels, bundle.labels
    except ValueError:
        # One odd bundle must not hide the rest; the check says what is wrong with it.
        channels, labels = {}, {}
    return {
        "name": bundle.name,
        "title": bundle.title,
        "version": bundle.version,
        "task": metadata.get("task"),
        "description": metadata.get("description"),
        "intended_use": metadata.get("intended_use"),
        "input_channels": {str(k): v for k, v in channels.items()},
        "labels": {str(k): v for k, v in labels.items()},
        "authors": metadata.get("authors"),
        "copyright": metadata.get("copyright"),
        "path": str(bundle.path),
        "weights_sha256": bundle.weights_sha256() if bundle.weights_path.is_file() else None,
    }
