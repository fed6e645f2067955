"""Lint of what a server will make of the build, by vLLM's rules and hardware as its threads and logs tell them."""

from __future__ import annotations

from collections.abc import Iterator

from weighbridge.lint.rules import Raised
from weighbridge.patterns import REGEX_PREFIX
from weighbridge.plan import Plan
from weighbridge.quantization import resolve
from weighbridge.roles import Role, role_of
from weighbridge.schemes import Scheme
from weighbridge.structure.names import compact

TENSOR_PARALLEL_SIZES = (1, 2, 4, 8)
_ROW_PARALLEL = frozenset({"o_proj", "down_proj", "w2", "out_proj", "dense"})
_RENAMED_PREFIXES = ("model.", "language_model.", "^model.", r"model\.", r"^model\.", r"language_model\.")


def check(plan: Plan) -> Iterator[Raised]:
    """Modules that would be declared otherwise than stored, prefixes that servers rename, and what to expect where."""
    yield from _declared(plan)
    yield from _prefixes(plan)
    schemes = set(plan.schemes.values())
    if schemes:
        yield from _tensor_parallel(plan)
        yield from (Raised("serve/gpu", str(scheme), _gpus(scheme)) for scheme in sorted(schemes, key=str))
        if plan.source.config.get("model_type") == "gemma4":
            yield Raised("serve/vllm", plan.loaded.recipe.base.model, _gemma4_releases(plan))


def _declared(plan: Plan) -> Iterator[Raised]:
    declared = resolve(plan.declaration, plan.predicted.modules, where="the plan")
    wrong = [
        module for module in declared.keys() | plan.schemes.keys() if declared.get(module) != plan.schemes.get(module)
    ]
    for pattern in compact(wrong):
        yield Raised(
            "serve/undeclared", str(pattern), "is kept, but a server will take it for quantized by the config",
            "add it to ignore", len(pattern),
        )  # fmt: skip


def _prefixes(plan: Plan) -> Iterator[Raised]:
    for index, entry in enumerate(plan.loaded.recipe.ignored):
        expression = entry.removeprefix(REGEX_PREFIX)
        if expression.startswith(_RENAMED_PREFIXES):
            yield Raised(
                "serve/prefix", f"{plan.loaded.location('ignore', index)} {entry}",
                "depends on how names begin, and servers rename that: model.language_model. to language_model.model.",
                f"begin with {REGEX_PREFIX}.* and what is particular to the module", entry=index,
            )  # fmt: skip


def _tensor_parallel(plan: Plan) -> Iterator[Raised]:
    fitting = []
    obstacle = ""
    alike = {(part.module.rpartition(".")[2], part.weight, part.scheme): part for part in plan.parts if part.scheme}
    for size in TENSOR_PARALLEL_SIZES:
        reasons = (_undivided(part.module, part.weight.shape, part.scheme, size) for part in alike.values())
        reason = next(filter(None, reasons), "")
        if reason:
            obstacle = obstacle or f"; {size} does not: {reason}"
        else:
            fitting.append(str(size))
    yield Raised("serve/tensor-parallel", "tensor parallel", f"sizes {', '.join(fitting) or 'none'} divide{obstacle}")


def _undivided(module: str, shape: tuple[int, ...], scheme: Scheme | None, size: int) -> str:
    """Why a quantized weight cannot be split over `size` GPUs; empty where it can."""
    if scheme is None or len(shape) != 2 or role_of(module) not in (Role.ATTENTION, Role.MLP, Role.EXPERTS):
        return ""
    by_row = module.rpartition(".")[2] in _ROW_PARALLEL
    side = shape[1] if by_row else shape[0]
    args = scheme.weights
    unit = args.group_size or 1 if by_row else 1
    if args.block_structure:
        unit = args.block_structure[1 if by_row else 0] if size > 1 else 1
    if side % (size * unit):
        whole = f" in whole groups of {unit}" if unit > 1 else ""
        return f"{'width' if by_row else 'rows'} {side} of {module} cannot be split in {size}{whole}"
    return ""


def _gpus(scheme: Scheme) -> str:
    weights = scheme.weights
    if weights.type == "float" and weights.num_bits == 4:
        return "FP4 runs natively from SM 10.0 (Blackwell); elsewhere weights are unpacked by Marlin kernels"
    if weights.type == "float":
        return "FP8 runs natively from SM 8.9 (Ada, Hopper); on Ampere weights alone, by Marlin kernels"
    if scheme.input_activations is None:
        return "integer weights are unpacked by Marlin kernels, from SM 8.0 (Ampere)"
    return "INT8 runs natively from SM 7.5 (Turing); Blackwell has dropped it"


def _gemma4_releases(plan: Plan) -> str:
    text = "per-expert Gemma 4 loads from vLLM 0.19/0.20 on, and with transformers 5.15 or newer from 0.28.0"
    if any(scheme.weights.strategy == "tensor_group" for scheme in plan.schemes.values()):
        text += "; NVFP4 experts refuse the triton backend"
    return text
