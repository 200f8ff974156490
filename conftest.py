"""Doctests are collected by importing every module; those of Triton kernels need triton, which is an extra."""

from __future__ import annotations

from importlib.util import find_spec

collect_ignore_glob = (
    [] if find_spec("triton") else ["medseg/core/kernels/*_triton.py", "tests/core/kernels/interpret_*.py"]
)
