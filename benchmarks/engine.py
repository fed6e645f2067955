"""The data-free engine beside upstream's and beside the floor, in interleaved pairs on one machine.

    python -m benchmarks.engine [--size 6GB] [--pairs 5] [--scheme FP8_DYNAMIC]

Each run is a process of its own; its output is synced to disk within the time measured. The floor reads the source,
hashes it, writes as many bytes as the output has and hashes them, on two threads: no engine that gives digests can be
faster.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks import source
from weighbridge.machine.resources import parse_size

ROOT = Path(__file__).resolve().parents[1]
BLOCK = 4 * 1024 * 1024
INT4 = "num_bits: 4, type: int, strategy: group, group_size: 32"
NVFP4 = "num_bits: 4, type: float, strategy: tensor_group, group_size: 16, scale_dtype: torch.float8_e4m3fn"
SCHEMES = {
    "FP8_DYNAMIC": "scheme: FP8_DYNAMIC",
    "FP8_BLOCK": "scheme: FP8_BLOCK",
    "W4A16": f"config_groups: {{group_0: {{weights: {{{INT4}}}}}}}",
    "NVFP4A16": "scheme: NVFP4A16",
    "MXFP4": "scheme: MXFP4",
    "fouroversix": f"config_groups: {{group_0: {{weights: {{{NVFP4}, observer: fouroversix}}}}}}",
    "nvfp4_expanded_mse": f"config_groups: {{group_0: {{weights: {{{NVFP4}, observer: nvfp4_expanded_mse}}}}}}",
    "signed_minmax": f"config_groups: {{group_0: {{weights: {{{INT4}, observer: signed_minmax}}}}}}",
    "signed_mse": f"config_groups: {{group_0: {{weights: {{{INT4}, observer: signed_mse}}}}}}",
}
IGNORE = ["re:.*router", "re:.*norm.*"]
# With NVFP4 upstream stops at layers whose values are their keys; it is measured on a source that has none.
LAYERS = dict.fromkeys(("NVFP4A16", "fouroversix", "nvfp4_expanded_mse"), source.LOCAL)
OWN = frozenset({"signed_minmax", "signed_mse"})
"""Those that llm-compressor does not have."""


@dataclass(frozen=True)
class Run:
    """One measured process.

    Attributes:
        wall: seconds of the whole process and of syncing what it wrote.
        inside: seconds that it says its work took, imports apart; 0 where it does not say.
        resident: the most bytes that it and its children held at a time.
    """

    wall: float
    inside: float
    resident: int


def measure(command: list[str], output: Path) -> Run:
    """Run a command that writes `output`, and take the output away again.

    Raises:
        subprocess.CalledProcessError: the command failed.
    """
    shutil.rmtree(output, ignore_errors=True)
    started = time.perf_counter()
    process = psutil.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    resident = 0
    watching = threading.Event()

    def watch() -> None:
        nonlocal resident
        while not watching.wait(0.02):
            try:
                tree = [process, *process.children(recursive=True)]
                resident = max(resident, sum(member.memory_info().rss for member in tree))
            except psutil.Error:
                return

    watcher = threading.Thread(target=watch)
    watcher.start()
    stdout, stderr = process.communicate()
    watching.set()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, stdout, stderr)
    for path in output.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    wall = time.perf_counter() - started
    watcher.join()
    shutil.rmtree(output, ignore_errors=True)
    inside = [line for line in stdout.splitlines() if line.startswith("inside ")]
    return Run(wall, float(inside[0].split()[1]) if inside else 0.0, resident)


def upstream(directory: Path, output: Path, scheme: str, device: str = "cpu") -> None:
    """What a user of llm-compressor would run."""
    from compressed_tensors.quantization import QuantizationConfig
    from llmcompressor import model_free_ptq

    from weighbridge.formats.schemes import to_config
    from weighbridge.recipe import load_recipe

    (group,) = load_recipe(str(directory.parent / f"{scheme}.yaml")).recipe.groups
    started = time.perf_counter()
    model_free_ptq(
        directory,
        output,
        config=QuantizationConfig.model_validate(
            {"config_groups": {"group_0": {"targets": ["Linear"], **to_config(group.scheme)}}}
        ),
        ignore=IGNORE,
        max_workers=2,
        device=device,
    )
    sys.stdout.write(f"inside {time.perf_counter() - started}\n")


def ours_without_digests(directory: Path, output: Path, scheme: str) -> None:
    """The engine alone, without any digest."""
    from weighbridge.checkpoint.model import open_directory
    from weighbridge.engines import streaming
    from weighbridge.machine.resources import Resources
    from weighbridge.numbers import load_kernels
    from weighbridge.planning import make_plan
    from weighbridge.progress import Progress
    from weighbridge.recipe import load_recipe
    from weighbridge.work.journal import Journal

    loaded = load_recipe(str(directory.parent / f"{scheme}.yaml"))
    load_kernels("cpu")
    started = time.perf_counter()
    checkpoint = open_directory(directory)
    output.mkdir()
    resources = Resources(devices=("cpu",), digests=False)
    plan = make_plan(loaded, checkpoint)
    streaming.write(
        plan,
        checkpoint,
        output,
        journal=Journal(output / "journal.jsonl", b""),
        hashed=checkpoint,
        resources=resources,
        progress=Progress(shown=False),
    )
    sys.stdout.write(f"inside {time.perf_counter() - started}\n")


def floor(directory: Path, output: Path, written: str) -> None:
    """Read and hash the source; write and hash `written` bytes; one thread each."""
    output.mkdir()

    def read() -> None:
        for path in directory.glob("*.safetensors"):
            with path.open("rb") as file:
                hashlib.file_digest(file, "sha256")

    def write() -> None:
        block, left = bytes(range(256)) * (BLOCK // 256), int(written)
        with (output / "floor").open("w+b", buffering=0) as file:
            while left > 0:
                left -= file.write(block[:left])
            file.seek(0)
            hashlib.file_digest(file, "sha256")

    threads = [threading.Thread(target=work) for work in (read, write)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def upstream_cuda(directory: Path, output: Path, scheme: str) -> None:
    """The same on a GPU."""
    upstream(directory, output, scheme, device="cuda:0")


INSIDE: dict[str, Callable[[Path, Path, str], None]] = {
    "upstream": upstream,
    "upstream_cuda": upstream_cuda,
    "ours_without_digests": ours_without_digests,
    "floor": floor,
}


def write_recipe(scratch: Path, scheme: str) -> Path:
    """Write the recipe of one of `SCHEMES` for the source that is measured."""
    recipe = scratch / f"{scheme}.yaml"
    recipe.write_text(
        "name: benchmark\ndescription: benchmark\n"
        f"base: {{model: {source.REAL}, revision: '{'0' * 40}', licence: apache-2.0}}\n"
        f"method: model_free_ptq\n{SCHEMES[scheme]}\nignore: {json.dumps(IGNORE)}\n"
    )
    return recipe


def compare(scratch: Path, directory: Path, scheme: str, pairs: int) -> None:
    """Print the medians of interleaved runs as a Markdown table."""
    source_bytes = sum(path.stat().st_size for path in directory.glob("*.safetensors"))
    recipe = write_recipe(scratch, scheme)
    output = scratch / "output"
    plan = subprocess.run(
        [sys.executable, "build.py", str(recipe), "--model", str(directory), "--plan", "--format", "json"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    written = str(json.loads(plan.stdout)["sections"][0]["tables"][0]["rows"][-1][5])
    inside = [sys.executable, "-m", "benchmarks.engine", "--inside"]
    ours = [sys.executable, "build.py", str(recipe), "--model", str(directory), "--output", str(output)]
    commands = {
        "floor: read, hash, write, hash": [*inside, "floor", str(directory), str(output), written],
        "this engine, with digests": ours,
        "this engine, without digests": [*inside, "ours_without_digests", str(directory), str(output), scheme],
        **({} if scheme in OWN else {"model_free_ptq": [*inside, "upstream", str(directory), str(output), scheme]}),
    }
    runs: dict[str, list[Run]] = {name: [] for name in commands}
    for _ in range(pairs):
        for name, command in commands.items():
            runs[name].append(measure(command, output))
    sys.stdout.write(f"\n### {scheme}: {source_bytes / 1e9:.2f} GB of BF16 in one shard, {pairs} rounds\n\n")
    sys.stdout.write(
        "| | whole process, s | imports apart, s | GB/s of source | peak resident, MiB |\n|---|---|---|---|---|\n"
    )
    for name, measured in runs.items():
        wall = statistics.median(run.wall for run in measured)
        work = statistics.median(run.inside for run in measured)
        resident = max(run.resident for run in measured) / 2**20
        rate = source_bytes / 1e9 / (work or wall)
        sys.stdout.write(f"| {name} | {wall:.1f} | {f'{work:.1f}' if work else ''} | {rate:.2f} | {resident:,.0f} |\n")
    last, first = "model_free_ptq", "this engine, with digests"
    ratios = {}
    if last in runs:
        ratios["whole process, with digests, against model_free_ptq"] = _ratio(runs[last], runs[first], "wall")
        ratios["without digests and imports, against model_free_ptq"] = _ratio(
            runs[last], runs["this engine, without digests"], "inside"
        )
    ratios |= {
        "with digests, over the floor": _ratio(runs[first], runs["floor: read, hash, write, hash"], "wall"),
    }
    sys.stdout.write("\n" + "".join(f"- {name}: {ratio:.1f} times\n" for name, ratio in ratios.items()))
    sys.stdout.flush()


def _ratio(above: list[Run], below: list[Run], what: str) -> float:
    """The median of the ratios, round by round: neighbours share what else the machine was doing."""
    return statistics.median(getattr(a, what) / getattr(b, what) for a, b in zip(above, below, strict=True))


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=parse_size, default=parse_size("6GB"), help="bytes of the source (default: 6GB)")
    parser.add_argument("--pairs", type=int, default=5, help="rounds (default: 5)")
    parser.add_argument("--scheme", action="append", choices=tuple(SCHEMES), help="can be given again (default: three)")
    parser.add_argument("--scratch", type=Path, help="where source and outputs lie (default: the temporary directory)")
    parser.add_argument("--inside", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        name, directory, output, argument = options.inside
        INSIDE[name](Path(directory), Path(output), argument)
        return
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        sys.stdout.write(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, ")
        sys.stdout.write(f"{psutil.virtual_memory().total / 2**30:.0f} GiB, Python {platform.python_version()}\n")
        for scheme in options.scheme or ("FP8_DYNAMIC", "W4A16", "NVFP4A16"):
            directory = Path(scratch) / "source"
            directory.mkdir()
            source.make(directory, options.size, LAYERS.get(scheme, source.EVERY_KIND))
            compare(Path(scratch), directory, scheme, options.pairs)
            shutil.rmtree(directory)


if __name__ == "__main__":
    main()
