"""Find a MONAI bundle and read what it says about itself, without importing torch or MONAI.

A bundle is a folder with `configs/metadata.json`. It is searched in this order, the first hit wins: an existing folder,
the folders listed in the environment variable `MEDSEG_BUNDLES`, the `configs/` folder of a checkout, the copy inside
the installed package.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

ENVIRONMENT_VARIABLE = "MEDSEG_BUNDLES"
METADATA = Path("configs") / "metadata.json"
WEIGHTS = Path("models") / "model.pt"
INT8 = Path("models") / "int8"
_PACKAGE = Path(__file__).parents[1]
_REMOTE = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]+:/")

ConfigKind = Literal["inference", "train", "evaluate", "multi_gpu_train", "metadata"]


@dataclass(frozen=True)
class Bundle:
    """A MONAI bundle on disk: where its parts are, and its metadata.

    Use `Bundle.load` to make one.

    Args:
        path: the bundle's folder, absolute.
        metadata: the content of `configs/metadata.json`.

    Example:
        >>> bundle = Bundle.load("hippocampus_segmentation")  # doctest: +SKIP
        >>> bundle.labels  # doctest: +SKIP
        {1: 'head', 2: 'body'}
    """

    path: Path
    metadata: dict[str, Any]

    @classmethod
    def load(cls, name_or_dir: str | Path) -> Bundle:
        """Read a bundle by its name or its folder.

        Args:
            name_or_dir: a folder that holds `configs/metadata.json`, or the name of a known bundle.

        Returns:
            The bundle; neither its network nor its weights are touched.

        Raises:
            FileNotFoundError: no such bundle; the text lists the known ones and where they were looked for.
            ValueError: an address on the net was given, or the metadata cannot be used.
        """
        path = _find(name_or_dir)
        return cls(path=path, metadata=_read_metadata(path / METADATA))

    @property
    def name(self) -> str:
        """The folder's name, by which the bundle is called on the command line."""
        return self.path.name

    @property
    def title(self) -> str:
        """The name for people, from the metadata; the folder's name when there is none."""
        return str(self.metadata.get("name") or self.name)

    @property
    def version(self) -> str:
        """The bundle's version, from the metadata; `"unknown"` when it gives none."""
        return str(self.metadata.get("version", "unknown"))

    @cached_property
    def labels(self) -> dict[int, str]:
        """Label values and their names in ascending order, background excluded."""
        names = self._channel_def("outputs", "pred")
        return {value: name for value, name in names.items() if not (value == 0 and name.lower() == "background")}

    @cached_property
    def input_channels(self) -> dict[int, str]:
        """Input channel numbers and what each must hold, in ascending order."""
        return self._channel_def("inputs", "image")

    @property
    def weights_path(self) -> Path:
        """Where the weights are, whether they are there or not."""
        return self.path / WEIGHTS

    @property
    def int8_path(self) -> Path:
        """Where a quantised model is, whether it is there or not."""
        return self.path / INT8

    def weights_sha256(self) -> str:
        """SHA-256 of the weights file in hexadecimal, which says exactly what made a result.

        Raises:
            FileNotFoundError: the bundle has no weights.
        """
        if not self.weights_path.is_file():
            raise FileNotFoundError(
                f"bundle {self.name!r} has no weights: {self.weights_path} does not exist; "
                "train the bundle, or copy its weights there"
            )
        digest = hashlib.sha256()
        with self.weights_path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
        return digest.hexdigest()

    def config_path(self, kind: ConfigKind | str = "inference") -> Path:
        """Path of a config file of the bundle.

        Args:
            kind: the file's name without `.json`.

        Raises:
            FileNotFoundError: the bundle has no such config; the text lists those it has.
        """
        path = self.path / "configs" / f"{kind}.json"
        if not path.is_file():
            there = ", ".join(sorted(p.stem for p in path.parent.glob("*.json")))
            raise FileNotFoundError(f"bundle {self.name!r} has no config {kind!r}; it has: {there}")
        return path

    def _channel_def(self, direction: str, key: str) -> dict[int, str]:
        where = f"network_data_format.{direction}.{key}.channel_def"
        found: Any = self.metadata
        for part in where.split("."):
            found = found.get(part) if isinstance(found, Mapping) else None
        if not isinstance(found, Mapping) or not all(str(k).isdecimal() for k in found):
            raise ValueError(
                f"{self.path / METADATA}: {where} must map channel numbers to names, "
                f'such as {{"0": "background", "1": "vessel"}}, got {found!r}'
            )
        return {int(k): str(found[k]) for k in sorted(found, key=int)}


def list_bundles() -> list[Bundle]:
    """Every bundle that can be called by name, sorted by name.

    Of two bundles of one name the one found first is listed (see the module's search order). Folders whose metadata
    cannot be read are left out; `check_bundle` says what is wrong with them.

    Example:
        >>> [b.name for b in list_bundles()]  # doctest: +SKIP
        ['hippocampus_segmentation']
    """
    bundles: dict[str, Bundle] = {}
    for path in _known_bundles():
        if path.name not in bundles:
            try:
                bundles[path.name] = Bundle.load(path)
            except ValueError:
                continue
    return [bundles[name] for name in sorted(bundles)]


def search_folders() -> list[Path]:
    """The folders in which bundles are looked for by name, first to last."""
    listed = [Path(p).expanduser() for p in os.environ.get(ENVIRONMENT_VARIABLE, "").split(os.pathsep) if p.strip()]
    return [*listed, _PACKAGE.parent / "configs", _PACKAGE / "_bundles"]


def _known_bundles() -> Iterator[Path]:
    for folder in search_folders():
        if folder.is_dir():
            yield from sorted(p for p in folder.iterdir() if (p / METADATA).is_file())


def _find(name_or_dir: str | Path) -> Path:
    text = str(name_or_dir)
    if _REMOTE.match(text):
        raise ValueError(
            f"bundle {text!r} is an address on the net; a bundle's config can execute code, so only bundles on this "
            "computer are run. Download it, read its configs, and give the folder"
        )
    if not text.strip():
        raise ValueError("name_or_dir is empty; give the name or the folder of a bundle")
    direct = Path(text).expanduser()
    if (direct / METADATA).is_file():
        return direct.resolve()
    if direct.name == text:
        for folder in search_folders():
            if (folder / text / METADATA).is_file():
                return (folder / text).resolve()
    elif direct.exists():
        raise FileNotFoundError(f"{text!r} is not a bundle: it has no {METADATA}; give the folder that holds configs/")
    known = ", ".join(sorted({p.name for p in _known_bundles()})) or "none"
    looked = ", ".join(str(p) for p in search_folders())
    raise FileNotFoundError(
        f"no bundle {text!r}: known bundles: {known}; looked in {looked}. "
        f"Give the bundle's folder, or name the folder around it in {ENVIRONMENT_VARIABLE}"
    )


def _read_metadata(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(content).__name__}")
    return content
