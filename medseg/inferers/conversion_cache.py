"""Converted networks kept on disk, so that a network is converted once and not once a run.

    <cache folder>/networks/<key>/manifest.json    sizes and SHA-256 of the other files
    <cache folder>/networks/<key>/model.xml, model.bin

The folder is the user's cache folder, or `MEDSEG_CACHE` where that variable is set. The key is a hash of all that the
conversion depends on (`network_key`), so an entry never has to be updated, only made. An entry is written to a
temporary folder that takes its name when it is whole; of several processes that make the same entry at once the first
wins and the others use its files. An entry whose files are not what its manifest says is removed and made again.
Entries that nobody used for 90 days are removed when a new one is written.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from torch import nn

_MANIFEST = "manifest.json"
_UNUSED_SECONDS = 90 * 24 * 3600
# What a killed process left behind; no conversion takes that long.
_ABANDONED_SECONDS = 24 * 3600


def cache_folder() -> Path:
    """Folder of what can be made again; it need not exist.

    Returns:
        The folder that the environment variable `MEDSEG_CACHE` names, or `medseg` in the user's cache folder.

    Example:
        >>> cache_folder().is_absolute()
        True
    """
    override = os.environ.get("MEDSEG_CACHE")
    if override:
        return Path(override).expanduser().absolute()
    import platformdirs

    return Path(platformdirs.user_cache_dir("medseg", appauthor=False))


def folder_size(folder: Path) -> int:
    """Bytes of all files below a folder, 0 where it is absent."""
    sizes = 0
    for path in folder.rglob("*"):
        try:
            sizes += path.stat().st_size if path.is_file() else 0
        except OSError:
            continue  # another process removed it meanwhile
    return sizes


def network_key(network: nn.Module, window_shape: Sequence[int], **facts: str) -> str:
    """Hash everything that the conversion of a network depends on.

    That is: every parameter and buffer with its name, dtype, shape and bytes; the class and the plain attributes of
    every sub-module; the source files of classes that are not PyTorch's own, so that an edited `forward` counts; the
    window shape; and the facts given, such as versions.

    Args:
        network: the network.
        window_shape: shape of its input without the batch, (C, spatial...).
        **facts: whatever else the conversion depends on.

    Returns:
        64 hexadecimal digits.

    Example:
        >>> layer = nn.Conv2d(1, 2, 1)
        >>> network_key(layer, (1, 8, 8)) == network_key(layer, (1, 8, 9))
        False
    """
    digest = hashlib.sha256()
    for text in _architecture(network):
        digest.update(text.encode() + b"\0")
    digest.update(json.dumps([list(window_shape), sorted(facts.items())]).encode())
    # Not the state_dict: it lacks the buffers that are not persistent, and these are constants of the converted graph.
    for named in (network.named_parameters, network.named_buffers):
        for name, tensor in named(remove_duplicate=False):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _architecture(network: nn.Module) -> Iterator[str]:
    sources = set()
    for name, module in network.named_modules(remove_duplicate=False):
        kind = type(module)
        yield f"{name}: {kind.__module__}.{kind.__qualname__} {_plain_attributes(module)}"
        sources.update(c.__module__ for c in kind.__mro__ if c.__module__.split(".")[0] not in ("torch", "builtins"))
    for source in sorted(sources):
        path = getattr(sys.modules.get(source), "__file__", None)
        yield f"{source} {hashlib.sha256(Path(path).read_bytes()).hexdigest() if path and Path(path).is_file() else ''}"


def _plain_attributes(module: nn.Module) -> str:
    return repr([(name, _plain(value)) for name, value in sorted(vars(module).items()) if not name.startswith("_")])


def _plain(value: object) -> object:
    if isinstance(value, (int, float, str, bytes, type(None))):
        return value
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, dict):
        return [(str(k), _plain(v)) for k, v in value.items()]
    # A repr may hold an address, which differs from run to run.
    return getattr(value, "__qualname__", type(value).__qualname__)


class ConversionCache:
    """Entries of files under a key.

    Args:
        root: folder of the entries, by default `networks` in `cache_folder()`. It is made with the first entry.

    Example:
        >>> import tempfile
        >>> cache = ConversionCache(Path(tempfile.mkdtemp()))
        >>> entry = cache.put("key", lambda folder: (folder / "model.bin").write_bytes(b"weights"))
        >>> cache.get("key") == entry
        True
    """

    def __init__(self, root: Path | None = None) -> None:
        self.root = root or cache_folder() / "networks"

    def get(self, key: str) -> Path | None:
        """Find a whole entry; a damaged one is removed.

        Args:
            key: name of the entry.

        Returns:
            The folder of the entry, or None.
        """
        entry = self.root / key
        if not entry.is_dir():
            return None
        if not _is_whole(entry):
            self._remove(entry)
            return None
        with suppress(OSError):  # a read-only cache serves as well
            os.utime(entry / _MANIFEST)  # says when it was last used
        return entry

    def put(self, key: str, write: Callable[[Path], object]) -> Path:
        """Make an entry, or take the one that another process made meanwhile.

        Args:
            key: name of the entry.
            write: writes the files of the entry, flat, into the folder it is given.

        Returns:
            The folder of the entry.

        Raises:
            OSError: the cache folder cannot be written.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        part = self.root / f".{key}.{uuid.uuid4().hex}.part"
        part.mkdir()
        try:
            write(part)
            files = {p.name: [p.stat().st_size, _sha256(p)] for p in sorted(part.iterdir())}
            (part / _MANIFEST).write_text(json.dumps({"files": files}, indent=2), encoding="utf-8")
            entry = self._publish(part, key)
        finally:
            shutil.rmtree(part, ignore_errors=True)
        self._prune()
        return entry

    def _publish(self, part: Path, key: str) -> Path:
        entry = self.root / key
        try:
            part.rename(entry)
        except OSError:
            # The name is taken by the entry of another process. `get` removes it if it is damaged.
            if self.get(key) is None:
                part.rename(entry)
        return entry

    def _remove(self, entry: Path) -> None:
        """Take the name away first, so that nobody meets an entry that is half removed."""
        grave = self.root / f".{entry.name}.{uuid.uuid4().hex}.part"
        try:
            entry.rename(grave)
        except OSError:
            return  # another process was faster, or the folder is read-only
        shutil.rmtree(grave, ignore_errors=True)

    def _prune(self) -> None:
        now = time.time()
        for entry in self.root.iterdir():
            abandoned = entry.name.startswith(".") and entry.name.endswith(".part")
            try:
                age = now - (entry if abandoned else entry / _MANIFEST).stat().st_mtime
            except OSError:
                continue  # no entry of ours, or just removed
            if age > (_ABANDONED_SECONDS if abandoned else _UNUSED_SECONDS):
                self._remove(entry)


def _is_whole(entry: Path) -> bool:
    try:
        files = json.loads((entry / _MANIFEST).read_text(encoding="utf-8"))["files"]
        return all(
            (entry / name).stat().st_size == size and _sha256(entry / name) == sha
            for name, (size, sha) in files.items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
