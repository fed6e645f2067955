"""A hundred alterations of a signed build, one at a time: each is found, and named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.checkpoints import copy_checkpoint, rewrite
from tests.evidence import EVIDENCE, edit_claim, edit_document, flip, lines_of, list_anew, payload_of, write_lines
from weighbridge.checkpoint.header import read_header
from weighbridge.evidence.signing import KeySigner, open_verifier
from weighbridge.evidence.verify import verify
from weighbridge.progress import Progress
from weighbridge.report import Severity

SHARD = "model.safetensors"
CARRIED = ("chat_template.jinja", "generation_config.json", "processor_config.json", "tokenizer.json")
FILES = ("README.md", "README.base.md", "config.json", "tokenizer_config.json", SHARD, *CARRIED)
BESIDE = (
    "README.md",
    "bom.cdx.json",
    "files.sha256",
    "tensors.sha256",
    "recipe.yaml",
    "report.html",
    "report.json",
    "report.md",
    "log.jsonl",
)
STATED = ("claims.jsonl", "model.sig", "evidence.sig")


@dataclass(frozen=True)
class Builds:
    """What alterations work with: a signed build, an older one of the same recipe, and keys of two people."""

    build: Path
    older: Path
    other: Path
    key: Path
    others_key: Path


@dataclass(frozen=True)
class Alteration:
    """One alteration, and the name that some finding about it has to have.

    Attributes:
        what: its id.
        named: part of where the finding says that it is.
        make: alters a copy in place.
    """

    what: str
    named: str
    make: Callable[[Path, Builds], None]


def _bit(name: str, at: float) -> Callable[[Path, Builds], None]:
    return lambda copy, _: flip(copy / name, at=at)


def _appended(name: str) -> Callable[[Path, Builds], None]:
    return lambda copy, _: rewrite(copy / name, (copy / name).read_bytes() + b"\n")


def _cut(name: str) -> Callable[[Path, Builds], None]:
    return lambda copy, _: rewrite(copy / name, (copy / name).read_bytes()[:-1])


def _removed(name: str) -> Callable[[Path, Builds], None]:
    return lambda copy, _: (copy / name).unlink()


def _renamed(name: str, to: str) -> Callable[[Path, Builds], None]:
    def make(copy: Path, _: Builds) -> None:
        (copy / to).parent.mkdir(exist_ok=True)
        (copy / name).rename(copy / to)

    return make


def _linked(name: str) -> Callable[[Path, Builds], None]:
    """The same bytes, behind a symbolic link."""

    def make(copy: Path, _: Builds) -> None:
        elsewhere = copy.parent / "elsewhere"
        elsewhere.write_bytes((copy / name).read_bytes())
        (copy / name).unlink()
        (copy / name).symlink_to(elsewhere)

    return make


def _added(name: str, content: bytes = b"{}") -> Callable[[Path, Builds], None]:
    def make(copy: Path, _: Builds) -> None:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes(content)

    return make


def _tensor(change: Callable[[bytearray, int, int], None], name: str) -> Callable[[Path, Builds], None]:
    """Change the bytes of one tensor in place; the header stays as it is."""

    def make(copy: Path, _: Builds) -> None:
        path = copy / SHARD
        header = read_header(path, where=SHARD)
        stored = header.tensors[name]
        content = bytearray(path.read_bytes())
        change(content, header.data_offset + stored.begin, header.data_offset + stored.end)
        rewrite(path, bytes(content))

    return make


def _zeroed(content: bytearray, begin: int, end: int) -> None:
    content[begin:end] = bytes(end - begin)


def _negated(content: bytearray, begin: int, end: int) -> None:
    content[end - 1] ^= 0x80


def _swapped_experts(copy: Path, _: Builds) -> None:
    """Two tensors of one shape change places: the header stays well-formed, and each byte is still somewhere."""
    path = copy / SHARD
    header = read_header(path, where=SHARD)
    spans = [header.tensors[f"model.language_model.layers.0.experts.{expert}.up_proj.weight"] for expert in (0, 1)]
    content = bytearray(path.read_bytes())
    one, two = (bytes(content[header.data_offset + span.begin : header.data_offset + span.end]) for span in spans)
    for span, taken in zip(spans, (two, one), strict=True):
        content[header.data_offset + span.begin : header.data_offset + span.end] = taken
    rewrite(path, bytes(content))


def _config(change: Callable[[dict[str, object]], None], *, listed: bool) -> Callable[[Path, Builds], None]:
    def make(copy: Path, _: Builds) -> None:
        edit_document(copy / "config.json", change)
        if listed:
            list_anew(copy)

    return make


def _card(old: str, new: str, *, listed: bool = False) -> Callable[[Path, Builds], None]:
    def make(copy: Path, _: Builds) -> None:
        text = (copy / "README.md").read_text()
        assert old in text
        rewrite(copy / "README.md", text.replace(old, new, 1).encode())
        if listed:
            list_anew(copy)

    return make


def _claim(number: int, *keys: str | int, value: object) -> Callable[[Path, Builds], None]:
    """Change one value of a statement under its old signature."""
    return lambda copy, _: edit_claim(copy, number, lambda statement: _set(statement, keys, value))


def _signed_by_another(number: int) -> Callable[[Path, Builds], None]:
    return lambda copy, builds: edit_claim(copy, number, lambda _: None, key=builds.others_key)


def _about_another(number: int) -> Callable[[Path, Builds], None]:
    """A statement about another subject, rightly signed with the right key."""
    return lambda copy, builds: edit_claim(
        copy, number, lambda statement: _set(statement, ("subject", 0, "digest", "sha256"), "0" * 64), key=builds.key
    )


def _lied(number: int, *keys: str | int, value: object) -> Callable[[Path, Builds], None]:
    """A value that is not so, rightly signed with the right key: found by holding it against the rest."""
    return lambda copy, builds: edit_claim(copy, number, lambda statement: _set(statement, keys, value), key=builds.key)


def _set(content: object, keys: tuple[str | int, ...], value: object) -> None:
    for key in keys[:-1]:
        content = content[key]  # type: ignore[index]
    content[keys[-1]] = value  # type: ignore[index]


def _from(build: str, name: str) -> Callable[[Path, Builds], None]:
    """A file of another build of the same signer in the place of this build's."""
    return lambda copy, builds: rewrite(copy / name, (getattr(builds, build) / name).read_bytes())


