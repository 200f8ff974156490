"""From what a user types to a list of cases, and from a case to the names of its outputs.

Understood: NIfTI files, folders, glob patterns, BIDS data sets, and lists (`.txt`, `.csv`, `.json`). Several channels
come as nnU-Net names (`case_0000.nii.gz`, `case_0001.nii.gz`) or as rows of a list.
"""

from __future__ import annotations

import csv
import glob
import json
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medseg.data.datalist import NIFTI_ENDINGS, is_nifti, strip_nifti_ending

LIST_ENDINGS = (".txt", ".csv", ".json")
_CHANNEL_SUFFIX = re.compile(r"^(?P<case>.+)_(?P<channel>\d{4})$")


@dataclass(frozen=True)
class Case:
    """One thing to segment.

    Attributes:
        case_id: name of the case, unique in a run; the stem of the outputs.
        images: one file a channel, in the network's order (a single 4D file may hold all channels).
        bids_folder: for BIDS inputs the folder below the data set's root, e.g. `sub-01/anat`; else None.
    """

    case_id: str
    images: tuple[Path, ...]
    bids_folder: Path | None = None


@dataclass(frozen=True)
class OutputNames:
    """Paths of everything that can be written for one case; only `mask` and `sidecar` always are."""

    mask: Path
    sidecar: Path
    probabilities: Path
    preview: Path
    table: Path | None = None

    def split(self, label_name: str) -> Path:
        """Path of the mask of a single label."""
        safe = re.sub(r"[^A-Za-z0-9]+", "-", label_name).strip("-") or "label"
        ending = self.mask.name[len(strip_nifti_ending(self.mask.name)) :]
        if self.table is not None:
            stem = strip_nifti_ending(self.mask.name).removesuffix("_dseg")
            return self.mask.with_name(f"{stem}_label-{safe.replace('-', '')}_mask{ending}")
        return self.mask.with_name(f"{strip_nifti_ending(self.mask.name)}_{safe}{ending}")

    def map_of(self, kind: str) -> Path:
        """Path of a map beside the mask, such as `entropy`."""
        if self.table is not None:
            return self.mask.with_name(f"{self._stem}_stat-{kind}_probseg.nii.gz")
        return self.mask.with_name(f"{self._stem}_{kind}.nii.gz")

    def sample(self, number: int) -> Path:
        """Path of the mask of one of several samples, counted from 1."""
        if self.table is not None:
            return self.mask.with_name(f"{self._stem}Sample{number:02d}_dseg.nii.gz")
        return self.mask.with_name(f"{self._stem}_sample-{number:02d}.nii.gz")

    @property
    def _stem(self) -> str:
        stem = strip_nifti_ending(self.mask.name)
        return stem.removesuffix("_dseg") if self.table is not None else stem.removesuffix("_seg")

    def preview_of(self, kind: str) -> Path:
        """Path of a picture of another kind than the plain one, such as `mip`."""
        if self.table is not None:
            return self.preview.with_name(f"{self.preview.stem.removesuffix('_dseg')}{kind}_dseg.png")
        return self.preview.with_name(f"{self.preview.stem}_{kind}.png")


def find_cases(inputs: Sequence[str | Path], *, channel_names: Sequence[str] = ("image",)) -> list[Case]:
    """List the cases behind command-line inputs.

    Args:
        inputs: files, folders, glob patterns, BIDS roots or lists, in any mixture.
        channel_names: names of the network's input channels, in order; a BIDS data set is searched for the first of
            them as suffix (`T1w`), a list may use them as column names.

    Returns:
        Cases with unique ids, in the order of the inputs, sorted within each.

    Raises:
        ValueError: nothing is found, a channel is missing, or two inputs would get the same output name.

    Example:
        >>> find_cases(["scans/"])  # doctest: +SKIP
        [Case(case_id='scan_01', images=(PosixPath('scans/scan_01.nii.gz'),), bids_folder=None)]
    """
    cases: list[Case] = []
    for item in inputs:
        cases += _expand(Path(item), channel_names)
    _refuse_duplicates(cases)
    return cases


