"""The Triton kernels but those of projections: interpreted, compiled without a GPU, and run where there is one."""

from __future__ import annotations

import re

import pytest
import torch

from medseg.core.kernels import class_sums, softmax_, upsample_argmax
from tests.core.kernels.triton_checks import ROOT, compile_for_sm_90, interpret, needs_triton

PROGRAM = "interpret_kernels.py"
CHECKS = re.findall(r"^def check_(\w+)", (ROOT / "tests/core/kernels" / PROGRAM).read_text("utf-8"), re.MULTILINE)


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory) -> dict[str, str | None]:
    return interpret(PROGRAM, tmp_path_factory.mktemp("interpreted"))


@needs_triton
@pytest.mark.parametrize("check", CHECKS)
def test_the_interpreted_kernels_pass(check, interpreted):
    assert interpreted[check] is None, interpreted[check]


@pytest.fixture(autouse=True)
def compiler_settings(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "0")  # unset, Triton 3.9 warns that its default will change


def compile_class_sums(name: str, dtype: str, integers: str, **constants):
    from medseg.core.kernels import class_sums_triton

    constants = {"ACT": 1, "MASKS": False, "POWER": 1, "FOCAL": False, "IGNORE": 0, "CP": 16, "BLOCK": 128} | constants
    constants.setdefault("OF_ENTROPY", constants["ACT"])
    if name == "sum_tiles":
        constants["TILES"] = 16
    target = f"*{dtype}" if constants["MASKS"] else "*u8"
    types = {"logits": f"*{dtype}", "result": f"*{dtype}", "target": target, "gamma": "fp32"}
    types |= {"sums": "*fp32", "gradient": "*fp32"}
    return compile_for_sm_90(getattr(class_sums_triton, name), constants, types, integers)


@needs_triton
@pytest.mark.parametrize("kernel", ["sum_tiles", "spread_tile"])
@pytest.mark.parametrize(
    ("dtype", "constants"),
    [
        ("fp32", {}),
        ("fp16", {"ACT": 2, "MASKS": True, "POWER": 2, "FOCAL": True, "IGNORE": 2}),
        ("bf16", {"FOCAL": True, "IGNORE": 1, "CP": 128, "BLOCK": 16}),
        ("fp32", {"ACT": 0, "MASKS": True, "IGNORE": 3, "POWER": 2}),
        ("fp16", {"ACT": 2, "OF_ENTROPY": 1, "MASKS": True, "FOCAL": True}),
        ("fp32", {"ACT": 2, "MASKS": True, "IGNORE": 1, "CP": 1, "BLOCK": 2048}),
    ],
)
def test_class_sums_compile_for_sm_90_without_a_gpu(kernel, dtype, constants):
    compiled = compile_class_sums(kernel, dtype, "i64", **constants)
    assert compiled.asm["cubin"]
    assert compiled.metadata.shared <= 227 * 1024


@needs_triton
@pytest.mark.parametrize(("kernel", "narrow"), [("sum_tiles", 4), ("spread_tile", 2)])
def test_offsets_of_class_sums_have_64_bits_although_sizes_and_strides_have_32(kernel, narrow):
    code = compile_class_sums(kernel, "fp16", "i32").asm["ttir"]
    # What may stay narrow is a small number of rows times the channels.
    products = re.findall(r"arith\.muli [^:]*: (\S+)", code)
    assert any("i64" in kind for kind in products)
    assert len([kind for kind in products if "i64" not in kind]) == narrow


@needs_triton
@pytest.mark.parametrize("kernel", ["sum_tiles", "spread_tile"])
@pytest.mark.parametrize(("dtype", "softmax", "weighted"), [("fp32", True, True), ("bf16", False, False)])
def test_entropy_sums_compile_for_sm_90_without_a_gpu(kernel, dtype, softmax, weighted):
    from medseg.core.kernels import entropy_sums_triton

    constants = {"SOFTMAX": softmax, "WEIGHTED": weighted, "CP": 16, "BLOCK": 128}
    constants |= {"TILES": 16} if kernel == "sum_tiles" else {}
    types = {"logits": f"*{dtype}", "result": f"*{dtype}", "weight": "*fp32", "sums": "*fp32", "gradient": "*fp32"}
    function = getattr(entropy_sums_triton, kernel)
    compiled = compile_for_sm_90(function, constants, types, "i64")
    assert compiled.asm["cubin"]
    assert compiled.metadata.shared <= 227 * 1024
    # What may stay narrow is a small number of rows times the channels.
    code = compile_for_sm_90(function, constants, types, "i32").asm["ttir"]
    assert len([kind for kind in re.findall(r"arith\.muli [^:]*: (\S+)", code) if "i64" not in kind]) <= 1


