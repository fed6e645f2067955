"""The gate: how fast it reads, beside Model Signing's own check; and what it adds to a start of vLLM.

    python -m benchmarks.gate [--size 6GB] [--pairs 3]
    python -m benchmarks.gate --start [--layers 2] [--pairs 3]

The first builds FP8_DYNAMIC of a source of that size, and times whole processes in turn: `weighbridge gate`,
`model_signing verify key`, and the cores alone (SHA-256 of as many bytes as the build has, out of memory, on every core
at once). The second starts the vLLM that `make serve-env` makes for a model of real layers, with the gate and without,
until it has answered; once with the files in the page cache, once without.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks import source
from benchmarks.engine import ROOT, write_recipe
from benchmarks.headers import machine, write
from tests.vllm_server import PYTHON, SETTINGS
from weighbridge.evidence.signing import make_key_pair
from weighbridge.machine.resources import parse_size

BLOCK = bytes(64 * 1024 * 1024)
POLICY = "signed_by: [{key: key.pub.pem}]\n"


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=parse_size, default=6 * 10**9, help="of the source (default: 6GB)")
    parser.add_argument("--layers", type=int, default=2, help="with --start: of the model (default: 2)")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--start", action="store_true", help="what the gate adds to a start of vLLM")
    parser.add_argument("--scratch", type=Path, help="where there is room (default: the system's temporary files)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        (start if options.start else read)(Path(scratch), options)


def read(scratch: Path, options: argparse.Namespace) -> None:
    """Print how fast each reads a build."""
    build = made(scratch, lambda model: source.make(model, options.size), str(write_recipe(scratch, "FP8_DYNAMIC")))
    size = sum(path.stat().st_size for path in build.rglob("*") if path.is_file())
    signing = [str(Path(sys.executable).with_name("model_signing")), "verify", "key", str(build)]
    signing += ["--signature", str(build / "evidence/model.sig"), "--public_key", str(scratch / "key.pub.pem")]
    gate = [sys.executable, "-m", "weighbridge", "gate", str(build), "--policy", str(scratch / "policy.yaml")]
    shards = len(list(build.glob("*.safetensors")))
    write(machine(), f"{size / 1e9:.1f} GB in {shards} shards, in the page cache")
    run(gate)
    rows = in_turn(
        options.pairs,
        {
            "the cores": lambda: hashed(size),
            "weighbridge gate": lambda: run(gate),
            "model_signing": lambda: run(signing),
        },
    )
    write("what", "seconds", "GB/s", "of the cores' rate")
    for name, seconds in rows.items():
        share = statistics.median(one / other for one, other in zip(rows["the cores"], seconds, strict=True))
        write(
            name, f"{statistics.median(seconds):.1f}", f"{size / statistics.median(seconds) / 1e9:.2f}", f"{share:.2f}"
        )


def start(scratch: Path, options: argparse.Namespace) -> None:
    """Print what the gate adds to a start of vLLM."""
    build = made(scratch, lambda model: source.make_model(model, options.layers), "fp8-dynamic")
    size = sum(path.stat().st_size for path in build.glob("*.safetensors"))
    write(machine(), f"{size / 1e9:.1f} GB")
    script = [str(PYTHON), str(ROOT / "tests" / "gated_vllm.py"), str(build)]
    environment = {**os.environ, **SETTINGS, "TORCH_COMPILE_DISABLE": "1"}
    write("files", "without, s", "with the gate, s", "ratio")
    for cache, prepare in (("in the page cache", warm), ("not in it", cold)):
        rows = in_turn(
            options.pairs,
            {
                name: lambda words=words, prepare=prepare: after(prepare, build, [*script, *words], environment)  # type: ignore[misc]
                for name, words in (("without", []), ("with", [str(scratch / "policy.yaml")]))
            },
        )
        ratio = statistics.median(one / other for one, other in zip(rows["with"], rows["without"], strict=True))
        medians = (f"{statistics.median(rows[name]):.1f}" for name in ("without", "with"))
        write(cache, *medians, f"{ratio:.2f}")


def made(scratch: Path, make: Callable[[Path], None], recipe: str) -> Path:
    """A signed build of a model that `make` writes, by a recipe; its policy and keys lie beside it."""
    make_key_pair(scratch / "key.pem", scratch / "key.pub.pem", curve="P-256")
    (scratch / "policy.yaml").write_text(POLICY)
    model, build = scratch / "model", scratch / "build"
    model.mkdir()
    make(model)
    words = [
        "--reference",
        "none",
        "--model",
        str(model),
        "--output",
        str(build),
        "--sign",
        str(scratch / "key.pem"),
        "--shard-size",
        "1GB",
    ]
    run([sys.executable, str(ROOT / "build.py"), recipe, *words])
    for shard in model.glob("*.safetensors"):
        shard.unlink()
    return build


def in_turn(pairs: int, each: dict[str, Callable[[], float]]) -> dict[str, list[float]]:
    """Seconds of each, one after the other, so many times."""
    rows: dict[str, list[float]] = {name: [] for name in each}
    for _ in range(pairs):
        for name, work in each.items():
            rows[name].append(work())
    return rows


def run(command: Sequence[str], environment: dict[str, str] | None = None) -> float:
    """Seconds of a process that ends well."""
    begun = time.perf_counter()
    subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    return time.perf_counter() - begun


def after(prepare: Callable[[Path], None], build: Path, command: Sequence[str], environment: dict[str, str]) -> float:
    """Seconds of a process whose files were prepared before."""
    prepare(build)
    return run(command, environment)


def warm(build: Path) -> None:
    """Have the files in the page cache."""
    for shard in build.glob("*.safetensors"):
        with shard.open("rb") as file:
            while file.read(len(BLOCK)):
                pass


def cold(build: Path) -> None:
    """Have the kernel forget the files."""
    for shard in build.glob("*.safetensors"):
        with shard.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def hashed(size: int) -> float:
    """Seconds of SHA-256 of so many bytes out of memory, on every core at once."""
    cores = len(os.sched_getaffinity(0))

    def work(count: int) -> None:
        digest = hashlib.sha256()
        for _ in range(max(count // len(BLOCK), 1)):
            digest.update(BLOCK)

    begun = time.perf_counter()
    with ThreadPoolExecutor(cores) as threads:
        list(threads.map(work, [size // cores] * cores))
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
