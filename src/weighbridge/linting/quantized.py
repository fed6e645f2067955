"""Lint of the decisions: what is quantized that should not be, what cannot be, and what was left out by accident."""

from __future__ import annotations

from collections.abc import Iterator

from weighbridge.families import Family, Role, Unquantized
from weighbridge.formats.declaration import LINEAR
from weighbridge.formats.observers import OBSERVERS, by_largest_values
from weighbridge.formats.schemes import Scheme
from weighbridge.linting.rules import Raised
from weighbridge.linting.served import Served
from weighbridge.linting.vllm_kernels import INTEGER_GROUP_SIZES
from weighbridge.numbers import SchemeNotCovered, encoding_of
from weighbridge.planning import Decision, Obstacle, Part, Plan
from weighbridge.planning.model import ties_head
from weighbridge.text.names import compact
from weighbridge.text.patterns import pattern_list

_SENSITIVE = {
    Role.EMBEDDINGS: (
        "quantize/embedding",
        "embeddings are looked up, not multiplied, and few servers load them quantized",
    ),
    Role.HEAD: (
        "quantize/head",
        "the output head decides between tokens that are close; quantizing it costs quality and saves little",
    ),
    Role.ROUTER: (
        "quantize/router",
        "routers choose experts by small differences, and save next to nothing",
    ),
    Role.NORMS: ("quantize/norm", "norms are tiny and scale everything after them"),
    Role.VISION: ("quantize/vision", "vision towers are sensitive, and vLLM does not load a quantized embed_vision"),
    Role.AUDIO: ("quantize/audio", "audio towers are sensitive and small"),
    Role.TALKER: ("quantize/talker", "what speaks is sensitive and small, and llm-compressor's examples keep it"),
    Role.INDEXER: ("quantize/indexer", "it decides which keys sparse attention looks at, by small differences"),
    Role.MTP: (
        "quantize/mtp",
        "it joins embedding and hidden state for speculative decoding, and vLLM's drafters have it unquantized",
    ),
}
_UNKNOWN = "quantize/unknown"
_SERVED_AS_IT_IS = "serve/unquantized"
BULK = (Role.ATTENTION, Role.MLP, Role.EXPERTS, Role.MIXER)
"""The roles that a recipe is there to quantize."""
_COUNTED = (*BULK, Role.LATENT, Role.SMALL, Role.OTHER)
"""The roles of matrices that a text model computes with, which coverage is a share of."""
MOST_UNKNOWN = 0.05
"""The share of these whose role may be unknown before lint says so."""

COMPUTED = ".inv_freq"
"""How the names of rotary frequencies end, which some publishers store."""
TIED_HEAD = "lm_head.weight"


def check(plan: Plan) -> Iterator[Raised]:
    """What is quantized against better judgement or beyond what the scheme can, and what is not quantized at all."""
    kept = all(part.action == "keep" for part in plan.parts) and not plan.obstacles
    if kept and plan.loaded.recipe.convert is None and not _cache_alone(plan):
        where, remedy = plan.loaded.document.where, "check what ignore keeps and what targets leave out"
        yield Raised("quantize/nothing", where, "nothing is quantized: the build would be a copy of its source", remedy)
    yield from _sensitive(plan)
    yield from _obstacles(plan)
    yield from _ragged(plan)
    yield from _needing_calibration(plan)
    yield from _computed(plan)
    yield from _observed(plan)
    yield from _by_another_modifier(plan)
    if plan.loaded.recipe.method != "convert" and not _cache_alone(plan):  # a conversion keeps what its base keeps
        yield from _coverage(plan)


def _cache_alone(plan: Plan) -> bool:
    """Whether a recipe says nothing of weights, and quantizes the KV cache."""
    return plan.loaded.recipe.kv_cache is not None and not plan.loaded.recipe.groups


def _sensitive(plan: Plan) -> Iterator[Raised]:
    family = plan.source.family
    found: dict[tuple[str, str, Decision], list[str]] = {}
    for part in plan.parts:
        if part.scheme is None:
            continue
        role, unquantized = family.role_of(part.module), family.unquantized(part.module, part.scheme)
        if role in _SENSITIVE:
            found.setdefault((*_SENSITIVE[role], part.decision), []).append(part.module)
        elif unquantized is not None:
            found.setdefault((_SERVED_AS_IT_IS, _no_codes(unquantized), part.decision), []).append(part.module)
        elif role is Role.OTHER:
            found.setdefault((_UNKNOWN, "", part.decision), []).append(part.module)
    for (rule, why, decided_by), modules in found.items():
        for pattern in compact(modules):
            if rule == _UNKNOWN:
                message = f"is quantized by {decided_by}, and its name does not say what it is for"
                remedy = "make sure that it is a linear of the bulk; otherwise add it to ignore"
            else:
                message = f"is quantized by {decided_by}: {why}"
                remedy = f"add it to ignore, or to the recipe's allow list: {rule} because ..."
            yield Raised(rule, str(pattern), message, remedy, len(pattern))


