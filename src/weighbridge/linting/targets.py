"""Lint of config groups: whether each gets a module of its own."""

from __future__ import annotations

from collections.abc import Iterator

from weighbridge.formats.declaration import LINEAR
from weighbridge.linting import suggest
from weighbridge.linting.ignored import open_number
from weighbridge.linting.rules import Raised
from weighbridge.planning import Plan


def check(plan: Plan) -> Iterator[Raised]:
    """Targets that match nothing or more than they seem to, and groups that no module is left for."""
    loaded = plan.loaded
    deciding = {part.decision.path for part in plan.parts}
    for name, group in (loaded.recipe.config_groups or {}).items():
        location = loaded.location("config_groups", name)
        missed = []
        for index, target in enumerate(group.targets):
            where = f"{loaded.location('config_groups', name, 'targets', index)} {target}"
            if target == LINEAR:
                continue
            if suggest.matching(target, plan.modules):
                yield from open_number(target, where, plan.modules)
                continue
            missed.append(target)
            found = suggest.unanchored(target, plan.modules)
            remedy = f"did you mean {found[0]}?" if found else suggest.remedy(target, plan)
            yield Raised("targets/matches-nothing", where, "targets no module of the source", remedy)
        if len(missed) < len(group.targets) and ("config_groups", name) not in deciding:
            yield Raised(
                "targets/shadowed",
                f"{location} {name}",
                "no module is left for it: all that it targets is ignored, or taken by a group before it",
                "put it before the group that takes its modules, or take it out",
            )
