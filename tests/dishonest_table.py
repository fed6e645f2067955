"""The table of dishonest builders; see `tests.dishonest`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.dishonest import (
    WRITER,
    Lie,
    Wrap,
    all_of,
    byproducts,
    dependencies,
    dependency,
    drop,
    more_section,
    output,
    packages,
    provenance,
    put,
    report,
    result,
    section,
    text,
)
from tests.reference_locks import reference_lock
from weighbridge.base.identity import Claim, Identity, Unproven
from weighbridge.checkpoint.model import Checkpoint, FileFact, Origin
from weighbridge.evidence import MAIN_REPORT, FinishedBuild, build_verdict
from weighbridge.evidence.environment import Installed, Repository
from weighbridge.formats.tensors import Tensor
from weighbridge.report import Area, Areas, Finding, Report, Section, SectionId, Severity

GOOGLE, MINI = "google/gemma-4-26B-A4B-it", "weighbridge/gemma-4-mini"
GOOGLES_COMMIT, NO_COMMIT = "4d7ae4984b7db7de8f8457170b3f1a419ee76d52", "0" * 40
ZERO, ONE = "0" * 64, "1" * 64
SHARD = "model-00001-of-00002.safetensors"
DEFINITION = ("predicate", "buildDefinition")
PARAMETERS = (*DEFINITION, "externalParameters")
DETAILS = ("predicate", "runDetails")
PLAN: SectionId = "against-plan"
GOOGLES = "the published google/gemma-4-26B-A4B-it"

Change = Callable[[FinishedBuild], FinishedBuild]
Figures = tuple[Areas, ...]


# Who the base is


def called(claim: Claim) -> Change:
    """Another identity, in everything that is written of it: reports, card, bill, chain, provenance."""

    def change(build: FinishedBuild) -> FinishedBuild:
        lied = replace(build, identity=Identity(_lock_of(claim.repository), claim, build.identity.digests))
        return report(lambda said: _of_identity(said, build.identity, lied))(lied)

    return change


def _of_identity(said: Report, true: Identity, lied: FinishedBuild) -> Report:
    """A report that says of the source what a liar says of it, in its section and in the verdict."""
    section = lied.identity.section(lied.source)
    sections = [section if part.id == section.id else part for part in said.sections]
    return replace(said, verdict=said.verdict.replace(true.sentence, lied.identity.sentence), sections=tuple(sections))


def _lock_of(repository: str) -> Checkpoint | None:
    return reference_lock(repository) if repository in (GOOGLE, MINI) else None


def fetched(repository: str, revision: str) -> Change:
    """Fetched from the hub, in the reports too."""

    def change(build: FinishedBuild) -> FinishedBuild:
        return _called_source(
            replace(build, source=replace(build.source, origin=Origin(repository, revision))), repository
        )

    return change


def with_digests(**digests: str) -> Change:
    """Other digests of the source's files, and the identity that follows honestly of them."""
    named = {name.replace("__", "."): digest for name, digest in digests.items()}

    def change(build: FinishedBuild) -> FinishedBuild:
        from weighbridge.base.identity import identify

        known = {**build.identity.digests, **named}
        lied = identify(build.source.shards, build.identity.lock, known)
        return replace(called(lied.claim)(build), identity=lied)

    return change


def of_googles_digests(build: FinishedBuild) -> FinishedBuild:
    """The digests that references/ has of Google's model, stated of the miniature's files."""
    digests = {name: fact.sha256 for name, fact in reference_lock(GOOGLE).files.items() if fact.sha256}
    claim = Claim(GOOGLE, GOOGLES_COMMIT)
    return replace(called(claim)(build), identity=Identity(reference_lock(GOOGLE), claim, digests))


SHARD_DIGEST = {SHARD: ZERO}


def other_shard(build: FinishedBuild) -> FinishedBuild:
    """Says that another shard was read than was, and what honestly follows of that."""
    return with_digests(**SHARD_DIGEST)(build)


def still_proven(build: FinishedBuild) -> FinishedBuild:
    claim = Claim(MINI, reference_lock(MINI).origin.revision)
    return replace(called(claim)(build), identity=Identity(build.identity.lock, claim, build.identity.digests))


