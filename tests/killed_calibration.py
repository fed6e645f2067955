"""A calibration by layer that kills itself: ``python -m tests.killed_calibration WRITES TOY RECIPE DIRECTORY``.

It writes so many files, values between layers, tensors of a part, lines of the journal, and is killed before the next;
with 0 it is not. It says which parts of the model it read.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from weighbridge.base.source import open_source, with_own_texts
from weighbridge.engines import layerwise
from weighbridge.engines.layerwise import activations, kept, passes
from weighbridge.planning import make_plan
from weighbridge.progress import Progress
from weighbridge.recipe import load_recipe
from weighbridge.work.journal import Journal


def main() -> None:
    """Entry point."""
    writes, toy, recipe, directory = sys.argv[1:]
    left = int(writes)

    def counted(write: Callable[..., Any]) -> Callable[..., Any]:
        def one_less(*arguments: Any) -> Any:
            nonlocal left
            left -= 1
            if left == -1:
                os.kill(os.getpid(), signal.SIGKILL)
            return write(*arguments)

        return one_less

    if left:
        activations.put_in_place = counted(activations.put_in_place)  # type: ignore[attr-defined]
        kept.write_tensors = counted(kept.write_tensors)
        Journal.add = counted(Journal.add)  # type: ignore[method-assign]
    fill = passes._fill

    def told(passing: Any, names: Any) -> None:
        sys.stdout.write(f"{passing.number} {','.join(names)}\n")
        sys.stdout.flush()
        fill(passing, names)

    passes._fill = told
    torch.set_num_threads(1)
    source = open_source(toy)
    plan = make_plan(load_recipe(recipe), source)
    plan = replace(plan, loaded=with_own_texts(plan.loaded, source))
    Path(directory).mkdir(exist_ok=True)
    progress = Progress(shown=False, every=None)
    layerwise.quantize(plan, source, Path(directory), key=bytes(32), device="cpu", progress=progress)


if __name__ == "__main__":
    main()
