"""Public names are stable paths that bundles use: gaining or losing one is a reviewed change of `public_names.txt`.

`python -m tests.test_public_names` writes that list anew.
"""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PINNED = Path(__file__).with_name("public_names.txt")


def find_packages() -> list[str]:
    """Dotted names of medseg and of every public sub-package, at any depth."""
    names = (p.parent.relative_to(ROOT).parts for p in (ROOT / "medseg").rglob("__init__.py"))
    return sorted(".".join(parts) for parts in names if not any(part.startswith("_") for part in parts))


def list_public_names() -> list[str]:
    """Every public name with its package, sorted."""
    return sorted(
        f"{package}.{name}" for package in find_packages() for name in importlib.import_module(package).__all__
    )


def test_the_public_names_are_the_pinned_ones():
    assert list_public_names() == PINNED.read_text(encoding="utf-8").split(), (
        "public names changed; if that is meant: python -m tests.test_public_names, and a line in CHANGELOG.md"
    )


@pytest.mark.parametrize("package", find_packages())
def test_a_package_lists_its_names_sorted_and_has_them_all(package):
    module = importlib.import_module(package)
    assert (module.__doc__ or "").strip()
    assert list(module.__all__) == sorted(set(module.__all__))
    assert [name for name in module.__all__ if not hasattr(module, name)] == []


@pytest.mark.parametrize("package", find_packages())
def test_every_public_class_and_function_says_what_it_is_for(package):
    module = importlib.import_module(package)
    objects = {name: getattr(module, name) for name in module.__all__}
    silent = [
        name
        for name, thing in objects.items()
        if (inspect.isclass(thing) or inspect.isfunction(thing))
        and (not (vars(thing).get("__doc__") if inspect.isclass(thing) else thing.__doc__))
    ]
    assert silent == []


if __name__ == "__main__":
    PINNED.write_text("\n".join(list_public_names()) + "\n", encoding="utf-8")
