"""Find out which prediction belongs to which reference."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from medseg.data.datalist import is_nifti, strip_nifti_ending

# `case_seg`, `sub-01_desc-medseg_dseg` and the like are the case `case`, `sub-01`.
_SUFFIX = re.compile(r"(_desc-[A-Za-z0-9]+)?_(d?seg|mask|pred|prediction|labels?|gt)$")
_NOT_A_MASK = re.compile(r"_(probabilities|probseg)$")


@dataclass(frozen=True)
class CasePair:
    """A prediction and the reference it is held against.

    Attributes:
        case: the case id.
        prediction: the predicted mask; None where there is none.
        reference: the reference mask.
    """

    case: str
    prediction: Path | None
    reference: Path


def case_id(path: Path) -> str:
    """Give the case id of a mask file: its name without the NIfTI ending and without a suffix such as `_seg`.

    Example:
        >>> case_id(Path("sub-01_desc-medseg_dseg.nii.gz")), case_id(Path("hippocampus_001_seg.nii.gz"))
        ('sub-01', 'hippocampus_001')
    """
    return _SUFFIX.sub("", strip_nifti_ending(path.name))


def match_cases(predictions: Path, references: Path) -> tuple[list[CasePair], list[Path]]:
    """Pair two files, or the files of two folders by case id.

    A folder's own files are taken, or those of its sub-folders where it holds none itself. Probability maps are left
    out.

    Args:
        predictions: a mask file or a folder of mask files.
        references: the same for the references.

    Returns:
        One pair for each reference, sorted by case id (`prediction` is None where none was found), and the predictions
        that no reference belongs to.

    Raises:
        FileNotFoundError: a path does not exist.
        ValueError: a file against a folder, an empty folder, two files with one case id, or nothing in common.
    """
    for name, path in (("PRED", predictions), ("REF", references)):
        if not path.exists():
            raise FileNotFoundError(f"{name}: {path} does not exist; check the path")
    if predictions.is_dir() != references.is_dir():
        raise ValueError(f"PRED {predictions} and REF {references} must be two files or two folders, not one of each")
    if predictions.is_file():
        return [CasePair(case_id(references), predictions, references)], []
    preds, refs = _files(predictions), _files(references)
    pairs = [CasePair(case, preds.get(case), ref) for case, ref in sorted(refs.items())]
    if all(pair.prediction is None for pair in pairs):
        raise ValueError(
            f"no file in {predictions} belongs to one in {references}: cases are {_some(preds)} against {_some(refs)}; "
            "names must be equal up to a suffix such as _seg or _dseg"
        )
    return pairs, [path for case, path in sorted(preds.items()) if case not in refs]


def list_some(names: Iterable[str], limit: int = 8) -> str:
    """Join names for a message, the first few and how many more there are."""
    names = list(names)
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def _files(folder: Path) -> dict[str, Path]:
    paths = [p for p in sorted(folder.iterdir()) if is_nifti(p)] or [
        p for p in sorted(folder.rglob("*")) if is_nifti(p)
    ]
    files: dict[str, Path] = {}
    for path in paths:
        if _NOT_A_MASK.search(strip_nifti_ending(path.name)):
            continue
        other = files.setdefault(case_id(path), path)
        if other is not path:
            raise ValueError(
                f"{other} and {path} are both the case {case_id(path)!r}; keep one mask for each case in the folder"
            )
    if not files:
        raise ValueError(f"{folder} holds no mask (.nii or .nii.gz); check the path")
    return files


def _some(files: dict[str, Path]) -> str:
    return list_some(sorted(files), limit=3)
