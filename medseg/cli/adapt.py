"""`medseg adapt`: fit a bundle to the images of a new site, without their labels."""

from __future__ import annotations

import json
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
    warn,
)

if TYPE_CHECKING:
    from medseg.bundles import Bundle
    from medseg.data import ClassRatioPrior
    from medseg.engines import AdaptationResult


class MethodName(str, Enum):
    """How the network adapts."""

    kl = "kl"
    kl_reverse = "kl_reverse"
    batch_norm = "batch_norm"
    tent = "tent"
    entropy = "entropy"
    uniform = "uniform"
    mean_teacher = "mean_teacher"


def adapt(
    images: Annotated[
        list[str], typer.Option(help="Images of the new site: files, folders, patterns or lists; repeat as needed.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the new bundle.")],
    bundle: Annotated[str, typer.Option(help="Name or folder of the trained bundle; it stays as it is.")],
    prior: Annotated[
        Path | None, typer.Option(metavar="CSV", help="Expected share of each class, and tags, by image.")
    ] = None,
    volumes: Annotated[
        str | None,
        typer.Option(
            "--volumes-mm3", metavar="NAME=MM3,...", help="Mean volume of each label, the same for all images."
        ),
    ] = None,
    scale: Annotated[
        float, typer.Option(help="Factor on the expected sizes; too large costs less than too small.")
    ] = 1.0,
    method: Annotated[
        MethodName, typer.Option(help="kl uses the sizes; the others are for comparison.")
    ] = MethodName.kl,
    epochs: Annotated[int, typer.Option(min=1, help="How often the images are gone through.")] = 20,
    learning_rate: Annotated[
        float, typer.Option(help="Of Adam; 1e-6 for thousands of steps, up to 5e-4 for few.")
    ] = 1e-4,
    batch_size: Annotated[int, typer.Option(min=1, help="Images in a batch.")] = 4,
    crops: Annotated[int, typer.Option(min=1, help="Windows of each image in a batch, if it is larger than one.")] = 4,
    ema: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Decay of averaged weights, such as 0.98; 0 for none.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(help="Seed of the run.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in the folder.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Start anew although the folder holds a run.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object per epoch and one at the end on stdout.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show tracebacks.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only errors on stderr.")] = False,
) -> None:
    """Fit a trained bundle to images of a new site, without labels and without the images it was trained on.

    It needs a rough size of each structure. It refines a network that already half works on these images, and cannot
    rescue one that fails: look at the pictures in OUT/adaptation before you use the new bundle.
    """
    with errors_to_exit_codes(verbose):
        from medseg.bundles import Bundle

        try:
            source = Bundle.load(bundle)
        except (ValueError, FileNotFoundError) as error:
            fail(str(error), EXIT_USAGE)
        expected = _read_prior(source, prior, volumes, scale)

        from medseg.data import find_cases
        from medseg.engines import AdaptationOptions, DeviceNotFoundError, adapt_bundle

        cases = find_cases(images, channel_names=list(source.input_channels.values()))

        def show(epoch: Mapping[str, Any]) -> None:
            if as_json:
                typer.echo(json.dumps(dict(epoch), allow_nan=False))
            if not quiet:
                note(_describe(epoch))

        try:
            options = AdaptationOptions(method.value, epochs, learning_rate, batch_size, crops, ema, seed)
        except ValueError as error:
            fail(str(error), EXIT_USAGE)
        try:
            result = adapt_bundle(
                source,
                cases,
                expected,
                output,
                options=options,
                resume=resume,
                overwrite=overwrite,
                device=device,
                progress=show,
            )
        except FileExistsError as error:
            fail(str(error), EXIT_USAGE)
        except DeviceNotFoundError as error:
            fail(str(error), EXIT_MISSING)
        except FloatingPointError as error:
            fail(str(error), EXIT_CASE_FAILED)
        except KeyboardInterrupt:
            fail("interrupted; run again with --resume to go on after the last complete epoch", EXIT_INTERRUPTED)
    _print_result(result, source, as_json=as_json, quiet=quiet)


def _read_prior(bundle: Bundle, path: Path | None, volumes: str | None, scale: float) -> ClassRatioPrior:
    from medseg.data import ClassRatioPrior

    classes = int(bundle.metadata["network_data_format"]["outputs"]["pred"]["num_channels"])
    if (path is None) == (volumes is None):
        fail("give either --prior CSV or --volumes-mm3 NAME=MM3,..., so that the expected sizes are known", EXIT_USAGE)
    try:
        if path is not None:
            return ClassRatioPrior.from_csv(path, num_classes=classes, scale=scale)
        return ClassRatioPrior.from_volumes_mm3(_parse_volumes(str(volumes), bundle), num_classes=classes, scale=scale)
    except FileNotFoundError as error:
        fail(str(error), EXIT_USAGE)
    except ValueError as error:
        fail(str(error), EXIT_USAGE if path is None else EXIT_BAD_INPUT)


def _parse_volumes(text: str, bundle: Bundle) -> dict[int, float]:
    by_name = {name.lower(): value for value, name in bundle.labels.items()} | {str(v): v for v in bundle.labels}
    volumes: dict[int, float] = {}
    for part in text.split(","):
        name, _, number = part.partition("=")
        key = by_name.get(name.strip().lower())
        try:
            value = float(number)
        except ValueError:
            value = -1.0
        if key is None or value <= 0 or key in volumes:
            wanted = ",".join(f"{n.replace(' ', '_')}=1500" for n in bundle.labels.values())
            raise ValueError(f"--volumes-mm3: {part!r} is not NAME=MM3 of a label, named once, such as {wanted}")
        volumes[key] = value
    return volumes


def _describe(epoch: Mapping[str, Any]) -> str:
    text = f"epoch {epoch['epoch']}/{epoch['epochs']}, loss {epoch['loss']:.4f}, entropy {epoch['entropy']:.4f}"
    text += f", kl {epoch['kl']:.4f}, hard ratios {_shares(epoch['hard_ratio'])}"
    return text + (f", ALARM for class {', '.join(map(str, epoch['alarms']))}" if epoch["alarms"] else "")


def _shares(ratios: list[float]) -> str:
    return " ".join(f"{r:.4f}" for r in (ratios[1:] or ratios))


def _print_result(result: AdaptationResult, bundle: Bundle, *, as_json: bool, quiet: bool) -> None:
    if not quiet:
        for text in result.notes:
            warn(text)
        for label in result.after.alarms:
            warn(f"hard and soft ratio of class {label} are far apart: the network is undecided about it")
    if as_json:
        content = {"bundle": str(result.path), "selected_epoch": result.selected_epoch, "notes": list(result.notes)}
        content |= {"before": result.before.to_dict(), "after": result.after.to_dict()}
        typer.echo(json.dumps(content, allow_nan=False))
        return
    typer.echo(f"{'class':<20} {'expected':>9} {'soft before':>12} {'after':>7} {'hard before':>12} {'after':>7}")
    before, after = result.before, result.after
    for label, name in bundle.labels.items():
        c = label if len(after.soft_ratio) > label else label - 1
        soft, hard = (before.soft_ratio[c], after.soft_ratio[c]), (before.hard_ratio[c], after.hard_ratio[c])
        cells = f"{soft[0]:>12.4f} {soft[1]:>7.4f} {hard[0]:>12.4f} {hard[1]:>7.4f}"
        typer.echo(f"{f'{label} {name}':<20} {after.expected_ratio[c]:>9.4f} {cells}")
    typer.echo(str(result.path))
