"""Numba's compiler with the settings of this sub-package: no Python lock while running, machine code kept on disk.

Numba keeps compiled code beside the source or, where that folder is read-only, in the user's cache folder (or in
NUMBA_CACHE_DIR). Where it finds no folder that it may write to, it raises at import; compiling anew in each process is
the better answer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
from numba.core import types
from numba.extending import intrinsic


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile on first call, without Python's lock and with a cache on disk where one is possible."""
    try:
        return numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # "cannot cache function ...: no locator available for file ..."
        return numba.njit(nogil=True)(function)


def _leading_zeros(typing_context: Any, word: Any) -> Any:
    def build(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        undefined_at_zero = context.get_constant(types.boolean, True)
        return builder.ctlz(args[0], undefined_at_zero)

    return types.uint64(types.uint64), build


leading_zeros: Any = intrinsic(_leading_zeros)
"""Number of zero bits above the highest set bit of a non-zero uint64 word: one machine instruction."""
