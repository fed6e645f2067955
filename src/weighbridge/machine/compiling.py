"""How loops over elements are compiled.

numba's cache notices no change of this file: whoever makes one touches the files that use it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

Function = TypeVar("Function", bound=Callable[..., Any])


def jit(function: Function) -> Function:
    """Compiled at the first call of a process, or taken from numba's cache where it has a directory for one.

    It runs without the GIL. A division that could raise for zero would keep LLVM from vectorizing its loop.
    """
    try:
        compiled = numba.njit(nogil=True, error_model="numpy", cache=True)(function)
    except RuntimeError:
        compiled = numba.njit(nogil=True, error_model="numpy")(function)
    return cast(Function, compiled)
