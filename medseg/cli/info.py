"""`medseg info`: versions, bundles and, when asked, devices."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from medseg.cli.console import errors_to_exit_codes

PACKAGES = (
    "torch", "monai", "pytorch-ignite", "numpy", "scipy", "nibabel", "scikit-image",
    "connected-components-3d", "edt", "pillow", "typer", "rich", "tensorboard", "psutil", "openvino", "triton",
)  # fmt: skip


def info(
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False,
    devices: Annotated[
        bool, typer.Option("--devices", help="List devices, engines and the cache as well; this loads torch.")
    ] = False,
) -> None:
    """Show what is installed: versions, bundles with their labels; devices, engines and the cache of networks."""
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
        facts |= {"devices": _devices(), "engines": _engines(), "cache": _cache()}
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


def _engines() -> list[dict[str, str]]:
    """Engines that run networks, and what the CPU can compute in according to them."""
    import torch

    engines = [{"engine": "torch", "version": torch.__version__, "units": "any device"}]
    try:
        import openvino

        from medseg.inferers.openvino_backend import cpu_capabilities

        units = ", ".join(c for c in cpu_capabilities() if c.startswith(("FP", "BF", "INT")))
        # The version carries the build after a dash.
        version = openvino.__version__.split("-")[0]
        engines.append({"engine": "openvino", "version": version, "units": f"CPU with {units}"})
    except (ImportError, RuntimeError) as error:
        engines.append({"engine": "openvino", "version": "not usable", "units": str(error).splitlines()[0]})
    return engines


def _cache() -> dict[str, Any]:
    from medseg.inferers.conversion_cache import cache_folder, folder_size

    folder = cache_folder()
    return {"path": str(folder), "bytes": folder_size(folder)}


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
        lines += ["", "Engines", *(f"  {e['engine']} {e['version']}: {e['units']}" for e in facts["engines"])]
        lines += ["", "Cache", f"  {facts['cache']['path']}: {facts['cache']['bytes'] / 1e6:.1f} MB"]
    return lines
