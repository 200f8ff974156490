"""One stage of serial training: which data, how long, and which weights it starts from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

Items = Sequence[Mapping[str, Any]]


@dataclass
class Stage:
    """A stage of `medseg.engines.SerialTrainer`.

    Attributes:
        name: what the stage is called in the manifest and on disk; letters, digits, `-` and `_`.
        train_data: items to learn from, dictionaries with `image`, `label` and the subject (see `subject_of`).
        val_data: items that decide which weights are the best; empty means the last ones are.
        test_data: items kept for testing; none of their subjects may be learnt from in any stage.
        max_epochs: length of the stage; None is the trainer's.
        lr: learning rate, handed to the optimizer factory.
        transforms: what turns an item into tensors for training.
        val_transforms: the same for validation; `transforms` if None.
        load: weights to start from: "best" or "last" of the stage before (the network's own in the first stage),
            "initial" for those that the whole run started from, or the path of a state dict.
        strict: whether those weights must fit the network; else entries of other names or shapes are left as they are
            at the start of the run, and named in the result.
        reset_optimizer: start with a new optimizer; else go on with the state that the stage before ended with.
        freeze: beginnings of the names of parameters that do not learn in this stage.
        norm_statistics: "parent" keeps the running statistics of batch normalisation that came with the weights,
            "train_data" estimates them anew on this stage's images before it starts.

    Raises:
        ValueError: an option is out of range, or there is nothing to learn from.

    Example:
        >>> stage = Stage("ct", [{"image": "a.nii.gz", "label": "a_seg.nii.gz"}], max_epochs=2)
        >>> stage.load, stage.lr
        ('best', 0.001)
    """

    name: str
    train_data: Items
    val_data: Items = ()
    test_data: Items = ()
    max_epochs: int | None = None
    lr: float = 1e-3
    transforms: Callable[[Any], Any] | None = None
    val_transforms: Callable[[Any], Any] | None = None
    load: str = "best"
    strict: bool = True
    reset_optimizer: bool = True
    freeze: Sequence[str] = ()
    norm_statistics: str = "parent"

    def __post_init__(self) -> None:
        """Refuse what cannot be trained."""
        if not self.name or not all(c.isalnum() or c in "-_" for c in self.name):
            raise ValueError(f"name must consist of letters, digits, - and _, got {self.name!r}")
        if not self.train_data:
            raise ValueError(f"train_data of stage {self.name!r} is empty; give it at least one item")
        if (self.max_epochs is not None and self.max_epochs < 1) or self.lr < 0:
            raise ValueError(f"max_epochs must be at least 1 and lr at least 0, got {self.max_epochs} and {self.lr}")
        if self.norm_statistics not in ("parent", "train_data"):
            raise ValueError(f"norm_statistics must be parent or train_data, got {self.norm_statistics!r}")

    def describe(self, max_epochs: int, subject_key: str) -> dict[str, Any]:
        """What decides the stage's result, as JSON, but for the code of transforms, network and loss."""
        return {
            "name": self.name,
            "max_epochs": self.max_epochs or max_epochs,
            "lr": self.lr,
            "load": self.load,
            "strict": self.strict,
            "reset_optimizer": self.reset_optimizer,
            "freeze": list(self.freeze),
            "norm_statistics": self.norm_statistics,
            "train_sha256": hash_items(self.train_data, subject_key),
            "val_sha256": hash_items(self.val_data, subject_key),
        }


def subject_of(item: Mapping[str, Any], subject_key: str = "subject") -> str:
    """Whom an item shows: `subject_key`, else `sample_id`, else the file name of its image.

    Raises:
        ValueError: the item says nothing of the kind.

    Example:
        >>> subject_of({"subject": "pig 3", "image": "scan.nii"}), subject_of({"image": "a/scan.nii"})
        ('pig 3', 'scan.nii')
    """
    for key in (subject_key, "sample_id"):
        if isinstance(item.get(key), str | int):
            return str(item[key])
    image = item.get("image")
    image = image[0] if isinstance(image, list | tuple) and image else image
    if isinstance(image, str | PurePath):
        return PurePath(image).name
    raise ValueError(
        f"an item says neither {subject_key!r} nor 'sample_id', and its image is no path: give every item its subject, "
        "so that nobody is both learnt from and tested on"
    )


def check_leakage(stages: Sequence[Stage], subject_key: str = "subject") -> None:
    """Refuse stages in which somebody is learnt from who validates or tests in the same or another stage.

    Args:
        stages: all stages of a run.
        subject_key: key of the subject in an item, the same person in every modality.

    Raises:
        ValueError: a subject has two roles; the text names it, and both stages.
    """
    roles = {"train_data": "learnt from", "val_data": "validated on", "test_data": "tested on"}
    seen: dict[str, tuple[str, str]] = {}
    for stage in stages:
        for role in roles:
            for subject in sorted({subject_of(item, subject_key) for item in getattr(stage, role)}):
                before, where = seen.setdefault(subject, (role, stage.name))
                if before != role:
                    raise ValueError(
                        f"subject {subject!r} is {roles[before]} in stage {where!r} and {roles[role]} in stage "
                        f"{stage.name!r}; keep each subject in one role throughout all stages"
                    )


def hash_items(items: Items, subject_key: str = "subject") -> str:
    """SHA-256, in hexadecimal, of the subjects, paths and numbers of a list of items, in their order.

    Arrays and tensors in an item count by their shape alone.

    Example:
        >>> hash_items([{"subject": "a"}]) == hash_items([{"subject": "b"}])
        False
    """
    plain = [[subject_of(item, subject_key), {str(k): _plain(v) for k, v in item.items()}] for item in items]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, str | int | float | bool | None):
        return value
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return list(value.shape) if hasattr(value, "shape") else type(value).__name__
