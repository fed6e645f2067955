"""What a policy asks, one function for each key: findings where the evidence does not say it.

Each is asked of a case whose evidence was verified: what is read here is what the files were held against, or the
signer's own word, and docs/how-to/gate.md says which.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase

from pydantic import JsonValue

from weighbridge.checkpoint.model import EVIDENCE
from weighbridge.checkpoint.weights import is_weights
from weighbridge.evidence import AUDIT_REPORT, QUALITY_REPORT
from weighbridge.evidence.card import CARD, kept_card
from weighbridge.evidence.case import Case, added_name
from weighbridge.evidence.checked import wrong
from weighbridge.evidence.derivation import RELATIONS, verdicts_of
from weighbridge.evidence.signing import ADDED_FOLDER
from weighbridge.evidence.stated import moment
from weighbridge.policy.schema import LoadedPolicy, Policy, PolicyRecipe
from weighbridge.recipe.catalogue import own_recipe
from weighbridge.recipe.load import load_recipe
from weighbridge.report import Finding, Report

SERVING_REPORT = "serving"
"""What `serve-check` records its report as."""


@dataclass(frozen=True)
class Asked:
    """A checkpoint's case, the reports about it, and the policy that it is held against.

    Attributes:
        verified: what verifying the evidence came to.
        now: when it is asked, with its time zone.
    """

    case: Case
    verified: Report
    loaded: LoadedPolicy
    now: datetime

    @property
    def policy(self) -> Policy:
        return self.loaded.policy


Demand = Callable[[Asked], Iterator[Finding]]


def _refused(rule: str, where: str, message: str, remedy: str) -> Finding:
    return wrong(f"policy/{rule}", where, message, remedy=remedy)


def _signed_by(asked: Asked) -> Iterator[Finding]:
    """The evidence's own check of signatures says by whom; here only that there are any."""
    if not asked.case.signed:
        yield _refused("signed-by", f"{EVIDENCE}/", "is not signed", "ask whoever built it to sign it")


def _base(asked: Asked) -> Iterator[Finding]:
    base, wanted = asked.case.base, asked.policy.base
    assert wanted is not None
    named = f"{base.repository}@{base.revision}" if base.revision else base.repository
    if wanted.proven and not base.claim.proven:
        remedy = "build it of the published base, or pin that with a lock in references/"
        yield _refused("base", named, base.claim.sentence, remedy)
    if wanted.of and not {named, base.repository} & set(wanted.of):
        yield _refused("base", named, f"is none of {', '.join(wanted.of)}", "take a build of one of these")


def _audit(asked: Asked) -> Iterator[Finding]:
    least = asked.policy.audit
    assert least is not None
    where = f"{EVIDENCE}/{AUDIT_REPORT}.json"
    report = _own(asked.case, AUDIT_REPORT)
    if report is None:
        remedy = "build it with an audit, or audit it against its base and decide by that"
        yield _refused("audit", where, "is not there: the build was not audited", remedy)
        return
    counts = verdicts_of(report)
    if not report.holds:
        yield _refused("audit", where, f"does not hold: {report.verdict}", "do not serve it")
    checked = report.metrics.get("elements_checked_count", 0)
    needed = sum(part.weight.parameters for part in asked.case.expected.plan.parts)
    if not sum(counts.values()) or not checked >= needed:
        what = f"covers {checked:,} of {needed:,} elements"
        yield _refused("audit", where, what, "have it audited whole; older versions did not count")
    worse = {verdict: count for verdict, count in counts.items() if verdict not in RELATIONS[least]}
    if worse:
        said = ", ".join(f"{count:,} {verdict}" for verdict, count in worse.items())
        remedy = "take a build that the policy's verdict fits, or change the policy"
        yield _refused("audit", where, f"has tensors that are less than {least}: {said}", remedy)


def _recipes(asked: Asked) -> Iterator[Finding]:
    loaded, allowed = asked.case.loaded, asked.policy.recipes or ()
    if not any(_allows(entry, loaded.sha256) for entry in allowed):
        names = ", ".join(entry if isinstance(entry, str) else entry.name for entry in allowed)
        what = f"{loaded.recipe.name!r} with SHA-256 {loaded.sha256[:12]}… is none of {names}, byte for byte"
        yield _refused("recipe", f"{EVIDENCE}/recipe.yaml", what, "name it in the policy by its digest, if it may be")


def _allows(entry: str | PolicyRecipe, sha256: str) -> bool:
    if isinstance(entry, PolicyRecipe):
        return entry.sha256 == sha256
    return load_recipe(str(own_recipe(entry))).sha256 == sha256


def _forbidden(asked: Asked) -> Iterator[Finding]:
    patterns = asked.policy.forbidden or ()
    seen: set[tuple[str, str, str]] = set()
    for said_in, report in (("verifying it", asked.verified), *_reports(asked.case)):
        for finding in report.findings():
            pattern = next((pattern for pattern in patterns if fnmatchcase(finding.rule, pattern)), None)
            if pattern is not None and (said := (finding.rule, finding.where, finding.message)) not in seen:
                seen.add(said)
                why = f", explained: {finding.explained}" if finding.explained else ""
                what = f"{finding.rule} ({said_in}): {finding.message}{why}"
                yield _refused("forbidden", finding.where, what, f"the policy forbids {pattern}")


