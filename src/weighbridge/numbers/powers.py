"""\\|error\\|^norm, as torch computes it on a CPU, where llm-compressor's searches take it from."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

Array = np.ndarray[Any, Any]

AT_ONCE = 16384
"""Elements that torch is handed at once: so few that it neither divides them among threads nor leaves a rest that it
computes in another way than its vectors."""


@lru_cache(maxsize=16)
def table_of_powers(dtype: str, norm: float) -> npt.NDArray[np.float32]:
    """The power of every value of BF16 or F16 that is not negative, by its bit pattern: float32 [32768].

    The exponent and the result are rounded to that dtype.
    """
    import torch

    patterns = torch.arange(1 << 15, dtype=torch.int16).view(torch.bfloat16 if dtype == "BF16" else torch.float16)
    table: npt.NDArray[np.float32] = patterns.pow(norm).float().numpy()
    return table


def powers(values: npt.NDArray[np.float32], norm: float) -> npt.NDArray[np.float32]:
    """The powers of float32 values that are not negative."""
    import torch

    flat = np.zeros(-(-values.size // AT_ONCE) * AT_ONCE, np.float32)
    flat[: values.size] = values.reshape(-1)
    for part in torch.from_numpy(flat).reshape(-1, AT_ONCE):
        part.pow_(norm)
    return flat[: values.size].reshape(values.shape)
