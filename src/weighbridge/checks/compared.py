"""Two checkpoints side by side: bytes by role, then what differs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from weighbridge.checkpoint.model import EVIDENCE, Checkpoint
from weighbridge.checks.areas import kinds_of_tensors
from weighbridge.checks.diff import Difference, diff_settings, diff_structures, group
from weighbridge.checks.validation import describe, difference_finding
from weighbridge.families import Role
from weighbridge.formats.tensors import payload_bytes
from weighbridge.report import Finding, Report, Section, SectionId, Severity, Table

COLUMNS = ("role", "before", "bytes before", "after", "bytes after", "bytes after, of before, %")


def compared(before: Checkpoint, after: Checkpoint) -> Report:
    """Compare two checkpoints by headers, config and files. Whatever differs is a note: nobody said that it must not.

    Raises:
        StructureError, HubError: a file of either cannot be read.
    """
    other = describe(before)
    structure, settings = diff_structures(after, before), diff_settings(after, before)
    alone = _files_of_one(before, after)
    sections = (
        _sizes(before, after),
        _files(alone, other),
        _differences(structure, other, id="diff-tensors", title="tensors and their quantization"),
        _differences(settings, other, id="diff-settings", title="config and files"),
    )
    count = len(structure) + len(settings) + len(alone)
    if count:
        verdict = f"{describe(after)} differs from {other} in {count:,} things"
    else:
        verdict = f"{describe(after)} is as {other}, as far as headers, config and files beside the weights tell"
    return Report("diff", f"{other} and {describe(after)}", verdict, sections)


def _differences(found: Sequence[Difference], other: str, *, id: SectionId, title: str) -> Section:
    notes = (difference_finding(item, other, severity=Severity.NOTE) for item in group(found))
    said = f"{len(found):,} differences" if found else "the same"
    return Section(id, title, said, findings=tuple(notes), judges=False)


def _files_of_one(before: Checkpoint, after: Checkpoint) -> list[tuple[str, bool]]:
    """Files that one of them alone has, and whether it is the second; of a lock nobody knows all."""
    if not before.shards or not after.shards:
        return []
    ours, theirs = ({*side.files} - {*side.shards, side.form.index} for side in (after, before))
    named = [name for name in sorted(ours ^ theirs) if not name.startswith(f"{EVIDENCE}/")]
    return [(name, name in ours) for name in named]


def _files(alone: list[tuple[str, bool]], other: str) -> Section:
    findings = tuple(
        Finding("diff/file", Severity.NOTE, name, f"{other} has no such file" if new else f"is in {other} alone")
        for name, new in alone
    )
    said = f"{len(alone):,} that one of them alone has" if alone else "the same names, as far as they are known"
    return Section("diff-files", "files beside the weights", said, findings=findings, judges=False)


def _sizes(before: Checkpoint, after: Checkpoint) -> Section:
    (old, was), (new, now) = map(_by_role, (before, after))
    rows = [
        (str(role), was.get(role, ""), old[role], now.get(role, ""), new[role], _share(old[role], new[role]))
        for role in Role
        if old[role] or new[role]
    ]
    first, then = (payload_bytes(side.structure) for side in (before, after))
    table = Table(COLUMNS, (*rows, ("total", "", first, "", then, _share(first, then))))
    summary = f"{first:,} bytes in {len(before.structure):,} tensors, and {then:,} in {len(after.structure):,}"
    return Section("diff-bytes", "bytes", summary, tables=(table,), judges=False)


def _share(before: int, after: int) -> float:
    return round(100 * after / before, 1) if before else 0.0


def _by_role(checkpoint: Checkpoint) -> tuple[Counter[Role], dict[Role, str]]:
    """Bytes of each role, and what most of them are stored as."""
    counted: Counter[tuple[Role, str]] = Counter()
    for _, _, tensor, role, kind in kinds_of_tensors(checkpoint):
        counted[role, kind or tensor.dtype] += tensor.nbytes
    sizes: Counter[Role] = Counter()
    most: dict[Role, str] = {}
    for (role, kind), size in counted.most_common():
        sizes[role] += size
        most.setdefault(role, kind)
    return sizes, most
