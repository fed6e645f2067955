"""What a build is held against before it is kept: its plan, references, the source's identity, its numbers, answers."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace

from weighbridge import evidence
from weighbridge.account import Base
from weighbridge.base.identity import Identity
from weighbridge.base.references import AgainstReference
from weighbridge.building.making import Made, Work
from weighbridge.checkpoint.model import Checkpoint
from weighbridge.checks.scales import scales_sections
from weighbridge.checks.validation import validate
from weighbridge.machine.resources import beside_what_is_held
from weighbridge.progress import Progress
from weighbridge.report import Report


def judge(
    built: Checkpoint,
    work: Work,
    made: Made,
    references: Sequence[AgainstReference],
    identity: Identity,
    *,
    audited: bool,
    progress: Progress,
) -> dict[str, Report]:
    """Hold a build against all that it is to be held against, as long as nothing fails.

    Args:
        audited: whether every weight is held against the source by the numbers, too.

    Returns:
        By the name that it has in the evidence: the build's own report first, then those of its audit and its quality.

    Raises:
        WeighbridgeError: it could not be judged.
    """
    reports = {evidence.MAIN_REPORT: _structure(built, work, made, references, identity)}
    if work.engine == "upstream":
        work = replace(work, resources=beside_what_is_held(work.resources))
    if audited and _hold(reports):
        reports[evidence.AUDIT_REPORT] = _audit(built, work, progress)
    limits = work.plan.loaded.recipe.quality
    if limits is not None and _hold(reports):
        from weighbridge.extras.quality.assess import judge as judge_answers

        device = work.resources.devices[0]
        reports[evidence.QUALITY_REPORT] = judge_answers(built, work.source, limits, progress, device=device)
    return reports


def joined(reports: Mapping[str, Report]) -> Report:
    """All reports of a build as one."""
    return functools.reduce(_joined, reports.values())


def _hold(reports: Mapping[str, Report]) -> bool:
    return all(report.holds for report in reports.values())


def _structure(
    built: Checkpoint, work: Work, made: Made, references: Sequence[AgainstReference], identity: Identity
) -> Report:
    """The build against its plan and the references, with all that is said beside."""
    context = [
        identity.section(work.source),
        *made.sections,
        *scales_sections(built, work.plan.fused_groups),
        evidence.licence_section(work.source, work.plan.loaded.recipe),
    ]
    base = Base(work.source, work.source.label, listed=True)
    report = validate(built, plan=work.plan, references=references, base=base, context=context)
    if not report.holds:
        return replace(report, command="build", verdict=f"nothing was kept: {report.verdict}")
    held = [section for section in report.sections if section.id == "against-reference"]
    verdict = evidence.build_verdict(built.label, len(built.structure), held, work.plan.source.label, identity)
    return replace(report, command="build", verdict=verdict)


def _audit(built: Checkpoint, work: Work, progress: Progress) -> Report:
    from weighbridge import auditing

    found = auditing.audit(
        built,
        work.source,
        method=auditing.method_of(built, work.plan.loaded),
        groups=work.plan.fused_groups,
        sample=None,
        resources=replace(work.resources, digests=False),  # the build has read the source's digests already
        progress=progress,
    )
    verdict = f"{built.label} {auditing.conclusion(found)}"
    return Report("audit", built.label, verdict, tuple(auditing.sections(found)), metrics=auditing.metrics(found))


def _joined(report: Report, further: Report) -> Report:
    """A build's report with that of its audit, or of its quality."""
    verdict = f"{report.verdict}; it {further.verdict.removeprefix(f'{report.subject} ')}"
    if not further.holds:
        verdict = f"nothing was kept: {further.verdict}"
    return replace(report, verdict=verdict, sections=(*report.sections, *further.sections))
