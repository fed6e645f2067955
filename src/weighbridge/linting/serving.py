"""Lint of what a server will make of the build, by vLLM's rules as its code, threads and logs tell them."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from math import lcm
from typing import Any

from weighbridge.families import Family, Role
from weighbridge.formats.compressed_tensors import METHOD as COMPRESSED_TENSORS
from weighbridge.formats.declaration import LINEAR, Declaration
from weighbridge.formats.observers import is_signed
from weighbridge.formats.quantization import resolve, resolve_as_compressed_tensors, text_config
from weighbridge.formats.schemes import Scheme
from weighbridge.linting.quantized import BULK
from weighbridge.linting.rules import Raised, together
from weighbridge.linting.served import Linear, Served, served_by_plan
from weighbridge.linting.vllm_kernels import INTEGER_GROUP_SIZES, MARLIN_BITS, unserved
from weighbridge.planning import Part, Plan
from weighbridge.text.names import expert_of, split_name
from weighbridge.text.patterns import REGEX_PREFIX, pattern_list

TENSOR_PARALLEL_SIZES = (1, 2, 4, 8)
FP4_EXPERT_TILE = 64
"""What vLLM's FP4 kernels for experts take whole of the inner width on a GPU (#39595: the 26B's 704 / 2 fails)."""
_ROW_PARALLEL = frozenset({"o_proj", "down_proj", "w2", "out_proj", "dense"})
_KEYS_VALUES = frozenset({"k_proj", "v_proj"})
_RENAMED_PREFIXES = ("model.", "language_model.", r"model\.", r"language_model\.")


def check(plan: Plan) -> Iterator[Raised]:
    """Modules that are declared otherwise than stored, names that servers change, and what to expect where."""
    served = served_by_plan(plan)
    if served is None:
        return
    if served.declaration.groups:
        yield from together(_undeclared(plan, served.declaration))
    yield from _tied_head(served)
    yield from _prefixes(plan)
    yield from together(_merged_targets(served))
    yield from _expectations(served)


def check_served(served: Served) -> Iterator[Raised]:
    """The same of a checkpoint that lies there, whose declaration was held against its tensors already."""
    yield from _unnamed(served)
    yield from _tied_head(served)
    yield from together(_merged_targets(served))
    yield from _expectations(served)


def _expectations(served: Served) -> Iterator[Raised]:
    schemes = sorted(set(served.schemes.values()), key=str)
    for scheme in schemes:
        yield from _kernels(scheme)
    yield from _signed(served)
    if schemes:
        yield from _tensor_parallel(served)
        yield from (Raised("serve/gpu", str(scheme), _gpus(scheme)) for scheme in schemes if not unserved(scheme))
        yield from _gemma4(served)
        yield from _gpt_oss(served)
    yield from _kv_cache(served)


def _unnamed(served: Served) -> Iterator[Raised]:
    """Kept linears of which config.json says nothing; to other methods than compressed-tensors that says: as it is.

    A lock does not say how its declaration was spelled.
    """
    if not served.declaration.groups or served.declaration.quant_method != COMPRESSED_TENSORS:
        return
    targeted = resolve(served.declaration, [linear.module for linear in served.linears], where=served.ignored_at)
    ignored = pattern_list(served.ignored)
    message = "is in neither targets nor ignore; vLLM refuses to load such a linear layer"
    yield from together(
        Raised("serve/undeclared", linear.module, message, "add it to ignore")
        for linear in served.linears
        if linear.scheme is None
        and len(linear.weight.shape) == 2
        and served.family.role_of(linear.module) not in (Role.EMBEDDINGS, Role.NORMS)
        and linear.module not in targeted
        and not ignored.matches(linear.module)
    )


_ONE_GROUP = "put the group that is to decide first, and Linear last; better, let no two groups target one module"


def _undeclared(plan: Plan, declaration: Declaration) -> Iterator[Raised]:
    """Modules of which config.json says something else than is stored, and linears of which it says nothing."""
    refused = {obstacle.module for obstacle in plan.obstacles}
    declared = resolve(declaration, plan.predicted.modules, where="the plan")
    readings = [(declared, "")]
    if (
        any(target != LINEAR for group in declaration.groups for target in group.targets)
        or LINEAR in declaration.ignore
    ):
        other = resolve_as_compressed_tensors(declaration, plan.predicted.modules, where="the plan")
        readings.append((other, "to compressed-tensors "))  # who has another order; of the class alone there is none
    for read, reader in readings:
        for module in plan.predicted.modules:
            ours, theirs = plan.schemes.get(module), read.get(module)
            if ours is theirs:
                continue  # most of the time, and comparing schemes takes long
            if ours != theirs and module not in refused and (not reader or theirs != declared.get(module)):
                remedy = "add it to ignore" if ours is None else _ONE_GROUP
                message = f"is {ours or 'kept'}, but config.json will declare it {reader}{theirs or 'unquantized'}"
                yield Raised("serve/undeclared", module, message, remedy)
    ignored = pattern_list(declaration.ignore)
    for part in plan.parts:
        if (
            part.scheme is None
            and part.module not in declared
            and _is_linear(part, plan.source.family)
            and not ignored.matches(part.module)
        ):
            message = "is in neither targets nor ignore; vLLM refuses to load such a linear layer"
            yield Raised("serve/undeclared", part.module, message, "add it to ignore")


def _is_linear(part: Part, family: Family) -> bool:
    """Whether a kept part is the weight of a linear; those of the bulk are left to coverage/untargeted."""
    is_matrix = len(part.weight.shape) == 2 and f"{part.module}.weight" in part.outputs
    return is_matrix and family.role_of(part.module) not in (*BULK, Role.EMBEDDINGS, Role.NORMS)


def _tied_head(served: Served) -> Iterator[Raised]:
    for head in sorted(resolve(served.declaration, served.tied, where=served.ignored_at)):
        yield Raised(
            "serve/tied-head",
            served.ignored_at,
            f"{head} is tied to the embedding and not stored, but config.json declares it quantized: transformers "
            "then makes up scales for it, and its logits are NaN",
            f"add {head} to ignore",
        )


def _prefixes(plan: Plan) -> Iterator[Raised]:
    loaded = plan.loaded
    entries: list[tuple[str, str, int | None]] = [
        (loaded.location("ignore", index), entry, index) for index, entry in enumerate(loaded.recipe.ignored)
    ]
    entries += [
        (loaded.location("config_groups", name, "targets", index), target, None)
        for name, group in (loaded.recipe.config_groups or {}).items()
        for index, target in enumerate(group.targets)
    ]
    for where, entry, index in entries:
        expression = entry.removeprefix(REGEX_PREFIX).removeprefix("^")
        if entry.startswith(REGEX_PREFIX) and expression.startswith(_RENAMED_PREFIXES):
            yield Raised(
                "serve/prefix",
                f"{where} {entry}",
                "depends on how names begin; vLLM renames model.language_model. to language_model.model., in plain "
                "names of the config too, but not in expressions",
                f"begin with {REGEX_PREFIX}.* and what is particular to the module",
                entry=index,
            )


def _merged_targets(served: Served) -> Iterator[Raised]:
    """vLLM looks for a merged linear by its own name; until July 2026 it took Linear before its members' names."""
    targets = [(target, group.scheme) for group in served.declaration.groups for target in group.targets]
    patterns = pattern_list(tuple(target for target, _ in targets))
    linear = next((scheme for target, scheme in targets if target == LINEAR), None)
    if all(target == LINEAR for target, _ in targets):
        return
    remedy = "target the parent (re:.*self_attn\\..*) instead of the members"
    merged_of = {members: merged for merged, members in served.family.merged.items()}
    for parent, present, absent in served.fused_groups:
        members = (*present, *absent)
        merged = next((name for group, name in merged_of.items() if set(group) == set(members)), None)
        schemes = {served.schemes.get(f"{parent}.{member}") for member in present}
        if merged is None or len(schemes) != 1 or None in schemes or expert_of(f"{parent}.{merged}") is not None:
            continue
        own = patterns.first(f"{parent}.{merged}")
        of_members = [patterns.first(f"{parent}.{member}") for member in served.family.merged[merged]]
        by_members = None if None in of_members or of_members[0] is None else targets[of_members[0]][1]
        found = [targets[own][1]] if own is not None else [linear or by_members, by_members or linear]
        wrong = next((scheme or "nothing" for scheme in found if scheme not in schemes), None)
        if wrong is not None:
            since = "" if found[-1] not in schemes else " before PR 49483 (July 2026)"
            message = f"is one linear in servers, {merged}, and for that name vLLM{since} finds {wrong}"
            yield Raised("serve/merged-target", parent, message, remedy)


