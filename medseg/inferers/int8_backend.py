"""An int8 model of a network, run by OpenVINO on a CPU.

    <folder>/int8.json     what it was made from: digest of the weights, window, digests of the other files
    <folder>/model.xml, model.bin

Ranges were measured on windows of one size, for one set of weights: other weights and other windows are refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from medseg.inferers.backends import UsedPrecision
from medseg.inferers.openvino_backend import OpenVINOModel

MANIFEST = "int8.json"
FILES = ("model.xml", "model.bin")


class Int8Backend:
    """A quantised network. Call it from one thread at a time.

    Args:
        folder: holds the model and its manifest.
        weights_sha256: digest of the float weights that the model must be made from; None trusts the folder.

    Raises:
        ModuleNotFoundError: OpenVINO is not installed.
        ValueError: a file is missing or not what the manifest says, or the model is of other weights.

    Example:
        >>> backend = Int8Backend(Path("bundle/models/int8"))  # doctest: +SKIP
        >>> backend(torch.zeros(1, 1, 32, 48, 32)).shape  # doctest: +SKIP
        torch.Size([1, 3, 32, 48, 32])
    """

    name = "openvino"
    precision: UsedPrecision = "int8"
    notes: tuple[str, ...] = ()

    def __init__(self, folder: Path, weights_sha256: str | None = None) -> None:
        self.manifest = read_manifest(folder)
        if weights_sha256 not in (None, self.manifest["weights_sha256"]):
            raise ValueError(
                f"{folder} was quantised from other weights than the bundle has now; run 'medseg bundle quantize' again"
            )
        self.window = tuple(int(n) for n in self.manifest["window"])
        try:
            self._model = OpenVINOModel(folder, "int8")
        except ImportError as error:
            raise ModuleNotFoundError(
                f"precision int8 needs OpenVINO, which cannot be imported ({error}); pip install openvino"
            ) from error

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Run the network; see `Backend`."""
        if tuple(x.shape[1:]) != self.window:
            raise ValueError(
                f"the int8 model takes windows of {self.window} (channels first), got {tuple(x.shape[1:])}; leave the "
                "window size as the bundle has it, or use precision fp32"
            )
        return self._model(x)


def write_manifest(folder: Path, content: Mapping[str, Any]) -> None:
    """Add the digests of the model's files, and write the manifest beside them.

    Args:
        folder: holds `model.xml` and `model.bin`.
        content: `weights_sha256`, `window` and whatever else should be known; JSON values.
    """
    files = {name: _sha256(folder / name) for name in FILES}
    text = json.dumps({**content, "files": files}, indent=2, allow_nan=False)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read a manifest, and check that the files are what it says.

    Raises:
        ValueError: they are not, or it cannot be read.
    """
    try:
        content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        wrong = [name for name in FILES if _sha256(folder / name) != content["files"][name]]
        known = isinstance(content["weights_sha256"], str) and isinstance(content["window"], list)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{folder} holds no whole int8 model ({type(error).__name__}: {error}); run 'medseg bundle quantize' again"
        ) from error
    if wrong or not known:
        raise ValueError(
            f"{folder}: {', '.join(wrong) or MANIFEST} is not what the quantisation wrote; run "
            "'medseg bundle quantize' again"
        )
    return content


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
