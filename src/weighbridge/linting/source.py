"""Lint of the source: which revision it is, and whether its fused experts lie as they will be split."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from weighbridge.account.redirects import redirects
from weighbridge.base.locks import lock_file
from weighbridge.checkpoint.forgotten import forgotten
from weighbridge.checkpoint.lock import StructureLock, read_lock
from weighbridge.checkpoint.model import Checkpoint
from weighbridge.checkpoint.modules import FUSED_EXPERTS
from weighbridge.checkpoint.weights import other_weights, taken_by
from weighbridge.families import descriptors
from weighbridge.formats.tensors import Tensor
from weighbridge.linting.rules import Raised, together
from weighbridge.planning import Plan
from weighbridge.recipe.catalogue import recipe_names
from weighbridge.text.names import compact

FLOATS = ("BF16", "F16", "F32")
"""What a descriptor calls the precision of a model that is published in floats."""


def check(plan: Plan) -> Iterator[Raised]:
    """A base without a revision, and fused experts whose axes are not in the order in which they will be split."""
    base = plan.loaded.recipe.base
    lock = _lock_of(base.model)
    if base.revision is None:
        yield Raised(
            "base/unpinned",
            plan.loaded.location("base"),
            f"names no revision of {base.model}: two builds of this recipe may start from different weights",
            "add revision: and the commit, 40 hex digits",
        )
    yield from _another_family(plan, lock)
    yield from _quantized(plan, lock)
    yield from _made_floats(plan, lock)
    yield from _dropped(plan)
    yield from _other_weights(plan.source)
    yield from _redirects(plan.source)
    yield from together(_experts_layout(plan))


def _lock_of(model: str) -> StructureLock | None:
    """The lock of a base model; None where there is none."""
    path = lock_file(model)
    return None if path is None else read_lock(path).lock


class _Published(NamedTuple):
    """Whether a model is published quantized, and in what, as its family says it."""

    quantized: bool
    precision: str = ""


def _published(model: str, lock: StructureLock | None) -> _Published | None:
    """How a model is published, by its family or its lock; None where neither knows."""
    published = [each.precision for own in descriptors().values() for each in own.published if each.model == model]
    coded = [precision for precision in published if not precision.startswith(FLOATS)]
    if coded or (lock is not None and lock.quantization is not None):
        return _Published(quantized=True, precision="".join(coded[:1]))
    return _Published(quantized=False) if published or lock is not None else None


def _another_family(plan: Plan, base: StructureLock | None) -> Iterator[Raised]:
    """A model of another type than the recipe's base: its parts have other names, which entries are written for."""
    ours, theirs = plan.source.config.get("model_type"), None if base is None else base.config.get("model_type")
    if base is None or None in (ours, theirs) or ours == theirs:
        return
    models = {name: name.rpartition("/")[0] for name in recipe_names()}
    locks = {model: _lock_of(model) for model in {*models.values()}}
    types = {model: lock.config.get("model_type") for model, lock in locks.items() if lock is not None}
    alike = [name for name, model in models.items() if types.get(model) == ours]
    same = [name for name in alike if name.endswith(f"/{plan.loaded.recipe.name}")] or alike
    remedy = f"{' and '.join(same)} {'are' if len(same) > 1 else 'is'} for models like this one" if same else ""
    yield Raised(
        "base/another-family",
        plan.loaded.location("base"),
        f"is for {theirs} ({plan.loaded.recipe.base.model}), and {plan.source.label} is {ours}",
        remedy or "draft a recipe from this model's headers (new-recipe)",
    )


