"""What the tests of Triton kernels share: run a program interpreted, and compile a kernel without a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]
needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")


def interpret(program: str, folder: Path) -> dict[str, str | None]:
    """What every check of a program beside this file said, None where it passed; a wild pointer ends its process."""
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-X", "faulthandler", str(Path(__file__).with_name(program)), str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def compile_for_sm_90(kernel: Any, constants: Mapping[str, Any], types: Mapping[str, str], integers: str) -> Any:
    """Compile one variant of a kernel; arguments that are in neither mapping are integers."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature = {name: "constexpr" if name in constants else types.get(name, integers) for name in kernel.arg_names}
    places = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    return triton.compile(ASTSource(kernel, signature, places), target=GPUTarget("cuda", 90, 32))
