"""Declares the operators that torchvision describes when it is imported, where its own library cannot be loaded.

The registry's torchvision is built for CUDA. Without that, its Python part still imports, if the two operators exist
for which it registers shapes; vLLM's processors need it for classes alone. Imported at every start of the environment
(by a ``.pth`` file), it does nothing until torchvision is asked for.
"""

from __future__ import annotations

import sys
from typing import Any

_kept: list[Any] = []
"""The library lives as long as its declarations are to hold."""


class DeclareFirst:
    """A finder that finds nothing, and declares the operators when torchvision is looked for."""

    @classmethod
    def find_spec(cls, name: str, *_: object) -> None:
        """Called by the import system for each module."""
        if name == "torchvision":
            sys.meta_path.remove(cls)
            from torch.library import Library

            library = Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
            for operator in ("nms", "qnms"):
                library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")  # type: ignore[no-untyped-call]
            _kept.append(library)


sys.meta_path.insert(0, DeclareFirst)