def _quantized(plan: Plan, base: StructureLock | None) -> Iterator[Raised]:
    """A source that its publisher rounded already: what is quantized anew is rounded twice."""
    declaration = plan.source.declaration
    anew = [part.module for part in plan.parts if part.action == "requantize"]
    if declaration is None or not anew:
        return
    schemes = sorted({str(part.stored.scheme.weights) for part in plan.parts if part.stored is not None})
    what = (
        f"is quantized already ({declaration.quant_method}: {', '.join(schemes)}): {len(anew):,} modules are rounded a "
        "second time, and what the first rounding lost is not in the build"
    )
    named = plan.loaded.recipe.base.model
    published = _published(named, base)
    if published is not None and not published.quantized:
        remedy = f"start from {named}, which is published in floats"
        yield Raised("source/rounded-before", plan.source.label, what, remedy, len(anew))
        return
    remedy = "start from the model in BF16 where its publisher has it; where not, allow: source/quantized because ..."
    yield Raised("source/quantized", plan.source.label, what, remedy, len(anew))


def _made_floats(plan: Plan, base: StructureLock | None) -> Iterator[Raised]:
    """Floats in the place of a base whose publisher has codes alone: somebody made them of those, rounding included."""
    named = plan.loaded.recipe.base.model
    published = _published(named, base)
    if plan.source.declaration is not None or published is None or not published.quantized:
        return
    how = f" ({published.precision})" if published.precision else ""
    yield Raised(
        "source/made-floats",
        plan.source.label,
        f"is of floats, and {named} is published quantized{how}: somebody made them of its codes. What its publisher's "
        "rounding lost is lost here, too, and neither build nor audit can see it",
        f"start from {named} itself, whose codes are read as they are",
    )


def _dropped(plan: Plan) -> Iterator[Raised]:
    """What a quantized source has beside its weights, and the build will not."""
    yield from together(Raised("source/dropped", name, why) for name, why in plan.dropped.items())


def _other_weights(source: Checkpoint) -> Iterator[Raised]:
    """Weights beside the shards: left behind, unless they hold what the model lacks without them."""
    if not source.shards:
        return
    lacking = dict(forgotten(source))
    for file, names in lacking.items():
        patterns = compact(names)
        more = f", and {len(patterns) - 1} more" if len(patterns) > 1 else ""
        yield Raised(
            "source/index-forgets",
            file,
            f"holds {len(names):,} tensors of the model that no shard has: {patterns[0]}{more}",
            "add them to the index, or take the source from its publisher again",
        )
    indexed = source.form.index in source.files
    for file in other_weights(source.files, source.shards, source.form.index):
        if file not in lacking:
            yield Raised(
                "source/other-weights",
                file,
                f"is left behind: it holds weights, and {taken_by(file, indexed=indexed)}",
                "nothing, if the shards are the model that you mean",
            )


def _redirects(source: Checkpoint) -> Iterator[Raised]:
    """Keys that the build would carry over, and that make a server pass over its shards."""
    for finding in redirects(source, None):
        yield Raised("source/redirect", finding.where, finding.message, "take the key out of the source's config.json")


def _experts_layout(plan: Plan) -> Iterator[Raised]:
    """Experts that lie otherwise than the family says, or, of an unknown one, than transformers has them."""
    remedy = (
        "describe the family (src/weighbridge/families/descriptors), or take a checkpoint that stores them one by one"
    )
    source = plan.source
    pairs: dict[str, dict[str, tuple[Tensor, bool]]] = {}
    for name, fused in source.fused_experts.items():
        if fused.parameter == "weight" and name.removesuffix(".weight").endswith(tuple(FUSED_EXPERTS)):
            parent, _, member = name.removesuffix(".weight").rpartition(".")
            pairs.setdefault(parent, {})[member] = source.structure[name], fused.transposed
    for parent, pair in pairs.items():
        if pair.keys() != FUSED_EXPERTS.keys():
            continue
        (gate_up, turned), (down, _) = pair["gate_up_proj"], pair["down_proj"]
        rows, hidden = reversed(gate_up.shape[1:]) if turned else gate_up.shape[1:]
        if (rows, hidden) != (2 * down.shape[1 if turned else 2], down.shape[2 if turned else 1]):
            message = (
                f"gate_up_proj {list(gate_up.shape)}, down_proj {list(down.shape)} are not [experts, 2 x inner, "
                "hidden] and [experts, hidden, inner], and of this family it is not known how they lie"
            )
            yield Raised("source/experts-layout", parent, message, remedy)
