"""Doctests are collected by importing every module; a few need packages that are extras."""

from __future__ import annotations

from importlib.util import find_spec

_NEEDS = {
    "triton": ["medseg/core/kernels/*_triton.py", "tests/core/kernels/interpret_*.py"],
    "nnunetv2": ["medseg/nnunet/trainers/*.py"],
}
collect_ignore_glob = [path for package, paths in _NEEDS.items() if not find_spec(package) for path in paths]