def check_served(served: Served) -> Iterator[Raised]:
    """Modules of a checkpoint that lies there whose codes a server does not load, by the rules of plans."""
    for module, scheme in served.schemes.items():
        unquantized = served.family.unquantized(module, scheme)
        if unquantized is not None:
            rule, *_ = _SENSITIVE.get(served.family.role_of(module), (_SERVED_AS_IT_IS,))
            remedy = "take it as the base has it, and name it in what is ignored"
            yield Raised(rule, module, f"is quantized: {_no_codes(unquantized)}", remedy)


def _no_codes(unquantized: Unquantized) -> str:
    """What a server makes of a module, in a clause."""
    alone = " or ".join(unquantized.unless)
    what = f"multiplies by it itself, as floats or by {alone}" if alone else "makes it without a quantization config"
    return f"{unquantized.server} {what}, and loads no {'other ' if alone else ''}codes ({unquantized.read})"


def _obstacles(plan: Plan) -> Iterator[Raised]:
    alike: dict[tuple[str, str, Decision | None], list[Obstacle]] = {}
    for obstacle in plan.obstacles:
        alike.setdefault((obstacle.rule, obstacle.reason, obstacle.decision), []).append(obstacle)
    for (rule, reason, decided_by), group in alike.items():
        remedy = _remedy(rule, group[0], plan)
        for pattern in compact(obstacle.module for obstacle in group):
            yield Raised(
                rule, str(pattern), f"{reason}; it is quantized by {decided_by or 'its source'}", remedy, len(pattern)
            )


_REMEDIES = {
    "scheme/strategy": "weights take tensor, channel, group, block or tensor_group",
    "scheme/format": "take format: compressed-tensors, or a scheme that modelopt has",
    "scheme/fused-experts": "take experts: split, as servers read this scheme",
}


def _remedy(rule: str, obstacle: Obstacle, plan: Plan) -> str:
    if rule != "scheme/group-size":
        return _REMEDIES.get(rule, "add it to ignore: only matrices are quantized")
    if obstacle.scheme.weights.type != "int":
        return (
            f"the format fixes groups of {obstacle.scheme.weights.group_size}: add it to ignore, or take another scheme"
        )
    widths = {part.weight.shape[-1] for part in plan.parts if part.scheme and part.decision == obstacle.decision}
    widths |= {other.weight.shape[-1] for other in plan.obstacles if other.decision == obstacle.decision}
    sizes = [str(size) for size in INTEGER_GROUP_SIZES if all(width % size == 0 for width in widths)]
    if not sizes:
        return "no group size that vLLM knows divides every width here: add it to ignore, or quantize per channel"
    return f"take a group_size that divides every width here: {' or '.join(sizes)} (in config_groups, under weights)"


def _ragged(plan: Plan) -> Iterator[Raised]:
    ragged: dict[tuple[tuple[int, ...], tuple[int, int]], list[str]] = {}
    for part in plan.parts:
        block = part.scheme.weights.block_structure if part.scheme else None
        if block and any(side % size for side, size in zip(part.weight.shape, block, strict=True)):
            ragged.setdefault((part.weight.shape, block), []).append(part.module)
    awq = next((modifier.AWQModifier for modifier in plan.loaded.recipe.modifiers if modifier.AWQModifier), None)
    for (shape, block), modules in ragged.items():
        for pattern in compact(modules):
            if awq is not None and awq.duo_scaling is not False:
                yield Raised(
                    "scheme/strategy",
                    str(pattern),
                    f"blocks of {block[0]} x {block[1]} do not divide {list(shape)}, and AWQModifier's duo_scaling "
                    "takes whole ones",
                    "say duo_scaling: false under AWQModifier, or quantize these per channel",
                    len(pattern),
                )
            yield Raised(
                "scheme/ragged-block",
                str(pattern),
                f"blocks of {block[0]} x {block[1]} do not divide {list(shape)}: the last ones are padded, and vLLM "
                "stops at experts and at merged or split linears that do not end at a whole block",
                "see serve/tensor-parallel below for what vLLM takes, or quantize these per channel",
                len(pattern),
            )