IDENTITIES = [
    Lie(f"{GOOGLES}, proven", "evidence/identity", build=called(Claim(GOOGLE, GOOGLES_COMMIT))),
    Lie(
        f"{GOOGLES}, proven, and fetched from there",
        "evidence/identity",
        build=all_of(called(Claim(GOOGLE, GOOGLES_COMMIT)), fetched(GOOGLE, GOOGLES_COMMIT)),
    ),
    Lie(
        f"{GOOGLES}, unproven for another digest",
        "evidence/identity",
        build=called(Claim(GOOGLE, GOOGLES_COMMIT, Unproven.OTHER, SHARD, ZERO, ONE)),
    ),
    *(
        Lie(f"{GOOGLES}, unproven: {reason}", "evidence/identity", build=called(Claim(GOOGLE, GOOGLES_COMMIT, reason)))
        for reason in (Unproven.UNPINNED, Unproven.MISSING, Unproven.SAMPLED, Unproven.SURPLUS)
    ),
    Lie(f"{GOOGLES}, by its digests too", "evidence/source", build=of_googles_digests),
    Lie("Google's at no revision", "evidence/identity", build=called(Claim(GOOGLE, ""))),
    Lie("Google's at another revision", "evidence/identity", build=called(Claim(GOOGLE, NO_COMMIT))),
    Lie("Google's in other letters", "evidence/identity", build=called(Claim(GOOGLE.lower(), GOOGLES_COMMIT))),
    Lie(
        "Google's in letters that look alike",
        "evidence/identity",
        build=called(Claim("g\u043e\u043egle/gemma", NO_COMMIT)),
    ),
    Lie("the QAT twin, proven", "evidence/identity", build=called(Claim(f"{GOOGLE}-qat-q4_0-unquantized", NO_COMMIT))),
    Lie("nobody's model, proven", "evidence/identity", build=called(Claim("acme/secret", NO_COMMIT))),
    Lie("the miniature at another revision", "evidence/identity", build=called(Claim(MINI, NO_COMMIT))),
    Lie("less than is known", "evidence/identity", build=called(Claim("", "", Unproven.UNKNOWN))),
    Lie("less than is known of a file", "evidence/identity", build=called(Claim(MINI, "", Unproven.MISSING, "a"))),
    Lie("fetched from Google, as the commit known here", "evidence/identity", build=fetched(GOOGLE, GOOGLES_COMMIT)),
    Lie(
        "fetched from Google, as a commit unknown here",
        word=f"fetched from {GOOGLE}@0000",
        build=fetched(GOOGLE, NO_COMMIT),
    ),
    Lie("fetched from a mirror", word="fetched from org/mirror@0000", build=fetched("org/mirror", NO_COMMIT)),
    Lie(
        "a shard of nobody's, honestly unproven",
        word=f"that {MINI} is what was read",
        seen="evidence/source",
        build=other_shard,
    ),
    Lie(
        "a shard of nobody's, fetched from Google",
        word=f"that {GOOGLE}@000000000000 is what was read",
        seen="evidence/source",
        build=all_of(other_shard, fetched(GOOGLE, NO_COMMIT)),
    ),
    Lie(
        "a shard of nobody's, called proven",
        "evidence/identity",
        build=all_of(other_shard, still_proven),
    ),
    Lie("another sentence in the report alone", "evidence/identity", build=section("source", summary="is mine")),
    Lie(
        "a proven source in no section",
        "evidence/identity",
        build=report(lambda said: _without(said, "source")),
    ),
    Lie(
        "a second sentence about the source",
        "evidence/identity",
        build=more_section(Section("source", "the source of it all", f"is {GOOGLE}@4d7ae49 by SHA-256")),
    ),
    Lie(
        "another verdict about the source",
        "evidence/results",
        build=report(lambda said: replace(said, verdict=f"{said.verdict}, which is {GOOGLE}")),
    ),
]


def _without(said: Report, id: SectionId) -> Report:
    return replace(said, sections=tuple(part for part in said.sections if part.id != id))


# What the provenance says of the base and the files that were read

BASE_FIELDS: Sequence[tuple[str, Callable[[dict[str, Any]], object]]] = [
    ("another repository", put("uri", value=f"https://huggingface.co/{GOOGLE}")),
    ("another host", put("uri", value=f"https://huggingface.co.example.org/{MINI}")),
    ("no address", drop("uri")),
    ("another commit", put("digest", value={"gitCommit": NO_COMMIT})),
    ("no commit", drop("digest")),
    ("a digest more", put("digest", "sha256", value=ZERO)),
    ("a word more", put("annotations", "audited", value=True)),
    ("another repository in the claim", put("annotations", "identity", "repository", value=GOOGLE)),
    ("another revision in the claim", put("annotations", "identity", "revision", value=GOOGLES_COMMIT)),
    ("not proven, in the claim", put("annotations", "identity", "proven", value=False)),
    ("a reason in the claim", put("annotations", "identity", "reason", value="file-missing")),
    ("a sentence in place of the claim", put("annotations", "identity", value=f"is {GOOGLE}@4d7ae49 by SHA-256")),
    ("no claim", drop("annotations")),
]
FILES: Sequence[tuple[str, str, Callable[[dict[str, Any]], object]]] = [
    ("another digest of a shard", SHARD, put("digest", "sha256", value=ZERO)),
    ("another digest of config.json", "config.json", put("digest", "sha256", value=ZERO)),
    ("another digest of a carried file", "tokenizer.json", put("digest", "sha256", value=ZERO)),
    ("a digest that is none", "tokenizer.json", put("digest", "sha256", value="x")),
    ("a digest of another kind", "tokenizer.json", put("digest", value={"md5": "0" * 32})),
    ("another address of a file", "tokenizer.json", put("uri", value=f"https://huggingface.co/{GOOGLE}/x")),
    ("a word more about a file", "tokenizer.json", put("annotations", value={"signedBy": "Google"})),
]


def _more_files(**digests: str) -> dict[str, Wrap]:
    return output("source_digests", lambda found: {**found, **{k.replace("__", "."): v for k, v in digests.items()}})


BASES = [
    *(
        Lie(f"of the base: {what}", "evidence/identity", wraps=dependency("base model", lie))
        for what, lie in BASE_FIELDS
    ),
    *(Lie(f"of a file: {what}", "evidence/", wraps=dependency(f"source/{name}", lie)) for what, name, lie in FILES),
    Lie("the base not named", "evidence/identity", wraps=dependencies(lambda items: items.pop(1))),
    Lie("a carried file of another digest, everywhere", "evidence/carried", wraps=_more_files(tokenizer__json=ZERO)),
    Lie("config.json of another digest, everywhere", "evidence/identity", wraps=_more_files(config__json=ZERO)),
    Lie(
        "a shard of another digest, everywhere but in the identity",
        "evidence/identity",
        wraps=_more_files(**SHARD_DIGEST),
    ),
    Lie(
        "a carried file that was not read",
        "evidence/",
        wraps=output("source_digests", lambda found: {k: v for k, v in found.items() if k != "tokenizer.json"}),
    ),
    Lie(
        "a shard that was not read",
        "evidence/identity",
        wraps=output("source_digests", lambda found: {k: v for k, v in found.items() if k != SHARD}),
    ),
    Lie("a shard more", "evidence/", wraps=_more_files(**{"model-00003-of-00003.safetensors": ZERO})),
]


# What the build started from


def start(old: str, new: str) -> dict[str, Wrap]:
    return text("_start", old, new)


def planned(change: Callable[[Checkpoint], Checkpoint]) -> Change:
    """Another source in the plan that the structure of the source is written of."""
    return lambda build: replace(build, plan=replace(build.plan, source=change(build.plan.source)))