def _claim_from(build: str, number: int) -> Callable[[Path, Builds], None]:
    def make(copy: Path, builds: Builds) -> None:
        lines = lines_of(copy)
        lines[number] = lines_of(getattr(builds, build))[number]
        write_lines(copy, lines)

    return make


def _lines(change: Callable[[list[bytes]], list[bytes]]) -> Callable[[Path, Builds], None]:
    return lambda copy, _: write_lines(copy, change(lines_of(copy)))


def _envelope(*keys: str | int, value: object) -> Callable[[Path, Builds], None]:
    def make(copy: Path, _: Builds) -> None:
        lines = lines_of(copy)
        envelope = json.loads(lines[0])
        _set(envelope, keys, value)
        write_lines(copy, [json.dumps(envelope, separators=(",", ":")).encode(), *lines[1:]])

    return make


def _model_signed_by_another(copy: Path, builds: Builds) -> None:
    from weighbridge.evidence.subject import read_files

    files = read_files((copy / EVIDENCE / "files.sha256").read_bytes(), where="")
    bundle = KeySigner.open(builds.others_key).sign_model(files, name="gemma-4-mini-fp8-dynamic")
    rewrite(copy / EVIDENCE / "model.sig", bundle)


def _signature_swapped(copy: Path, _: Builds) -> None:
    """A right signature of the right key, over something else of the same build."""
    rewrite(copy / EVIDENCE / "evidence.sig", (copy / EVIDENCE / "model.sig").read_bytes())


def _unsigned(copy: Path, _: Builds) -> None:
    """The statements without their envelopes, and no signature."""
    plain = [
        json.dumps(payload_of(line), ensure_ascii=False, separators=(",", ":")).encode() for line in lines_of(copy)
    ]
    (copy / EVIDENCE / "claims.jsonl").unlink()
    (copy / EVIDENCE / "model.sig").unlink()
    (copy / EVIDENCE / "evidence.sig").unlink()
    write_lines(copy, plain, "statements.jsonl")


