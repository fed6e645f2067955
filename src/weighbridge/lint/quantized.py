"""Lint of the decisions: what is quantized that should not be, what cannot be, and what was left out by accident."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from weighbridge.lint.rules import Raised
from weighbridge.plan import Obstacle, Part, Plan
from weighbridge.roles import Role, role_of
from weighbridge.structure.names import compact

_SENSITIVE = {
    Role.EMBEDDINGS: (
        "quantize/embedding",
        "embeddings are looked up, not multiplied, and few servers load them quantized",
    ),
    Role.HEAD: (
        "quantize/head",
        "the output head decides between tokens that are close; it costs quality, saves little",
    ),
    Role.ROUTER: (
        "quantize/router",
        "routers choose experts by small differences, and vLLM refuses a quantized router",
    ),
    Role.NORMS: ("quantize/norm", "norms are tiny and scale everything after them"),
    Role.VISION: ("quantize/vision", "vision towers are sensitive, and vLLM refuses a quantized embed_vision"),
    Role.AUDIO: ("quantize/audio", "audio towers are sensitive and small"),
}
_BULK = (Role.ATTENTION, Role.MLP, Role.EXPERTS)
OFFERED_GROUP_SIZES = (16, 32, 64, 128, 256)
"""Group sizes to offer; 16 is offered for NVFP4's kin alone, kernels for integers begin at 32."""


def check(plan: Plan) -> Iterator[Raised]:
    """What is quantized against better judgement or beyond what the scheme can, and what is not quantized at all."""
    yield from _base(plan)
    if not any(part.scheme for part in plan.parts) and not plan.obstacles:
        yield Raised("quantize/nothing", plan.loaded.document.where, "nothing is quantized", "check ignore and targets")
    sensitive: dict[Role, list[str]] = {role: [] for role in _SENSITIVE}
    for module in plan.schemes:
        sensitive.get(role_of(module), []).append(module)
    for role, modules in sensitive.items():
        rule, why = _SENSITIVE[role]
        for pattern in compact(modules):
            yield Raised(
                rule,
                str(pattern),
                f"is quantized: {why}",
                f"add it to ignore, or allow: {rule} because ...",
                len(pattern),
            )
    yield from _obstacles(plan.obstacles, plan)
    yield from _ragged(plan)
    if plan.loaded.recipe.method == "model_free_ptq":
        for group in plan.loaded.recipe.groups:
            if group.scheme.needs_calibration:
                yield Raised(
                    "scheme/needs-calibration",
                    plan.loaded.location("scheme"),
                    "its activations are static: their scales come from data, which model_free_ptq does not see",
                    "use method: oneshot, or a scheme with dynamic or unquantized activations",
                )
    yield from _coverage(plan)


def _base(plan: Plan) -> Iterator[Raised]:
    if plan.loaded.recipe.base.revision is None:
        yield Raised(
            "base/unpinned",
            plan.loaded.location("base"),
            "names no revision, so that a build takes whatever is newest",
            "name the commit, 40 hex digits",
        )


def _obstacles(obstacles: Iterable[Obstacle], plan: Plan) -> Iterator[Raised]:
    alike: dict[tuple[str, str, str], list[Obstacle]] = {}
    for obstacle in obstacles:
        alike.setdefault((obstacle.rule, obstacle.reason, obstacle.decided_by), []).append(obstacle)
    for (rule, reason, decided_by), group in alike.items():
        remedy = "add it to ignore"
        if rule == "scheme/group-size":
            remedy = f"group sizes that divide every width of this recipe: {_dividing(plan)}"
        for pattern in compact(obstacle.module for obstacle in group):
            yield Raised(rule, str(pattern), f"{reason}; it is quantized by {decided_by}", remedy, len(pattern))


def _dividing(plan: Plan) -> str:
    widths = {part.weight.shape[-1] for part in plan.parts if part.scheme is not None and len(part.weight.shape) == 2}
    widths |= {obstacle.weight.shape[-1] for obstacle in plan.obstacles if len(obstacle.weight.shape) == 2}
    integer = any(obstacle.scheme.weights.type == "int" for obstacle in plan.obstacles)
    sizes = [size for size in OFFERED_GROUP_SIZES if not (integer and size < 32) and all(w % size == 0 for w in widths)]
    return " and ".join(map(str, sizes)) or "none"


def _ragged(plan: Plan) -> Iterator[Raised]:
    ragged: dict[tuple[int, int], list[str]] = {}
    for part in plan.parts:
        block = part.scheme.weights.block_structure if part.scheme else None
        if block and any(side % size for side, size in zip(part.weight.shape, block, strict=True)):
            ragged.setdefault((part.weight.shape[0], part.weight.shape[1]), []).append(part.module)
    for shape, modules in ragged.items():
        for pattern in compact(modules):
            yield Raised(
                "scheme/ragged-block", str(pattern), f"blocks do not divide {list(shape)}; the last ones are padded",
                "vLLM merges gate and up and splits for tensor parallelism only at whole blocks", len(pattern),
            )  # fmt: skip


def _coverage(plan: Plan) -> Iterator[Raised]:
    stray = [part for part in plan.parts if _left_by_accident(part)]
    for pattern in compact(part.module if part.rule.startswith("no config") else part.source for part in stray):
        yield Raised(
            "coverage/untargeted", str(pattern), "stays unquantized, though no ignore entry keeps it",
            "target it, or say in ignore that it is kept", len(pattern),
        )  # fmt: skip
    bulk = [part for part in plan.parts if role_of(part.module) in _BULK and len(part.weight.shape) >= 2]
    total = sum(part.weight.parameters for part in bulk)
    quantized = sum(part.weight.parameters for part in bulk if part.scheme is not None)
    if quantized and quantized < total / 2:
        yield Raised(
            "coverage/low", plan.loaded.document.where,
            f"quantizes {quantized / total:.0%} of the parameters of attention, mlp and experts",
            "check which of them ignore and targets leave out",
        )  # fmt: skip


def _left_by_accident(part: Part) -> bool:
    """A matrix of the bulk that nobody decided to keep."""
    if part.scheme is not None or len(part.weight.shape) < 2 or role_of(part.module) not in _BULK:
        return False
    return not part.rule.startswith("ignore ")