def _another_tensor(source: Checkpoint) -> Checkpoint:
    return replace(source, structure={**source.structure, "more.weight": Tensor("BF16", (8, 8))})


def _fewer_tensors(source: Checkpoint) -> Checkpoint:
    return replace(source, structure=dict(list(source.structure.items())[1:]))


def _as_f32(source: Checkpoint) -> Checkpoint:
    return replace(source, structure={name: Tensor("F32", item.shape) for name, item in source.structure.items()})


STARTS = [
    Lie("a tensor more in the source", "evidence/", build=planned(_another_tensor)),
    Lie("a tensor less in the source", "evidence/", build=planned(_fewer_tensors)),
    Lie("a source in F32", "evidence/", build=planned(_as_f32)),
    Lie(
        "the structure of Google's model",
        "evidence/",
        build=planned(lambda source: replace(source, structure=reference_lock(GOOGLE).structure)),
    ),
    Lie(
        "another key in the source's config",
        "evidence/source",
        build=planned(lambda source: replace(source, config={**source.config, "more": 1})),
    ),
    Lie(
        "the config of Google's model",
        "evidence/",
        build=planned(lambda source: replace(source, config=reference_lock(GOOGLE).config)),
    ),
    Lie(
        "another name in the structure", "evidence/source", wraps=start("repository: mini\n", f"repository: {GOOGLE}\n")
    ),
    Lie("another base in the structure", "evidence/source", wraps=start(f"base: {MINI}\n", f"base: {GOOGLE}\n")),
    Lie(
        "another revision in the structure",
        "evidence/source",
        wraps=start("revision: ''\n", f"revision: {GOOGLES_COMMIT}\n"),
    ),
    Lie("another basis in the structure", "evidence/source", wraps=start("basis: read\n", "basis: exact\n")),
    Lie(
        "a note in the structure",
        "evidence/source",
        wraps=start("basis: read\n", "basis: read\nnote: seen by Google\n"),
    ),
    Lie(
        "a comment in the structure",
        "evidence/malformed",
        wraps=output("_start", lambda said: f"# audited by Google\n{said}"),
    ),
    Lie(
        "another size of a shard",
        "evidence/source",
        build=lambda build: _with_size(build, SHARD),
    ),
    Lie(
        "another size of a carried file",
        "evidence/source",
        build=lambda build: _with_size(build, "chat_template.jinja"),
    ),
]


def _with_size(build: FinishedBuild, name: str) -> FinishedBuild:
    files = {**build.source.files, name: FileFact(7, build.source.files[name].sha256)}
    return replace(build, source=replace(build.source, files=files))


# What was asked for, by whom, when, on what


def parameter(name: str, value: Any) -> dict[str, Wrap]:
    return provenance(put(*PARAMETERS, name, value=value))


def packaged(change: Callable[[tuple[Installed, ...]], tuple[Installed, ...]]) -> dict[str, Wrap]:
    """Other packages, in the provenance and in the bill of materials."""
    return {"weighbridge.evidence.write.installed": lambda _: lambda: change(packages())}


def _first(**parts: str) -> dict[str, Wrap]:
    return packaged(lambda found: (replace(found[0], **parts), *found[1:]))


def _wheel(digest: str) -> dict[str, Wrap]:
    def change(found: tuple[Installed, ...]) -> tuple[Installed, ...]:
        return tuple(replace(item, wheel=digest) if item.wheel != "unknown" else item for item in found)

    return packaged(change)


def stamped(moment: str) -> dict[str, Wrap]:
    """Another time at the end, wherever it is written."""
    return {
        "weighbridge.evidence.write.stamp": lambda _: lambda _moment: moment,
        **provenance(put(*DETAILS, "metadata", "finishedOn", value=moment)),
    }


WORD_OF_BUILD = "when it was built, on what machine, with which packages and which commit of Weighbridge"