def _by_another_modifier(plan: Plan) -> Iterator[Raised]:
    """Modules that two modifiers, each with one list of what it passes by, would not quantize as the groups say."""
    recipe = plan.loaded.recipe
    if recipe.method == "convert" or len(recipe.quantizing) < 2:
        return
    does = {
        name: (
            pattern_list(tuple(target for group in groups for target in group.targets if target != LINEAR)),
            pattern_list((*recipe.ignored, *recipe.passed_by(groups))),
            any(LINEAR in group.targets for group in groups),
        )
        for name, groups in recipe.quantizing.items()
    }
    whose = {group: name for name, groups in recipe.quantizing.items() for group in groups}
    by_name = dict(zip(recipe.config_groups or (), recipe.groups, strict=True))
    wrong: list[str] = []
    for part in plan.parts:
        if part.scheme is not None:
            takers = {
                name
                for name, (targets, passed, linear) in does.items()
                if (linear or targets.matches(part.module)) and not passed.matches(part.module)
            }
            if takers != {whose[by_name[str(part.decision.path[1])]]}:
                wrong.append(part.module)
    for pattern in compact(wrong):
        yield Raised(
            "scheme/two-modifiers",
            str(pattern),
            "groups of two modifiers target it, and none quantizes it, or another than that of its group",
            "put the groups of one modifier next to each other, the more special ones first",
            len(pattern),
        )


def _needing_calibration(plan: Plan) -> Iterator[Raised]:
    recipe, loaded = plan.loaded.recipe, plan.loaded
    if recipe.method == "convert":
        return
    if recipe.calibration is not None:
        if not recipe.needing_data:
            why = "nothing looks at these data: activations are dynamic, and no modifier or observer sees any"
            yield Raised("calibration/unused", loaded.location("calibration"), why, "take calibration out")
        return
    data_free = recipe.method == "model_free_ptq"
    unseen = "which model_free_ptq does not see" if data_free else "and the recipe names none"
    remedy = "use method: oneshot, or" if data_free else "add calibration (recipes/README.md), or use"
    names = recipe.config_groups
    places: list[tuple[str, ...]] = [("config_groups", name) for name in names] if names else [("scheme",)]
    for path, group in zip(places, recipe.groups, strict=False):
        if group.scheme.needs_calibration:
            yield Raised(
                "scheme/needs-calibration",
                loaded.location(*path),
                f"activations are static here: their scales come from data, {unseen}",
                f"{remedy} a scheme with dynamic or unquantized activations",
            )
    if data_free or any(group.scheme.needs_calibration for group in recipe.groups):
        return
    for name in recipe.needing_data:
        index = next((index for index, modifier in enumerate(recipe.modifiers) if modifier.name == name), None)
        where = loaded.document.where if index is None else loaded.location("modifiers", index)
        why = "the KV cache or an observer of weights" if name == "QuantizationModifier" else name
        yield Raised(
            "scheme/needs-calibration", where, f"{why} must see calibration data, {unseen}", f"{remedy} none that does"
        )


def _computed(plan: Plan) -> Iterator[Raised]:
    """What the source stores, and transformers makes of other things when it loads the model: it is saved by nobody."""
    if plan.loaded.recipe.method != "oneshot":
        return
    tied = ties_head(plan.source.config)
    names = [name for name in plan.source.structure if name.endswith(COMPUTED) or (tied and name == TIED_HEAD)]
    remedy = "take it out of the source, or take method: model_free_ptq, which carries it over"
    for name in names:
        why = "is tied to the embedding" if name == TIED_HEAD else "is computed from the config"
        yield Raised(
            "calibration/computed", name, f"{why} where transformers loads the model, and is not saved", remedy
        )


