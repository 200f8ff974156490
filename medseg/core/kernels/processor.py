"""Compiled loops for CPU tensors: Numba's compiler with settings for arithmetic, and threads that share the parts.

A chain of PyTorch operations on blocks that fit in a cache makes threads wait for each other after every operation,
which costs many times the work itself where processors are shared with data loaders. A compiled loop does the whole
chain on a part of the voxels; the parts are cut by shape alone, so results do not depend on the number of threads.

What keeps such loops in vector registers: rows as slices (`row[v]`, not `z[c, start + v]`), choices between runs of a
loop outside of it, and buffers made one by one; strides of rows unpacked from one array are unknown to the compiler.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch

_FILES = [file.stat() for file in sorted(Path(__file__).parent.glob("*.py"))]
_STAMP = (max(file.st_mtime for file in _FILES), sum(file.st_size for file in _FILES))


def compiled(function: Callable[..., Any], *, any_order: bool = False) -> Callable[..., Any]:
    """Compile on first call, without Python's lock, with a cache on disk where one is possible.

    Args:
        function: what to compile.
        any_order: terms may be added in any order, so that a sum fills vector registers. Differences of large numbers
            belong elsewhere. NaN and infinity keep their meaning.
    """
    arithmetic = {"contract", "reassoc", "nsz"} if any_order else {"contract"}
    options: dict[str, Any] = {"nogil": True, "fastmath": arithmetic, "error_model": "numpy"}
    try:
        return _bind_cache(numba.njit(cache=True, **options)(function))
    except RuntimeError:  # "cannot cache function ...: no locator available for file ..."
        return numba.njit(**options)(function)


def _bind_cache(function: Any) -> Any:
    """Let the cache on disk depend on all files here: loops call compiled functions of other files.

    Numba looks at the file of the function alone; where it keeps the stamp of that file has no public name.
    """
    file = getattr(getattr(function, "_cache", None), "_cache_file", None)
    if file is not None and hasattr(file, "_source_stamp"):
        file._source_stamp = (file._source_stamp, _STAMP)
    return function


def share(work: Callable[[int, int], None], parts: int) -> None:
    """Divide the numbers from 0 to `parts` into ranges, one for each thread PyTorch may use, and call `work` on each.

    One call a thread, since a thread that returns to Python has to wait for Python's lock.
    """
    threads = max(min(torch.get_num_threads(), parts), 1)
    ends = [parts * i // threads for i in range(threads + 1)]
    if threads == 1:
        work(0, parts)
        return
    with ThreadPoolExecutor(threads - 1) as pool:
        others = [pool.submit(work, first, last) for first, last in pairwise(ends[1:])]
        work(ends[0], ends[1])
    for other in others:
        other.result()


def _dot(a: Any, b: Any, count: Any) -> Any:
    total = np.float32(0)
    for i in range(count):
        total += a[i] * b[i]
    return total


dot = compiled(_dot, any_order=True)
"""Sum of the products of the first `count` entries of two float32 arrays; for so few that float32 does."""


@compiled
def keep_larger(top: Any, row: Any, count: Any) -> None:
    """Raise the first `count` entries of `top` to those of `row`; NaN in `top` gives way to any number.

    The zero stands between choice and store: without it LLVM stores under a mask, which takes some processors six times
    as long.
    """
    for i in range(count):
        top[i] = (top[i] if top[i] > row[i] else row[i]) + np.float32(0)


@numba.njit(inline="always")
def exp_below_zero(x: Any) -> Any:
    """Exponential of a float32 x <= 0 to two units in the last place, in operations that vectorise; NaN stays.

    x = k log 2 + r with k whole and |r| <= (log 2) / 2: 2^k is an exponent's bits, exp(r) a polynomial, that of the
    Cephes library (Moshier, "Methods and Programs for Mathematical Functions", 1989). log 2 comes in two parts, of
    which the first has so few digits that its product with k is exact. Below -87, near the smallest normal number, it
    is 0.
    """
    bounded = np.float32(-87.0) if x < np.float32(-87.0) else x
    whole = np.floor(bounded * np.float32(1.44269504) + np.float32(0.5))
    r = (bounded - whole * np.float32(0.693359375)) + whole * np.float32(2.12194440e-4)
    value = np.float32(1.9875691500e-4)
    value = value * r + np.float32(1.3981999507e-3)
    value = value * r + np.float32(8.3334519073e-3)
    value = value * r + np.float32(4.1665795894e-2)
    value = value * r + np.float32(1.6666665459e-1)
    value = value * r + np.float32(5.0000001201e-1)
    value = value * (r * r) + r + np.float32(1.0)
    bits = (np.int32(whole) + np.int32(127)) << np.int32(23)
    return np.float32(0) if x < np.float32(-87.0) else value * np.int32(bits).view(np.float32)
