"""Turn the options of `medseg predict` into values, and refuse what cannot work before any time is spent."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from medseg.cli.console import EXIT_BAD_INPUT, EXIT_USAGE, fail, note

if TYPE_CHECKING:
    from medseg.bundles import Bundle
    from medseg.data import Case

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def choose_bundle(name: str | None, quiet: bool) -> Bundle:
    """The bundle named, or the only one there is."""
    from medseg.bundles import Bundle, list_bundles

    try:
        if name is not None:
            return Bundle.load(name)
    except (ValueError, FileNotFoundError) as error:
        fail(str(error), EXIT_USAGE)
    known = list_bundles()
    if len(known) != 1:
        names = ", ".join(b.name for b in known) or "none"
        fail(f"--bundle is missing: give a name or a folder; installed bundles: {names}", EXIT_USAGE)
    if not quiet:
        note(f"using the only installed bundle, {known[0].name} ({', '.join(known[0].labels.values())})")
    return known[0]


@contextmanager
def choose_model(name: str | None, nnunet: list[Path] | None, folds: str | None, quiet: bool) -> Iterator[Bundle]:
    """The bundle to run: one that is there, or an nnU-Net model written as one for as long as it is needed."""
    if not nnunet:
        if folds is not None:
            fail("--folds chooses among the folds of an nnU-Net model; give its folder with --nnunet", EXIT_USAGE)
        yield choose_bundle(name, quiet)
        return
    if name is not None:
        fail("--bundle and --nnunet were both given; choose one model", EXIT_USAGE)
    if len(nnunet) > 1:
        fail(
            f"--nnunet takes one model folder, got {len(nnunet)}; for an ensemble of configurations run each with "
            "--save-probabilities and average those, or use nnUNetv2_ensemble",
            EXIT_USAGE,
        )
    with TemporaryDirectory(prefix="medseg_") as folder:
        yield _write_as_bundle(nnunet[0], folds, Path(folder))


def _write_as_bundle(nnunet: Path, folds: str | None, folder: Path) -> Bundle:
    from medseg.bundles import Bundle
    from medseg.nnunet import NNUNetModel, write_nnunet_bundle

    chosen = None if folds is None else [fold.strip() for fold in folds.split(",")]
    try:
        model = NNUNetModel.read(nnunet, chosen)
        return Bundle.load(write_nnunet_bundle(model, folder / nnunet.resolve().name))
    except (ValueError, FileNotFoundError) as error:
        fail(str(error), EXIT_USAGE)


def parse_size(text: str | None) -> tuple[int, ...] | None:
    """Window size from text such as 96,96,96."""
    if text is None:
        return None
    if not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", text):
        fail(f"--roi-size must be voxel counts such as 96,96,96, got {text!r}", EXIT_USAGE)
    return tuple(int(n) for n in text.split(","))


def parse_bytes(text: str | None) -> int | None:
    """Bytes from text such as 12GB."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)B?", text.strip(), re.IGNORECASE)
    if not match:
        fail(f"--max-memory must be a size such as 12GB or 800MB, got {text!r}", EXIT_USAGE)
    return int(float(match[1]) * _UNITS[match[2].upper()])


def parse_labels(text: str | None, bundle: Bundle) -> tuple[int, ...] | None:
    """Label values from names or numbers; None keeps all."""
    if text is None:
        return None
    by_name = {n.lower(): i for i, n in bundle.labels.items()} | {str(i): i for i in bundle.labels}
    wanted = [t.strip().lower() for t in text.split(",") if t.strip()]
    unknown = [t for t in wanted if t not in by_name]
    if unknown or not wanted:
        known = ", ".join(f"{i} {n}" for i, n in bundle.labels.items())
        fail(f"--labels: {', '.join(unknown) or 'empty'} not known; bundle {bundle.name} has: {known}", EXIT_USAGE)
    return tuple(sorted({by_name[t] for t in wanted}))


