"""Calibration by layer beside llm-compressor's oneshot on the whole model: memory and time, on real layer dimensions.

    python -m benchmarks.calibration [--layers 2] [--samples 8] [--tokens 128] [--recipes nvfp4 w4a16-gptq] [--alone]

Each run is a build in a process of its own, the engines in turn. Its peak is what it and its children hold at a time:
resident memory, in which pages of mapped files count; and of that what no file is behind (anonymous memory), which the
system could not drop.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

from benchmarks import source
from benchmarks.engine import ROOT
from benchmarks.headers import machine, mebibytes, write
from weighbridge.recipe.catalogue import find_recipe
from weighbridge.samples.miniature.text import exchanges

ENGINES = ("streaming", "upstream")


@dataclass(frozen=True)
class Built:
    """One build: seconds, and the most bytes at a time, resident and anonymous."""

    wall: float
    resident: int
    anonymous: int


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--layers", type=int, default=2, help="decoder layers (default: 2, 3.3 GB beside 1.5 of others)"
    )
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=128, help="of a sample (default: 128)")
    parser.add_argument("--recipes", nargs="+", default=["nvfp4", "w4a16-gptq", "fp8-dynamic-kv8"])
    parser.add_argument("--alone", action="store_true", help="only by layer: the whole model would not fit")
    parser.add_argument("--scratch", type=Path, help="where there is room (default: the system's temporary files)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        model = Path(scratch) / "model"
        model.mkdir()
        source.make_model(model, options.layers)
        size = sum(path.stat().st_size for path in model.glob("*.safetensors"))
        seen = f"{options.layers} layers, {size / 1e9:.1f} GB, {options.samples} samples of {options.tokens} tokens"
        write(machine(), seen)
        write("recipe", "engine", "seconds", "resident MiB", "anonymous MiB")
        for name in options.recipes:
            recipe = _recipe(name, Path(scratch), samples=options.samples, tokens=options.tokens)
            for engine in ENGINES[: 1 if options.alone else 2]:
                built = measure(recipe, model, Path(scratch) / "build", engine)
                write(name, engine, f"{built.wall:.1f}", mebibytes(built.resident), mebibytes(built.anonymous))


def _recipe(name: str, scratch: Path, *, samples: int, tokens: int) -> Path:
    """A recipe of the catalogue, calibrated with so many samples of the miniature's text of so many tokens each."""
    content: dict[str, Any] = yaml.safe_load(find_recipe(name).read_text())
    text = scratch / "text.txt"
    words = " ".join(f"{pair.question} {pair.answer}" for pair in exchanges())
    text.write_text("".join(f"{words[37 * number :]}\n" for number in range(samples)))
    calibration = {**content["calibration"], "samples": samples, "sequence_length": tokens, "least_tokens": 0}
    content |= {"calibration": {**calibration, "render": "text", "dataset": {"file": str(text)}}}
    content.pop("references", None)
    recipe = scratch / f"{name}.yaml"
    recipe.write_text(yaml.safe_dump(content))
    return recipe


def measure(recipe: Path, model: Path, output: Path, engine: str) -> Built:
    """Build, and take the output away again.

    Raises:
        subprocess.CalledProcessError: the build failed; what it said stands on standard error.
    """
    shutil.rmtree(output, ignore_errors=True)
    command = [sys.executable, str(ROOT / "build.py"), str(recipe), "--model", str(model), "--output", str(output)]
    command += ["--engine", engine, "--device", "cpu", "--progress", "none"]
    started = time.perf_counter()
    process = psutil.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    peak = [0, 0]
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.1):
            try:
                held = [_held(member.pid) for member in (process, *process.children(recursive=True))]
            except (psutil.Error, OSError):
                return
            for index, bytes_held in enumerate(map(sum, zip(*held, strict=True))):
                peak[index] = max(peak[index], bytes_held)

    watcher = threading.Thread(target=watch)
    watcher.start()
    stdout, stderr = process.communicate()
    over.set()
    watcher.join()
    if process.returncode:
        sys.stderr.write(f"{stdout}{stderr}")
        raise subprocess.CalledProcessError(process.returncode, command)
    wall = time.perf_counter() - started
    shutil.rmtree(output, ignore_errors=True)
    return Built(wall, *peak)


def _held(pid: int) -> tuple[int, int]:
    """Bytes that a process holds, resident and anonymous, as Linux sums them up."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    sizes = {name: int(rest.split()[0]) * 1024 for name, _, rest in (line.partition(":") for line in lines)}
    return sizes["Rss"], sizes["Anonymous"]


if __name__ == "__main__":
    main()
