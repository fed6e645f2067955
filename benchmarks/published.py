"""Sources that are published quantized: how fast their codes become others, and what that holds in memory.

    python -m benchmarks.published [--size 3GB] [--rounds 5] [--only awq]

Each source has experts of DeepSeek's sizes in one shard. Blocks of FP8 become NVFP4, FP8 by row and INT4; the codes of
GPTQ and AWQ, which lie across the rows of a weight, and gpt-oss' experts, whose rows take turns, become NVFP4; so do
as many weights in BF16. A worker for each core, no digests, each run a process of its own.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.engine import Run, measure, ours_without_digests
from weighbridge.checkpoint.layout import lay_out
from weighbridge.formats.tensors import Tensor
from weighbridge.machine.resources import parse_size

HIDDEN, INNER = 7168, 2048
"""DeepSeek V3's."""
SCHEMES = {
    "NVFP4A16": "scheme: NVFP4A16\nfused_groups: [[gate_proj, up_proj]]",
    "FP8_DYNAMIC": "scheme: FP8_DYNAMIC",
    "W4A16": "scheme: W4A16",
}
GROUP = 128
"""Columns that share a scale in GPTQ and AWQ."""


class Kind(NamedTuple):
    """A way of storing.

    Attributes:
        config: what config.json says.
        stored: out, in -> local name -> dtype and shape, of one linear.
        schemes: what it becomes.
    """

    config: dict[str, Any]
    stored: Callable[[int, int], dict[str, Tensor]]
    schemes: tuple[str, ...] = ("NVFP4A16",)


def _deepseek(quantization: dict[str, Any] | None) -> dict[str, Any]:
    return {"model_type": "deepseek_v3", **({} if quantization is None else {"quantization_config": quantization})}