ASKED = [
    Lie("another recipe", "evidence/recipe", wraps=parameter("recipe", "nvfp4")),
    Lie("another model", "evidence/source", wraps=parameter("model", GOOGLE)),
    Lie(
        "another model, everywhere",
        word=f"that the source was called {GOOGLE.rpartition('/')[2]}",
        build=lambda build: _called_source(build, GOOGLE.rpartition("/")[2]),
    ),
    Lie("a revision where nothing was fetched", "evidence/source", wraps=parameter("revision", NO_COMMIT)),
    Lie("a revision that is none", "evidence/provenance", wraps=parameter("revision", "main")),
    Lie("an engine that there is not", "evidence/provenance", wraps=parameter("engine", "certified")),
    Lie("another engine, in the provenance alone", "evidence/bom", wraps=parameter("engine", "upstream")),
    Lie(
        "another engine, everywhere",
        word="that the upstream engine made it",
        build=lambda build: replace(build, engine="upstream"),
    ),
    Lie("another device, in the provenance alone", "evidence/bom", wraps=parameter("device", "cuda")),
    Lie("another device, everywhere", word="made it on cuda", build=lambda build: replace(build, device="cuda")),
    Lie("a device that is none", "evidence/provenance", build=lambda build: replace(build, device="a TPU, audited")),
    Lie("another size of shards", word="with shards of 7 bytes", build=lambda build: replace(build, shard_size=7)),
    *(
        Lie(f"a size of shards that is none: {size!r}", "evidence/provenance", wraps=parameter("shardSize", size))
        for size in (0, -1, True, "5GB", None)
    ),
    Lie(
        "references that it was not held against",
        word="that it was held against RedHatAI/x",
        build=lambda build: replace(build, named_references=("RedHatAI/x",)),
    ),
    Lie("references that are none", "evidence/provenance", wraps=parameter("references", [1])),
    Lie("files taken over by name that are not there", "evidence/provenance", wraps=parameter("carried", ["x.txt"])),
    Lie("files taken over that are no names", "evidence/provenance", wraps=parameter("carried", "x.txt")),
    Lie("one thing more that was asked for", "evidence/provenance", wraps=parameter("certified", True)),
    Lie("one thing less that was asked for", "evidence/provenance", wraps=provenance(drop(*PARAMETERS, "engine"))),
    Lie(
        "another kind of build", "evidence/other-build", wraps=provenance(put(*DEFINITION, "buildType", value="urn:x"))
    ),
    *(
        Lie(
            f"another machine: {name}",
            word="on what machine",
            wraps=provenance(put(*DEFINITION, "internalParameters", name, value="x")),
        )
        for name in ("machine", "system", "libc", "python")
    ),
    Lie(
        "one thing more about the machine",
        "evidence/provenance",
        wraps=provenance(put(*DEFINITION, "internalParameters", "hsm", value="x")),
    ),
    Lie(
        "a machine that is no word",
        "evidence/provenance",
        wraps=provenance(put(*DEFINITION, "internalParameters", "machine", value=64)),
    ),
    Lie("no machine", "evidence/provenance", wraps=provenance(put(*DEFINITION, "internalParameters", value={}))),
    Lie(
        "another builder",
        "evidence/provenance",
        wraps=provenance(put(*DETAILS, "builder", "id", value="https://github.com/actions/runner")),
    ),
    Lie(
        "a second builder",
        "evidence/provenance",
        wraps=provenance(put(*DETAILS, "builder", "version", "google", value="1")),
    ),
    Lie(
        "no version",
        "evidence/provenance",
        wraps=provenance(put(*DETAILS, "builder", "version", "weighbridge", value="")),
    ),
    Lie(
        "another version",
        word="version '9.9' of Weighbridge is stated to have written it",
        wraps=provenance(put(*DETAILS, "builder", "version", "weighbridge", value="9.9")),
    ),
    Lie(
        "an earlier time",
        word="when it was built",
        build=lambda build: replace(build, started=datetime(2026, 1, 1, tzinfo=UTC)),
    ),
    Lie("an end before the beginning", "evidence/provenance", wraps=stamped("2020-01-01T00:00:00Z")),
    Lie("an end in the future", "evidence/provenance", wraps=stamped("2999-01-01T00:00:00Z")),
    Lie("a day that there is not", "evidence/provenance", wraps=stamped("2026-02-31T00:00:00Z")),
    Lie(
        "another end, in the provenance alone",
        "evidence/provenance",
        wraps=provenance(put(*DETAILS, "metadata", "finishedOn", value="2019-01-01T00:00:00Z")),
    ),
    Lie("a package left out, everywhere", word="with which packages", wraps=packaged(lambda found: found[1:])),
    Lie("no packages, everywhere", word="with which packages", wraps=packaged(lambda found: ())),
    Lie(
        "a package more, everywhere",
        word="with which packages",
        wraps=packaged(lambda found: (*found, Installed("zz-safe", "1.0", "unknown", ZERO))),
    ),
    Lie(
        "another version of a package, everywhere",
        word="with which packages",
        wraps=_first(version="99.0", wheel="unknown"),
    ),
    Lie("other content of a package, everywhere", word="with which packages", wraps=_first(content=ZERO)),
    Lie("another wheel than is pinned, everywhere", "evidence/provenance", wraps=_wheel(ZERO)),
    Lie("a wheel that is none", "evidence/", wraps=_first(wheel="audited")),
    Lie("a package left out of the provenance alone", "evidence/bom", wraps=dependencies(lambda items: items.pop())),
    Lie(
        "a word more about a package",
        "evidence/provenance",
        wraps=dependency("numpy", put("annotations", "audited", value=True)),
    ),
    Lie(
        "a package under another name",
        "evidence/provenance",
        wraps=dependency("numpy", put("name", value="numpy-audited")),
    ),
    Lie(
        "something that nothing is made from",
        "evidence/provenance",
        wraps=dependencies(lambda items: items.append({"name": "audit", "digest": {"sha256": ZERO}})),
    ),
    Lie("a dependency twice", "evidence/malformed", wraps=dependencies(lambda items: items.append(items[0]))),
    Lie(
        "another commit of Weighbridge",
        word="which commit of Weighbridge",
        wraps={"weighbridge.evidence.provenance.repository": lambda _: lambda: Repository(NO_COMMIT, True)},
    ),
    Lie(
        "a commit of Weighbridge that is none",
        "evidence/provenance",
        wraps={"weighbridge.evidence.provenance.repository": lambda _: lambda: Repository("v1", True)},
    ),
    Lie(
        "no commit of Weighbridge",
        word="which commit of Weighbridge",
        wraps={"weighbridge.evidence.provenance.repository": lambda _: lambda: None},
    ),
    Lie(
        "a word more about Weighbridge",
        "evidence/provenance",
        wraps=dependency("weighbridge", put("annotations", "audited", value=True)),
    ),
    Lie(
        "Weighbridge not named",
        "evidence/provenance",
        wraps=dependencies(
            lambda items: items.__setitem__(slice(None), [i for i in items if i["name"] != "weighbridge"])
        ),
    ),
    Lie(
        "another digest of the recipe",
        "evidence/recipe",
        wraps=dependency("recipe.yaml", put("digest", "sha256", value=ZERO)),
    ),
    Lie(
        "a word more about the recipe",
        "evidence/recipe",
        wraps=dependency("recipe.yaml", put("annotations", value={"approved": True})),
    ),
    Lie(
        "a reference left out",
        "evidence/reference",
        wraps=dependencies(
            lambda items: items.__setitem__(slice(None), [i for i in items if not i["name"].startswith("references/")])
        ),
    ),
    Lie(
        "a reference more",
        "evidence/reference",
        wraps=dependencies(
            lambda items: items.append({"name": f"references/{GOOGLE}.yaml", "digest": {"sha256": ZERO}})
        ),
    ),
    Lie(
        "a word more about a reference",
        "evidence/provenance",
        wraps=dependency(
            "references/weighbridge/gemma-4-mini-FP8-dynamic.yaml", put("uri", value="https://example.org")
        ),
    ),
    Lie(
        "a calibration that was none",
        "evidence/provenance",
        wraps=dependencies(
            lambda items: items.append(
                {"name": "calibration", "digest": {"sha256": ZERO}, "annotations": {"token_ids_sha256": ZERO}}
            )
        ),
    ),
    Lie(
        "a file that is none of a build's",
        "evidence/unbound",
        wraps=byproducts(lambda items: items.append({"name": "evidence/certificate.pdf", "digest": {"sha256": ZERO}})),
    ),
    Lie(
        "a by-product from elsewhere",
        "evidence/unbound",
        wraps=byproducts(lambda items: items.append({"name": "audit by Google", "digest": {"sha256": ZERO}})),
    ),
    Lie("a by-product twice", "evidence/malformed", wraps=byproducts(lambda items: items.append(items[0]))),
    Lie("a by-product left out", "evidence/missing", wraps=byproducts(lambda items: items.pop(0))),
    Lie(
        "a word more about a by-product",
        "evidence/provenance",
        wraps=byproducts(lambda items: items[0].update(uri="https://example.org")),
    ),
]


