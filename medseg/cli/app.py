"""The command and its verbs."""

from __future__ import annotations

from typing import Annotated

import typer

import medseg
from medseg.cli import adapt, bundle, evaluate, info, nnunet_path, predict, scaling, stats, train

app = typer.Typer(
    name="medseg",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # the coloured help costs 0.15 s of imports; help must answer at once
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Segment medical volumes, train and judge segmentation models.\n\n"
    "Exit codes: 0 all done, 1 at least one case failed, 2 usage error, 3 requested device or optional package "
    "missing, 4 bad input data and nothing succeeded, 130 interrupted.",
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"medseg {medseg.__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and leave.")
    ] = False,
) -> None:
    """Options that stand before the verb."""


app.command("predict", short_help="Segment volumes with a bundle's network.")(predict.predict)
app.command("train", short_help="Train a bundle on a data folder.")(train.train)
app.command("adapt", short_help="Fit a bundle to a new site, without labels.")(adapt.adapt)
app.command("evaluate", short_help="Compare masks with references.")(evaluate.evaluate)
app.command("stats", short_help="Measure every label of a mask.")(stats.stats)
app.command("info", short_help="Show versions, bundles and devices.")(info.info)
app.command("nnunet-path", short_help="Print the folder of trainers for nnU-Net.")(nnunet_path.nnunet_path)
app.add_typer(bundle.app, name="bundle")
app.add_typer(scaling.app, name="scaling")


def main() -> None:
    """Entry point of the console script."""
    app()