def _blocks(rows: int, columns: int) -> dict[str, Tensor]:
    scales = Tensor("F32", (rows // 128, columns // 128))
    return {"weight": Tensor("F8_E4M3", (rows, columns)), "weight_scale_inv": scales}


def _awq(rows: int, columns: int) -> dict[str, Tensor]:
    groups = columns // GROUP
    return {
        "qweight": Tensor("I32", (columns, rows // 8)),
        "qzeros": Tensor("I32", (groups, rows // 8)),
        "scales": Tensor("F16", (groups, rows)),
    }


def _gptq(rows: int, columns: int) -> dict[str, Tensor]:
    return {**_awq(rows, columns), "qweight": Tensor("I32", (columns // 8, rows))}


KINDS: dict[str, Kind] = {
    "blocks of FP8": Kind(
        _deepseek({"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}),
        _blocks,
        tuple(SCHEMES),
    ),
    "awq": Kind(
        _deepseek({"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"}), _awq
    ),
    "gptq": Kind(
        _deepseek({"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False, "sym": False}), _gptq
    ),
    "gpt-oss": Kind({"model_type": "gpt_oss", "quantization_config": {"quant_method": "mxfp4"}}, _blocks),
    "BF16": Kind(_deepseek(None), lambda rows, columns: {"weight": Tensor("BF16", (rows, columns))}),
}


def make(directory: Path, size: int, kind: str) -> None:
    """Write a source of about so many weights."""
    experts = max(1, size // (3 * HIDDEN * INNER))
    structure: dict[str, Tensor] = {"model.norm.weight": Tensor("BF16", (HIDDEN,))}
    holder = "model.layers.0.mlp.experts"
    if kind == "gpt-oss":
        for member, rows, columns in (("gate_up_proj", 2 * INNER, HIDDEN), ("down_proj", HIDDEN, INNER)):
            structure[f"{holder}.{member}_blocks"] = Tensor("U8", (experts, rows, columns // 32, 16))
            structure[f"{holder}.{member}_scales"] = Tensor("U8", (experts, rows, columns // 32))
            structure[f"{holder}.{member}_bias"] = Tensor("BF16", (experts, rows))
    else:
        for expert in range(experts):
            for member in ("gate_proj", "up_proj", "down_proj"):
                shape = (HIDDEN, INNER) if member == "down_proj" else (INNER, HIDDEN)
                for local, tensor in KINDS[kind].stored(*shape).items():
                    structure[f"{holder}.{expert}.{member}.{local}"] = tensor
    layout = lay_out(structure)
    random = np.random.default_rng(0)
    with (directory / "model.safetensors").open("wb") as file:
        file.write(layout.head)
        for name, (begin, end) in sorted(layout.ranges.items(), key=lambda item: item[1]):
            file.write(_content(name, structure[name], end - begin, random))
    (directory / "config.json").write_text(json.dumps(KINDS[kind].config))


def _content(name: str, tensor: Tensor, size: int, random: np.random.Generator) -> bytes:
    if tensor.dtype == "F8_E4M3":
        return (random.integers(0, 0x7F, size, np.uint8) | random.integers(0, 2, size, np.uint8) << 7).tobytes()
    if tensor.dtype in ("F32", "F16"):
        kind = np.dtype("f4" if tensor.dtype == "F32" else "f2")
        values = random.random(size // kind.itemsize, np.float32) * np.float32(1e-3) + np.float32(1e-4)
        return values.astype(kind).tobytes()
    if name.endswith("_scales"):
        return random.integers(110, 125, size, np.uint8).tobytes()
    if tensor.dtype in ("I32", "U8"):
        return random.integers(0, 256, size, np.uint8).tobytes()
    values = random.standard_normal(size // 2, np.float32) * np.float32(0.02)
    return (values.view(np.uint32) >> 16).astype("<u2").tobytes()


def _row(scratch: Path, directory: Path, scheme: str, rounds: int) -> str:
    recipe = scratch / f"{scheme}.yaml"
    recipe.write_text(
        "name: benchmark\ndescription: benchmark\n"
        f"base: {{model: example-org/published, revision: '{'0' * 40}', licence: apache-2.0}}\n"
        f"method: model_free_ptq\n{SCHEMES[scheme]}\nignore: ['re:.*norm.*']\n"
    )
    output = scratch / "output"
    command = [sys.executable, "-m", "benchmarks.published", "--inside", str(directory), str(output), scheme]
    runs: list[Run] = [measure(command, output) for _ in range(rounds)]
    size = (directory / "model.safetensors").stat().st_size / 1e9
    inside = statistics.median(run.inside for run in runs)
    resident = max(run.resident for run in runs) / 2**20
    return f"{size:.2f} | {inside:.1f} | {size / inside:.2f} | {resident:,.0f} |\n"


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--size", type=parse_size, default=parse_size("3GB"), help="weights, in bytes of FP8 (default: 3GB)"
    )
    parser.add_argument("--rounds", type=int, default=5, help="runs of each (default: 5)")
    parser.add_argument("--only", choices=list(KINDS), help="one kind of source alone")
    parser.add_argument("--scratch", type=Path, help="where source and outputs lie (default: the temporary directory)")
    parser.add_argument("--inside", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        directory, output, scheme = options.inside
        ours_without_digests(Path(directory), Path(output), scheme)
        return
    with tempfile.TemporaryDirectory(dir=options.scratch) as name:
        scratch = Path(name)
        sys.stdout.write("| source | becomes | GB of source | s | GB/s of source | peak resident, MiB |\n")
        sys.stdout.write("|---|---|---|---|---|---|\n")
        for kind in [options.only] if options.only else KINDS:
            directory = scratch / kind.replace(" ", "-")
            directory.mkdir()
            make(directory, options.size, kind)
            for scheme in KINDS[kind].schemes:
                sys.stdout.write(f"| {kind} | {scheme} | {_row(scratch, directory, scheme, options.rounds)}")
                sys.stdout.flush()
            (directory / "model.safetensors").unlink()


if __name__ == "__main__":
    main()
