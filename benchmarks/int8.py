"""Time and size of a 3D U-Net in float32 and in int8, both run by OpenVINO, by level widths and window.

Weights and windows are drawn: times do not depend on them. Both models take turns; the time is the processor time of a
window, the median of several. See README.md in this folder.

    python benchmarks/int8.py --features 32 64 128 256 320 --window 64 --repeats 5 -o benchmarks/results
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from monai.networks.nets import DynUNet
from own_process import describe_machine

from medseg.data import atomic_path
from medseg.inferers import quantize_int8
from medseg.inferers.openvino_backend import OpenVINOModel, cpu_capabilities
from medseg.inferers.openvino_conversion import convert

CLASSES = 14


def build_network(features: Sequence[int]) -> DynUNet:
    torch.manual_seed(0)
    kernels, strides = [3] * len(features), [1] + [2] * (len(features) - 1)
    norm = ("INSTANCE", {"affine": True})
    return DynUNet(3, 1, CLASSES, kernels, strides, strides[1:], filters=list(features), norm_name=norm).eval()


def time_in_turn(models: dict[str, Callable[[torch.Tensor], Any]], x: torch.Tensor, repeats: int) -> dict[str, float]:
    """Processor seconds of a window; the first of each is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(repeats + 1):
        for name, model in models.items():
            began = time.process_time()
            model(x)
            seconds[name].append(time.process_time() - began)
    return {name: median(values[1:]) for name, values in seconds.items()}


def measure(features: Sequence[int], window: int, repeats: int) -> dict[str, Any]:
    """Convert, quantise and time one network."""
    network = build_network(features)
    x = torch.randn(1, 1, window, window, window)
    with tempfile.TemporaryDirectory() as name:
        folders = {kind: Path(name) / kind for kind in ("fp32", "int8")}
        for folder in folders.values():
            folder.mkdir()
        convert(network, x.shape[1:], folders["fp32"])
        quantize_int8(network, [x[0]], folders["int8"])
        sizes = {kind: (folder / "model.bin").stat().st_size for kind, folder in folders.items()}
        models = {
            "fp32": OpenVINOModel(folders["fp32"], "fp32"),
            "int8": OpenVINOModel(folders["int8"], "int8"),
        }
    return {"features": list(features), "window": window, "bytes": sizes, "seconds": time_in_turn(models, x, repeats)}


def write_table(found: dict[str, Any]) -> str:
    seconds, sizes = found["seconds"], found["bytes"]
    levels = ", ".join(map(str, found["features"]))
    return (
        "| levels | window | float32, s | int8, s | ratio | float32, MB | int8, MB | ratio |\n"
        "|---|---:|---:|---:|---:|---:|---:|---:|\n"
        f"| {levels} | {found['window']} | {seconds['fp32']:.2f} | {seconds['int8']:.2f} "
        f"| {seconds['int8'] / seconds['fp32']:.2f} | {sizes['fp32'] / 1e6:.1f} | {sizes['int8'] / 1e6:.1f} "
        f"| {sizes['int8'] / sizes['fp32']:.2f} |\n"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and write JSON and a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--features", type=int, nargs="+", default=[32, 64, 128, 256, 320], help="channels of the levels"
    )
    parser.add_argument("--window", type=int, default=64, help="voxels of a side")
    parser.add_argument("--repeats", type=int, default=5, help="windows timed of each")
    parser.add_argument("--threads", type=int, help="of both models; by default as torch chooses")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for int8.json and int8.md")
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    found = measure(options.features, options.window, options.repeats)
    machine = {
        **describe_machine(("nncf", "openvino", "torch")),
        "arithmetic": list(cpu_capabilities()),
        "threads": torch.get_num_threads(),
    }
    options.output.mkdir(parents=True, exist_ok=True)
    texts = {"int8.json": json.dumps({**found, "machine": machine}, indent=1), "int8.md": write_table(found)}
    for name, text in texts.items():
        with atomic_path(options.output / name) as part:
            part.write_text(text, encoding="utf-8")
    print(options.output / "int8.md")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
