"""The same modules quantized by vLLM itself, while it loads an unquantized model: its configuration for a plan.

Source: ``vllm/config/quantization.py`` and ``vllm/model_executor/layers/quantization/online/`` of vLLM 0.32.0. There a
target is an expression that is matched against the beginning of a layer's name, of the experts of one layer as a whole,
and of linears that vLLM merges against each member's; what matches none stays as it is.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from weighbridge.errors import BuildError
from weighbridge.families import Role
from weighbridge.formats.observers import by_largest_values
from weighbridge.formats.schemes import PRESETS, QuantizationArgs, Scheme
from weighbridge.planning.model import Part, Plan
from weighbridge.text.names import NamePattern, compact, expert_of, split_name
from weighbridge.text.patterns import REGEX_PREFIX

_FP8_TENSOR = QuantizationArgs(8, "float", "tensor")
NAMES: Mapping[str, tuple[Scheme, ...]] = {
    "fp8_per_channel": (PRESETS["FP8_DYNAMIC"],),
    "fp8_per_block": (PRESETS["FP8_BLOCK"],),
    "fp8_per_tensor": (
        Scheme(_FP8_TENSOR, QuantizationArgs(8, "float", "tensor", dynamic=True)),
        Scheme(_FP8_TENSOR, QuantizationArgs(8, "float", "token", dynamic=True)),
    ),
    "mxfp8": (PRESETS["MXFP8"],),
    "mxfp4": (PRESETS["MXFP4"],),
}
"""vLLM's name for a way of quantizing linears and experts while it loads -> the schemes of recipes that it stands for.

It has two more, of experts alone, that no scheme of a recipe is: NVFP4 under activations by token, and INT8 by row.
"""

BUILD_IT = "build it: vLLM makes of floats, while it loads, " + ", ".join(
    preset for preset, scheme in PRESETS.items() if any(scheme in schemes for schemes in NAMES.values())
)
"""What to do with what vLLM cannot do."""

DIFFERS: Mapping[str, str] = {
    "fp8_per_channel": "scales stay F32, where a build rounds them to the weight's dtype, and codes follow them",
    "fp8_per_block": (
        "scales stay F32 and are 1e-4 / 448 at least, weights are multiplied by their reciprocals, and blocks lie "
        "across the members of what is merged; a build rounds scales and quotients to the weight's dtype, member by "
        "member"
    ),
    "fp8_per_tensor": (
        "scales stay F32, weights are multiplied by their reciprocals, and what is merged has one scale; a build has "
        "one for each member, in the weight's dtype"
    ),
    "mxfp8": "where the largest value of 32 is 7/4 of a power of two, the scale is half of a build's",
    "mxfp4": "zeros keep their sign, which is lost in a build, and blocks of zeros have another exponent",
}
"""What its bytes are otherwise than those of a build."""


@dataclass(frozen=True)
class Online:
    """What vLLM is told.

    Attributes:
        targets: expression for names of layers -> vLLM's name for how they are quantized.
        differs: by such a name, what is otherwise than in a build.
    """

    targets: Mapping[str, str]
    differs: Mapping[str, str]

    @property
    def config(self) -> dict[str, dict[str, str]]:
        """The value of vLLM's ``--quantization-config``, beside ``--quantization online``."""
        return {"targets": dict(self.targets)}


def online(plan: Plan) -> Online:
    """vLLM's configuration for what a plan quantizes.

    Raises:
        BuildError: vLLM cannot quantize this while it loads; with what stands against it.
    """
    _check_source(plan)
    ways = _ways(plan)
    targets: dict[str, str] = {}
    for way in NAMES:
        named = [layer for layer, other in ways.items() if other == way]
        against = [layer for layer, other in ways.items() if other != way]
        targets |= dict.fromkeys(_expressions(named, against), way)
    return Online(targets, {way: DIFFERS[way] for way in NAMES if way in targets.values()})


def _ways(plan: Plan) -> dict[str, str | None]:
    """What vLLM asks about, by the name that it has there, and how that is quantized; None for what is kept.

    Raises:
        BuildError: vLLM has no such way, or the plan does not do the same to all of what vLLM holds as one.
    """
    family = plan.source.family
    found: dict[str, str | None] = {}
    as_one: dict[str, str | None] = {}
    for part in plan.parts:
        if part.scheme is None and len(part.weight.shape) != 2:
            continue
        way = None if part.scheme is None else _way(plan, part)
        layer = _layer(part.module)
        merge = family.merge_of(layer)
        whole = layer if merge is None else f"{layer.rpartition('.')[0]}.{merge.into}"
        if as_one.setdefault(whole, way) != way:
            what = (
                "is not quantized alike in all its parts, and vLLM holds experts of a layer, and merged linears, as one"
            )
            raise BuildError(what, where=whole, remedy="give its parts one scheme, or keep all of them")
        found[_layer(family.in_vllm(part.module))] = way
    return found