def parse_preview(text: str | None, output: Path) -> tuple[str, Path | None]:
    """What a preview shows and where it goes, from a path, a kind, or KIND=PATH; a kind alone goes to the masks."""
    from medseg.engines.prediction_options import PREVIEW_KINDS

    if text is None:
        return "slices", None
    kind, equals, path = text.partition("=")
    if kind not in PREVIEW_KINDS:
        return "slices", Path(text)
    if equals and not path:
        fail(
            f"--preview {text} lacks a path; give {kind}=PATH, or {kind} alone for the folder of the masks", EXIT_USAGE
        )
    return kind, Path(path) if path else output.parent if _is_file(output) else output


def check_samples(samples: int | None, *, save_uncertainty: bool, save_samples: bool) -> None:
    """Refuse to save what only samples have where none are drawn."""
    wanted = {"--save-uncertainty": save_uncertainty, "--save-samples": save_samples}
    lacking = [option for option, is_set in wanted.items() if is_set and samples is None]
    if lacking:
        fail(f"{' and '.join(lacking)} need --samples N, the number of segmentations to draw", EXIT_USAGE)


def find_inputs(inputs: list[str], channels: list[str], bundle: Bundle) -> list[Case]:
    """Cases from INPUT, or one case from named channels."""
    from medseg.data import Case, find_cases, strip_nifti_ending

    names = list(bundle.input_channels.values())
    try:
        if not channels:
            return find_cases(inputs, channel_names=names)
    except (ValueError, OSError) as error:
        fail(str(error), EXIT_BAD_INPUT if inputs else EXIT_USAGE)
    given = dict(c.split("=", 1) for c in channels if "=" in c)
    if inputs or len(given) != len(channels) or {n.lower() for n in given} != {n.lower() for n in names}:
        wanted = " ".join(f"--channels {n}=FILE" for n in names)
        fail(f"--channels stands in place of INPUT and names every channel once: {wanted}", EXIT_USAGE)
    by_name = {n.lower(): Path(p) for n, p in given.items()}
    files = tuple(by_name[n.lower()] for n in names)
    return [Case(strip_nifti_ending(files[0].name), files)]


def check_outputs(
    cases: Sequence[Case],
    output: Path,
    bundle: Bundle,
    split: bool,
    may_exist: bool,
    stats: Path | None,
    preview: Path | None,
    report: Path | None,
) -> None:
    """Refuse what cannot be written before any time is spent."""
    from medseg.data import name_outputs

    if len(cases) > 1 and _is_file(output):
        fail(f"-o {output} is a file, but there are {len(cases)} cases; give a folder", EXIT_USAGE)
    if len(cases) > 1 and preview is not None and preview.suffix.lower() == ".png":
        fail(f"--preview {preview} is a file, but there are {len(cases)} cases; give a folder", EXIT_USAGE)
    if stats is not None and stats.suffix.lower() not in (".json", ".csv"):
        fail(f"--stats must end in .json or .csv, got {stats.name!r}", EXIT_USAGE)
    names = [name_outputs(case, output) for case in cases]
    masks = [p for n in names for p in ([n.split(x) for x in bundle.labels.values()] if split else [n.mask])]
    taken = [p for p in [*masks, stats, report] if p is not None and p.exists()]
    if taken and not may_exist:
        more = f" and {len(taken) - 1} more" if len(taken) > 1 else ""
        fail(f"{taken[0]}{more} exists already; use --resume to skip, or --overwrite to replace", EXIT_USAGE)
    for folder in {masks[0].parent, *(p.parent for p in (stats, report) if p is not None)}:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            probe = folder / ".medseg_write_test"
            probe.touch()
            probe.unlink()
        except OSError as error:
            fail(f"cannot write to {folder}: {error.strerror or error}; choose another folder", EXIT_USAGE)


def _is_file(output: Path) -> bool:
    return output.name.lower().endswith((".nii", ".nii.gz"))