def _evidence_of(build: str) -> Callable[[Path, Builds], None]:
    """All of another build's evidence beside this checkpoint."""

    def make(copy: Path, builds: Builds) -> None:
        shutil.rmtree(copy / EVIDENCE)
        shutil.copytree(getattr(builds, build) / EVIDENCE, copy / EVIDENCE)

    return make


def _without_evidence(copy: Path, _: Builds) -> None:
    shutil.rmtree(copy / EVIDENCE)


def _folder_linked(copy: Path, _: Builds) -> None:
    (copy / EVIDENCE).rename(copy.parent / "evidence-elsewhere")
    (copy / EVIDENCE).symlink_to(copy.parent / "evidence-elsewhere")


def _bom(*keys: str | int, value: object) -> Callable[[Path, Builds], None]:
    return lambda copy, _: edit_document(copy / EVIDENCE / "bom.cdx.json", lambda bom: _set(bom, keys, value))


def _listed_line(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path, Builds], None]:
    return lambda copy, _: write_lines(copy, [change(lines_of(copy, name)[0]), *lines_of(copy, name)[1:]], name)


def _drop_ignore(config: dict[str, object]) -> None:
    _set(config, ("quantization_config", "ignore"), [])


def _other_architecture(config: dict[str, object]) -> None:
    config["model_type"] = "gemma3"


PROVENANCE, RESULT = 1, 0
DEFINITION = ("predicate", "buildDefinition")
SCALE = "model.language_model.layers.0.self_attn.q_proj.weight_scale"
CODES = "model.language_model.layers.0.experts.3.down_proj.weight"
ROUTER = "model.language_model.layers.1.router.proj.weight"

