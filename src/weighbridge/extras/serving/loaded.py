"""What a server's loader made of a checkpoint, as findings: what is missing, left aside, or beyond serving."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from weighbridge.checkpoint.model import Checkpoint
from weighbridge.checkpoint.modules import QUANTIZATION_PARAMETERS, split_parameter
from weighbridge.checkpoint.problems import Problem, findings_of, said_of
from weighbridge.checks.scales import GLOBAL_SCALES
from weighbridge.extras.serving.answer import Answer, Region
from weighbridge.families import Role
from weighbridge.formats.quantization import text_config
from weighbridge.planning import find_merged_groups
from weighbridge.report import Finding, Severity
from weighbridge.text.names import compact, split_name

TOWERS = (Role.VISION, Role.AUDIO)


@dataclass(frozen=True)
class Harmless:
    """Parameters of a server that no checkpoint need fill.

    Attributes:
        pattern: regular expression of the whole name.
        reason: why, a clause.
        remedy: what to do where it is harmless to this check and yet worth a warning.
    """

    pattern: str
    reason: str
    remedy: str = ""


def harmless_parameters(checkpoint: Checkpoint) -> tuple[Harmless, ...]:
    """What may stay unfilled when this checkpoint is served."""
    cache = Harmless(r".*\.(?:mla_)?attn\._?[kv]_scale", "the KV cache is not quantized, so its scales are not read")
    if checkpoint.declaration is not None and checkpoint.declaration.kv_cache is not None:
        cache = Harmless(
            cache.pattern,
            "the checkpoint declares a quantized KV cache without scales, and the server takes 1",
            "calibrate the scales, or serve without a quantized KV cache",
        )
    found = [
        cache,
        Harmless(r".*\.(?:mla_)?attn\.(_?q_scale|_?prob_scale)", "queries and probabilities are not quantized"),
        Harmless(r".*\.attn\.[qkv]_zero_point", "the server reads no zero points of attention"),
        Harmless(r".*weight_shape", "the server takes shapes from the config"),
    ]
    with_global_scale = [each for each in checkpoint.schemes.values() if each.weights.strategy == "tensor_group"]
    if with_global_scale and all(scheme.input_activations is None for scheme in with_global_scale):
        found.append(Harmless(r".*input_global_scale", "inputs are not quantized"))
    return tuple(found)


def loading_findings(checkpoint: Checkpoint, answer: Answer, *, towers: bool) -> list[Finding]:
    """Everything to say of how the server loaded a checkpoint.

    Args:
        towers: whether the server was asked to load vision and audio towers.
    """
    return [
        *_quantized_routers(checkpoint),
        *findings_of(_split_groups(checkpoint, answer)),
        *_not_finite(answer),
        *_refused(answer),
        *_unfilled(checkpoint, answer),
        *_not_used(checkpoint, answer, towers=towers),
        *_replaced(answer),
    ]


def _refused(answer: Answer) -> Iterator[Finding]:
    if answer.refused:
        what = f"does not serve it: {answer.refused}"
        remedy = "see the findings beside this one, and the server's log"
        yield Finding("serve/refused", Severity.ERROR, "the server", what, remedy=remedy)


def _quantized_routers(checkpoint: Checkpoint) -> Iterator[Finding]:
    routers = [
        module
        for module, tensors in checkpoint.modules.items()
        if checkpoint.family.role_of(module) is Role.ROUTER and tensors.keys() & QUANTIZATION_PARAMETERS
    ]
    what = "is quantized; servers compute routers in the dtype they are stored in, and have no place for scales"
    yield from said_of(routers, "serve/quantized-router", what, "add it to ignore and build again")


def _split_groups(checkpoint: Checkpoint, answer: Answer) -> Iterator[Problem]:
    """Linears that a server merges into one, and which differ in scheme or in the scale that the whole must share."""
    what = "its merged linears {}; a server computes them as one and takes the first's or the largest"
    remedy = "build with fused groups (recipes name them under fused_groups)"
    for group in find_merged_groups(checkpoint.modules, checkpoint.family):
        modules = [f"{group.parent}.{member}" for member in group.members]
        if len({checkpoint.schemes.get(module) for module in modules}) > 1:
            yield "serve/split-group", group.parent, what.format("have different schemes"), remedy
        for local in GLOBAL_SCALES:
            values = {answer.shared_scales.get(f"{module}.{local}") for module in modules}
            if len(values) > 1:
                yield "serve/split-group", group.parent, what.format(f"have different values of {local}"), remedy


def _not_finite(answer: Answer) -> Iterator[Finding]:
    by_kind: dict[str, list[str]] = {}
    for key in answer.not_finite:
        by_kind.setdefault("scale" if "scale" in key.rpartition(".")[2] else "tensor", []).append(key)
    for kind, keys in by_kind.items():
        for pattern in compact(keys):
            elements = sum(answer.not_finite[key] for key in pattern)
            what = f"the {kind} holds {elements:,} values that are NaN or infinite"
            remedy = "the checkpoint is damaged or was calibrated with too little; build it again"
            yield Finding("serve/not-finite", Severity.ERROR, str(pattern), what, count=len(pattern), remedy=remedy)


def _unfilled(checkpoint: Checkpoint, answer: Answer) -> Iterator[Finding]:
    allowed = harmless_parameters(checkpoint)
    at_default: dict[Harmless, list[str]] = {}
    missing: set[str] = set()
    for parameter, regions in answer.unfilled.items():
        harmless = next((each for each in allowed if re.fullmatch(each.pattern, parameter)), None)
        if harmless is not None:
            if harmless.remedy:
                at_default.setdefault(harmless, []).append(parameter)
            continue
        for region in regions:
            keys = missing_keys(answer, parameter, region)
            missing |= keys
            if not keys:
                box = ", ".join(f"{begin}:{end}" for begin, end in region)
                what = f"[{box}] of it was filled by no tensor of the checkpoint, and holds whatever lay in memory"
                remedy = "the checkpoint lacks a tensor; build it again"
                yield Finding("serve/unfilled", Severity.ERROR, parameter, what, remedy=remedy)
    what = "is not in the checkpoint; the server loads it without a word and computes with what lies in memory"
    yield from said_of(missing, "serve/missing", what, "build it again")
    for harmless, parameters in at_default.items():
        reason, remedy = harmless.reason, harmless.remedy
        yield from said_of(parameters, "serve/left-at-default", reason, remedy, severity=Severity.WARNING)


def missing_keys(answer: Answer, parameter: str, region: Region) -> set[str]:
    """What the tensors would be called that should have filled a region of a parameter.

    They are named after those that filled the like region of a like parameter: of another layer, or of another expert
    (which is another index of the first axis). Empty if there is none to go by.
    """
    kind = answer.parameters.get(parameter)
    template, numbers = split_name(parameter)
    found = set()
    for key, filled, there in answer.writes:
        if answer.parameters.get(filled) != kind or split_name(filled)[0] != template:
            continue
        name = _renumbered(key, split_name(filled)[1], filled, numbers)
        for candidate in _contained(name, there, region):
            if candidate not in answer.keys:
                found.add(candidate)
    return found


def _contained(key: str, there: Region, region: Region) -> Iterator[str]:
    """The key itself if what it fills lies in the region; if it is an expert's, that of each expert of the region."""
    expert = re.search(r"(?<=\.experts\.)\d+(?=\.)", key)
    if expert is not None and there and there[0] == (int(expert[0]), int(expert[0]) + 1):
        if _lies_in(there[1:], region[1:]):
            for index in range(*region[0]):
                yield f"{key[: expert.start()]}{index}{key[expert.end() :]}"
    elif _lies_in(there, region):
        yield key


