"""The floors of the house: a package imports only from lower floors, and the command line starts light.

The sources are read, not imported, so the test is fast and sees imports inside functions as well.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "medseg"
FLOORS = {
    "core": 0,
    "topology": 1,
    "losses": 2,
    "metrics": 2,
    "networks": 2,
    "transforms": 2,
    "data": 2,
    "inferers": 3,
    "bundles": 3,
    "report": 3,
    "engines": 4,
    "nnunet": 4,
    "cli": 5,
}
# Siblings may use each other where the arrow reads naturally; these do not.
FORBIDDEN_SIBLINGS = {("metrics", "losses"), ("data", "losses"), ("data", "networks"), ("networks", "losses")}
OUTSIDE = {"pipelines", "configs", "tests", "benchmarks", "sample_data"}
HEAVY = {
    "PIL", "SimpleITK", "cc3d", "edt", "gudhi", "ignite", "matplotlib", "monai", "nibabel", "numba", "numpy", "pandas",
    "scipy", "skimage", "tensorboard", "torch", "triton",
}  # fmt: skip


def find_imports(path: Path, root: Path, *, top_only: bool = False) -> Iterator[tuple[int, str]]:
    """Yield line and absolute dotted name of every import in a source file; `root` is the folder of `medseg`.

    With `top_only`, imports inside functions and under `if TYPE_CHECKING:` are left out: they cost nothing at start.
    """
    package = path.relative_to(root.parent).with_suffix("").parts[:-1]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in _walk_top(tree) if top_only else ast.walk(tree):
        yield from ((node.lineno, name) for name in _imported_names(node, package))


def _imported_names(node: ast.AST, package: tuple[str, ...]) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        base = package[: len(package) - node.level + 1] if node.level else ()
        module = ".".join([*base, *([node.module] if node.module else [])])
        return [f"{module}.{alias.name}" for alias in node.names]
    if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module") and node.args:
        name = node.args[0]
        return [name.value] if isinstance(name, ast.Constant) and isinstance(name.value, str) else []
    return []


def _walk_top(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from _walk_top(child)


def find_broken_floors(root: Path) -> list[str]:
    """List imports that reach up, sideways where they may not, or out of the package."""
    broken = []
    for path in sorted(root.rglob("*.py")):
        here = path.relative_to(root).with_suffix("").parts[0]
        for line, name in find_imports(path, root):
            where = f"{path.relative_to(root.parent)}:{line} imports {name}"
            parts = name.split(".")
            if parts[0] in OUTSIDE:
                broken.append(f"{where}, which is not part of the package")
            if parts[0] != root.name or len(parts) < 2 or here not in FLOORS:
                continue
            there = parts[1]
            if there != here and there in FLOORS and FLOORS[there] > FLOORS[here]:
                broken.append(f"{where} from a higher floor")
            if (here, there) in FORBIDDEN_SIBLINGS:
                broken.append(f"{where}, a sibling it must not know")
    return broken


def find_sibling_cycles(root: Path) -> list[str]:
    """List pairs of sub-packages that import each other."""
    arrows = set()
    for path in root.rglob("*.py"):
        here = path.relative_to(root).with_suffix("").parts[0]
        for _, name in find_imports(path, root):
            parts = name.split(".")
            if parts[0] == root.name and len(parts) > 1 and {here, parts[1]} <= FLOORS.keys() and here != parts[1]:
                arrows.add((here, parts[1]))
    return sorted(f"{a} and {b} import each other" for a, b in arrows if a < b and (b, a) in arrows)


def find_heavy_starts(root: Path) -> list[str]:
    """List imports that would slow down `medseg --help`: heavy packages, or parts of ours that may pull them in."""
    heavy = []
    for path in [root / "__init__.py", *sorted((root / "cli").rglob("*.py"))]:
        if not path.is_file():
            continue
        for line, name in find_imports(path, root, top_only=True):
            parts = name.split(".")
            ours = parts[0] == root.name and len(parts) > 1 and parts[1] in FLOORS and parts[1] != "cli"
            if parts[0] in HEAVY or ours:
                heavy.append(f"{path.relative_to(root.parent)}:{line} imports {name} at module top")
    return heavy


def test_every_package_imports_only_from_lower_floors():
    assert find_broken_floors(PACKAGE) == []


def test_no_two_sub_packages_import_each_other():
    assert find_sibling_cycles(PACKAGE) == []


def test_the_command_line_imports_nothing_heavy_at_module_top():
    assert find_heavy_starts(PACKAGE) == []


def test_every_sub_package_stands_on_a_floor():
    packages = {p.parent.name for p in PACKAGE.glob("*/__init__.py") if not p.parent.name.startswith("_")}
    assert packages <= FLOORS.keys()


@pytest.fixture
def small_house(tmp_path):
    def build(**sources: str) -> Path:
        root = tmp_path / "medseg"
        for name, text in {"__init__": "", "cli__app": "", **sources}.items():
            path = root.joinpath(*name.split("__")).with_suffix(".py") if name != "__init__" else root / "__init__.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return root

    return build


@pytest.mark.parametrize(
    "source",
    [
        "from medseg.engines import Predictor",
        "from medseg import engines",
        "import medseg.engines.predictor",
        "from ..engines import Predictor",
        "from .. import engines",
        "def f():\n    from medseg.engines import Predictor",
        "import importlib\nimportlib.import_module('medseg.engines')",
    ],
)
def test_an_import_from_a_higher_floor_is_found_however_it_is_written(small_house, source):
    assert "from a higher floor" in "".join(find_broken_floors(small_house(metrics__dice=source)))


def test_imports_out_of_the_package_and_of_forbidden_siblings_are_found(small_house):
    root = small_house(metrics__dice="from medseg.losses import MIPLoss", losses__mip="import pipelines.mip")
    assert len(find_broken_floors(root)) == 2


def test_imports_from_below_and_of_other_packages_pass(small_house):
    root = small_house(engines__predictor="import torch\nfrom medseg.data import read_image\nfrom .clean import tidy")
    assert find_broken_floors(root) == []


def test_mutual_imports_are_found(small_house):
    root = small_house(report__table="import medseg.bundles.find", bundles__find="from ..report.table import draw")
    assert find_sibling_cycles(root) == ["bundles and report import each other"]


@pytest.mark.parametrize("source", ["import numpy as np", "from torch import nn", "from medseg.data import Volume"])
def test_a_heavy_import_of_the_command_line_is_found(small_house, source):
    assert len(find_heavy_starts(small_house(cli__predict=source))) == 1
    assert len(find_heavy_starts(small_house(__init__=source, cli__predict=""))) == 1


def test_a_heavy_import_inside_a_verb_or_for_types_passes(small_house):
    source = (
        "from typing import TYPE_CHECKING\nfrom medseg.cli.console import fail\n"
        "if TYPE_CHECKING:\n    import torch\ndef predict():\n    import torch\n"
    )
    assert find_heavy_starts(small_house(cli__predict=source)) == []