ALTERATIONS = [
    *(Alteration(f"a bit of {name}", name, _bit(name, 0.5)) for name in FILES),
    *(Alteration(f"a byte more in {name}", name, _appended(name)) for name in FILES),
    *(Alteration(f"a byte less in {name}", name, _cut(name)) for name in FILES),
    *(Alteration(f"{name} removed", name, _removed(name)) for name in FILES),
    *(Alteration(f"{name} behind a link", name, _linked(name)) for name in FILES),
    *(Alteration(f"a bit of evidence/{name}", name, _bit(f"evidence/{name}", 0.4)) for name in (*BESIDE, *STATED)),
    *(
        Alteration(f"evidence/{name} removed", name, _removed(f"evidence/{name}"))
        for name in (*BESIDE, "model.sig", "evidence.sig")
    ),
    Alteration("evidence/claims.jsonl removed", "evidence/", _removed("evidence/claims.jsonl")),
    *(Alteration(f"evidence/{name} behind a link", name, _linked(f"evidence/{name}")) for name in (*BESIDE, *STATED)),
    Alteration("the first bit of the shard", SHARD, _bit(SHARD, 0.0)),
    Alteration("a bit of the shard's header", SHARD, _bit(SHARD, 0.002)),
    Alteration("the last bit of the shard", SHARD, _bit(SHARD, 1.0)),
    Alteration("a scale set to zero", SCALE, _tensor(_zeroed, SCALE)),
    Alteration("the sign of one code", CODES, _tensor(_negated, CODES)),
    Alteration("a router set to zero", ROUTER, _tensor(_zeroed, ROUTER)),
    Alteration("two experts swapped", "experts.1.up_proj.weight", _swapped_experts),
    Alteration("tokenizer.json renamed", "tokenizer2.json", _renamed("tokenizer.json", "tokenizer2.json")),
    Alteration("the shard renamed", "model-1.safetensors", _renamed(SHARD, "model-1.safetensors")),
    Alteration(
        "a template moved into a folder", "more/chat_template.jinja", _renamed(CARRIED[0], "more/chat_template.jinja")
    ),
    Alteration("a file added", "modeling_gemma4.py", _added("modeling_gemma4.py", b"import os\n")),
    Alteration("a pickle added", "pytorch_model.bin", _added("pytorch_model.bin")),
    Alteration("a file added in a folder", "more/a.json", _added("more/a.json")),
    Alteration("a hidden file added", ".hidden", _added(".hidden")),
    Alteration("a file added that git leaves out", ".gitignore", _added(".gitignore", b"*\n")),
    Alteration("a file added below .github", ".github/a.yml", _added(".github/a.yml")),
    Alteration("a file added in .cache", ".cache/a.bin", _added(".cache/a.bin")),
    Alteration("a second shard added", "consolidated.safetensors", _added("consolidated.safetensors")),
    Alteration("a file added to the evidence", "evidence/more.json", _added("evidence/more.json")),
    Alteration("plain statements added beside the signed", "evidence/", _added("evidence/statements.jsonl", b"{}\n")),
    Alteration("the evidence behind a link", "evidence", _folder_linked),
    Alteration("no evidence at all", "evidence/", _without_evidence),
    Alteration("nothing is declared ignored", "config.json", _config(_drop_ignore, listed=False)),
    Alteration("nothing is declared ignored, listed anew", "", _config(_drop_ignore, listed=True)),
    Alteration("another architecture, listed anew", "model.sig", _config(_other_architecture, listed=True)),
    Alteration("another base in the card", "README.md", _card("weighbridge/gemma-4-mini", "google/gemma-4")),
    Alteration("another licence in the card, listed anew", "README.md", _card("apache-2.0", "mit", listed=True)),
    Alteration("a failed result called passed", "README.md", _card("| passed |", "| excellent |", listed=True)),
    Alteration("a result called warned", ":1", _claim(RESULT, "predicate", "result", value="WARNED")),
    Alteration(
        "another recipe in the provenance",
        ":2",
        _claim(PROVENANCE, *DEFINITION, "externalParameters", "recipe", value="w4a16"),
    ),
    Alteration(
        "another time of building",
        ":2",
        _claim(PROVENANCE, "predicate", "runDetails", "metadata", "finishedOn", value="2020-01-01T00:00:00Z"),
    ),
    Alteration("a package left out", ":2", _claim(PROVENANCE, *DEFINITION, "resolvedDependencies", value=[])),
    Alteration(
        "a statement of another type", ":1", _claim(RESULT, "predicateType", value="https://slsa.dev/provenance/v0.2")
    ),
    Alteration("a result signed with another key", ":1", _signed_by_another(RESULT)),
    Alteration("the provenance signed with another key", ":2", _signed_by_another(PROVENANCE)),
    Alteration("the model signed with another key", "model.sig", _model_signed_by_another),
    Alteration("no longer signed", "evidence/", _unsigned),
    Alteration("a result about another subject", ":1", _about_another(RESULT)),
    Alteration("a provenance about another subject", ":2", _about_another(PROVENANCE)),
    Alteration("a signature over another build", "model.sig", _from("other", "evidence/model.sig")),
    Alteration("the result of another build", ":1", _claim_from("other", RESULT)),
    Alteration("the provenance of another build", ":2", _claim_from("other", PROVENANCE)),
    Alteration("the provenance of an older build of the same bytes", "", _claim_from("older", PROVENANCE)),
    Alteration("the bill of an older build of the same bytes", "bom.cdx.json", _from("older", "evidence/bom.cdx.json")),
    Alteration("the log of an older build of the same bytes", "log.jsonl", _from("older", "evidence/log.jsonl")),
    Alteration("the signature over an older build's evidence", "evidence.sig", _from("older", "evidence/evidence.sig")),
    Alteration("the checkpoint's signature over its evidence", "evidence.sig", _signature_swapped),
    Alteration("all evidence of another build", "", _evidence_of("other")),
    Alteration("the result left out", "test-result/report", _lines(lambda lines: lines[1:])),
    Alteration("the provenance left out", "evidence", _lines(lambda lines: lines[:1])),
    Alteration("the result twice", ":2", _lines(lambda lines: [lines[0], *lines])),
    Alteration("the provenance twice", "evidence", _lines(lambda lines: [*lines, lines[1]])),
    Alteration("an empty line", ":3", _lines(lambda lines: [*lines, b""])),
    Alteration(
        "white space in an envelope", ":1", _lines(lambda lines: [lines[0].replace(b'":', b'": ', 1), *lines[1:]])
    ),
    Alteration("another key's name in an envelope", ":1", _envelope("signatures", 0, "keyid", value="0" * 64)),
    Alteration("no signature in an envelope", ":1", _envelope("signatures", value=[])),
    Alteration("another type of payload", ":1", _envelope("payloadType", value="text/plain")),
    Alteration("a key more in an envelope", ":1", _envelope("more", value=1)),
    Alteration(
        "a lie about the recipe's name",
        "provenance",
        _lied(PROVENANCE, *DEFINITION, "externalParameters", "recipe", value="w4a16"),
    ),
    Alteration(
        "a lie about the base",
        "base model",
        _lied(PROVENANCE, *DEFINITION, "resolvedDependencies", 1, "uri", value="https://huggingface.co/a/b"),
    ),
    Alteration(
        "a lie about a file of the source",
        "chat_template.jinja",
        _lied(PROVENANCE, *DEFINITION, "resolvedDependencies", 3, "digest", value={"sha256": "0" * 64}),
    ),
    Alteration(
        "a lie about the recipe's bytes",
        "recipe.yaml",
        _lied(PROVENANCE, *DEFINITION, "resolvedDependencies", 0, "digest", value={"sha256": "0" * 64}),
    ),
    Alteration("a lie about results", ":1", _lied(RESULT, "predicate", "passedTests", value=["everything"])),
    Alteration("another type of build", "provenance", _lied(PROVENANCE, *DEFINITION, "buildType", value="urn:other")),
    Alteration("another licence in the bill", "bom.cdx.json", _bom("components", 0, "licenses", value=[])),
    Alteration(
        "another base in the bill",
        "bom.cdx.json",
        _bom("components", 0, "pedigree", "ancestors", 0, "name", value="other"),
    ),
    Alteration("no packages in the bill", "bom.cdx.json", _bom("formulation", 0, "components", value=[])),
    Alteration("a digest of a file", "files.sha256", _listed_line("files.sha256", lambda line: b"0" * 64 + line[64:])),
    Alteration("a listed file outside", "files.sha256", _listed_line("files.sha256", lambda line: line[:66] + b"../a")),
    Alteration(
        "a digest of a tensor", "tensors.sha256", _listed_line("tensors.sha256", lambda line: b"0" * 64 + line[64:])
    ),
    Alteration(
        "a dtype of a tensor",
        "tensors.sha256",
        _listed_line("tensors.sha256", lambda line: line.replace(b"BF16", b"F16")),
    ),
]