def _lies_in(inner: Iterable[tuple[int, int]], outer: Iterable[tuple[int, int]]) -> bool:
    return all(begin <= low and high <= end for (low, high), (begin, end) in zip(inner, outer, strict=True))


def _renumbered(key: str, old: tuple[int, ...], parameter: str, new: tuple[int, ...]) -> str:
    """A key with the numbers of a parameter in place of those of a like one: ``layers.3`` for ``layers.0``."""
    parts, wanted = key.split("."), parameter.split(".")
    places = [wanted[index - 1] for index, part in enumerate(wanted) if part.isdigit()]
    for place, before, after in zip(places, old, new, strict=True):
        for index in range(1, len(parts)):
            if parts[index - 1] == place and parts[index] == str(before):
                parts[index] = str(after)
    return ".".join(parts)


def _not_used(checkpoint: Checkpoint, answer: Answer, *, towers: bool) -> Iterator[Finding]:
    if answer.homeless_writes:
        what = "lists names before it loads tensors, so which of them it used cannot be tracked"
        remedy = "this check does not fit this model's loader; report the model"
        yield Finding("serve/not-watched", Severity.ERROR, answer.model, what, remedy=remedy)
        return
    if not answer.keys:
        return  # refused before anything was read
    used = {key for key, _, _ in answer.writes}
    reason = _reasons(checkpoint, answer, towers=towers)
    aside: dict[tuple[str, str], list[str]] = {}
    for key in {**checkpoint.structure, **answer.keys}:
        if key not in used:
            what = "the server reads it and uses it nowhere" if key in answer.keys else "the server never reads it"
            if not (answer.refused and key not in answer.keys):
                aside.setdefault((what, reason(key)), []).append(key)
    for (what, why), keys in aside.items():
        severity = Severity.NOTE if why else Severity.ERROR
        remedy = "" if why else "the checkpoint holds what its config does not ask for; build it again"
        yield from said_of(keys, "serve/not-used", what, remedy, severity=severity, explained=why)


def _reasons(checkpoint: Checkpoint, answer: Answer, *, towers: bool) -> Callable[[str], str]:
    """Why the server may leave a key aside; empty for one that it must use."""
    text = text_config(checkpoint.config)
    layers, shared = text.get("num_hidden_layers"), text.get("num_kv_shared_layers")
    first_shared = layers - shared if isinstance(layers, int) and isinstance(shared, int) and shared else None
    has_head = any(name.rpartition(".")[0].endswith("lm_head") for name in answer.parameters)

    def reason(key: str) -> str:
        module, _ = split_parameter(key)
        if checkpoint.family.role_of(module) in TOWERS and not towers:
            return "towers were not loaded, since the checkpoint has no processor's files"
        if checkpoint.family.role_of(module) is Role.HEAD and not has_head:
            return "the config ties the head to the embedding, which the server takes"
        layer = re.search(r"\.layers\.(\d+)\.self_attn\.(?:[kv]_proj|k_norm)$", module)
        if layer is not None and first_shared is not None and int(layer[1]) >= first_shared:
            return "the layer takes keys and values of another"
        return ""

    return reason


def _replaced(answer: Answer) -> Iterator[Finding]:
    for sentence in answer.replaced:
        what = f"no kernel for this machine ({answer.device}); for this check {sentence.partition(': ')[2]}"
        yield Finding("serve/replaced-kernel", Severity.NOTE, sentence.partition(":")[0], what)
