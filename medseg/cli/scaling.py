"""`medseg scaling`: how many more labelled cases, and whether a training is worth going on with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medseg.cli.console import EXIT_USAGE, errors_to_exit_codes, fail, note, warn

if TYPE_CHECKING:
    from medseg.core.scaling import CurvePosterior, ScalingFit
    from medseg.data import TrainingCurve

app = typer.Typer(no_args_is_help=True, help="Predict from cheap runs what dear ones would give.")

_OUTPUT = typer.Option("--output", "-o", help="Also write the result as .json.")
_PLOT = typer.Option(metavar="PNG", help="Draw runs, prediction and interval (needs matplotlib).")
_JSON = typer.Option("--json", help="JSON on stdout in place of the text.")
_OVERWRITE = typer.Option("--overwrite", help="Replace existing files.")
_VERBOSE = typer.Option("--verbose", "-v", help="Show tracebacks.")


@app.command("annotation-budget")
def annotation_budget(
    runs: Annotated[Path, typer.Argument(metavar="RUNS", help="CSV, a line a run: columns cases and dice.")],
    target_dice: Annotated[float, typer.Option(help="Dice wanted, between 0 and 1.")],
    current: Annotated[
        float | None, typer.Option(min=0, help="Labelled cases at hand.", show_default="most of the runs")
    ] = None,
    cost_per_case: Annotated[float | None, typer.Option(min=0, help="Price of one more case.")] = None,
    cases_column: Annotated[str, typer.Option(help="Column with the number of training cases.")] = "cases",
    dice_column: Annotated[str, typer.Option(help="Column with the mean Dice on a fixed test set.")] = "dice",
    interval: Annotated[float, typer.Option(help="Probability of the intervals.")] = 0.9,
    seed: Annotated[int, typer.Option(help="Seed of the bootstrap.")] = 0,
    plot: Annotated[Path | None, _PLOT] = None,
    output: Annotated[Path | None, _OUTPUT] = None,
    as_json: Annotated[bool, _JSON] = False,
    overwrite: Annotated[bool, _OVERWRITE] = False,
    verbose: Annotated[bool, _VERBOSE] = False,
) -> None:
    """Predict how many more labelled cases bring the mean Dice to a target.

    Fits 1 - Dice = E + B cases^-beta to runs on nested subsets: at least five sizes over a 16-fold range, two or three
    runs each, the same number of iterations and one test set for all.
    """
    if not 0 < target_dice < 1:
        fail(f"--target-dice must lie between 0 and 1, got {target_dice}", EXIT_USAGE)
    if not 0 < interval < 1:
        fail(f"--interval must lie between 0 and 1, got {interval}", EXIT_USAGE)
    _check_targets(plot, output, overwrite)
    with errors_to_exit_codes(verbose):
        from medseg.core import scaling
        from medseg.data import read_runs

        cases, dice = read_runs(runs, cases_column, dice_column)
        fit = _fit_quietly(cases, 1 - dice, seed)
        budget = scaling.annotation_budget(
            fit, 1 - target_dice, current=current, cost_per_case=cost_per_case, interval=interval
        )
        facts = _describe_budget(fit, budget, target_dice, interval)
        if plot is not None:
            _draw_budget(plot, fit, target_dice, budget.cases.x)
        _write(output, facts)
        for text in facts["notes"]:
            warn(text)
        typer.echo(json.dumps(facts, allow_nan=False) if as_json else "\n".join(_tell_budget(facts)))


@app.command("extrapolate")
def extrapolate(
    log: Annotated[Path, typer.Argument(metavar="LOG", help="Run folder or event file of TensorBoard, .json, .jsonl.")],
    end: Annotated[float, typer.Option(help="Last epoch or step of the run, in the unit of the log.")],
    metric: Annotated[
        str | None, typer.Option(help="Name in the log.", show_default="val_mean_dice, or the only one")
    ] = None,
    incumbent: Annotated[
        float | None, typer.Option(help="Value to beat.", show_default="best of this run so far")
    ] = None,
    lower_is_better: Annotated[bool, typer.Option("--lower-is-better", help="The metric is a loss.")] = False,
    largest: Annotated[float, typer.Option(help="Largest value the metric can take; the smallest is 0.")] = 1.0,
    threshold: Annotated[float, typer.Option(help="Advise to stop below this chance of a better end.")] = 0.05,
    margin: Annotated[
        float,
        typer.Option(help="Gain over the value to beat that is worth it; negative where a falling rate still helps."),
    ] = 0.0,
    seed: Annotated[int, typer.Option(help="Seed of the sampler.")] = 0,
    plot: Annotated[Path | None, _PLOT] = None,
    output: Annotated[Path | None, _OUTPUT] = None,
    as_json: Annotated[bool, _JSON] = False,
    overwrite: Annotated[bool, _OVERWRITE] = False,
    verbose: Annotated[bool, _VERBOSE] = False,
) -> None:
    """Predict where a running training will end, and advise to stop or to go on.

    The prediction knows nothing of the learning rate: under a schedule that falls at the end, the last part rises
    faster than the curve so far says. Give that gain as a negative --margin before you trust the advice.
    """
    if not 0 < threshold < 1:
        fail(f"--threshold must lie between 0 and 1, got {threshold}", EXIT_USAGE)
    _check_targets(plot, output, overwrite)
    with errors_to_exit_codes(verbose):
        from medseg.core.scaling import CurveExtrapolator, stop_advice
        from medseg.data import read_training_curve

        curve = read_training_curve(log, metric)
        _check_range(curve, largest)
        posterior = CurveExtrapolator(seed=seed).fit(
            curve.steps, curve.values, end, bounds=(0.0, largest), increasing=not lower_is_better
        )
        best = float(curve.values.min() if lower_is_better else curve.values.max())
        to_beat = best if incumbent is None else incumbent
        if incumbent is None and (beyond := _noise_of_the_best(curve, posterior)) > 0:
            warn(
                f"the best single value lies {beyond:.4g} beyond the curve, as noise of many values will; the advice "
                "compares the curve with it. Give the value to beat as --incumbent"
            )
        advice = stop_advice(posterior, to_beat, points=len(curve.steps), threshold=threshold, margin=margin)
        low, middle, high = posterior.quantile([0.05, 0.5, 0.95])[:, 0].tolist()
        facts = {
            "metric": curve.metric, "validations": len(curve.steps), "last_step": float(curve.steps[-1]), "end": end,
            "best_so_far": best, "to_beat": to_beat, "median": middle, "lower": low, "upper": high,
            "probability": advice.probability, "stop": advice.stop, "reason": advice.reason,
        }  # fmt: skip
        if plot is not None:
            _draw_curve(plot, curve, posterior, to_beat)
        _write(output, facts)
        typer.echo(json.dumps(facts, allow_nan=False) if as_json else "\n".join(_tell_curve(facts)))


def _check_range(curve: TrainingCurve, largest: float) -> None:
    if not 0 <= curve.values.min() <= curve.values.max() <= largest:
        raise ValueError(
            f"{curve.metric} runs from {curve.values.min():.4g} to {curve.values.max():.4g}, not within 0 and "
            f"{largest:g}; give the largest value it can take as --largest"
        )


def _noise_of_the_best(curve: TrainingCurve, posterior: CurvePosterior) -> float:
    """How far the best value lies beyond the curve without noise; 0 where that is not out of the ordinary."""
    import numpy as np

    smooth = posterior.quantile(0.5, curve.steps)
    better = (curve.values - smooth) * (1 if posterior.increasing else -1)
    beyond = better[np.argmax(curve.values * (1 if posterior.increasing else -1))]
    return float(beyond) if beyond > 2 * better.std() else 0.0


def _fit_quietly(cases: Any, errors: Any, seed: int) -> ScalingFit:
    """Fit without Python's warnings: the notes say the same, and go to the user with the result."""
    import warnings

    from medseg.core.scaling import IdentifiabilityWarning, PowerLawOffset

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", IdentifiabilityWarning)
        return PowerLawOffset().fit(cases, errors, seed=seed)


