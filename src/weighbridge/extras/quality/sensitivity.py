"""What each part of a model costs when it is quantized: the divergence that goes when that part is left as it was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from weighbridge import auditing
from weighbridge.checkpoint.model import Checkpoint
from weighbridge.errors import StructureError
from weighbridge.extras.quality.assess import KL_DIGITS, measure, shown
from weighbridge.extras.quality.forward import Dtype, Forward, open_forward, open_partly_restored
from weighbridge.extras.quality.metrics import Measured, interval
from weighbridge.extras.quality.text import Windows
from weighbridge.families import Role
from weighbridge.machine.resources import Resources
from weighbridge.planning import find_merged_groups
from weighbridge.progress import Progress
from weighbridge.report import Section, Table

NOT_TEXT = (Role.VISION, Role.AUDIO)


@dataclass(frozen=True)
class Choice:
    """One way to choose what is quantized.

    Attributes:
        name: a build, or what of it is left as it was.
        bits: bits a weight of the text model.
    """

    name: str
    bits: float
    measured: Measured


def quantized_roles(build: Checkpoint) -> list[Role]:
    """The roles that a build quantizes in its text part, in the order of `Role`.

    Raises:
        StructureError: it quantizes none.
    """
    found = {build.family.role_of(module) for module in build.schemes}
    roles = [role for role in Role if role in found and role not in NOT_TEXT]
    if not roles:
        raise StructureError("quantizes nothing of its text part, so nothing can be left out", where=build.label)
    return roles


def choices(
    build: Checkpoint,
    source: Checkpoint,
    others: Sequence[Checkpoint],
    windows: Windows,
    *,
    dtype: Dtype,
    device: str,
    progress: Progress,
) -> tuple[list[Choice], list[Choice]]:
    """Measure a build, the build with each role left unquantized, and other builds of the same source.

    Nothing is built: the weights of a role are taken from the source, all else from the build.

    Returns:
        The build itself and one choice a role, in the order of `quantized_roles`; and the other builds.

    Raises:
        StructureError, HubError: a side cannot be read, or the build quantizes nothing.
    """
    original = open_forward(source, dtype=dtype, device=device, progress=progress)

    def measured(name: str, forward: Forward) -> Choice:
        return Choice(name, forward.bits_a_weight, measure(original, forward, windows.tokens, progress=progress))

    own = [measured("as built", open_forward(build, dtype=dtype, device=device, progress=progress))]
    for role in quantized_roles(build):
        restored = open_partly_restored(
            build,
            source,
            lambda module, role=role: build.family.role_of(module) is role,  # type: ignore[misc]
            dtype=dtype,
            device=device,
            progress=progress,
        )
        own.append(measured(f"{role} unquantized", restored))
    beside = [
        measured(other.label, open_forward(other, dtype=dtype, device=device, progress=progress)) for other in others
    ]
    return own, beside


def error_section(build: Checkpoint, source: Checkpoint, *, resources: Resources, progress: Progress) -> Section:
    """The error of the weights by role and by layer, as the audit measures it.

    Raises:
        StructureError, HubError: a side cannot be read.
    """
    found = auditing.audit(
        build,
        source,
        method=auditing.method_of(build, None),
        groups=find_merged_groups(build.schemes, build.family),
        sample=None,
        resources=resources,
        progress=progress,
    )
    return next(section for section in auditing.sections(found) if section.id == "quantized-weights")


def roles_section(own: Sequence[Choice]) -> Section:
    """What leaving each role unquantized saves, and what it costs.

    Args:
        own: the build as it is, and one choice a role.
    """
    built, *without = own
    rows = []
    for choice in without:
        saved = interval([built.measured.kl, choice.measured.kl], lambda whole, less: whole - less)
        share = interval([built.measured.kl, choice.measured.kl], lambda whole, less: 100 * (whole - less) / whole)
        more = choice.bits - built.bits
        each = f"{saved.value / more:.{KL_DIGITS}f}" if more > 0 else ""
        rows.append((choice.name, f"{more:+.3f}", shown(saved, KL_DIGITS), shown(share, 1, " %"), each))
    rows.sort(key=lambda row: -float(row[-1] or 0))
    columns = ("left as it was", "bits a weight", "KL saved, nats a token", "of the build's", "KL saved a bit")
    best = rows[0]
    return Section(
        "role-costs",
        "what each role costs",
        f"most divergence a bit is saved by {best[0]}: {best[2]} nats a token for {best[1]} bits a weight",
        tables=(Table(columns, tuple(rows)),),
    )


def pareto_section(found: Sequence[Choice]) -> Section:
    """Bits a weight against divergence; a choice is on the front if no other has as few of both."""
    rows = []
    front = 0
    for choice in sorted(found, key=lambda item: (item.bits, item.measured.kl.mean())):
        is_on = not any(_dominates(other, choice) for other in found)
        front += is_on
        kl = shown(interval([choice.measured.kl]), KL_DIGITS)
        rows.append((choice.name, f"{choice.bits:.3f}", kl, "yes" if is_on else ""))
    return Section(
        "bits-and-divergence",
        "bits against divergence",
        f"{front} of {len(found)} choices are on the front: no other has as few bits and as little divergence",
        tables=(Table(("choice", "bits a weight", "KL, nats a token", "on the front"), tuple(rows)),),
    )


def _dominates(one: Choice, other: Choice) -> bool:
    mine, others = (one.bits, one.measured.kl.mean()), (other.bits, other.measured.kl.mean())
    return mine != others and mine[0] <= others[0] and mine[1] <= others[1]