def _called_source(build: FinishedBuild, name: str) -> FinishedBuild:
    """The source under another name, in the reports too."""
    lied = replace(build, source=replace(build.source, label=name))

    def change(said: Report) -> Report:
        sections = [
            replace(part, title=f"the source {name}") if part.id == "source" else part for part in said.sections
        ]
        return replace(
            said, verdict=said.verdict.replace("the source mini", f"the source {name}"), sections=tuple(sections)
        )

    return report(change)(lied)


# How it was judged

FAKE = Report(
    "audit",
    "the build",
    "derives from its base",
    (Section("quantized-weights", "its quantized weights", "185 modules: 185 exact"),),
    metrics={"judged_exact_count": 1},
)
FAILED = Finding("audit/odd", Severity.ERROR, "model.norm.weight", "is odd")


def with_report(name: str, said: Report) -> Change:
    return lambda build: replace(build, reports={**build.reports, name: said})


def named_by_hand(build: FinishedBuild) -> FinishedBuild:
    return replace(build, named_references=("RedHatAI/x",))


def reference_as_what_was_done(build: FinishedBuild) -> FinishedBuild:
    """A reference that it is held against as a part of how the run went, and the verdict that follows of that."""
    said = build.reports[MAIN_REPORT]
    sections = tuple(
        replace(part, id="build", summary="all is well") if part.id == "against-reference" else part
        for part in said.sections
    )
    verdict = build_verdict(said.subject, len(build.plan.predicted.structure), (), build.model, build.identity)
    return with_report(MAIN_REPORT, replace(said, sections=sections, verdict=verdict))(build)


JUDGED = [
    Lie("a better sentence about the plan", "evidence/results", build=section(PLAN, summary="all is well")),
    Lie("notes that are not told", "evidence/results", build=section("serving-rules", findings=())),
    Lie(
        "findings that there are not",
        "evidence/results",
        build=section(PLAN, findings=(Finding("x/y", Severity.NOTE, "a", "b"),)),
    ),
    Lie("a section left out", "evidence/results", build=report(lambda said: _without(said, PLAN))),
    Lie(
        "a section left out, with a reference named by hand",
        "evidence/results",
        build=all_of(report(lambda said: _without(said, PLAN)), named_by_hand),
    ),
    Lie(
        "a section under another title, with a reference named by hand",
        "evidence/results",
        build=all_of(section(PLAN, title="against the plan", summary="all is well"), named_by_hand),
    ),
    Lie("a section under another id", "evidence/results", build=section(PLAN, id="build", summary="all is well")),
    Lie(
        "the section of a reference under another id, with a reference named by hand",
        "evidence/results",
        build=all_of(reference_as_what_was_done, named_by_hand),
    ),
    Lie(
        "a section under the title of the source's",
        "evidence/results",
        build=more_section(Section("build", "the source mini", f"is {GOOGLE}")),
    ),
    Lie(
        "a section of the auditor's",
        word="audited by Google",
        build=more_section(Section("audit", "audited by Google", "all is well")),
    ),
    Lie("figures that are not so", word="facts and figures", build=section(PLAN, facts={"audited": "by Google"})),
    Lie("another command", "evidence/results", build=report(lambda said: replace(said, command="audit"))),
    Lie(
        "another verdict", "evidence/results", build=report(lambda said: replace(said, verdict="audited and certified"))
    ),
    Lie("an audit that was none", word="the build, audit", build=with_report("audit", FAKE)),
    Lie(
        "answers that were not measured",
        word="the build, quality",
        build=with_report("quality", replace(FAKE, command="quality")),
    ),
    Lie(
        "an audit that failed",
        "evidence/results",
        build=with_report("audit", replace(FAKE, sections=(Section("audit", "x", "y", findings=(FAILED,)),))),
    ),
    Lie("a report of another kind", "evidence/unbound", build=with_report("certificate", FAKE)),
    Lie(
        "results that passed otherwise",
        "evidence/results",
        wraps=result(put("predicate", "passedTests", value=["everything"])),
    ),
    Lie(
        "a better result than the worst",
        "evidence/results",
        wraps=result(lambda content: content["predicate"].update(result="WARNED")),
    ),
    Lie(
        "results of another recipe",
        "evidence/results",
        wraps=result(put("predicate", "configuration", 0, "digest", "sha256", value=ZERO)),
    ),
    Lie(
        "reports on another build",
        "evidence/subject",
        wraps=output("_without_paths", lambda said: replace(said, subject="gemma-4-26B-A4B-it-fp8-dynamic")),
    ),
    Lie(
        "a page that says more", "evidence/page", wraps=text("page_of", "</body>", "<p>Certified by Google</p></body>")
    ),
    Lie(
        "a page that calls it Google's",
        "evidence/page",
        wraps=text("page_of", "weighbridge/gemma-4-mini@65c4c61", f"{GOOGLE}@4d7ae49"),
    ),
    Lie(
        "a chain from another base",
        "evidence/page",
        wraps=output(
            "chain_section", lambda said: Section("chain", "from base to evidence", "from Google's", judges=False)
        ),
    ),
    Lie("another guide", "evidence/page", wraps=output("guide", lambda said: said + b"\nCertified by Google.\n")),
    Lie(
        "a log that tells of an audit",
        word="log.jsonl tells",
        build=lambda build: replace(build, stages=(*build.stages, *_stage())),
    ),
]


