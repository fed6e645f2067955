"""Keys of the declared quantization, each held against what the recipe's plan declares, or against the tensors.

A server resolves targets and ignore lists against names and classes of its own, which nobody sees in a checkpoint.
So an entry passes only if it is the plan's, or the plain name of a module that lies there; what matches nothing here
may match something there.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from weighbridge.account.base import Base
from weighbridge.account.leaves import Path, leaves, shown
from weighbridge.account.model import Kind, State, Verdict
from weighbridge.checkpoint.model import Checkpoint
from weighbridge.checkpoint.modules import split_parameter
from weighbridge.formats import modelopt
from weighbridge.formats.compressed_tensors import METHOD as COMPRESSED_TENSORS
from weighbridge.formats.compressed_tensors import read_args
from weighbridge.formats.declaration import LINEAR
from weighbridge.formats.quantization import CONFIG_KEYS, find_config
from weighbridge.formats.schemes import PRESETS, QuantizationArgs
from weighbridge.planning import Plan, find_fused_groups, find_merged_groups, tied_heads
from weighbridge.planning.quantize import KV_CACHE_SCALES
from weighbridge.report import Finding, Severity
from weighbridge.text.patterns import REGEX_PREFIX, pattern_list
from weighbridge.text.strict_json import parse_object

PLAN = "the recipe's plan"
TENSORS = "the tensors, which are stored as it declares"
SPELLING = "spelled otherwise than the plan spells it, by names of modules; every module gets the same"
RECORD = "a record of how it was made; servers read the scales"
EMPTY = "empty: it says nothing"
FOREIGN = "not in the plan, and it names no module here: its effect on servers is unknown"
UNSEEN = "nothing in the tensors shows it, and no preset has it: it is known by a recipe alone"
ELSEWHERE = "a second place for a quantization config, which one server may read and another not"
PLACE = "quantization_config"

_LISTS = ("targets", "ignore", "exclude", "exclude_modules", "modules_to_not_convert", "ignored_layers")
_OBSERVED = ("observer", "observer_kwargs")
_STATIC_SCALES = {
    "input_activations": ("input_scale", "input_global_scale"),
    "output_activations": ("output_scale", "output_global_scale"),
}
"""How the names end in which the static scales of a linear's activations are stored."""
_DEFAULTS: Mapping[str, Any] = {"symmetric": True, "dynamic": False, "observer_kwargs": {}}


def judge_quantization(checkpoint: Checkpoint, plan: Plan | None, base: Base | None) -> Iterator[Verdict]:
    """Every key of the quantization config in config.json, and of whatever else stands where one could."""
    found, file = find_config(checkpoint.config, where=checkpoint.label), checkpoint.form.config
    place = "" if found is None else found.place
    if found is not None:
        if plan is None:
            stored = _local_names(checkpoint)
            for path, text in leaves(found.raw).items():
                state, by = (State.HELD, TENSORS) if _is_known(path, text, checkpoint) else (State.NOT_JUDGED, FOREIGN)
                if text != "null" and not _leaves_a_trace(path, found.raw, stored):
                    state, by = State.NOT_JUDGED, UNSEEN
                yield Verdict(Kind.KEY, f"{file}:{place}.{'.'.join(path)}", state, by)
        else:
            yield from _against_plan(found.raw, f"{file}:{place}", checkpoint, plan)
            yield from _place(file, place)
    known = {} if base is None else dict(_places(base.checkpoint.config, ()))
    for path, value in _places(checkpoint.config, ()):
        name = ".".join(path)
        if name != place:
            same = path in known and json.dumps(known[path]) == json.dumps(value) and base is not None
            state, by = (State.SAME, base.name if base else "") if same else (State.NOT_JUDGED, ELSEWHERE)
            yield Verdict(Kind.KEY, f"{file}:{name}", state, by)