def _check_source(plan: Plan) -> None:
    """Refuse what vLLM has no part in: codes that are there already, and what is made of calibration data."""
    recipe = plan.loaded.recipe
    if plan.source.declaration is not None or recipe.method == "convert":
        raise BuildError(
            "is quantized already, and vLLM quantizes what is published in floats",
            where=plan.source.label,
            remedy="serve it as it is, or build from it",
        )
    if plan.additions:
        raise BuildError(
            "has scales of a KV cache, which vLLM takes from a checkpoint alone",
            where=plan.loaded.document.where,
            remedy="leave kv_cache out, or build it",
        )
    if not plan.schemes:
        raise BuildError("quantizes nothing", where=plan.loaded.document.where)


def _way(plan: Plan, part: Part) -> str:
    """vLLM's name for how a module is quantized.

    Raises:
        BuildError: it has none.
    """
    scheme = part.scheme
    assert scheme is not None
    if plan.source.family.role_of(part.module) in (Role.EMBEDDINGS, Role.HEAD):
        raise BuildError("is no linear to vLLM, and stays as it is while it loads", where=part.module, remedy=BUILD_IT)
    if not by_largest_values(scheme.weights):
        why = f"has scales chosen by {scheme.weights.observer}, and vLLM takes the largest values"
        raise BuildError(why, where=part.decision.place or part.module, remedy=BUILD_IT)
    for name, schemes in NAMES.items():
        if scheme in schemes:
            return name
    raise BuildError(
        f"vLLM cannot make {scheme} while it loads", where=part.decision.place or part.module, remedy=BUILD_IT
    )


def _layer(module: str) -> str:
    """What vLLM asks about: a linear, or the experts of a layer as one."""
    before, experts, _ = module.partition(".experts")
    return before + experts if expert_of(module) or module.endswith(_STACKED) else module


_STACKED = tuple(f".experts.{name}" for name in ("gate_up_proj", "down_proj"))


def _expressions(layers: Sequence[str], others: Collection[str]) -> list[str]:
    """Expressions that match `layers` and none of `others`."""
    against = {split_name(other)[0] for other in others}
    members: dict[str, list[str]] = {}
    for pattern in compact(layers):
        parent, member = _expression(pattern, against)
        members.setdefault(parent, []).append(member)
    return [f"{REGEX_PREFIX}{parent}{_one_of(named)}$" for parent, named in members.items()]


def _expression(pattern: NamePattern, others: Collection[str]) -> tuple[str, str]:
    """One for layers that differ in numbers alone, by as much of their names as tells them from `others`.

    vLLM may put parts before or into a name: ``language_model.model.layers`` for ``model.language_model.layers``.

    Args:
        others: templates of names. Where the layers' own is one of them, numbers tell the two apart.

    Returns:
        All up to the last part of the names, and that.
    """
    parts = pattern.template.split(".")
    by_number = pattern.template in others
    rest = [other.split(".") for other in others if other != pattern.template]
    shortest = len(parts) - parts.index(NUMBER) if by_number else 2
    endings = (parts[-length:] for length in range(shortest, len(parts) + 1))
    ending = next((some for some in endings if all(other[-len(some) :] != some for other in rest)), parts)
    rivals = [other for other in rest if parts[-1] in other]
    own = next((part for part in parts if rivals and all(part not in rival for rival in rivals)), ending[0])
    indices = iter(pattern.indices)
    *spelled, member = [
        re.escape(part) if part != NUMBER else _one_of(next(indices)) if by_number else "[0-9]+" for part in ending
    ]
    before = "" if own in ending else f"{re.escape(own)}[.]{ANY}"
    return ANY + before + "".join(f"{part}[.]" for part in spelled), member


NUMBER, ANY = "{}", "(?:.*[.])?"


def _one_of(said: Sequence[object]) -> str:
    return str(said[0]) if len(said) == 1 else f"(?:{'|'.join(map(str, said))})"
