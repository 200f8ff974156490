"""Time, peak memory and masks of medseg's inference beside MONAI's and nnU-Net's, on the same machine in one run.

Every contender runs in a process of its own with the same volume, weights, windows (overlap 0.5, Gaussian, no
mirroring) and reads, prepares, predicts, maps back and writes. See README.md in this folder.

    python benchmarks/inference.py --case small --networks dynunet plainconvunet --repeats 4
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
from inference_material import CASES, NETWORKS, OVERLAP, ROOT, Case, write_bundle
from inference_process import Measured, run_measured
from inference_results import agreement_table, compare_masks, draw_ratios, markdown_table, summarise

PROGRAMS = Path(__file__).with_name("inference_contenders.py")
PACKAGES = ("torch", "monai", "nnunetv2", "openvino", "dynamic_network_architectures", "numpy", "nibabel")
MODULES = {
    "nnunet": "nnunetv2",
    "monai:nnunet-weights": "nnunetv2",
    "plainconvunet": "dynamic_network_architectures",
}
PEERS = ("monai", "nnunet", "monai:nnunet-weights")
# Arithmetic units that decide what a CPU back end can do.
CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16")
SEED = 0


class Bench:
    """One network on one case: its files, and the contenders run on them.

    Args:
        folder: an empty folder for all files.
        case: the sizes.
        network: a key of `NETWORKS`.
        device: `cpu` or `cuda`.
        options: further options of `medseg predict`.
    """

    def __init__(self, folder: Path, case: Case, network: str, device: str, options: Sequence[str]) -> None:
        self.folder, self.case, self.device, self.options = folder, case, device, options
        self.volume, self.bundle = folder / "volume.nii.gz", folder / "bundle"
        self.margin = folder / "margin.npy"
        folder.mkdir(parents=True)
        write_bundle(self.bundle, case, network, device)
        self.parameters = self._prepare()

    def mask(self, contender: str) -> Path:
        """Where the contender's first mask is kept."""
        return self.folder / (contender.replace(":", "-") + ".nii.gz")

    def run(self, contender: str, number: int) -> dict[str, Any]:
        """Run a contender once.

        Raises:
            RuntimeError: it failed; the text is the last thing it said.
        """
        output = self.folder / "run" / "mask.nii.gz"
        output.parent.mkdir()
        result = output.with_name("result.json")
        keep_margin = contender == "monai" and number == 0
        if contender.startswith("medseg"):
            command = self._medseg_command(contender, output, result)
        else:
            command = self._program(contender, result, output=output, margin=self.margin if keep_margin else None)
        measured = self._measure(contender, command)
        run: dict[str, Any] = {"contender": contender, "round": number, "wall": measured.wall}
        run["peak_bytes"] = measured.peak_bytes
        content = json.loads(result.read_text(encoding="utf-8"))
        run |= _from_report(content) if contender.startswith("medseg") else content
        if number == 0:
            shutil.move(output, self.mask(contender))
        shutil.rmtree(output.parent)
        return run

    def _prepare(self) -> int:
        result = self.folder / "prepared.json"
        self._measure("prepare", self._program("prepare", result))
        return json.loads(result.read_text(encoding="utf-8"))["parameters"]

    def _program(self, name: str, result: Path, **paths: Path | None) -> list[str]:
        job = {
            "bundle": str(self.bundle),
            "volume": str(self.volume),
            "case": asdict(self.case),
            "device": self.device,
            "seed": SEED,
            "result": str(result),
            **{key: str(path) if path else None for key, path in paths.items()},
        }
        path = self.folder / "job.json"
        path.write_text(json.dumps(job), encoding="utf-8")
        return [sys.executable, "-W", "ignore", str(PROGRAMS), name, str(path)]

    def _medseg_command(self, contender: str, output: Path, report: Path) -> list[str]:
        flags = [
            text for pair in zip(("--engine", "--precision"), contender.split(":")[1:], strict=False) for text in pair
        ]
        command = [sys.executable, "-m", "medseg", "predict", str(self.volume), "-o", str(output)]
        command += ["--bundle", str(self.bundle), "--device", self.device, "--tta", "none", "--quiet"]
        return [*command, "--report", str(report), *flags, *self.options]

    def _measure(self, contender: str, command: Sequence[str]) -> Measured:
        measured = run_measured(command, self._environment(contender), self.folder / "log.txt")
        if measured.exit_code:
            raise RuntimeError(f"exit code {measured.exit_code}: {measured.last_line}")
        return measured

    def _environment(self, contender: str) -> dict[str, str]:
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        # nnU-Net works with 8 threads whatever the machine has, unless told otherwise.
        environment = os.environ | {"nnUNet_def_n_proc": str(_cpus()), "PYTHONPATH": path}
        # A cache of its own for each contender, so that the first round of each is a cold one.
        environment["MEDSEG_CACHE"] = str(self.folder / "cache" / contender.replace(":", "-"))
        # Unset, these make nnU-Net print warnings; inference does not look there.
        environment |= {f"nnUNet_{part}": str(self.folder) for part in ("raw", "preprocessed", "results")}
        if self.device == "cpu":
            environment["CUDA_VISIBLE_DEVICES"] = ""
        return environment


def measure(bench: Bench, contenders: Sequence[str], repeats: int) -> dict[str, Any]:
    """Run all contenders in turn, `repeats` times.

    Returns:
        All runs, and why a contender was not run.
    """
    runs: list[dict[str, Any]] = []
    not_run: dict[str, str] = {}
    for number in range(repeats):
        for contender in contenders:
            if contender in not_run:
                continue
            reason = _absent(contender)
            if reason is None:
                try:
                    runs.append(bench.run(contender, number))
                    _say(f"  round {number}: {contender} {runs[-1]['seconds']:.1f} s")
                except RuntimeError as error:
                    reason = str(error)
                    shutil.rmtree(bench.folder / "run", ignore_errors=True)
            if reason is not None:
                not_run[contender] = reason
                _say(f"  {contender} was not run: {reason}")
    return {"parameters": bench.parameters, "runs": runs, "not_run": not_run}


