"""`medseg info`: versions, bundles and, when asked, devices."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from medseg.cli.console import errors_to_exit_codes

PACKAGES = (
    "torch", "monai", "pytorch-ignite", "numpy", "scipy", "nibabel", "scikit-image",
    "connected-components-3d", "edt", "pillow", "typer", "rich", "tensorboard", "psutil", "triton",
)  # fmt: skip


def info(
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False,
    devices: Annotated[bool, typer.Option("--devices", help="List devices as well; this loads torch.")] = False,
) -> None:
    """Show what is installed: versions, bundles with their labels, devices."""
    with errors_to_exit_codes():
        facts = _collect(devices)
    typer.echo(json.dumps(facts, indent=2) if as_json else "\n".join(_lines(facts)))


def _collect(devices: bool) -> dict[str, Any]:
    import platform

    import medseg
    from medseg.bundles import list_bundles

    facts: dict[str, Any] = {
        "medseg": medseg.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "bundles": [_describe(bundle) for bundle in list_bundles()],
    }
    if devices:
        facts["devices"] = _devices()
    return facts


def _version(name: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _describe(bundle: Any) -> dict[str, Any]:
    try:
        labels = {str(value): name for value, name in bundle.labels.items()}
    except ValueError:
        # One odd bundle must not hide the rest; `medseg bundle check` says what is wrong with it.
        labels = {}
    return {"name": bundle.name, "version": bundle.version, "labels": labels, "path": str(bundle.path)}


def _devices() -> list[dict[str, str]]:
    import platform

    import torch

    found = [{"device": "cpu", "name": f"{platform.machine()}, {torch.get_num_threads()} threads"}]
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            facts = torch.cuda.get_device_properties(index)
            name = f"{facts.name}, {facts.total_memory / 2**30:.0f} GiB"
            found.append({"device": f"cuda:{index}", "name": name})
    if torch.backends.mps.is_available():
        found.append({"device": "mps", "name": "Apple GPU"})
    return found


def _lines(facts: dict[str, Any]) -> list[str]:
    lines = [f"medseg {facts['medseg']}, Python {facts['python']}, {facts['platform']}", "", "Packages"]
    width = max(len(name) for name in facts["packages"])
    lines += [f"  {name.ljust(width)}  {version or 'not installed'}" for name, version in facts["packages"].items()]
    lines += ["", "Bundles"]
    for bundle in facts["bundles"]:
        labels = ", ".join(f"{value} {name}" for value, name in bundle["labels"].items())
        lines.append(f"  {bundle['name']} {bundle['version']}: {labels}")
    lines += [] if facts["bundles"] else ["  none"]
    if "devices" in facts:
        lines += ["", "Devices", *(f"  {d['device']}  {d['name']}" for d in facts["devices"])]
    return lines