def _describe_budget(fit: ScalingFit, budget: Any, target: float, interval: float) -> dict[str, Any]:
    have = sorted({float(n) for n in fit.x[:, 0]})
    notes = list(fit.notes)
    if len(have) < 5 or have[-1] < 16 * have[0]:
        notes.append(
            f"{len(have)} sizes from {have[0]:g} to {have[-1]:g} cases are too few for honest intervals; take at least "
            "five over a 16-fold range"
        )
    if budget.cases.x > 8 * have[-1]:
        notes.append(f"the target lies more than 8 times beyond {have[-1]:g} cases, where a law is a guess")
    test = fit.backtest
    return {
        "target_dice": target,
        "runs": len(fit.y),
        "sizes": have,
        "law": fit.params,
        "interval": interval,
        "cases": _ends(budget.cases.x, budget.cases.lower, budget.cases.upper),
        "additional_cases": _ends(*budget.additional),
        "chance_reachable": budget.cases.reachable,
        "dice_per_case": budget.gain_per_case,
        "cost": None if budget.cost is None else _ends(*budget.cost),
        "backtest": None if test is None else {
            "cases": test.x[0], "dice": 1 - test.observed,
            "predicted": _ends(1 - test.predicted, 1 - test.upper, 1 - test.lower),
        },
        "notes": notes,
    }  # fmt: skip