def name_outputs(case: Case, output: Path) -> OutputNames:
    """Where the outputs of a case go.

    Args:
        case: the case.
        output: a mask file (ends in `.nii` or `.nii.gz`), else the output folder.

    Returns:
        `{case}_seg.nii.gz` and its companions; for BIDS cases the derivative names below `derivatives/medseg`, with
        the source's entities kept and only `desc` and the suffix changed.
    """
    if case.bids_folder is not None:
        folder = output / "derivatives" / "medseg" / case.bids_folder
        stem = _bids_stem(case.case_id)
        return OutputNames(
            mask=folder / f"{stem}_dseg.nii.gz",
            sidecar=folder / f"{stem}_dseg.json",
            probabilities=folder / f"{stem}_probseg.nii.gz",
            preview=folder / f"{stem}_dseg.png",
            table=folder / f"{stem}_dseg.tsv",
        )
    if output.name.lower().endswith(NIFTI_ENDINGS):
        folder, stem, mask = output.parent, strip_nifti_ending(output.name), output
    else:
        folder, stem = output, f"{case.case_id}_seg"
        mask = folder / f"{stem}.nii.gz"
    return OutputNames(
        mask=mask,
        sidecar=folder / f"{stem}.json",
        probabilities=folder / f"{stem.removesuffix('_seg')}_probabilities.nii.gz",
        preview=folder / f"{stem}.png",
    )


def _expand(item: Path, channel_names: Sequence[str]) -> list[Case]:
    if item.is_dir():
        return _bids_cases(item, channel_names) if _is_bids(item) else _folder_cases(item, len(channel_names))
    if item.name.lower().endswith(LIST_ENDINGS):
        return _list_cases(item, channel_names)
    if any(c in str(item) for c in "*?[") and not item.exists():
        found = sorted(Path(p) for p in glob.glob(str(item), recursive=True))
        files = [p for p in found if is_nifti(p)]
        if not files:
            raise ValueError(f"INPUT {str(item)!r} matches no NIfTI file; check the pattern (it is relative to here)")
        return _group_channels(files, len(channel_names), str(item))
    return [Case(_stem_without_channel(item, len(channel_names)), _channels_beside(item, len(channel_names)))]


def _stem_without_channel(path: Path, channels: int) -> str:
    stem = strip_nifti_ending(path.name)
    match = _CHANNEL_SUFFIX.match(stem)
    return match["case"] if match and channels > 1 else stem


def _channels_beside(path: Path, channels: int) -> tuple[Path, ...]:
    """The other channels of a file that carries a channel number; a file without one stands for all channels."""
    match = _CHANNEL_SUFFIX.match(strip_nifti_ending(path.name))
    if channels == 1 or not match:
        return (path,)
    ending = path.name[len(strip_nifti_ending(path.name)) :]
    return tuple(path.with_name(f"{match['case']}_{c:04d}{ending}") for c in range(channels))


def _folder_cases(folder: Path, channels: int) -> list[Case]:
    files = sorted(p for p in folder.iterdir() if is_nifti(p))
    if not files:
        below = sum(1 for p in folder.glob("*/*") if is_nifti(p))
        hint = f"its sub-folders hold {below}: give '{folder}/*/*.nii.gz'" if below else "check the path"
        raise ValueError(f"INPUT folder {folder} holds no .nii or .nii.gz file; {hint}")
    return _group_channels(files, channels, str(folder))


def _group_channels(files: list[Path], channels: int, where: str) -> list[Case]:
    if channels == 1:
        return [Case(strip_nifti_ending(p.name), (p,)) for p in files]
    groups: dict[tuple[Path, str], dict[int, Path]] = defaultdict(dict)
    for path in files:
        match = _CHANNEL_SUFFIX.match(strip_nifti_ending(path.name))
        if match:
            groups[path.parent, match["case"]][int(match["channel"])] = path
        else:
            groups[path.parent, strip_nifti_ending(path.name)] = {-1: path}
    cases = []
    for (_, name), found in sorted(groups.items()):
        if -1 in found:
            cases.append(Case(name, (found[-1],)))
            continue
        missing = [c for c in range(channels) if c not in found]
        if missing or len(found) != channels:
            raise ValueError(
                f"INPUT {where}: case {name!r} has the channels {sorted(found)}; the network takes {channels}: "
                f"expected {name}_0000 to {name}_{channels - 1:04d}"
            )
        cases.append(Case(name, tuple(found[c] for c in range(channels))))
    return cases


def _is_bids(folder: Path) -> bool:
    return (folder / "dataset_description.json").is_file() and any(p.is_dir() for p in folder.glob("sub-*"))


