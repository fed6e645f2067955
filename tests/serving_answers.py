"""What vLLM's loader said of honest and damaged miniatures, recorded: ``python -m tests.serving_answers [NAME …]``.

It asks the client inside the serving environment (``make serve-env``, or the Python that WEIGHBRIDGE_SERVING_PYTHON
names) about each build and each of `tests.damage`, and writes its answers to tests/data/serving. Answers repeat names a
lot, so they are compressed; ``zcat`` shows one.
"""

from __future__ import annotations

import gzip
import os
import sys
import tempfile
from pathlib import Path

from tests.damage import DAMAGES, damaged
from weighbridge.checkpoint.model import open_directory
from weighbridge.cli import build
from weighbridge.extras.serving.answer import Answer, Request, read_answer
from weighbridge.extras.serving.client import ask
from weighbridge.extras.serving.environment import find_python
from weighbridge.extras.serving.loaded import harmless_parameters

RECORDED = Path(__file__).parent / "data" / "serving"
HONEST = ("fp8-dynamic", "w4a16", "nvfp4a16", "w4a16-experts-fp8", "nvfp4a16-experts-fp8")
TOKEN_IDS = ((2, 5, 6, 7, 8, 9, 10), (2, 40, 41, 42))


def serving_python() -> Path:
    """The Python that is named for the tests, or that of ``make serve-env``."""
    named = os.environ.get("WEIGHBRIDGE_SERVING_PYTHON")
    return find_python(Path(named) if named else None)


def ask_about(checkpoint: Path, log: Path) -> Answer:
    """The client's answer about a miniature."""
    request = Request(
        checkpoint=str(checkpoint),
        exact=False,
        token_ids=TOKEN_IDS,
        length=64,
        harmless=[each.pattern for each in harmless_parameters(open_directory(checkpoint))],
        towers=True,
        generate=4,
        threads=1,
    )
    return ask(request, python=serving_python(), log=log)


def recorded(name: str) -> Answer:
    """An answer as it was recorded."""
    return read_answer(gzip.decompress((RECORDED / f"{name}.json.gz").read_bytes()), where=name)


def record(names: tuple[str, ...]) -> None:
    """Make the builds and their damaged copies, ask, and write the answers."""
    with tempfile.TemporaryDirectory() as scratch:
        builds = {}
        for recipe in HONEST:
            builds[recipe] = Path(scratch) / recipe
            assert build.main([recipe, "--model", "mini", "--output", str(builds[recipe])]) == 0
        for name in names or (*HONEST, *DAMAGES):
            checkpoint = builds.get(name)
            if checkpoint is None:
                checkpoint = damaged(builds[DAMAGES[name].recipe], Path(scratch) / name, DAMAGES[name])
            answer = ask_about(checkpoint, Path(scratch) / f"{name}.log")
            text = answer.model_dump_json(exclude_defaults=True).replace(scratch, "…")
            (RECORDED / f"{name}.json.gz").write_bytes(gzip.compress(text.encode(), mtime=0))


if __name__ == "__main__":
    record(tuple(sys.argv[1:]))