def _stage() -> tuple[Any, ...]:
    from weighbridge.progress import Stage

    return (Stage("audit by Google", 1, 1.0),)


# Card and bill of materials


def card(old: str, new: str) -> dict[str, Wrap]:
    return text("write_card", old, new)


def bom(*keys: str | int, value: Any) -> dict[str, Wrap]:
    """Another value in the bill of materials, as it is written."""
    import json

    def change(raw: bytes) -> bytes:
        content = json.loads(raw)
        put(*keys, value=value)(content)
        return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()

    return output("write_bom", change)


COMPONENT = ("components", 0)
PACKAGE = ("formulation", 0, "components", 0)
ANCESTOR = (*COMPONENT, "pedigree", "ancestors", 0)
BILL: Sequence[tuple[str, tuple[str | int, ...], Any]] = [
    ("serial number", ("serialNumber",), "urn:uuid:00000000-0000-5000-8000-000000000000"),
    ("version", ("version",), 2),
    ("time", ("metadata", "timestamp"), "2019-01-01T00:00:00Z"),
    ("tool", ("metadata", "tools", "components", 0, "version"), "99.0"),
    ("author", ("metadata", "authors"), [{"name": "Google"}]),
    ("manufacturer", ("metadata", "manufacturer"), {"name": "Google"}),
    ("subject", ("metadata", "component", "version"), ZERO),
    ("name", (*COMPONENT, "name"), "gemma-4-26B-A4B-it-fp8-dynamic"),
    ("root digest", (*COMPONENT, "version"), ZERO),
    ("description", (*COMPONENT, "description"), "audited"),
    ("hash", (*COMPONENT, "hashes", 0, "content"), ZERO),
    ("licence", (*COMPONENT, "licenses"), [{"license": {"id": "MIT"}}]),
    ("base", (*ANCESTOR, "name"), "gemma-4-26B-A4B-it"),
    ("base's organization", (*ANCESTOR, "group"), "google"),
    ("base's commit", (*ANCESTOR, "version"), GOOGLES_COMMIT),
    ("base's address", (*ANCESTOR, "purl"), f"pkg:huggingface/{GOOGLE}@{GOOGLES_COMMIT}"),
    ("sentence about the base", (*ANCESTOR, "description"), f"is {GOOGLE}@4d7ae49 by SHA-256"),
    ("note", (*COMPONENT, "pedigree", "notes"), "audited"),
    ("architecture", (*COMPONENT, "modelCard", "modelParameters", "modelArchitecture"), "Other"),
    ("what is stored", (*COMPONENT, "modelCard", "properties"), []),
    ("file", (*COMPONENT, "components", 0, "hashes", 0, "content"), ZERO),
    ("number of tensors", (*COMPONENT, "properties", 0, "value"), "1"),
    ("supplier", (*COMPONENT, "supplier"), {"name": "Google"}),
    ("package", (*PACKAGE, "version"), "99.0"),
    ("package's wheel", (*PACKAGE, "hashes"), [{"alg": "SHA-256", "content": ZERO}]),
    ("package's content", (*PACKAGE, "properties", 0, "value"), ZERO),
    ("what it depends on", ("dependencies",), []),
    ("engine", ("formulation", 0, "workflows", 0, "name"), "certified build on an HSM"),
    ("tasks", ("formulation", 0, "workflows", 0, "taskTypes"), ["build", "test", "scan"]),
    ("recipe", ("formulation", 0, "workflows", 0, "properties", 0, "value"), ZERO),
    ("component beside the model", ("components",), []),
    ("task", (*COMPONENT, "modelCard", "modelParameters", "task"), "translation"),
    ("signature", ("signature", "value"), "AAAA"),
    ("annotations", ("annotations",), [{"text": "audited by Google"}]),
    ("declarations", ("declarations",), {"assessors": [{"thirdParty": True}]}),
]
CARDS: Sequence[tuple[str, str, str]] = [
    ("base in its metadata", f"base_model: {MINI}", f"base_model: {GOOGLE}"),
    ("licence in its metadata", "license: apache-2.0", "license: mit"),
    ("tag", "- weighbridge\n", "- weighbridge\n- audited\n"),
    ("title", "# gemma-4-mini-fp8-dynamic", "# gemma-4-26B-A4B-it-fp8-dynamic"),
    ("base", f"[{MINI}](https://huggingface.co/{MINI})", f"[{GOOGLE}](https://huggingface.co/{GOOGLE})"),
    ("commit", "at revision `65c4", "at revision `4d7a"),
    ("sentence about the source", f"is {MINI}@65c4c61 by SHA-256", f"is {GOOGLE}@4d7ae49 by SHA-256"),
    ("licence", "Its licence is apache-2.0", "Its licence is mit"),
    ("table of tensors", "| experts | ", "| the experts | "),
    ("recipe", "method: model_free_ptq", "method: oneshot"),
    ("result", "| passed |", "| excellent |"),
    ("word more", "## The evidence", "Certified by Google.\n\n## The evidence"),
    ("end", "--evidence`.", "--evidence`, as Google has."),
]
ELSEWHERE = provenance(put(*DETAILS, "builder", "version", "weighbridge", value="9.9"))