def _bids_cases(root: Path, channel_names: Sequence[str]) -> list[Case]:
    if len(channel_names) > 1:
        raise ValueError(f"INPUT {root}: a BIDS data set serves networks with one channel; list the files in a .csv")
    files = sorted(p for pattern in ("sub-*/*/*", "sub-*/ses-*/*/*") for p in root.glob(pattern) if is_nifti(p))
    suffixes = {strip_nifti_ending(p.name).rsplit("_", 1)[-1] for p in files}
    wanted = next((s for s in sorted(suffixes) if s.lower() == channel_names[0].lower()), None)
    if wanted is None:
        raise ValueError(
            f"INPUT {root}: no image with the suffix {channel_names[0]!r}, which the bundle was made for; the data set "
            f"has {sorted(suffixes) or 'no images'}: give the files themselves if one of them fits"
        )
    chosen = [p for p in files if strip_nifti_ending(p.name).rsplit("_", 1)[-1] == wanted]
    return [Case(strip_nifti_ending(p.name), (p,), p.parent.relative_to(root)) for p in chosen]


def _bids_stem(source: str) -> str:
    entities = [e for e in source.split("_")[:-1] if not e.startswith("desc-")]
    return "_".join([*entities, "desc-medseg"])


def _list_cases(path: Path, channel_names: Sequence[str]) -> list[Case]:
    if not path.is_file():
        raise ValueError(f"INPUT list {path} does not exist; check the path")
    text = path.read_text(encoding="utf-8-sig")
    if path.suffix.lower() == ".txt":
        rows: list[list[str]] = [line.split("\t") for line in text.splitlines() if line.strip()]
        rows = [row for row in rows if not row[0].startswith("#")]
    elif path.suffix.lower() == ".csv":
        rows = _csv_rows(path, text, channel_names)
    else:
        rows = _json_rows(path, text, channel_names)
    if not rows:
        raise ValueError(f"INPUT list {path} names no file")
    cases = []
    for row in rows:
        images: tuple[Path, ...] = tuple(_relative_to_list(path, name) for name in row)
        if len(images) not in (1, len(channel_names)):
            raise ValueError(f"INPUT list {path}: a row has {len(images)} files, expected {len(channel_names)}: {row}")
        if len(images) == 1:
            images = _channels_beside(*images, len(channel_names))
        cases.append(Case(_stem_without_channel(images[0], len(channel_names)), images))
    return cases


def _csv_rows(path: Path, text: str, channel_names: Sequence[str]) -> list[list[str]]:
    reader = csv.DictReader(text.splitlines())
    columns = reader.fieldnames or []
    wanted = list(channel_names) if set(channel_names) <= set(columns) else ["image"]
    if not set(wanted) <= set(columns):
        raise ValueError(
            f"INPUT list {path} has the columns {list(columns)}; expected {list(channel_names)}"
            + (" or image" if len(channel_names) == 1 else "")
        )
    return [[row[c] for c in wanted] for row in reader]


def _json_rows(path: Path, text: str, channel_names: Sequence[str]) -> list[list[str]]:
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"INPUT list {path} is not valid JSON: {error}") from error
    if not isinstance(content, list):
        raise ValueError(f"INPUT list {path}: expected a JSON list of paths or objects, got {type(content).__name__}")
    rows = []
    for entry in content:
        value = entry.get("image", [entry.get(c) for c in channel_names]) if isinstance(entry, dict) else entry
        row = value if isinstance(value, list) else [value]
        if not all(isinstance(v, str) for v in row):
            raise ValueError(
                f"INPUT list {path}: expected a path, a list of paths, or an object with 'image' or "
                f"{list(channel_names)}, got {entry!r}"
            )
        rows.append(row)
    return rows


def _relative_to_list(path: Path, name: str) -> Path:
    """A relative entry is looked up beside the list first, then from the working folder."""
    beside = path.parent / name.strip()
    return beside if beside.exists() else Path(name.strip())


def _refuse_duplicates(cases: list[Case]) -> None:
    if not cases:
        raise ValueError("no INPUT: give a NIfTI file, a folder, a pattern, a BIDS data set or a list")
    by_id: dict[tuple[Path | None, str], Case] = {}
    for case in cases:
        key = (case.bids_folder, _bids_stem(case.case_id) if case.bids_folder else case.case_id)
        other = by_id.setdefault(key, case)
        if other is not case:
            raise ValueError(
                f"two inputs would write the same output name {key[1]!r}: {other.images[0]} and {case.images[0]}; "
                "predict them into separate folders, or rename one"
            )
