"""Turn a training folder into lists of image/label pairs with stable sample ids.

Three layouts are understood, tried in this order:

* **nnU-Net raw** (`dataset.json` with `channel_names`): `imagesTr/case_0000.nii.gz`, `labelsTr/case.nii.gz`;
* **Decathlon** (`dataset.json` with a `training` list): paths relative to the folder;
* **plain**: `images/` and `labels/` with equal file names.

Where several experts outlined an image, `dataset.json` lists their files, null where one did not: Decathlon's
`training` as `{"image": "a.nii.gz", "label": ["a_1.nii.gz", null, "a_3.nii.gz"]}`, nnU-Net's `dataset` table as `{"a":
{"images": ["a_0000.nii.gz"], "label": [...]}}`.

Which cases validate is decided, in this order, by `splits.json` (`{"train": [...], "val": [...]}`) or nnU-Net's
`splits_final.json` (a list of such folds) in the folder, else by a seeded split of the sorted ids.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any, Literal

import numpy as np

NIFTI_ENDINGS = (".nii.gz", ".nii")

Sample = dict[str, Any]


def load_datalist(
    data_dir: str,
    section: Literal["training", "validation", "all"] = "all",
    *,
    fold: int = 0,
    num_folds: int = 5,
    seed: int = 0,
) -> list[Sample]:
    """List the labelled samples of a training folder.

    Args:
        data_dir: folder in nnU-Net raw, Decathlon or plain `images/` + `labels/` layout.
        section: the part of the split to return.
        fold: which fold validates, for `splits_final.json` and for the seeded split.
        num_folds: number of folds of the seeded split.
        seed: seed of the split, used only where the folder holds no split of its own.

    Returns:
        Dictionaries with `image` (a path, or a list of paths for several channels), `label` (a path) and
        `sample_id` (a string), sorted by id. With several annotations an image, `label` is a list of equally many
        paths for all, which `LoadImaged` stacks as channels, and `annotation_mask` a boolean array that is false where
        a path only stands in for an annotation that does not exist.

    Raises:
        FileNotFoundError: the folder or a listed file does not exist.
        ValueError: the layout is not understood, a pair is incomplete, or the split names unknown cases.

    Example:
        >>> load_datalist("Task04_Hippocampus", "validation")  # doctest: +SKIP
        [{'sample_id': 'hippocampus_006', 'image': '...', 'label': '...'}, ...]
    """
    root = Path(data_dir)
    if not root.is_dir():
        raise FileNotFoundError(f"data_dir: {data_dir!r} is not a folder; give the folder that holds the training data")
    if section not in ("training", "validation", "all"):
        raise ValueError(f"section must be 'training', 'validation' or 'all', got {section!r}")
    samples = _read_layout(root)
    if section == "all":
        return samples
    train_ids, val_ids = _read_split(root, [s["sample_id"] for s in samples], fold, num_folds, seed)
    wanted = set(train_ids if section == "training" else val_ids)
    return [s for s in samples if s["sample_id"] in wanted]


def _read_layout(root: Path) -> list[Sample]:
    description = root / "dataset.json"
    if description.is_file():
        content = _read_json(description)
        if "channel_names" in content:
            if "dataset" in content:
                samples = _nnunet_table(root, content["dataset"])
            else:
                samples = _nnunet_samples(root, len(content["channel_names"]), content.get("file_ending", ".nii.gz"))
        elif "training" in content:
            samples = _decathlon_samples(root, content["training"])
        else:
            raise ValueError(
                f"{description} has neither 'channel_names' (nnU-Net) nor 'training' (Decathlon); "
                "add one of them, or use a folder with images/ and labels/"
            )
    elif (root / "images").is_dir() and (root / "labels").is_dir():
        samples = _plain_samples(root)
    else:
        raise ValueError(
            f"data_dir {root} is not understood: expected dataset.json with imagesTr/ and labelsTr/ "
            "(nnU-Net raw or Decathlon), or images/ and labels/ with equal file names"
        )
    if not samples:
        raise ValueError(f"data_dir {root} holds no labelled image; looked for *{' and *'.join(NIFTI_ENDINGS)}")
    for sample in samples:
        for path in [*_as_list(sample["image"]), *_as_list(sample["label"])]:
            if path is not None and not Path(path).is_file():
                raise FileNotFoundError(f"sample {sample['sample_id']!r}: {path} does not exist")
    return sorted(_align_annotations(samples), key=lambda s: s["sample_id"])


def _as_list(paths: Any) -> list[Any]:
    return paths if isinstance(paths, list) else [paths]


def _align_annotations(samples: list[Sample]) -> list[Sample]:
    """Give all samples equally many label files where any has a list; one that exists stands in for the rest."""
    if not any(isinstance(s["label"], list) for s in samples):
        return samples
    count = max(len(_as_list(s["label"])) for s in samples)
    aligned = []
    for sample in samples:
        labels = _as_list(sample["label"])
        labels = labels + [None] * (count - len(labels))
        mask = np.array([label is not None for label in labels])
        if not mask.any():
            raise ValueError(f"sample {sample['sample_id']!r} has no annotation at all; leave it out of dataset.json")
        present = labels[int(mask.argmax())]
        aligned.append({**sample, "label": [label or present for label in labels], "annotation_mask": mask})
    return aligned


def _nnunet_samples(root: Path, channels: int, ending: str) -> list[Sample]:
    samples: list[Sample] = []
    for label in (root / "labelsTr").glob(f"*{ending}"):
        case = label.name.removesuffix(ending)
        images = [str(root / "imagesTr" / f"{case}_{c:04d}{ending}") for c in range(channels)]
        samples.append({"sample_id": case, "image": images if channels > 1 else images[0], "label": str(label)})
    return samples


def _nnunet_table(root: Path, table: dict[str, dict[str, Any]]) -> list[Sample]:
    samples: list[Sample] = []
    for case, entry in table.items():
        images = [str(root / image) for image in entry["images"]]
        image = images if len(images) > 1 else images[0]
        samples.append({"sample_id": case, "image": image, "label": _label_paths(root, entry["label"])})
    return samples


def _decathlon_samples(root: Path, entries: list[dict[str, Any]]) -> list[Sample]:
    return [
        {
            "sample_id": strip_nifti_ending(Path(e["image"]).name),
            "image": str(root / e["image"]),
            "label": _label_paths(root, e["label"]),
        }
        for e in entries
    ]


def _label_paths(root: Path, label: str | list[str | None]) -> str | list[str | None]:
    if isinstance(label, str):
        return str(root / label)
    return [None if file is None else str(root / file) for file in label]


def _plain_samples(root: Path) -> list[Sample]:
    labels = {strip_nifti_ending(p.name): p for p in (root / "labels").iterdir() if is_nifti(p)}
    images = {strip_nifti_ending(p.name): p for p in (root / "images").iterdir() if is_nifti(p)}
    alone = sorted(set(labels) ^ set(images))
    if alone:
        raise ValueError(
            f"{root}: images/ and labels/ must hold equal file names; without a partner: {', '.join(alone[:5])}"
            + (f" and {len(alone) - 5} more" if len(alone) > 5 else "")
        )
    return [{"sample_id": case, "image": str(images[case]), "label": str(labels[case])} for case in labels]


def _read_split(root: Path, ids: list[str], fold: int, num_folds: int, seed: int) -> tuple[list[str], list[str]]:
    own, nnunet = root / "splits.json", root / "splits_final.json"
    if own.is_file():
        split = _read_json(own)
    elif nnunet.is_file():
        folds = _read_json(nnunet)
        if not 0 <= fold < len(folds):
            raise ValueError(f"fold must be in [0, {len(folds) - 1}] for {nnunet}, got {fold}")
        split = folds[fold]
    else:
        return _seeded_split(ids, fold, num_folds, seed)
    unknown = sorted({*split["train"], *split["val"]} - set(ids))
    if unknown:
        raise ValueError(f"{root}: the split names cases that have no files: {', '.join(unknown[:5])}")
    return split["train"], split["val"]


def _seeded_split(ids: list[str], fold: int, num_folds: int, seed: int) -> tuple[list[str], list[str]]:
    if not 0 <= fold < num_folds:
        raise ValueError(f"fold must be in [0, {num_folds - 1}], got {fold}")
    if len(ids) < 2:
        raise ValueError(f"a split needs at least 2 labelled cases, got {len(ids)}; add data or give splits.json")
    shuffled = list(ids)
    random.Random(seed).shuffle(shuffled)
    folds = min(num_folds, len(ids))
    val = shuffled[fold % folds :: folds]
    return [i for i in ids if i not in set(val)], sorted(val)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error


def is_nifti(path: Path) -> bool:
    """Whether a path is a NIfTI file by name (`.nii` or `.nii.gz`), hidden files excepted."""
    return path.name.lower().endswith(NIFTI_ENDINGS) and not path.name.startswith(".") and path.is_file()


def strip_nifti_ending(name: str) -> str:
    """File name without `.nii` or `.nii.gz`.

    Example:
        >>> strip_nifti_ending("sub-01_T1w.nii.gz")
        'sub-01_T1w'
    """
    for ending in NIFTI_ENDINGS:
        if name.lower().endswith(ending):
            return name[: -len(ending)]
    return name


def list_images(data_dir: str) -> list[Sample]:
    """List the images of a folder for inference.

    Args:
        data_dir: a folder with images in `imagesTs/` or `images/`, else directly in it.

    Returns:
        Dictionaries with `image` and `sample_id`, sorted by name.

    Raises:
        FileNotFoundError: there is no such folder, or no image in it.
    """
    root = Path(data_dir)
    if not root.is_dir():
        raise FileNotFoundError(f"data_dir: {data_dir!r} is not a folder; give the folder that holds the images")
    folder = next((root / n for n in ("imagesTs", "images") if (root / n).is_dir()), root)
    files = sorted(p for p in folder.iterdir() if is_nifti(p))
    if not files:
        raise FileNotFoundError(f"data_dir: {folder} holds no file that ends in {' or '.join(NIFTI_ENDINGS)}")
    return [{"sample_id": strip_nifti_ending(p.name), "image": str(p)} for p in files]
