"""The engine on a GPU: whether its bytes are the CPU's, and how fast it is; beside upstream on the same GPU.

    python -m benchmarks.gpu [--size 6GB]

Needs torch with CUDA; where llm-compressor is not installed, upstream is left out and the table says so.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from benchmarks import source
from benchmarks.engine import ROOT, SCHEMES, measure, write_recipe
from weighbridge.machine.resources import parse_size


def main() -> None:
    """Entry point."""
    import torch

    from tests.kernel_agreement import disagreements
    from weighbridge.numbers.portable import PortableKernels

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=parse_size, default=parse_size("6GB"), help="bytes of the source (default: 6GB)")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each (default: 3)")
    options = parser.parse_args()
    found = disagreements(PortableKernels("cuda"), PortableKernels("cpu"))
    sys.stdout.write(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {torch.get_num_threads()} threads\n")
    sys.stdout.write(f"hard weights on which the GPU's bytes differ from the CPU's: {found or 'none'}\n\n")
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch) / "source"
        directory.mkdir()
        source.make(directory, options.size)
        sys.stdout.write(
            "| scheme | device | whole process, s (best, median, worst) | GB/s | peak resident, MiB | SHA-256 |\n"
        )
        sys.stdout.write("|---|---|---|---|---|---|\n")
        for scheme in SCHEMES:
            _table_rows(scheme, Path(scratch), directory, options.rounds)


def _table_rows(scheme: str, scratch: Path, directory: Path, rounds: int) -> None:
    recipe = write_recipe(scratch, scheme)
    output = scratch / "output"
    size = sum(path.stat().st_size for path in directory.glob("*.safetensors"))
    engine = [sys.executable, "build.py", str(recipe), "--model", str(directory), "--output", str(output), "--device"]
    commands = {"cuda:0": [*engine, "cuda:0"], "cpu": [*engine, "cpu"]}
    if find_spec("llmcompressor") and scheme == "FP8_DYNAMIC":
        inside = [sys.executable, "-m", "benchmarks.engine", "--inside", "upstream_cuda"]
        commands["model_free_ptq on cuda:0"] = [*inside, str(directory), str(output), scheme]
    for name, command in commands.items():
        try:
            digest = _digest_of(command, output) if name != "model_free_ptq on cuda:0" else ""
            runs = sorted((measure(command, output) for _ in range(rounds)), key=lambda run: run.wall)
        except subprocess.CalledProcessError as error:
            sys.stdout.write(
                f"| {scheme} | {name} | stopped: {(error.stderr or '').strip().splitlines()[-1:]} | | | |\n"
            )
            continue
        wall = ", ".join(f"{runs[index].wall:.1f}" for index in (0, rounds // 2, -1))
        resident = max(run.resident for run in runs) / 2**20
        rate = size / 1e9 / runs[rounds // 2].wall
        sys.stdout.write(f"| {scheme} | {name} | {wall} | {rate:.2f} | {resident:,.0f} | {digest[:12]} |\n")
        sys.stdout.flush()


def _digest_of(command: list[str], output: Path) -> str:
    """One digest over all shards of a build, which also warms what is to be warm."""
    shutil.rmtree(output, ignore_errors=True)
    subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
    digest = hashlib.sha256()
    for path in sorted(output.glob("*.safetensors")):
        digest.update(path.read_bytes())
    shutil.rmtree(output)
    return digest.hexdigest()


if __name__ == "__main__":
    main()