def _observed(plan: Plan) -> Iterator[Raised]:
    """What a recipe says of how scales and codes are chosen, and no engine that it may be built with can do."""
    recipe, loaded = plan.loaded.recipe, plan.loaded
    data_free = recipe.method == "model_free_ptq"
    remedy = "leave it out, take method: oneshot, or build with --engine upstream and allow: {rule} because ..."
    for name, group in (recipe.config_groups or {}).items():
        for kind, args in group.observed().items():
            where = loaded.location("config_groups", name, kind)
            signed = OBSERVERS[args.observer].signed if args.observer is not None else False
            if signed and (kind != "weights" or not data_free):
                why = "is for weights alone" if kind != "weights" else "is not llm-compressor's, which oneshot runs"
                instead = "leave it out" if kind != "weights" else "leave it out, or take method: model_free_ptq"
                yield Raised("scheme/observer", where, f"the observer {args.observer} {why}", instead)
            elif args.actorder is not None and not recipe.compensates(name):
                doing = "this engine does not do" if data_free else "rounding to nearest does not do"
                message = f"says actorder: {args.actorder}, which {doing}: its codes are nearest"
                instead = remedy.format(rule="scheme/observer") if data_free else "leave it out, or take GPTQModifier"
                yield Raised("scheme/observer", where, message, instead)
            elif data_free and kind != "weights" and not (by_largest_values(args) and not args.observer_kwargs):
                message = f"says observer: {args.observer}, and without data nothing of activations is observed"
                yield Raised("scheme/observer", where, message, remedy.format(rule="scheme/observer"))
    if not data_free:
        return
    uncovered: dict[tuple[str, str, str], list[str]] = {}
    for part in plan.parts:
        if part.makes_codes and part.scheme is not None:
            why = not_covered(part.scheme)
            if why:
                uncovered.setdefault((why, str(part.scheme.weights), str(part.decision)), []).append(part.module)
    for (why, weights, decision), modules in uncovered.items():
        for pattern in compact(modules):
            message = f"is to be {weights} by {decision}, which this engine has no arithmetic for: {why}"
            rule = "scheme/not-covered"
            yield Raised(rule, str(pattern), message, remedy.format(rule=rule), len(pattern))


def not_covered(scheme: Scheme) -> str:
    """What the data-free engine lacks to quantize weights by a scheme; empty where it lacks nothing."""
    try:
        encoding_of(scheme)
    except SchemeNotCovered as reason:
        return str(reason)
    return ""


def _coverage(plan: Plan) -> Iterator[Raised]:
    refused = {obstacle.module for obstacle in plan.obstacles}
    family = plan.source.family
    counted = [
        part
        for part in plan.parts
        if _is_matrix(part, family)
        and family.role_of(part.module) in _COUNTED
        and family.unquantized(part.module) is None
    ]
    bulk = [part for part in counted if family.role_of(part.module) in BULK]
    stray: dict[Decision, list[Part]] = {}
    ignored = pattern_list(plan.loaded.recipe.ignored)
    for part in bulk:
        if part.scheme is None and part.module not in refused and ignored.first(part.module) is None:
            stray.setdefault(part.decision, []).append(part)
    for decision, parts in stray.items():
        # A tensor that is no .weight has the module of its parent, which would not tell it from its siblings.
        for pattern in compact(next(iter(part.outputs)).removesuffix(".weight") for part in parts):
            yield Raised(
                "coverage/untargeted",
                str(pattern),
                f"stays unquantized, and no ignore entry says so: {decision}",
                "target it, or say in ignore that it is kept",
                len(pattern),
            )
    total = sum(part.weight.parameters for part in counted)
    quantized = sum(part.weight.parameters for part in counted if part.scheme is not None)
    if quantized and quantized < total / 2:
        yield Raised(
            "coverage/low",
            plan.loaded.document.where,
            f"quantizes {quantized / total:.0%} of the parameters of the text model's matrices, unknown ones included",
            "look in the table for what is kept; if that is meant, allow: coverage/low because ...",
        )
    unknown = [part for part in counted if family.role_of(part.module) is Role.OTHER]
    share = sum(part.weight.parameters for part in unknown) / max(total, 1)
    if share > MOST_UNKNOWN:
        first = compact(part.module for part in unknown)[0]
        yield Raised(
            "coverage/unknown",
            plan.loaded.document.where,
            f"{share:.0%} of the parameters of the text model's matrices have names that nobody knows here, as {first}",
            "look up what they do and name them in ignore or targets; then allow: coverage/unknown because ...",
            len(unknown),
        )


def _is_matrix(part: Part, family: Family) -> bool:
    """Whether a part is a matrix, or experts that lie in one tensor; tables under other names are neither."""
    if len(part.weight.shape) == 2:
        return part.scheme is not None or f"{part.module}.weight" in part.outputs
    return len(part.weight.shape) == 3 and any(family.role_of(name) is Role.EXPERTS for name in part.outputs)