def _reports(case: Case) -> Iterator[tuple[str, Report]]:
    """Every report in the evidence, of the build and of what came later, by what it is called."""
    for name in case.results:
        yield name, case.report(name)
    for name in filter(None, map(added_name, case.added)):
        yield name, case.report(f"{ADDED_FOLDER}/{name}")


def _licences(asked: Asked) -> Iterator[Finding]:
    licence, allowed = asked.case.loaded.recipe.base.licence, asked.policy.licences or ()
    if licence.lower() not in {name.lower() for name in allowed}:
        yield _refused("licence", "base.licence", f"is {licence}, none of {', '.join(allowed)}", "take another base")


def _max_age_days(asked: Asked) -> Iterator[Finding]:
    days = int(asked.policy.max_age_days or 0)
    times = asked.case.provenance.predicate.run_details.metadata
    age = asked.now - moment(times.finished_on)
    if age > timedelta(days=days):
        what = f"ended on {times.finished_on}, {age.days:,} days ago, where {days:,} are allowed"
        yield _refused("age", "provenance", what, "build it anew")


def _serving_check(asked: Asked) -> Iterator[Finding]:
    if not any(added_name(claim) == SERVING_REPORT for claim in asked.case.added):
        remedy = "run serve-check on it and record the result"
        yield _refused("serving", f"{EVIDENCE}/{ADDED_FOLDER}/", "has no recorded serving check", remedy)
    elif not asked.case.report(f"{ADDED_FOLDER}/{SERVING_REPORT}").holds:
        yield _refused("serving", f"{EVIDENCE}/{ADDED_FOLDER}/", "its serving check does not hold", "do not serve it")


def _quality(asked: Asked) -> Iterator[Finding]:
    limits, where = asked.policy.quality, f"{EVIDENCE}/{QUALITY_REPORT}.json"
    assert limits is not None
    report = _own(asked.case, QUALITY_REPORT)
    if report is None:
        remedy = "build it by a recipe that states limits of quality"
        yield _refused("quality", where, "is not there: its answers were not measured", remedy)
        return
    for name, limit, measured, sign in (
        ("max_kl", limits.max_kl, "kl_nats", 1),
        ("min_agreement", limits.min_agreement, "agreement_share", -1),
        ("max_perplexity_ratio", limits.max_perplexity_ratio, "perplexity_ratio", 1),
    ):
        found = report.metrics.get(measured)
        if limit is not None and (found is None or not sign * found <= sign * limit):
            said = "is not stated" if found is None else f"is {found:.6g}"
            what = f"{measured} {said}, where {name} is {limit:g}"
            yield _refused("quality", where, what, "take a build whose answers are nearer to its base's")


def _own(case: Case, name: str) -> Report | None:
    """A report of the build that its provenance names; None where it has none of that name."""
    return case.report(name) if name in case.results else None


def _carried(asked: Asked) -> Iterator[Finding]:
    """Files by the digests of the base's lock; what a build makes anew, and its weights, are held against the plan."""
    case, patterns = asked.case, asked.policy.carried or ()
    form, lock = case.start.form, case.identity.lock
    kept = kept_card(case.listed)
    made_anew = {form.config, form.index, CARD}
    for pattern in patterns:
        names = [name for name in case.files if fnmatchcase(name, pattern) and not is_weights(name)]
        for name in names:
            theirs = CARD if name == kept else name
            if name in made_anew and name != kept:
                continue
            fact = None if lock is None else lock.files.get(theirs)
            if fact is None or not fact.sha256:
                what = "is a file of which no lock in references/ has the base's digest"
                yield _refused("carried", name, what, "pin it in the base's lock, or take it out of the policy")
            elif fact.sha256 != case.files[name]:
                what = f"has SHA-256 {case.files[name][:12]}…; the base's has {fact.sha256[:12]}…"
                yield _refused("carried", name, what, "take the base's own file")
        for name, fact in ({} if lock is None else lock.files).items():
            here = kept if name == CARD and kept else name
            lost = fnmatchcase(name, pattern) and fact.sha256 and name not in made_anew and not is_weights(name)
            if lost and here not in case.files:
                yield _refused("carried", name, "is a file of the base that is not here", "take the base's own file")


DEMANDS: Mapping[str, Demand] = {
    "signed_by": _signed_by,
    "base": _base,
    "audit": _audit,
    "recipes": _recipes,
    "forbidden": _forbidden,
    "licences": _licences,
    "max_age_days": _max_age_days,
    "serving_check": _serving_check,
    "quality": _quality,
    "carried": _carried,
}
"""By the policy's key."""


def now() -> datetime:
    """The moment, in UTC."""
    return datetime.now(UTC)


def shown(value: JsonValue) -> str:
    """What a policy asks under a key, in a line."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