@needs_triton
@pytest.mark.parametrize("kernel", ["find_moments", "apply_tile", "sum_gradients", "spread_tile"])
@pytest.mark.parametrize(
    ("dtype", "constants"),
    [
        ("fp32", {"ADDED": True, "SILU": False, "BLOCK_V": 2048, "BLOCK_C": 1}),
        ("bf16", {"ADDED": False, "SILU": True, "BLOCK_V": 32, "BLOCK_C": 64}),
    ],
)
def test_norm_act_compiles_for_sm_90_without_a_gpu(kernel, dtype, constants):
    from medseg.core.kernels import norm_act_triton

    function = getattr(norm_act_triton, kernel)
    constants = {name: value for name, value in constants.items() if name in function.arg_names}
    tables = ("mean", "spread", "high", "low", "scale", "shift", "sums", "first", "second", "third")
    types = dict.fromkeys(("x", "y", "g", "residual", "dx", "dr"), f"*{dtype}") | {"slope": "fp32"}
    types |= dict.fromkeys(tables, "*fp32")
    compiled = compile_for_sm_90(function, constants, types, "i64")
    assert compiled.asm["cubin"]
    assert compiled.metadata.shared <= 227 * 1024
    code = compile_for_sm_90(function, constants, types, "i32").asm["ttir"]
    assert all("i64" in kind for kind in re.findall(r"arith\.muli [^:]*: (\S+)", code))


def compile_argmax_at(dtype: str, labels: str, integers: str):
    from medseg.core.kernels.argmax_at_triton import find_best

    types = {"values": f"*{dtype}", "labels": f"*{labels}", "best": "*fp32"}
    types |= {f"low_{axis}": "*i64" for axis in "dhw"} | {f"part_{axis}": "*fp32" for axis in "dhw"}
    return compile_for_sm_90(find_best, {"BLOCK": 256}, types, integers)


@needs_triton
@pytest.mark.parametrize(("dtype", "labels"), [("fp32", "u8"), ("fp16", "u8"), ("bf16", "i32")])
def test_argmax_at_compiles_for_sm_90_without_a_gpu(dtype, labels):
    compiled = compile_argmax_at(dtype, labels, "i64")
    assert compiled.asm["cubin"]
    assert compiled.metadata.shared <= 227 * 1024


@needs_triton
def test_offsets_of_argmax_at_have_64_bits_although_sizes_and_strides_have_32():
    products = re.findall(r"arith\.muli [^:]*: (\S+)", compile_argmax_at("fp32", "u8", "i32").asm["ttir"])
    assert products
    assert all("i64" in kind for kind in products)


@needs_triton
@pytest.mark.parametrize(("dtype", "padded", "block"), [("fp32", 16, 128), ("bf16", 128, 16), ("fp16", 1, 2048)])
def test_softmax_compiles_for_sm_90_without_a_gpu(dtype, padded, block):
    from medseg.core.kernels.softmax_triton import softmax_tile

    constants, types = {"CP": padded, "BLOCK": block}, {"logits": f"*{dtype}"}
    compiled = compile_for_sm_90(softmax_tile, constants, types, "i64")
    assert compiled.asm["cubin"]
    assert compiled.metadata.shared <= 227 * 1024
    products = re.findall(
        r"arith\.muli [^:]*: (\S+)", compile_for_sm_90(softmax_tile, constants, types, "i32").asm["ttir"]
    )
    assert products
    assert all("i64" in kind for kind in products)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_softmax_on_a_gpu_is_that_of_the_reference():
    logits = torch.randn(25, 17, 20, 23, device="cuda")
    want, got = (softmax_(logits.clone(), backend=backend) for backend in ("torch", "triton"))
    torch.testing.assert_close(got, want)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_argmax_at_on_a_gpu_is_that_of_the_reference():
    logits = torch.randn(1, 25, 17, 20, 23, device="cuda")
    want, got = (upsample_argmax(logits, (40, 41, 42), backend=backend) for backend in ("torch", "triton"))
    assert (want != got).float().mean() < 1e-4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_class_sums_on_a_gpu_are_those_of_the_reference(dtype):
    logits = torch.randn(2, 14, 33, 40, 35, device="cuda").to(dtype).requires_grad_()
    target = torch.randint(0, 14, (2, 1, 33, 40, 35), device="cuda")
    found = []
    for backend in ("torch", "triton", "triton"):
        sums = torch.stack(class_sums(logits, target, backend=backend))
        (gradient,) = torch.autograd.grad(sums.sum(), logits)
        found.append((sums, gradient))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-2, atol=1e-5 if dtype == torch.float32 else 2e-2)
    assert all(torch.equal(one, other) for one, other in zip(found[1], found[2], strict=True))