def _ends(value: float, lower: float, upper: float) -> dict[str, float | None]:
    """A value with its interval; None for infinity and NaN, which JSON does not know."""
    numbers = {"value": float(value), "lower": float(lower), "upper": float(upper)}
    return {key: number if abs(number) < float("inf") else None for key, number in numbers.items()}


def _tell_budget(facts: dict[str, Any]) -> list[str]:
    law, cases, more, test = facts["law"], facts["cases"], facts["additional_cases"], facts["backtest"]
    lines = [
        f"{facts['runs']} runs: Dice = {1 - law['E']:.4f} - {law['B']:.4g} cases^-{law['beta']:.3g}",
        f"cases for a Dice of {facts['target_dice']:g}: {_range(cases, facts['interval'])}",
        f"more cases: {_range(more, facts['interval'])}",
        f"chance that any number reaches it: {facts['chance_reachable']:.0%}",
        f"one more case now: Dice + {facts['dice_per_case']:.2g}",
    ]
    if facts["cost"] is not None:
        lines.append(f"cost: {_range(facts['cost'], facts['interval'])}")
    if test is not None:
        predicted = _range(test["predicted"], 0.9, ".4f")
        lines.append(f"back-test, {test['cases']:g} cases: {test['dice']:.4f}, predicted {predicted}")
    return lines


def _range(ends: dict[str, Any], interval: float, form: str = ",.0f") -> str:
    value, low, high = (
        "out of reach" if ends[k] is None else format(ends[k], form) for k in ("value", "lower", "upper")
    )
    return f"{value} ({interval:.0%} interval {low} to {high})"


def _tell_curve(facts: dict[str, Any]) -> list[str]:
    return [
        f"{facts['metric']}: {facts['validations']} validations up to {facts['last_step']:g} of {facts['end']:g}, "
        f"best so far {facts['best_so_far']:.4f}",
        f"at the end: {facts['median']:.4f} (90% interval {facts['lower']:.4f} to {facts['upper']:.4f})",
        facts["reason"],
    ]


def _draw_budget(plot: Path, fit: ScalingFit, target: float, cases: float) -> None:
    from medseg.report import draw_annotation_budget

    largest = max(4 * float(fit.x.max()), 1.3 * cases) if cases < float("inf") else None
    draw_annotation_budget(plot, fit, target=target, largest=largest)
    note(f"wrote {plot}")


def _draw_curve(plot: Path, curve: TrainingCurve, posterior: CurvePosterior, to_beat: float) -> None:
    from medseg.report import draw_extrapolation

    draw_extrapolation(plot, curve.steps, curve.values, posterior, metric=curve.metric, incumbent=to_beat)
    note(f"wrote {plot}")


def _check_targets(plot: Path | None, output: Path | None, overwrite: bool) -> None:
    for path, ending, option in ((plot, ".png", "--plot"), (output, ".json", "-o")):
        if path is None:
            continue
        if path.suffix.lower() != ending:
            fail(f"{option} must end in {ending}, got {path.name!r}", EXIT_USAGE)
        if path.exists() and not overwrite:
            fail(f"{path} exists already; use --overwrite to replace it", EXIT_USAGE)


def _write(path: Path | None, facts: dict[str, Any]) -> None:
    if path is None:
        return
    from medseg.data import atomic_path

    with atomic_path(path) as part:
        part.write_text(json.dumps(facts, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    note(f"wrote {path}")
