"""Lint of what servers load as one matrix, and what must therefore be quantized alike."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

from weighbridge.formats.schemes import Scheme
from weighbridge.linting.rules import Raised, together
from weighbridge.linting.served import Served, served_by_plan
from weighbridge.planning import FusedGroup, Plan, find_merged_groups
from weighbridge.text.names import expert_of
from weighbridge.text.patterns import pattern_list

_VALUES = ("v_proj",)


def check(plan: Plan) -> Iterator[Raised]:
    """Groups and experts that are partly kept or quantized by different schemes, and groups that lack a member."""
    served = served_by_plan(plan)
    if served is None:
        return
    unlisted = tuple(_unlisted(plan))
    uneven = tuple(_uneven_groups(served, unlisted))
    yield from together(uneven)
    parents = {raised.where for raised in uneven}
    yield from together(
        _not_listed(group) for group in unlisted if group.parent not in parents and _shares_scale(group, served.schemes)
    )
    yield from together(_experts(served, parents))
    yield from together(_lacking(served))


def check_served(served: Served) -> Iterator[Raised]:
    """The same of a checkpoint that lies there; and merged linears that are ignored by the name that servers give."""
    yield from together(_ignored_as_merged(served))
    uneven = tuple(_uneven_groups(served, ()))
    yield from together(uneven)
    yield from together(_experts(served, {raised.where for raised in uneven}))
    yield from together(_lacking(served))


def _ignored_as_merged(served: Served) -> Iterator[Raised]:
    """vLLM looks for a merged linear by its own name first, and leaves out what is ignored by that."""
    patterns = pattern_list(served.ignored)
    merged_of = {frozenset(members): merged for merged, members in served.family.merged.items()}
    for group in served.fused_groups:
        merged = merged_of.get(frozenset((*group.members, *group.absent)))
        if merged is None or patterns.first(f"{group.parent}.{merged}") is None:
            continue
        quantized = [member for member in group.members if f"{group.parent}.{member}" in served.schemes]
        if quantized:
            message = f"{', '.join(quantized)} quantized, and {merged}, which servers make of them, is ignored"
            remedy = f"take what matches {merged} off the ignore list"
            yield Raised("fused/partly-ignored", group.parent, message, remedy)


def _uneven_groups(served: Served, further: Sequence[FusedGroup]) -> Iterator[Raised]:
    """Groups whose members a server cannot load as one matrix."""
    kept = {linear.module: linear.why for linear in served.linears if linear.scheme is None}
    for group in (*served.fused_groups, *further):
        problem = _uneven(group, served.schemes, kept) or _absent_member(group, kept, served)
        if problem is not None:
            yield problem


def _not_listed(group: FusedGroup) -> Raised:
    named = ", ".join(group.members)
    message = f"servers merge {named} under one global scale, and fused_groups does not name them together"
    return Raised("fused/unlisted", group.parent, message, f"add [{named}] to fused_groups")


def _unlisted(plan: Plan) -> Iterator[FusedGroup]:
    """Linears that vLLM merges and that no fused group of the recipe names together."""
    listed: dict[str, list[set[str]]] = {}
    for group in plan.fused_groups:
        listed.setdefault(group.parent, []).append({*group.members, *group.absent})
    for group in find_merged_groups(plan.modules, plan.source.family):
        members = {*group.members, *group.absent}
        if not any(members <= others for others in listed.get(group.parent, ())):
            yield group


def _uneven(group: FusedGroup, schemes: Mapping[str, Scheme], rules: Mapping[str, str]) -> Raised | None:
    of_members = {member: schemes.get(f"{group.parent}.{member}") for member in group.members}
    kept = [member for member, scheme in of_members.items() if scheme is None]
    quantized = [member for member, scheme in of_members.items() if scheme is not None]
    if kept and quantized:
        why = rules.get(f"{group.parent}.{kept[0]}", "it has no weight")
        return Raised(
            "fused/partly-ignored",
            group.parent,
            f"{', '.join(quantized)} quantized, {', '.join(kept)} kept ({why})",
            "keep all of them or none: servers load them as one matrix",
        )
    if not _alike(list(of_members.values())):
        return Raised(
            "fused/schemes-differ",
            group.parent,
            "; ".join(f"{member} has {scheme}" for member, scheme in of_members.items()),
            "give them one scheme: servers load them as one matrix",
        )
    return None


def _absent_member(group: FusedGroup, kept: Mapping[str, str], served: Served) -> Raised | None:
    """vLLM asks the ignore list for every member of a merged linear, also for one that is not stored."""
    if not group.absent:
        return None
    first = f"{group.parent}.{group.members[0]}"
    patterns = pattern_list(served.ignored)
    matched = [patterns.first(f"{group.parent}.{member}") is not None for member in group.absent]
    named, missing = ", ".join(group.members), ", ".join(group.absent)
    if first in served.schemes and any(matched):
        message = f"{named} quantized, but ignore keeps {missing}"
    elif first in kept and patterns.first(first) is not None and not all(matched):
        message = f"{named} kept ({kept[first]}), but no entry matches {missing}"
    else:
        return None
    return Raised(
        "fused/partly-ignored",
        group.parent,
        f"{message}; it is not stored here, and servers ask for it all the same",
        f"let ignore match {missing} exactly where it matches {named}",
    )


def _shares_scale(group: FusedGroup, schemes: Mapping[str, Scheme]) -> bool:
    scheme = schemes.get(f"{group.parent}.{group.members[0]}")
    return scheme is not None and scheme.weights.strategy == "tensor_group"


def _experts(served: Served, uneven: Collection[str]) -> Iterator[Raised]:
    """vLLM takes the scheme of a layer's experts from the three matrices of expert 0, and stops where they differ."""
    layers: dict[str, list[str]] = {}
    reported = {expert[0] for parent in uneven if (expert := expert_of(f"{parent}.any")) is not None}
    schemes = served.schemes
    for module in served.modules:
        expert = expert_of(module)
        if expert is not None and expert[0] not in reported:
            layers.setdefault(expert[0], []).append(module)
    remedy = "give all matrices of all experts of a layer one scheme, or keep them all"
    for layer, modules in layers.items():
        if not _alike([schemes.get(module) for module in modules]):
            by_scheme: dict[Scheme | None, list[str]] = {}
            for module in modules:
                by_scheme.setdefault(schemes.get(module), []).append(module)
            parts = [f"{_members(members)} {scheme or 'kept'}" for scheme, members in by_scheme.items()]
            yield Raised("fused/experts-differ", layer, "; ".join(parts), remedy)


def _alike(schemes: Sequence[Scheme | None]) -> bool:
    """Whether all are the same; most are the very same object, which is quicker to see than that they are equal."""
    return all(scheme is schemes[0] or scheme == schemes[0] for scheme in schemes)


def _members(modules: list[str]) -> str:
    names = sorted({module.rpartition(".")[2] for module in modules})
    return f"{', '.join(names)} ({len(modules):,})"


def _lacking(served: Served) -> Iterator[Raised]:
    for parent, members, absent in served.fused_groups:
        if absent and f"{parent}.{members[0]}" in served.schemes:
            known = ": servers use the keys as values" if absent == _VALUES else "; the others are treated as a group"
            yield Raised("fused/lacks-member", parent, f"has {', '.join(members)} and no {', '.join(absent)}{known}")
