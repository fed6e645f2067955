"""Lint of what servers load as one matrix, and what must therefore be quantized alike."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from weighbridge.formats.schemes import Scheme
from weighbridge.lint.merged import MERGED, expert_of
from weighbridge.lint.rules import Raised
from weighbridge.patterns import pattern_list
from weighbridge.plan import FusedGroup, Plan
from weighbridge.structure.names import compact

_VALUES = ("v_proj",)


class _Problem(NamedTuple):
    """What is wrong with a group, without the place: places with the same problem are reported together."""

    rule: str
    message: str
    remedy: str


def check(plan: Plan) -> Iterator[Raised]:
    """Groups and experts that are partly kept or quantized by different schemes, and groups that lack a member."""
    # What a scheme cannot be applied to is reported as such; here it counts as what it was meant to be.
    schemes = {**plan.schemes, **{obstacle.module: obstacle.scheme for obstacle in plan.obstacles}}
    rules = {part.module: part.rule for part in plan.parts if f"{part.module}.weight" in part.outputs or part.scheme}
    places: dict[_Problem, list[str]] = {}
    uneven: set[str] = set()
    unlisted = tuple(_unlisted(plan))
    for group in (*plan.fused_groups, *unlisted):
        problem = _uneven(group, schemes, rules) or _absent_member(group, schemes, rules, plan)
        if problem is not None:
            places.setdefault(problem, []).append(group.parent)
            uneven.add(group.parent)
    for group in unlisted:
        if group.parent not in uneven and _shares_scale(group, schemes):
            named = ", ".join(group.members)
            message = f"servers merge {named} under one global scale, and fused_groups does not name them together"
            problem = _Problem("fused/unlisted", message, f"add [{named}] to fused_groups")
            places.setdefault(problem, []).append(group.parent)
    for problem, parents in places.items():
        for pattern in compact(parents):
            yield Raised(problem.rule, str(pattern), problem.message, problem.remedy, len(pattern))
    yield from _experts(plan, schemes, uneven)
    yield from _lacking(plan, schemes)


def _unlisted(plan: Plan) -> Iterator[FusedGroup]:
    """Linears that vLLM merges and that no fused group of the recipe names together."""
    groups = [set(group) for group in plan.loaded.recipe.fused_groups]
    merges = [members for members in MERGED.values() if not any(group.issuperset(members) for group in groups)]
    merge_of = {member: members for members in merges for member in members}
    found: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for module in plan.modules:
        parent, _, member = module.rpartition(".")
        if member in merge_of:
            found.setdefault((parent, merge_of[member]), []).append(member)
    for (parent, members), present in found.items():
        if len(present) > 1:
            absent = tuple(member for member in members if member not in present)
            yield FusedGroup(parent, tuple(member for member in members if member in present), absent)


def _uneven(group: FusedGroup, schemes: Mapping[str, Scheme], rules: Mapping[str, str]) -> _Problem | None:
    of_members = {member: schemes.get(f"{group.parent}.{member}") for member in group.members}
    kept = [member for member, scheme in of_members.items() if scheme is None]
    quantized = [member for member, scheme in of_members.items() if scheme is not None]
    if kept and quantized:
        why = rules.get(f"{group.parent}.{kept[0]}", "it has no weight")
        return _Problem(
            "fused/partly-ignored",
            f"{', '.join(quantized)} quantized, {', '.join(kept)} kept ({why})",
            "keep all of them or none: servers load them as one matrix",
        )
    if not _alike(list(of_members.values())):
        return _Problem(
            "fused/schemes-differ",
            "; ".join(f"{member} has {scheme}" for member, scheme in of_members.items()),
            "give them one scheme: servers load them as one matrix",
        )
    return None


def _absent_member(
    group: FusedGroup, schemes: Mapping[str, Scheme], rules: Mapping[str, str], plan: Plan
) -> _Problem | None:
    """vLLM asks the ignore list for every member of a merged linear, also for one that is not stored."""
    if not group.absent:
        return None
    first = f"{group.parent}.{group.members[0]}"
    decided = rules.get(first, "")
    patterns = pattern_list(plan.loaded.recipe.ignored)
    matched = [patterns.first(f"{group.parent}.{member}") is not None for member in group.absent]
    named, missing = ", ".join(group.members), ", ".join(group.absent)
    if first in schemes and any(matched):
        message = f"{named} quantized, but ignore keeps {missing}"
    elif decided.startswith("ignore ") and not all(matched):
        message = f"{named} kept ({decided}), but no entry matches {missing}"
    else:
        return None
    return _Problem(
        "fused/partly-ignored",
        f"{message}; it is not stored here, and servers ask for it all the same",
        f"let ignore match {missing} exactly where it matches {named}",
    )


def _shares_scale(group: FusedGroup, schemes: Mapping[str, Scheme]) -> bool:
    scheme = schemes.get(f"{group.parent}.{group.members[0]}")
    return scheme is not None and scheme.weights.strategy == "tensor_group"


def _experts(plan: Plan, schemes: Mapping[str, Scheme], uneven: set[str]) -> Iterator[Raised]:
    """vLLM takes the scheme of a layer's experts from the three matrices of expert 0, and stops where they differ."""
    layers: dict[str, list[str]] = {}
    reported = {expert[0] for parent in uneven if (expert := expert_of(f"{parent}.any")) is not None}
    for module in plan.modules:
        expert = expert_of(module)
        if expert is not None and expert[0] not in reported:
            layers.setdefault(expert[0], []).append(module)
    alike: dict[str, list[str]] = {}
    for layer, modules in layers.items():
        if not _alike([schemes.get(module) for module in modules]):
            by_scheme: dict[Scheme | None, list[str]] = {}
            for module in modules:
                by_scheme.setdefault(schemes.get(module), []).append(module)
            parts = [f"{_members(members)} {scheme or 'kept'}" for scheme, members in by_scheme.items()]
            alike.setdefault("; ".join(parts), []).append(layer)
    for message, found in alike.items():
        for pattern in compact(found):
            remedy = "give all matrices of all experts of a layer one scheme, or keep them all"
            yield Raised("fused/experts-differ", str(pattern), message, remedy, len(pattern))


def _alike(schemes: Sequence[Scheme | None]) -> bool:
    """Whether all are the same; most are the very same object, which is quicker to see than that they are equal."""
    return all(scheme is schemes[0] or scheme == schemes[0] for scheme in schemes)


def _members(modules: list[str]) -> str:
    names = sorted({module.rpartition(".")[2] for module in modules})
    return f"{', '.join(names)} ({len(modules):,})"


def _lacking(plan: Plan, schemes: Mapping[str, Scheme]) -> Iterator[Raised]:
    alike: dict[str, list[str]] = {}
    for parent, members, absent in plan.fused_groups:
        if absent and f"{parent}.{members[0]}" in schemes:
            known = ": servers use the keys as values" if absent == _VALUES else "; the others are treated as a group"
            alike.setdefault(f"has {', '.join(members)} and no {', '.join(absent)}{known}", []).append(parent)
    for message, parents in alike.items():
        for pattern in compact(parents):
            yield Raised("fused/lacks-member", str(pattern), message, count=len(pattern))
