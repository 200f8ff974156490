from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from medseg.core.kernels import max_projections

ROOT = Path(__file__).resolve().parents[3]
needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory) -> dict[str, str | None]:
    """What every check of `interpret_projection.py` said, None where it passed; a wild pointer ends the process."""
    program = Path(__file__).with_name("interpret_projection.py")
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-X", "faulthandler", str(program), str(tmp_path_factory.mktemp("interpreted"))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@needs_triton
@pytest.mark.parametrize(
    "check",
    [
        "bits_of_the_reference",
        "opcheck",
        "equal_runs",
        "strides_beyond_32_bits",
        "nothing_is_written_outside",
    ],
)
def test_the_interpreted_kernels_pass(check, interpreted):
    assert interpreted[check] is None, interpreted[check]


TILES = {"PLANES": 32, "TILE_H": 32, "TILE_W": 64}


def compile_kernel(name: str, constants: dict[str, bool | int], dtype: str, integers: str) -> Any:
    """Compile for sm_90, which needs no GPU."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from medseg.core.kernels import projection_triton

    def type_of(argument: str) -> str:
        if argument in constants:
            return "constexpr"
        if argument.startswith(("keys", "index", "indices")):
            return "*i64"
        return f"*{dtype}" if argument.startswith(("volume", "values", "gradient")) else integers

    function = getattr(projection_triton, name)
    places = {(function.arg_names.index(argument),): value for argument, value in constants.items()}
    source = ASTSource(function, {argument: type_of(argument) for argument in function.arg_names}, places)
    return triton.compile(source, target=GPUTarget("cuda", 90, 32))


@pytest.fixture
def compiler(tmp_path, monkeypatch) -> Callable[..., Any]:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "0")  # unset, Triton 3.9 warns that its default will change
    return compile_kernel


@needs_triton
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize(
    ("kernel", "constants"),
    [
        ("find_keys", {"WITH_D": True, "WITH_H": True, "WITH_W": True} | TILES),
        ("find_keys", {"WITH_D": False, "WITH_H": True, "WITH_W": False} | TILES),
        ("read_keys", {"DIM": 1, "BLOCK": 1024}),
        ("spread_gradients", {"FIRST": 2, "SECOND": 0, "THIRD": 1} | TILES),
        ("spread_gradients", {"FIRST": 1, "SECOND": -1, "THIRD": -1} | TILES),
    ],
)
def test_kernels_compile_for_sm_90_without_a_gpu(kernel, constants, dtype, compiler):
    compiled = compiler(kernel, constants, dtype, "i64")
    assert compiled.asm["cubin"]
    assert compiled.metadata.shared <= 227 * 1024


@needs_triton
@pytest.mark.parametrize(
    ("kernel", "constants"),
    [
        ("find_keys", {"WITH_D": True, "WITH_H": True, "WITH_W": True} | TILES),
        ("read_keys", {"DIM": 0, "BLOCK": 1024}),
        ("spread_gradients", {"FIRST": 0, "SECOND": 1, "THIRD": 2} | TILES),
    ],
)
def test_no_product_of_an_offset_has_32_bits_although_sizes_and_strides_do(kernel, constants, compiler):
    # Launched, an integer that fits in 32 bits has 32. What may stay so are the tiles along each of three axes.
    code = compiler(kernel, constants, "fp16", "i32").asm["ttir"]
    products = re.findall(r"arith\.muli [^:]*: (\S+)", code)
    assert "i64" in products
    assert [kind for kind in products if "i64" not in kind] == ["i32"] * (0 if kernel == "read_keys" else 3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_kernels_give_the_references_results_on_a_gpu(dtype):
    volume = torch.randn(2, 2, 35, 40, 70, device="cuda").to(dtype).requires_grad_()
    want = max_projections(volume, backend="torch")
    got = max_projections(volume, backend="triton")
    for one, other in zip(want, got, strict=True):
        assert torch.equal(one.indices, other.indices)
        assert torch.equal(one.values, other.values)
    given = [torch.randn_like(one.values) for one in want]
    (left,) = torch.autograd.grad([one.values for one in want], volume, given)
    (right,) = torch.autograd.grad([one.values for one in got], volume, given)
    assert torch.equal(left, right)
    for _ in range(3):
        again = max_projections(volume, backend="triton")
        assert all(torch.equal(one.indices, other.indices) for one, other in zip(got, again, strict=True))
        (gradient,) = torch.autograd.grad([one.values for one in again], volume, given)
        assert torch.equal(gradient, right)
