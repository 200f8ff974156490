"""`medseg stats`: volumes and more of every label of a mask."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any

import typer

from medseg.cli.console import EXIT_USAGE, errors_to_exit_codes, fail, note, warn


def stats(
    seg: Annotated[Path, typer.Argument(metavar="SEG", help="A mask, NIfTI.", show_default=False)],
    image: Annotated[
        Path | None, typer.Option(metavar="IMG", help="The image on the mask's grid, for intensities.")
    ] = None,
    bundle: Annotated[str | None, typer.Option(help="Bundle whose label names to use, name or folder.")] = None,
    names: Annotated[str | None, typer.Option(metavar="1=A,2=B", help="Label names, in place of a bundle's.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Also write a .json or .csv file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout in place of the table.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show tracebacks.")] = False,
) -> None:
    """Measure every label of a mask: volume, position, pieces and, with an image, intensities."""
    if bundle is not None and names is not None:
        fail("--bundle and --names both name the labels; give one of them", EXIT_USAGE)
    if output is not None and output.suffix.lower() not in (".json", ".csv"):
        fail(f"-o must end in .json or .csv, got {output.name!r}", EXIT_USAGE)
    if output is not None and output.exists() and not overwrite:
        fail(f"{output} exists already; use --overwrite to replace it", EXIT_USAGE)
    with errors_to_exit_codes(verbose):
        label_names = _parse_names(names) if names is not None else _bundle_names(bundle)

        from medseg.data import check_same_grid, read_image, read_mask, strip_nifti_ending
        from medseg.report import label_statistics, write_statistics

        mask = read_mask(seg)
        volume = read_image(image) if image is not None else None
        for text in (*mask.notes, *(volume.notes if volume else ())):
            warn(text)
        if volume is not None:
            check_same_grid(mask, volume)
        rows = label_statistics(
            mask.array, mask.affine, names=label_names, image=volume.array if volume is not None else None
        )
        case = strip_nifti_ending(seg.name)
        if output is not None:
            write_statistics(output, {case: rows})
            note(f"wrote {output}")
        if as_json:
            typer.echo(json.dumps({"case": case, "labels": rows}, allow_nan=False))
        elif rows:
            typer.echo("\n".join(format_table(_table(rows, volume is not None))))
        else:
            note("the mask is empty: no label found")


def format_table(rows: list[list[str]], left: tuple[int, ...] = (1,)) -> list[str]:
    """Lines of a plain table, first row the headings, columns right-aligned but those in `left`."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(
            c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _parse_names(text: str) -> dict[int, str]:
    parts = [p.strip() for p in text.split(",") if p.strip()]
    matches = [re.fullmatch(r"(\d+)\s*=\s*(.+)", p) for p in parts]
    names = {int(m[1]): m[2].strip() for m in matches if m}
    if not parts or len(names) != len(parts):
        fail(f"--names must give each label a name once, such as 1=head,2=body, got {text!r}", EXIT_USAGE)
    return names


def _bundle_names(name: str | None) -> dict[int, str]:
    if name is None:
        return {}

    from medseg.bundles import Bundle

    try:
        return Bundle.load(name).labels
    except (ValueError, FileNotFoundError) as error:
        fail(str(error), EXIT_USAGE)


def _table(rows: list[dict[str, Any]], with_image: bool) -> list[list[str]]:
    heading = ["label", "name", "voxels", "volume mm3", "volume ml", "pieces", "border"]
    if with_image:
        heading += ["mean", "sd", "min", "max"]
    table = [[*heading, "centre mm (R, A, S)"]]
    for row in rows:
        cells = [str(row["label"]), row["name"], str(row["voxels"]), f"{row['volume_mm3']:.1f}"]
        cells += [f"{row['volume_ml']:.3f}", str(row["components"]), "yes" if row["touches_border"] else "no"]
        if with_image:
            numbers = [row[f"intensity_{key}"] for key in ("mean", "sd", "min", "max")]
            cells += ["-" if n is None else f"{n:.5g}" for n in numbers]
        centre = row["centroid_mm"]
        table.append([*cells, "-" if centre is None else ", ".join(f"{c:.1f}" for c in centre)])
    return table