def _is_known(path: Path, text: str, checkpoint: Checkpoint) -> bool:
    """Whether each entry of a list of targets or of what is ignored is about something that lies there."""
    if path[-1] not in _LISTS:
        return True
    entries = json.loads(text)
    declaration = checkpoint.declaration
    if not isinstance(entries, list) or declaration is None:
        return entries is None
    if declaration.quant_method != COMPRESSED_TENSORS:
        return _are_parts(entries, checkpoint)
    known = {*checkpoint.modules, *tied_heads(checkpoint.config, checkpoint.modules), *_merged(checkpoint)}
    classes = {target for group in declaration.attention for target in group.targets}
    if path[-1] == "targets":
        classes.add(LINEAR)
    else:
        known |= {split_parameter(name)[0] for name in checkpoint.structure}  # norms are ignored too
    if checkpoint.family.params:
        known = set(map(checkpoint.family.in_vllm, known))
    return all(
        entry in classes or entry in known or (entry.startswith(REGEX_PREFIX) and _matches(entry, known))
        for entry in entries
    )


def _local_names(checkpoint: Checkpoint) -> frozenset[str]:
    """What tensors are called in their modules: ``weight_scale``, ``k_scale``, ..."""
    return frozenset(split_parameter(name)[1] for name in checkpoint.structure)


def _leaves_a_trace(path: Path, raw: Mapping[str, Any], stored: Collection[str]) -> bool:
    """Whether tensors show what is declared, or a preset has it.

    Args:
        stored: what tensors are called in their modules.

    Dynamic scales are stored nowhere. Static ones are; where those of a cache are missing, each server takes what it
    likes. By DeepSeek's ``scale_fmt`` vLLM 0.32 rounds the scales of activations.
    """
    if path == ("scale_fmt",):
        return False
    if path[0] == "kv_cache_scheme" or path[-1] == "kv_cache_quant_algo":
        scheme = raw.get("kv_cache_scheme")
        dynamic = isinstance(scheme, Mapping) and scheme.get("dynamic") is True
        return not dynamic and all(name in stored for name in KV_CACHE_SCALES)
    if path[0] != "config_groups" or not _STATIC_SCALES.keys() & {*path[2:3]}:
        return True
    _, label, part, *_ = path
    group, where = raw["config_groups"][label], f"config_groups.{label}"
    args = read_args(group[part], where=where)
    if args.dynamic is False:
        return any(name.endswith(_STATIC_SCALES[part]) for name in stored)
    weights = group.get("weights")
    return part == "input_activations" and weights is not None and _is_usual(read_args(weights, where=where), args)


def _is_usual(weights: QuantizationArgs, inputs: QuantizationArgs) -> bool:
    """Whether a preset, or four-bit integers with inputs of eight bits, has such inputs for such weights."""
    usual = [(scheme.weights.type, scheme.weights.num_bits, scheme.input_activations) for scheme in PRESETS.values()]
    usual += [("int", 4, PRESETS[name].input_activations) for name in ("FP8_DYNAMIC", "W8A8")]
    return (weights.type, weights.num_bits, inputs) in usual


def _are_parts(entries: list[Any], checkpoint: Checkpoint) -> bool:
    """Whether each entry is a part of the name of something kept, and of nothing quantized: readers of other methods
    compare names, beginnings, ends, parts or expressions, each in its own way."""
    names = {f".{split_parameter(name)[0]}." for name in checkpoint.structure}
    quantized = {f".{module}." for module in checkpoint.schemes}
    entries = [str(entry).strip("*") for entry in entries]
    inside = (f".{entry.strip('.')}." for entry in entries)
    return all(
        any(entry in name for name in names - quantized) and not any(entry in name for name in quantized)
        for entry in inside
    )


def _merged(checkpoint: Checkpoint) -> set[str]:
    """Members of merged linears that are not stored, of which servers ask all the same."""
    groups = find_merged_groups(checkpoint.modules, checkpoint.family)
    return {f"{group.parent}.{member}" for group in groups for member in group.absent}