def conclude(bench: Bench, result: dict[str, Any]) -> None:
    """Compare the masks with the peers' and add the summary.

    Comes after all measuring: a child's peak memory, as the kernel counts it, starts at its parent's.
    """
    finished = [run for run in result["runs"] if run["contender"] not in result["not_run"]]
    first = [run for run in finished if run["round"] == 0]
    for run in first:
        references = [other["contender"] for other in first if other["contender"] in PEERS]
        run["agreement"] = _agreement(bench, run["contender"], references)
    result["summary"] = summarise(finished)


def _agreement(bench: Bench, contender: str, references: Sequence[str]) -> dict[str, Any]:
    """How the contender's mask compares with each peer's."""
    result = {}
    for reference in references:
        margin = bench.margin if reference == "monai" else None
        result[reference] = compare_masks(bench.mask(contender), bench.mask(reference), margin, bench.case.classes)
    return result


def _from_report(report: dict[str, Any]) -> dict[str, Any]:
    """What `medseg predict --report` says about its only case."""
    case = report["cases"][0]
    if case["status"] != "ok":
        raise RuntimeError(f"{case['status']}: {case['reason']}")
    kept = {key: report[key] for key in ("device", "engine", "precision") if key in report}
    return {"seconds": case["seconds"], "parts": case.get("parts") or {}, "notes": case["notes"], **kept}


def _absent(name: str) -> str | None:
    module = MODULES.get(name)
    return f"{module} is not installed" if module and find_spec(module) is None else None


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _machine() -> dict[str, Any]:
    packages = {}
    for name in PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = None
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    fields = {k.strip(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
    flags = f"{fields.get('flags', '')} {fields.get('Features', '')}".split()
    return {
        "processor": fields.get("model name") or platform.processor() or platform.machine(),
        "flags": [flag for flag in CPU_FLAGS if flag in flags],
        "cpus": _cpus(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "system": platform.system(),
        "python": platform.python_version(),
        "packages": packages,
    }


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES, default="small", help="sizes of volume and network")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument(
        "--contenders",
        nargs="+",
        metavar="NAME",
        default=["monai", "nnunet", "medseg:torch:fp32", "medseg:openvino:fp32", "medseg:auto:auto"],
        help=f"{', '.join(PEERS)}, medseg, or medseg:ENGINE:PRECISION, in the order of running",
    )
    parser.add_argument("--repeats", type=int, default=4, help="rounds; the first is reported apart from the others")
    parser.add_argument("--features", nargs="+", type=int, metavar="N", help="channels of the network's levels")
    parser.add_argument("--equal-grid", action="store_true", help="store the volume on the network's grid")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--medseg-options", default="", metavar="TEXT", help="further options of medseg predict")
    parser.add_argument("--work", type=Path, help="folder for volumes and masks, kept; default: a temporary one")
    parser.add_argument("-o", "--output", type=Path, default=Path("benchmarks/results"), help="folder for the results")
    options = parser.parse_args(arguments)
    if unknown := [c for c in options.contenders if c not in PEERS and c.split(":")[0] != "medseg"]:
        parser.error(f"--contenders takes {', '.join(PEERS)} and medseg[:ENGINE[:PRECISION]], got {unknown}")
    if options.repeats < 1:
        parser.error(f"--repeats must be at least 1, got {options.repeats}")
    if taken := [n for n in options.networks if options.work and (options.work / n).exists()]:
        parser.error(f"--work {options.work} already holds {', '.join(taken)}; give an empty folder")
    return options


def _say(text: str) -> None:
    print(text, flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    options = _arguments(arguments)
    case = CASES[options.case]
    case = replace(case, features=tuple(options.features)) if options.features else case
    case = case.on_equal_grid() if options.equal_grid else case
    networks, benches = {}, {}
    with tempfile.TemporaryDirectory() as temporary:
        for network in options.networks:
            if reason := _absent(network):
                _say(f"{network} left out: {reason}")
                continue
            _say(network)
            folder = Path(options.work or temporary).resolve() / network
            benches[network] = Bench(folder, case, network, options.device, shlex.split(options.medseg_options))
            networks[network] = measure(benches[network], options.contenders, options.repeats)
        for network, bench in benches.items():
            conclude(bench, networks[network])
    settings = asdict(case) | {"overlap": OVERLAP, "device": options.device, "medseg_options": options.medseg_options}
    content = {
        "schema": 1,
        "case": options.case,
        "settings": settings,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": ["python", "benchmarks/inference.py", *(sys.argv[1:] if arguments is None else arguments)],
        "machine": _machine(),
        "networks": networks,
    }
    _write(content, options.output, options.case + ("-equal-grid" if options.equal_grid else ""))


def _write(content: dict[str, Any], folder: Path, name: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"inference-{name}.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    table = markdown_table(content["networks"]) + "\n" + agreement_table(content["networks"])
    (folder / f"inference-{name}.md").write_text(table, encoding="utf-8")
    _say(table)
    if not any(result["summary"] for result in content["networks"].values()):
        return
    if find_spec("matplotlib") is None:
        _say("no picture: matplotlib is not installed")
        return
    draw_ratios(content["networks"], folder / f"inference-{name}.png", f"inference, case {name}")


if __name__ == "__main__":
    main()