def _signed(served: Served) -> Iterator[Raised]:
    """Scales that may be negative, which vLLM's Marlin kernel reads without their signs where activations are INT8."""
    # Schemes that differ by their observers alone are equal, so that a set of them would have lost some.
    signed = {str(scheme): scheme for scheme in served.schemes.values() if is_signed(scheme.weights)}
    for text, scheme in signed.items():
        observer = scheme.weights.observer
        if scheme.input_activations is not None and scheme.input_activations.type == "int":
            yield Raised(
                "serve/signed-activations",
                text,
                f"{observer} makes negative scales, which vLLM's Marlin kernel reads as huge ones where activations "
                "are INT8, without an error (vLLM #48905)",
                "take memoryless_mse, or leave activations in 16 bits",
            )
        else:
            yield Raised(
                "serve/signed-scales",
                text,
                f"{observer} makes negative scales: never serve it with VLLM_MARLIN_INPUT_DTYPE=int8, which makes vLLM "
                "read them as huge ones, without an error (vLLM #48905)",
            )


def _kernels(scheme: Scheme) -> Iterator[Raised]:
    weights, why = scheme.weights, unserved(scheme)
    if why:
        remedy = "take weights and activations of a preset that it has kernels for: docs/how-to/choose-a-scheme.md"
        yield Raised("serve/no-kernel", str(scheme), why, remedy)
    elif weights.type == "int" and weights.strategy == "group" and weights.group_size not in INTEGER_GROUP_SIZES:
        sizes = ", ".join(map(str, INTEGER_GROUP_SIZES))
        yield Raised(
            "serve/group-size",
            str(scheme),
            f"vLLM's Marlin kernels take groups of {sizes}, or one group a row",
            "take one of these sizes",
        )