def _matches(entry: str, names: Iterable[str]) -> bool:
    patterns = pattern_list((entry,))
    return any(patterns.matches(name) for name in names)


def judge_hf_quant_config(raw: bytes, checkpoint: Checkpoint, plan: Plan | None) -> Iterator[Verdict]:
    """Every key of modelopt's own file, which says the same as config.json.

    Raises:
        StructureError: it is not JSON.
    """
    name = modelopt.HF_QUANT_CONFIG
    content = parse_object(raw, where=name)
    own = leaves(content)
    if plan is None or name not in plan.documents:
        stored = _local_names(checkpoint)
        for path, text in own.items():
            traced = text == "null" or _leaves_a_trace(path, content, stored)
            state, by = (State.HELD, TENSORS) if traced else (State.NOT_JUDGED, UNSEEN)
            yield Verdict(Kind.KEY, f"{name}:{'.'.join(path)}", state, by)
        return
    planned = leaves(parse_object(plan.documents[name], where=name))
    for path in [*own, *(path for path in planned if path not in own)]:
        verdict = _verdict(f"{name}:{'.'.join(path)}", path, own.get(path), planned.get(path))
        if path[-1] == "exclude_modules" and path in planned and own.get(path) != planned[path]:
            verdict = _listed(
                verdict.name, json.loads(own.get(path, "[]")), json.loads(planned[path]), checkpoint, plan
            )
        yield verdict


def _place(file: str, place: str) -> Iterator[Verdict]:
    if place != PLACE:
        what = "stands where not every server looks: transformers then takes the codes for weights"
        remedy = f"move it to {PLACE} at the top of {file}"
        finding = Finding("account/key-changed", Severity.ERROR, f"{file}:{place}", what, remedy=remedy)
        yield Verdict(Kind.KEY, f"{file}:{place}", State.HELD, PLAN, (finding,))


def _places(config: Mapping[str, Any], path: Path) -> Iterator[tuple[Path, Any]]:
    """Everything that stands under the name of a quantization config, wherever it is."""
    for key, value in config.items():
        if key in CONFIG_KEYS:
            yield (*path, key), value
        elif isinstance(value, Mapping):
            yield from _places(value, (*path, str(key)))


def _against_plan(raw: Mapping[str, Any], prefix: str, checkpoint: Checkpoint, plan: Plan) -> Iterator[Verdict]:
    planned = plan.quantization or {}
    for key in [*raw, *(key for key in planned if key not in raw)]:
        own, other = raw.get(key), planned.get(key)
        if key in raw and key in planned and json.dumps(own) == json.dumps(other):
            for path in leaves({key: own}):
                yield Verdict(Kind.KEY, f"{prefix}.{'.'.join(path)}", State.FOLLOWS, PLAN)
        elif key == "config_groups" and isinstance(own, Mapping) and isinstance(other, Mapping):
            yield from _groups(own, other, prefix, checkpoint)
        elif key == "ignore" and isinstance(other, list):
            yield _listed(f"{prefix}.{key}", own or [], other, checkpoint, plan)
        elif (key in ("sparsity_config", "transform_config") and not own and not other) or (
            own is None and other is None
        ):
            yield Verdict(Kind.KEY, f"{prefix}.{key}", State.HARMLESS, EMPTY)
        elif key == "kv_cache_scheme" and isinstance(own, Mapping) and isinstance(other, Mapping):
            alike = _args_alike(own, other)
            state, by = (State.HARMLESS, SPELLING) if alike else (State.NOT_JUDGED, FOREIGN)
            yield Verdict(Kind.KEY, f"{prefix}.{key}", state, by)
        else:
            ours, theirs = leaves({key: own}) if key in raw else {}, leaves({key: other}) if key in planned else {}
            for path in [*ours, *(path for path in theirs if path not in ours)]:
                yield _verdict(f"{prefix}.{'.'.join(path)}", path, ours.get(path), theirs.get(path))


