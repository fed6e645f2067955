"""What the evidence says of the base, against the digests that it has of it, the locks here, and the base itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from weighbridge.base.identity import digest_files
from weighbridge.base.locks import REFERENCES, known_lock
from weighbridge.checkpoint.lock import open_lock, write_lock
from weighbridge.checkpoint.model import EVIDENCE, Checkpoint
from weighbridge.checkpoint.weights import is_weights
from weighbridge.evidence.card import CARD, kept_card
from weighbridge.evidence.case import Case
from weighbridge.evidence.checked import Checked, wrong
from weighbridge.evidence.provenance import BASE, base_resource
from weighbridge.evidence.write import START, start_origin
from weighbridge.formats.quantization import without_quantization
from weighbridge.report import Finding, Severity

UNPROVEN = "evidence/base-unproven"
"""The rule of a base that is not the published one by its digests."""


def check_source(case: Case) -> Checked:
    """What was read is the base that it is said to be, as far as that can be seen from here."""
    sources = case.sources
    findings = [*_check_identity(case), *_check_start(case), *_check_carried(case), *_unproven(case)]
    base = case.base
    named = f"{base.repository}@{base.revision[:12]}" if base.revision else base.repository
    summary, words = f"{len(sources)} files of the source are stated", []
    if base.claim.proven:
        summary += f", with the digests that references/ lists for {named}"
    if case.source is None:
        words.append(f"that {named} is what was read: only its digests are stated, as no --source was given to hash")
        words += _of_no_known_digest(case)
    elif not base.claim.proven:
        words.append(f"that {named} is what was read: the source that was given {base.claim.sentence}")
    if not base.claim.proven and case.source is None:
        words.append(f"that the source has the tensors, the config.json and the sizes that {EVIDENCE}/{START} says")
    if case.fetched.repository:
        words.append(f"that it was fetched from {case.fetched.repository}@{case.fetched.revision[:12]}")
    elif case.model != base.repository:
        words.append(f"that the source was called {case.model}")
    words.append(
        "that the build was made from these bytes: build it again (weighbridge reproduce), or audit it (--source "
        "without --evidence)"
    )
    if case.source is None:
        return Checked(summary, tuple(findings), tuple(words))
    findings += _check_given(case, case.source)
    return Checked(f"{summary}; all were hashed in {case.source.label}", tuple(findings), tuple(words))


def _of_no_known_digest(case: Case) -> Iterator[str]:
    """The files that a proven base may have otherwise: no lock here has their digests."""
    lock = case.identity.lock
    if case.base.claim.proven and lock is not None:
        names = [name for name in sorted(case.sources) if name not in lock.files or not lock.files[name].sha256]
        if names:
            yield f"that these files are the base's own: {', '.join(names)} (no lock has their digests)"


def _check_identity(case: Case) -> Iterator[Finding]:
    """Who the base is comes out the same again of the digests and the locks here."""
    base, stated = case.base, case.dependencies.get(BASE)
    if stated is None or stated != base_resource(base):
        what = f"names another base than its files are of: a build of these names {base.repository}"
        what += f"@{base.revision[:12]}" if base.revision else ""
        what += f", and says that the source {base.claim.sentence}"
        yield wrong("evidence/identity", f"provenance: {BASE}", what)
    fetched = case.fetched
    lock = known_lock(fetched.repository)
    if lock is None or lock.origin.revision != fetched.revision:
        return
    for name, fact in lock.files.items():
        if fact.sha256 and case.sources.get(name) != fact.sha256:
            what = f"is stated to be fetched from {fetched.repository}@{fetched.revision[:12]}, but has not its digest"
            yield wrong("evidence/identity", name, what)
            return


def _unproven(case: Case) -> Iterator[Finding]:
    """What keeps the base from being proven, where it is not."""
    base, claim = case.base, case.base.claim
    if claim.proven:
        return
    where = f"{EVIDENCE}/{START}"
    lock = known_lock(base.repository)
    if lock is None:
        what = f"is said to be of {base.repository}, which no lock in references/ is of"
        remedy = "hold it against the base itself: give it as the source"
        yield Finding(UNPROVEN, Severity.WARNING, where, what, remedy=remedy)
    elif lock.structure != case.start.structure:
        what = f"is said to be of {base.repository}, but the lock of that in references/ has other tensors"
        yield Finding(UNPROVEN, Severity.WARNING, where, what, remedy="build it of the published base")
    else:
        place = claim.file or where
        yield Finding(UNPROVEN, Severity.WARNING, place, claim.sentence, remedy="build it of the published base")


def _check_start(case: Case) -> Iterator[Finding]:
    """What the plan is made of again is what was read: by its digests, and by the structure that the source has."""
    where = f"{EVIDENCE}/{START}"
    start, sources = case.start, case.sources
    stated = {name: fact.sha256 for name, fact in start.files.items() if fact.sha256}
    for name in sorted(stated.keys() | sources.keys()):
        if stated.get(name) != sources.get(name):
            yield wrong("evidence/source", f"{where}: {name}", "has another digest than the provenance states")
    if start.origin != start_origin(case.model, case.fetched, case.base):
        yield wrong("evidence/source", where, "calls what the build started from otherwise than the provenance does")
    if case.same_version and write_lock(start).encode() != case.read(START):
        yield wrong("evidence/malformed", where, "is not written as Weighbridge writes it")
    for known in _known(case):
        if known.structure != start.structure:
            yield wrong("evidence/source", where, f"describes other tensors than {known.label} has")
        if known.config and without_quantization(known.config) != without_quantization(start.config):
            yield wrong("evidence/source", where, f"has another config.json than {known.label}")
        for name, fact in start.files.items():
            theirs = known.files.get(name)
            if theirs is not None and None not in (fact.size, theirs.size) and fact.size != theirs.size:
                yield wrong("evidence/source", f"{where}: {name}", f"is of another size than {known.label} has it")
    for name, fact in start.files.items():
        here = case.directory / name
        if case.listed.get(name) == fact.sha256 and name in case.files and fact.size != here.stat().st_size:
            yield wrong("evidence/source", f"{where}: {name}", "is not of the size that it has")


def _known(case: Case) -> Iterator[Checkpoint]:
    """What the source is known to be: what was handed over, and the base whose every digest it has."""
    if case.source is not None:
        yield case.source
    sources = case.sources
    digests = set(sources.values())
    for path in sorted(REFERENCES.rglob("*.yaml")):
        text = path.read_text()
        if not any(digest in text for digest in digests):
            continue
        lock = open_lock(path)
        pinned = {name: fact.sha256 for name, fact in lock.files.items() if fact.sha256}
        if any(map(is_weights, pinned)) and all(sources.get(name) == pinned[name] for name in pinned):
            yield lock


def _check_carried(case: Case) -> Iterator[Finding]:
    """Files that a build carries over are the source's own, byte for byte, and it has no other."""
    kept, sources, form = kept_card(case.listed), case.sources, case.start.form
    made_anew = {form.config, form.index, CARD}  # not carried over under their own names
    for name, digest in sources.items():
        here = kept if name == CARD else name
        carried = (here != name or name not in made_anew) and not is_weights(name)
        if carried and case.listed.get(here, digest) != digest:
            yield wrong("evidence/carried", here, f"is not the source's own {name}")


def _check_given(case: Case, source: Checkpoint) -> Iterator[Finding]:
    """The files that are stated are those of the source that was handed over."""
    sources: Mapping[str, str] = case.sources
    actual = digest_files(source, [name for name in sources if name in source.files], progress=case.progress)
    for name, digest in sources.items():
        if actual.get(name) != digest:
            found = f"has SHA-256 {actual.get(name, '')[:12]}…, stated was {digest[:12]}…"
            yield wrong("evidence/source", name, found if name in actual else "is not in the source")
    for name in sorted(source.shards.keys() - sources.keys()):
        yield wrong("evidence/source", name, "is a shard of the source, but was not read")
