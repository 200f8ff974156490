"""How an operation of this package chooses between its PyTorch reference and its Triton kernel.

The pattern that every kernel follows:

1. The PyTorch reference is the definition: it runs everywhere, and the kernel has to agree with it.
2. The operation is one `torch.library.custom_op` with a fake implementation and autograd. It takes `backend` as a
   string and calls `choose_backend` when it runs, so that `torch.compile` sees one opaque operation.
3. The kernel stands in a file of its own (`<op>_triton.py`), imported only after "triton" was chosen, because triton is
   missing on Windows, macOS and CPU builds.
4. Where blocks in PyTorch would be slow on a CPU, compiled loops of the same result stand in `<op>_processor.py`.
   "auto" takes them for CPU tensors; "torch", as argument or in the environment, runs the reference.

Who asks how strictly: an argument `backend="triton"` that cannot be met is an error. The environment variable
MEDSEG_KERNELS is a wish for a whole program, whose tensors may live on several devices: where it cannot be met, the
reference runs, after one warning. "auto" takes Triton for CUDA tensors that the kernel supports, and says nothing.
"""

from __future__ import annotations

import os
import warnings
from functools import cache
from importlib.util import find_spec
from typing import Literal

import torch

VARIABLE = "MEDSEG_KERNELS"
BACKENDS = ("auto", "torch", "triton")


def choose_backend(backend: str, tensor: torch.Tensor, dtypes: tuple[torch.dtype, ...]) -> Literal["torch", "triton"]:
    """Choose the backend that an operation runs on.

    Args:
        backend: "torch", "triton", or "auto": what the environment variable MEDSEG_KERNELS says, and without it Triton
            for CUDA tensors where it is installed and torch elsewhere.
        tensor: the operation's main input; its device and dtype decide.
        dtypes: what the operation's Triton kernel supports.

    Returns:
        "torch" or "triton".

    Raises:
        ImportError: `backend="triton"`, and triton is not installed.
        ValueError: an unknown backend; or `backend="triton"` for a tensor that the kernel cannot take.

    Example:
        >>> choose_backend("auto", torch.zeros(2), (torch.float32,))
        'torch'
    """
    check_backend(backend)
    wish = _wish() if backend == "auto" else "auto"
    if "torch" in (backend, wish):
        return "torch"
    obstacle = _find_obstacle(tensor, dtypes)
    if obstacle is None:
        # Interpreted kernels crawl: only who asks for them gets them on a CPU tensor.
        asked = "triton" in (backend, wish)
        return "triton" if asked or tensor.is_cuda else "torch"
    if backend == "triton":
        raise obstacle
    if wish == "triton":
        _warn_once(f"{VARIABLE}=triton is not met everywhere, PyTorch runs instead; the first time because: {obstacle}")
    return "torch"


def wants_torch(backend: str) -> bool:
    """Whether plain PyTorch was asked for, by `backend` or by MEDSEG_KERNELS, where "auto" may take compiled loops."""
    return "torch" in (backend, _wish() if backend == "auto" else backend)


def check_backend(backend: str, name: str = "backend") -> None:
    """Raise a ValueError that names the choices unless `backend` is one of them."""
    if backend not in BACKENDS:
        raise ValueError(f"{name} is {backend!r}; choose one of {', '.join(BACKENDS)}")


def _wish() -> str:
    wish = os.environ.get(VARIABLE, "").strip().lower() or "auto"
    check_backend(wish, f"the environment variable {VARIABLE}")
    return wish


def _find_obstacle(tensor: torch.Tensor, dtypes: tuple[torch.dtype, ...]) -> Exception | None:
    if not _has_triton():
        return ImportError("triton is not installed; on Linux: pip install 'medseg[triton]', elsewhere backend='auto'")
    if not (tensor.is_cuda or os.environ.get("TRITON_INTERPRET") == "1"):
        return ValueError(f"the Triton kernel needs a CUDA tensor, got one on {tensor.device}; use backend='auto'")
    if tensor.dtype not in dtypes:
        known = ", ".join(str(dtype) for dtype in dtypes)
        return ValueError(f"the Triton kernel takes {known}, got {tensor.dtype}; use backend='auto' or convert")
    return None


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


@cache
def _warn_once(text: str) -> None:
    warnings.warn(text, RuntimeWarning, stacklevel=3)