def _verdict(name: str, path: Path, own: str | None, planned: str | None) -> Verdict:
    if own == planned:
        return Verdict(Kind.KEY, name, State.FOLLOWS, PLAN)
    if path in (("version",), ("producer", "version"), ("global_compression_ratio",)):
        return Verdict(Kind.KEY, name, State.HARMLESS, RECORD)
    message = f"is {shown(own)}, and {shown(planned)} in {PLAN}"
    remedy = "build it again by the recipe"
    finding = Finding("account/key-changed", Severity.ERROR, name, message, remedy=remedy)
    return Verdict(Kind.KEY, name, State.HELD, PLAN, (finding,))


def _listed(name: str, own: Any, planned: list[str], checkpoint: Checkpoint, plan: Plan) -> Verdict:
    """A list of what is kept: the plan's own entries, and plain names of modules that are kept."""
    kept = set(checkpoint.modules) - set(checkpoint.schemes) | set(plan.modules) - set(plan.schemes) | plan.tied_modules
    groups = find_fused_groups(kept, plan.loaded.recipe.fused_groups, plan.source.family)
    allowed = {*planned, *kept, *(f"{group.parent}.{member}" for group in groups for member in group.absent)}
    alike = isinstance(own, list) and all(isinstance(entry, str) and entry in allowed for entry in own)
    return Verdict(Kind.KEY, name, *((State.HARMLESS, SPELLING) if alike else (State.NOT_JUDGED, FOREIGN)))


def _groups(
    own: Mapping[str, Any], planned: Mapping[str, Any], prefix: str, checkpoint: Checkpoint
) -> Iterator[Verdict]:
    """Config groups, whatever they are called: each with the arguments of one of the plan's."""
    modules = set(checkpoint.schemes)
    one = next(iter(planned.values())) if len(planned) == 1 else None
    others = [one] * len(own) if one is not None else [*planned.values(), *[None] * len(own)]
    # vLLM takes the first group that fits, so that several stand in the plan's order.
    for (label, group), other in zip(own.items(), others, strict=False):
        said = {path[1:] for path in leaves({label: group})}
        alike = other is not None and len(own) >= len(planned) and _group_alike(group, other, modules)
        state, by = (State.HARMLESS, SPELLING) if alike else (State.NOT_JUDGED, FOREIGN)
        state, by = (State.FOLLOWS, PLAN) if json.dumps(planned.get(label)) == json.dumps(group) else (state, by)
        absent = [path for path in leaves({label: other}) if alike and path[1:] not in said]
        for path in [*leaves({label: group}), *absent]:
            yield Verdict(Kind.KEY, f"{prefix}.config_groups.{'.'.join(path)}", state, by)


def _group_alike(own: Any, planned: Mapping[str, Any], modules: set[str]) -> bool:
    if not isinstance(own, Mapping) or not isinstance(own.get("targets"), list):
        return False
    allowed = {*planned["targets"], *modules}
    parts = ("weights", "input_activations", "output_activations")
    return (
        own.keys() <= {*parts, "targets", "format"}
        and bool(own["targets"])
        and all(isinstance(target, str) and target in allowed for target in own["targets"])
        and own.get("format") in (None, planned.get("format"))
        and all(_args_alike(own.get(part), planned.get(part)) for part in parts)
    )


def _args_alike(own: Any, planned: Any) -> bool:
    """Whether arguments have one effect; older writers left out in which dtype scales and zero points are kept."""
    ours, theirs = _plain(own), _plain(planned)
    if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
        theirs = {key: value for key, value in theirs.items() if key in ours or key not in ("scale_dtype", "zp_dtype")}
    return bool(ours == theirs)


def _plain(args: Any) -> Any:
    """Arguments without how scales were chosen, and without what is the default or says nothing."""
    if not isinstance(args, Mapping):
        return args
    kept = {key: value for key, value in args.items() if key not in _OBSERVED}
    return {
        key: json.dumps(value)
        for key, value in kept.items()
        if value is not None and json.dumps(value) != json.dumps(_DEFAULTS.get(key))
    }