def _tensor_parallel(served: Served) -> Iterator[Raised]:
    fitting = []
    obstacle = ""
    heads = _head_counts(served.config)
    before_another = {member for members in served.family.merged.values() for member in members[:-1]}
    alike: dict[tuple[object, ...], Linear] = {}  # experts and layers are many and alike
    for linear in served.linears:
        if linear.scheme is not None and len(linear.weight.shape) == 2 and served.family.role_of(linear.module) in BULK:
            alike.setdefault((split_name(linear.module)[0], linear.weight.shape, id(linear.scheme)), linear)
    for size in TENSOR_PARALLEL_SIZES:
        reason = f"{heads[0]} attention heads" if heads and heads[0] % size else ""
        undivided = (_undivided(linear, size, heads, before_another) for linear in alike.values())
        reason = reason or next(filter(None, undivided), "")
        if reason:
            obstacle = obstacle or f"; {size} does not: {reason}"
        else:
            fitting.append(str(size))
    sizes = f"sizes {', '.join(fitting)} fit" if len(fitting) > 1 else f"size {fitting[0]} fits" if fitting else ""
    found = sizes or "no size fits"
    yield Raised("serve/tensor-parallel", "tensor parallel", f"{found}{obstacle}")


def _head_counts(config: Any) -> list[int]:
    """Attention heads, and the counts of key and value heads, as far as config.json tells."""
    holder = text_config(config)
    names = ("num_attention_heads", "num_key_value_heads", "num_global_key_value_heads")
    counts = [holder.get(name) for name in names]
    known = [count for count in counts if type(count) is int and count > 0]
    return known if type(counts[0]) is int else []