PAGES = [
    *(Lie(f"in the bill: another {what}", "evidence/bom", wraps=bom(*keys, value=value)) for what, keys, value in BILL),
    *(Lie(f"in the card: another {what}", "evidence/card", wraps=card(old, new)) for what, old, new in CARDS),
    Lie(
        "of another version, and a card of Google's",
        "evidence/card",
        wraps={**ELSEWHERE, **card(f"base_model: {MINI}", f"base_model: {GOOGLE}")},
    ),
    Lie(
        "of another version, and a card that calls it proven",
        "evidence/identity",
        wraps={**ELSEWHERE, **card(f"is {MINI}@65c4c61 by SHA-256", f"is {GOOGLE}@4d7ae49 by SHA-256")},
    ),
    Lie(
        "of another version, and a page that calls it proven",
        "evidence/identity",
        wraps={**ELSEWHERE, **text("page_of", f"{MINI}@65c4c61 by SHA-256", f"{GOOGLE}@4d7ae49 by SHA-256")},
    ),
    *(
        Lie(
            f"of another version, and a page that calls it proven, as {spelling!a}",
            "evidence/identity",
            wraps={**ELSEWHERE, **text("page_of", f"{MINI}@65c4c61 by SHA-256", f"{GOOGLE}@4d7ae49 by {spelling}")},
        )
        for spelling in (
            *("SHA\u2011256", "sha256", "\u0405HA-256", "S\u200bHA-256", "SHA&#8209;256", "SHA\u00a0256", "SHA2-256"),
            *("SHA-<b>256</b>", "SHA-2<wbr>56", "S\u034fHA-25\ufe0f6", "<i>SHA</i><i>256</i>"),
        )
    ),
    *(
        Lie(
            f"of another version, and a page that calls it proven, as {said!a}",
            "evidence/identity",
            wraps={**ELSEWHERE, **text("page_of", f"is {MINI}@65c4c61 by SHA-256", said)},
        )
        for said in (
            *(f"\u0456s {GOOGLE} b\u0443 SHA-256", f"is {GOOGLE} <i>by</i> SHA-256", f"<i>is</i>{GOOGLE} by SHA-256"),
            *(f"is &lt;{GOOGLE} by SHA-256&gt;", f"is <{GOOGLE} by SHA-256>"),
            *(f"is {GOOGLE.replace('/', mark)} by SHA-256" for mark in ("\u2044", "\u2215", "\uff0f")),
        )
    ),
    Lie(
        "of another version, and another base in the bill",
        "evidence/",
        wraps={**ELSEWHERE, **bom(*COMPONENT, "hashes", 0, "content", value=ZERO)},
    ),
    Lie(
        "of another version, and other words in the card",
        word="what README.md says: version '9.9'",
        wraps={**ELSEWHERE, **card("No server was run as part of this build", "It was served for a year")},
    ),
]


# The checkpoint and its lists

SUBJECTS = [
    Lie(
        "another name of the checkpoint",
        "evidence/subject",
        wraps=output("subject_of", lambda said: said.model_copy(update={"name": "gemma-4-26B"})),
    ),
    Lie(
        "another digest of the checkpoint",
        "evidence/subject",
        wraps=output("subject_of", lambda said: said.model_copy(update={"digest": {"sha256": ZERO}})),
    ),
    Lie(
        "a second digest of the checkpoint",
        "evidence/subject",
        wraps=output("subject_of", lambda said: said.model_copy(update={"digest": {**said.digest, "sha512": ZERO}})),
    ),
    Lie(
        "a word more about the checkpoint",
        "evidence/subject",
        wraps=output("subject_of", lambda said: said.model_copy(update={"annotations": {"audited": True}})),
    ),
    Lie(
        "an address of the checkpoint",
        "evidence/subject",
        wraps=output("subject_of", lambda said: said.model_copy(update={"uri": f"https://huggingface.co/{GOOGLE}"})),
    ),
    Lie(
        "another digest of a shard of the build",
        "evidence/file-altered",
        build=lambda build: replace(build, shard_digests=dict.fromkeys(build.shard_digests, ZERO)),
    ),
    Lie(
        "another digest of a tensor",
        "evidence/tensor-altered",
        build=lambda build: replace(
            build, tensor_digests={**build.tensor_digests, next(iter(build.tensor_digests)): ZERO}
        ),
    ),
    Lie(
        "a file that is not listed",
        "evidence/file-added",
        wraps=output(
            "list_all",
            lambda found: replace(found, signed=tuple(name for name in found.signed if name != "tokenizer.json")),
        ),
    ),
    Lie(
        "a tensor that is not listed",
        "evidence/tensor-altered",
        wraps=output("write_tensors", lambda said: said.split(b"\n", 1)[1]),
    ),
]


TEMPLATE = "{{ messages }} and a word of my own"
TEMPLATE_DIGEST = hashlib.sha256(TEMPLATE.encode()).hexdigest()


def _other_template(directory: Path) -> None:
    (directory / "chat_template.jinja").write_text(TEMPLATE)


def areas(size: int, *, count: int) -> Figures:
    """A picture of bytes that no honest report has."""
    return (Areas("bytes", tuple(Area("a", "b", "c", size) for _ in range(count))),)


def _another_file(directory: Path) -> None:
    (directory / "more.json").write_text("{}")


CARRIED = [
    Lie("another template than the source's", "evidence/carried", before=_other_template),
    Lie(
        "another template, stated as the source's",
        "evidence/identity",
        before=_other_template,
        wraps=_more_files(chat_template__jinja=TEMPLATE_DIGEST),
    ),
    Lie("a file that the source has not", "evidence/", before=_another_file),
    Lie(
        "a file that the source has not, stated as its own",
        word="more.json",
        seen="evidence/source",
        before=_another_file,
        build=all_of(
            lambda build: _with_file(build, "more.json", b"{}"),
            section("account", summary="8 files, 185 keys, 481 tensors, all of them judged"),
        ),
    ),
    Lie("a picture of nothing", word="facts and figures", build=section(PLAN, figures=areas(0, count=30))),
    Lie("a picture of less than nothing", word="facts and figures", build=section(PLAN, figures=areas(-1, count=30))),
    Lie(
        "a picture that nobody can draw",
        "evidence/page",
        build=section(PLAN, figures=areas(1, count=20_000)),
        wraps={f"{WRITER}.page_of": lambda _: lambda *_arguments: ""},
    ),
]


