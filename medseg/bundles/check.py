"""Check a bundle offline: is everything there that users, MONAI's applications and this package count on?

The checks of files and texts stand here and need the standard library alone; those that run the bundle are in
`medseg.bundles.trial`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from medseg.bundles.bundle import METADATA, WEIGHTS, Bundle
from medseg.bundles.finding import Finding

_MANDATORY: dict[str, type | tuple[type, ...]] = {
    "version": str,
    "monai_version": str,
    "pytorch_version": str,
    "numpy_version": str,
    "required_packages_version": dict,
    "task": str,
    "description": str,
    "authors": (str, list),
    "copyright": str,
    "network_data_format": dict,
}
_EXPECTED = ("schema", "changelog", "name", "intended_use")
_SEMVER = re.compile(r"\d+\.\d+\.\d+([-+].+)?")
_TENSOR: dict[str, type | tuple[type, ...]] = {
    "num_channels": int,
    "spatial_shape": list,
    "dtype": str,
    "channel_def": dict,
}


def check_bundle(directory: str | Path, *, dry_run: bool = True) -> list[Finding]:
    """Check a bundle's files, texts, configs and weights, and try it on a synthetic volume.

    Nothing is downloaded and nothing is written into the bundle. The bundle's configs are run, and a config can execute
    code: check only what you would run.

    Args:
        directory: the bundle's folder, or the name of a known bundle.
        dry_run: also segment a small oblique volume with the bundle's own preprocessing, inferer and postprocessing.

    Returns:
        What was found, errors first; empty when all is well.

    Raises:
        FileNotFoundError: there is no bundle.
        ValueError: its metadata is not a JSON object, or an address on the net was given.

    Example:
        >>> check_bundle("hippocampus_segmentation")  # doctest: +SKIP
        []
    """
    bundle = Bundle.load(directory)
    findings = [*_check_files(bundle), *_check_metadata(bundle), *_check_texts(bundle)]
    if _is_runnable(bundle, findings):
        from medseg.bundles.trial import try_bundle

        findings += try_bundle(bundle, dry_run=dry_run)
    return sorted(findings, key=lambda f: f.level)


def _is_runnable(bundle: Bundle, findings: list[Finding]) -> bool:
    """Whether its configs are JSON and its metadata name the channels; else a trial tells nothing new."""
    try:
        named = bool(bundle.labels and bundle.input_channels)
    except ValueError:
        return False
    return named and not any("is not valid JSON" in f.message for f in findings)


def _check_files(bundle: Bundle) -> Iterator[Finding]:
    needed = {
        "LICENSE": "the weights need a licence",
        "docs/README.md": "say what the data were, how well it does, and the commands",
        "configs/inference.json": "without it nothing can predict",
        str(WEIGHTS): "train the bundle, or copy its weights there",
    }
    for name, why in needed.items():
        if not (bundle.path / name).is_file():
            yield Finding("error", name, f"missing; {why}")
    if not (bundle.path / "configs" / "train.json").is_file():
        yield Finding("warning", "configs/train.json", "missing; nobody can train the bundle further")


def _check_metadata(bundle: Bundle) -> Iterator[Finding]:
    where, metadata = METADATA.as_posix(), bundle.metadata
    yield from _check_keys(metadata, _MANDATORY, where)
    for key in _EXPECTED:
        if not metadata.get(key):
            yield Finding("warning", where, f"{key} is missing; readers and applications expect it")
    version, changelog = metadata.get("version"), metadata.get("changelog")
    if isinstance(version, str) and not _SEMVER.fullmatch(version):
        yield Finding("error", f"{where}: version", f"must be like 1.2.3, got {version!r}")
    if isinstance(changelog, dict) and version not in changelog:
        yield Finding("error", f"{where}: changelog", f"has no entry for the version {version!r}; add what changed")
    if "optional_packages_version" in metadata:
        yield Finding("warning", where, "optional_packages_version is the old name; use required_packages_version")
    yield from _check_tensors(bundle, where)


def _check_tensors(bundle: Bundle, where: str) -> Iterator[Finding]:
    formats = bundle.metadata.get("network_data_format")
    if not isinstance(formats, Mapping):
        return
    for direction, key in (("inputs", "image"), ("outputs", "pred")):
        spot = f"{where}: network_data_format.{direction}"
        tensors = formats.get(direction)
        if not isinstance(tensors, Mapping) or next(iter(tensors), None) != key:
            got = list(tensors) if isinstance(tensors, Mapping) else tensors
            yield Finding("error", spot, f"the first key must be {key!r}, got {got!r}")
            continue
        tensor = tensors[key]
        if not isinstance(tensor, Mapping):
            yield Finding("error", f"{spot}.{key}", f"must be an object, got {tensor!r}")
            continue
        yield from _check_keys(tensor, _TENSOR, f"{spot}.{key}")
        names = tensor.get("channel_def")
        if not isinstance(names, Mapping):
            continue
        if sorted(names) != sorted(str(i) for i in range(len(names))) or len(names) != tensor.get("num_channels"):
            expected = f"must name the channels 0 to num_channels - 1 = {tensor.get('num_channels')} - 1"
            yield Finding("error", f"{spot}.{key}.channel_def", f"{expected}, got {sorted(names)}")
        if key == "pred" and next(iter(names.items()), None) != ("0", "background") and not _is_sigmoid(bundle):
            message = f'must start with "0": "background" for a softmax model, got {dict(names)!r}'
            yield Finding("error", f"{spot}.{key}.channel_def", message)


def _check_keys(content: Mapping[str, Any], types: Mapping[str, Any], where: str) -> Iterator[Finding]:
    for key, kind in types.items():
        kinds = kind if isinstance(kind, tuple) else (kind,)
        expected = " or ".join(k.__name__ for k in kinds)
        if key not in content:
            yield Finding("error", where, f"{key} is missing; it is mandatory, as {expected}")
        elif not isinstance(content[key], kinds) or isinstance(content[key], bool):
            yield Finding("error", f"{where}: {key}", f"must be {expected}, got {content[key]!r}")


def _is_sigmoid(bundle: Bundle) -> bool:
    """Channels that may overlap have no background channel."""
    path = bundle.path / "configs" / "inference.json"
    return path.is_file() and re.search(r'"sigmoid"\s*:\s*true', path.read_text(encoding="utf-8")) is not None


def _check_texts(bundle: Bundle) -> Iterator[Finding]:
    for path in sorted((bundle.path / "configs").glob("*.json")):
        where = f"configs/{path.name}"
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            yield Finding("error", where, f"is not valid JSON: {error}")
            continue
        for spot, text in _texts(content):
            # References and expressions may use the older separator; a plain text is silently rewritten.
            if "#" in text and not text.startswith(("@", "%", "$")):
                message = f"{text!r} holds a '#', which the config parser rewrites to '::'; write it without"
                yield Finding("error", f"{where}: {spot}", message)


def _texts(content: Any, spot: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(content, str):
        yield spot, content
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in items:
        yield from _texts(value, f"{spot}::{key}" if spot else str(key))