def _undivided(linear: Linear, size: int, heads: list[int], before_another: Collection[str]) -> str:
    """Why a quantized matrix cannot be split over `size` GPUs, or merged with its siblings; empty where it can.

    Args:
        before_another: names of linears after which servers put others into one matrix.
    """
    assert linear.scheme is not None
    rows, columns = linear.weight.shape
    member = linear.module.rpartition(".")[2]
    args = linear.scheme.weights
    tile = FP4_EXPERT_TILE if expert_of(linear.module) and (args.type, args.num_bits) == ("float", 4) else 1
    if member in _ROW_PARALLEL:
        unit = args.block_structure[1] if args.block_structure and size > 1 else lcm(args.group_size or 1, tile)
        fits, side = columns % (size * unit) == 0, f"width {columns}"
    else:
        # A block may end ragged only where nothing follows it: not in experts, and in no merged member but the last.
        whole = size > 1 or expert_of(linear.module) is not None or member in before_another
        unit = args.block_structure[0] if args.block_structure and whole else tile
        # Key and value heads that are fewer than the GPUs are held by several of them.
        replicated = member in _KEYS_VALUES and any(count < size and size % count == 0 for count in heads[1:])
        fits, side = rows % (unit if replicated else size * unit) == 0, f"rows {rows}"
    if fits:
        return ""
    action = f"split over {size} GPUs" if size > 1 else "merged with its sibling"
    unit_name = "blocks" if args.block_structure else "tiles of the MoE kernels" if unit == tile > 1 else "groups"
    return f"{side} of {linear.module} cannot be {action}{f' in whole {unit_name} of {unit}' if unit > 1 else ''}"


_UNPACKED = "Marlin kernels unpack the weights, and activations stay in 16 bits"


def _gpus(scheme: Scheme) -> str:
    weights = scheme.weights
    if scheme.input_activations is None:
        kind = {("float", 4): "FP4", ("float", 8): "FP8"}.get((weights.type, weights.num_bits), "integer")
        if weights.type == "int" and weights.num_bits not in MARLIN_BITS:
            return f"integer weights of {weights.num_bits} bits run from SM 7.5 where the package humming is installed"
        return f"{kind} weights and 16-bit activations: unpacked by Marlin kernels on every GPU from SM 8.0 (Ampere)"
    if weights.type == "float" and weights.num_bits == 4:
        return f"FP4 runs natively from SM 10.0 (Blackwell); on older GPUs {_UNPACKED}"
    if scheme.format == "mxfp8-quantized":
        return "MXFP8 runs natively from SM 10.0 (Blackwell)"
    if weights.type == "float":
        return f"FP8 runs natively from SM 8.9 (Ada, Hopper); on Ampere {_UNPACKED}"
    return "INT8 runs natively from SM 7.5 (Turing) to 9.0 (Hopper); vLLM has no kernels for it on Blackwell"


def _kv_cache(served: Served) -> Iterator[Raised]:
    cache = served.declaration.kv_cache
    if cache is None:
        return
    scales = sum(name.endswith(".k_scale") for name in served.structure)
    text = f"one scale for keys and one for values of {scales} layers" if scales else "without scales: 1.0 is taken"
    yield Raised(
        "serve/kv-cache",
        f"KV cache {cache}",
        f"is declared {text}; vLLM keeps keys and values in FP8 then unless --kv-cache-dtype says otherwise",
        "compare quality on long prompts with --kv-cache-dtype auto of an undeclared build",
    )


def _gemma4(served: Served) -> Iterator[Raised]:
    if served.config.get("model_type") != "gemma4":
        return
    if not any(map(expert_of, served.schemes)):
        return
    text = (
        "experts stored one by one need vLLM 0.20 or newer (some builds of 0.19), and vLLM 0.28.0 or newer where "
        "transformers is 5.15 or newer"
    )
    if any(scheme.weights.strategy == "tensor_group" for scheme in served.schemes.values()):
        text += "; NVFP4 experts refuse the triton backend"
    yield Raised("serve/vllm", served.name, text)
    yield Raised(
        "serve/transformers",
        served.name,
        "plain transformers (5.17) loads none of these experts: it computes with random ones, and only its load report "
        "says so",
        "judge quality on vLLM, or load with llm-compressor's load_quantizable_moe",
    )


def _gpt_oss(served: Served) -> Iterator[Raised]:
    """``GptOssModel._load_weights_other`` of vLLM 0.32 goes on where it has no parameter of a name."""
    if served.config.get("model_type") == "gpt_oss" and any(map(expert_of, served.schemes)):
        yield Raised(
            "serve/experts-passed-over",
            served.name,
            "stores gpt-oss' experts one by one, as llm-compressor does; vLLM 0.32 loads them from whole tensors alone "
            "and passes over these names without a word",
            "serve the source as it is, or allow it for a server that you have seen load them",
        )
