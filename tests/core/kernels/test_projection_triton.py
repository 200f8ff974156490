from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from medseg.core.kernels import max_projections

ROOT = Path(__file__).resolve().parents[3]
needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")


@needs_triton
def test_interpreted_kernels_give_the_bits_of_the_reference():
    program = Path(__file__).with_name("interpret_projection.py")
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, str(program)], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def type_of(name: str, dtype: str) -> str:
    if name.startswith(("keys", "index", "indices")):
        return "*i64"
    return f"*{dtype}" if name.startswith(("volume", "values", "gradient")) else "i64"


@needs_triton
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize(
    ("kernel", "constants"),
    [
        ("find_keys", {"WITH_D": True, "WITH_H": True, "WITH_W": True, "PLANES": 32, "TILE_H": 32, "TILE_W": 64}),
        ("find_keys", {"WITH_D": False, "WITH_H": True, "WITH_W": False, "PLANES": 32, "TILE_H": 32, "TILE_W": 64}),
        ("read_keys", {"DIM": 1, "BLOCK": 1024}),
        ("spread_gradients", {"FIRST": 2, "SECOND": 0, "THIRD": 1, "PLANES": 32, "TILE_H": 32, "TILE_W": 64}),
        ("spread_gradients", {"FIRST": 1, "SECOND": -1, "THIRD": -1, "PLANES": 32, "TILE_H": 32, "TILE_W": 64}),
    ],
)
def test_kernels_compile_for_sm_90_without_a_gpu(kernel, constants, dtype, tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "0")  # unset, Triton 3.9 warns that its default will change
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from medseg.core.kernels import projection_triton

    function = getattr(projection_triton, kernel)
    signature = {name: "constexpr" if name in constants else type_of(name, dtype) for name in function.arg_names}
    places = {(function.arg_names.index(name),): value for name, value in constants.items()}
    compiled = triton.compile(ASTSource(function, signature, places), target=GPUTarget("cuda", 90, 32))
    assert compiled.asm["cubin"]
    assert compiled.metadata.shared <= 227 * 1024


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