def test_there_are_a_hundred_alterations_and_each_is_another() -> None:
    assert len({alteration.what for alteration in ALTERATIONS}) == len(ALTERATIONS) >= 100


@pytest.mark.parametrize("alteration", ALTERATIONS, ids=lambda alteration: alteration.what)
def test_alteration_is_found_and_named(alteration: Alteration, builds: Builds, tmp_path: Path) -> None:
    copy = copy_checkpoint(builds.build, tmp_path / "copy")
    alteration.make(copy, builds)
    public = open_verifier(builds.key.with_suffix(".pub.pem"))
    report = verify(copy, verifier=public, progress=Progress())
    errors = [finding.where for finding in report.findings() if finding.severity is Severity.ERROR]
    assert not report.holds
    assert [where for where in errors if alteration.named in where] != []


def test_unaltered_build_holds(builds: Builds) -> None:
    public = open_verifier(builds.key.with_suffix(".pub.pem"))
    for build in (builds.build, builds.older, builds.other):
        assert verify(build, verifier=public, progress=Progress()).holds


@pytest.fixture(scope="module")
def builds(signed_builds: Path) -> Builds:
    return Builds(
        build=signed_builds / "build",
        older=signed_builds / "older",
        other=signed_builds / "other",
        key=signed_builds / "key.pem",
        others_key=signed_builds / "other.pem",
    )