def _with_file(build: FinishedBuild, name: str, content: bytes) -> FinishedBuild:
    """A file more in the source, with its digest; the reports name it as all that no digest is known of."""
    digests = {**build.identity.digests, name: hashlib.sha256(content).hexdigest()}
    source = replace(build.source, files={**build.source.files, name: FileFact(len(content))})
    lied = replace(build, source=source, identity=replace(build.identity, digests=digests))
    return report(lambda said: _of_identity(said, build.identity, lied))(lied)


# The recipe


def recipe(old: str, new: str) -> Change:
    """Another text of the recipe than was built by, in all that is written of it."""

    def change(build: FinishedBuild) -> FinishedBuild:
        from weighbridge.recipe import read_recipe

        raw = build.plan.loaded.raw.decode()
        assert old in raw
        loaded = read_recipe(raw.replace(old, new).encode(), where="recipe.yaml")
        return replace(build, plan=replace(build.plan, loaded=loaded))

    return change


RECIPES = [
    Lie("a recipe of another scheme", "evidence/", build=recipe("scheme: FP8_DYNAMIC", "scheme: FP8_BLOCK")),
    Lie(
        "a recipe that keeps more",
        "evidence/",
        build=recipe("  - re:.*router\n", "  - re:.*router\n  - re:.*experts.*\n"),
    ),
    Lie("a recipe that keeps less", "evidence/", build=recipe("  - re:.*vision_tower.*\n", "")),
    Lie("a recipe of another licence", "evidence/results", build=recipe("licence: apache-2.0", "licence: mit")),
    Lie("a recipe of another name", word="shows in no tensor", build=recipe("name: fp8-dynamic", "name: certified")),
    Lie(
        "a recipe with other words", word="shows in no tensor", build=recipe("FP8 (E4M3) weights", "Certified weights")
    ),
    Lie("a recipe of another base", word="shows in no tensor", build=recipe(f"model: {GOOGLE}", "model: acme/model")),
    Lie(
        "a recipe with another engine's method",
        "evidence/",
        build=recipe("method: model_free_ptq", "method: oneshot"),
    ),
]

# What it was calibrated with

CALIBRATION = """\
calibration:
  dataset: {hub: HuggingFaceH4/ultrachat_200k, revision: 8049631c405ae6576f93f445c6b8166f76f5505a, split: train_sft}
  samples: 4
  sequence_length: 64
  seed: 7
  experts: routed
references:
"""
RECORD: dict[str, Any] = {
    "dataset": "HuggingFaceH4/ultrachat_200k@8049631c405ae6576f93f445c6b8166f76f5505a, train_sft",
    "revision": "8049631c405ae6576f93f445c6b8166f76f5505a",
    "file_sha256": "",
    "rows_available": 100,
    "rows": (3, 1, 99, 42),
    "tokens": 256,
    "token_ids_sha256": ONE,
    "sequence_length": 64,
    "batch_size": 1,
    "render": "text",
    "seed": 7,
    "experts": "routed",
    "modifiers": ("QuantizationModifier",),
    "tools": {"llmcompressor": "0.14.0.1"},
}


def calibrated(**changed: Any) -> Change:
    """A build that was calibrated, and a record that says otherwise in part."""
    record = {key: value for key, value in {**RECORD, **changed}.items() if value is not None}

    def change(build: FinishedBuild) -> FinishedBuild:
        oneshot = recipe("method: model_free_ptq\n", "method: oneshot\n")(build)
        return replace(recipe("references:\n", CALIBRATION)(oneshot), engine="upstream", calibration=record)

    return change


CALIBRATED_WITH = "what it was calibrated with, and that it was"
RECORDS: Sequence[tuple[str, Any]] = [
    ("dataset", "wikitext"),
    ("revision", NO_COMMIT),
    ("rows", (3, 1, 99)),
    ("rows", (3, 1, 99, 99)),
    ("rows", (3, 1, 99, 100)),
    ("rows", ("a", "b", "c", "d")),
    ("rows_available", "many"),
    ("sequence_length", 65),
    ("sequence_length", 0),
    ("batch_size", 2),
    ("seed", 8),
    ("experts", "all"),
    ("audited", True),
    ("tools", None),
    ("token_ids_sha256", "audited"),
]
CALIBRATIONS = [
    Lie("a calibration that nobody saw", word=CALIBRATED_WITH, build=calibrated()),
    Lie("a calibration with other tokens", word=CALIBRATED_WITH, build=calibrated(token_ids_sha256=ZERO)),
    Lie("a calibration with more tokens", word=CALIBRATED_WITH, build=calibrated(tokens=10**9)),
    Lie("a calibration with other rows", word=CALIBRATED_WITH, build=calibrated(rows=(5, 6, 7, 8))),
    Lie("a calibration by other tools", word=CALIBRATED_WITH, build=calibrated(tools={"llmcompressor": "99"})),
    Lie("a calibration with a file", word=CALIBRATED_WITH, build=calibrated(dataset="x.txt", file_sha256=ZERO)),
    Lie("no calibration", "evidence/provenance", build=lambda build: replace(calibrated()(build), calibration=None)),
    Lie(
        "a calibration by the data-free engine",
        "evidence/provenance",
        build=lambda build: replace(calibrated()(build), engine="streaming"),
    ),
    *(
        Lie(f"a calibration of other {key}: {value}", "evidence/provenance", build=calibrated(**{key: value}))
        for key, value in RECORDS
    ),
]

LIES = [*IDENTITIES, *BASES, *STARTS, *ASKED, *JUDGED, *PAGES, *SUBJECTS, *CARRIED, *RECIPES, *CALIBRATIONS]
