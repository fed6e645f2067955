"""Checkpoints that must not be served, and the policy that none of them passes."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from tests.checkpoints import edit_config, edit_json, edit_tensors, read_shard, rewrite, shards_of, write_header
from tests.dishonest import WRITER, Lie, Workshop, forge, provenance, put, report
from tests.evidence import flip, list_anew
from weighbridge.evidence import AUDIT_REPORT, FinishedBuild
from weighbridge.evidence.signing import make_key_pair
from weighbridge.report import Finding, Report, Severity

POLICY: Mapping[str, Any] = {
    "signed_by": [{"key": "key.pub.pem"}],
    "base": {"proven": True, "of": ["weighbridge/gemma-4-mini"]},
    "audit": "exact",
    "recipes": ["fp8-dynamic"],
    "forbidden": ["evidence/base-unproven", "scale/*"],
    "licences": ["Apache-2.0"],
    "max_age_days": 30,
    "carried": ["tokenizer*", "chat_template.jinja", "processor_config.json"],
}
"""What the honest build passes."""

EXPERT = "model.language_model.layers.2.experts.3.down_proj"


@dataclass(frozen=True)
class Fraud:
    """A checkpoint that must not be served.

    Attributes:
        what: its id.
        rule: how the rule of an error begins that refuses it.
        lie: what its builder lies about, rightly signed.
        after: what somebody does to it after it was signed.
        policy: keys of the policy that are other than those of `POLICY`; None takes one out.
    """

    what: str
    rule: str
    lie: Lie = field(default_factory=lambda: Lie("nothing"))
    after: Callable[[Path, Workshop], object] = lambda build, workshop: None
    policy: Mapping[str, Any] = field(default_factory=dict)

    def commit(self, workshop: Workshop, target: Path) -> Path:
        """The checkpoint."""
        build = workshop.forged(self.lie, target)
        self.after(build, workshop)
        return build


def write_policy(directory: Path, workshop: Workshop, changes: Mapping[str, Any] | None = None) -> Path:
    """A policy in a directory, with the key that it names."""
    directory.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(workshop.key.with_suffix(".pub.pem"), directory / "key.pub.pem")
    wanted = {key: value for key, value in {**POLICY, **(changes or {})}.items() if value is not None}
    path = directory / "policy.yaml"
    path.write_text(yaml.safe_dump(wanted, sort_keys=False))
    return path


def _tensor(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path, Workshop], None]:
    """Other bytes of one tensor, in the place of its own."""

    def alter(build: Path, _: Workshop) -> None:
        edit_tensors(
            build, lambda tensors: tensors.update({name: replace(tensors[name], data=change(tensors[name].data))})
        )

    return alter


def _first_byte(data: bytes) -> bytes:
    return bytes([data[0] ^ 1]) + data[1:]


def _without_expert(build: Path, _: Workshop) -> None:
    edit_tensors(build, lambda tensors: [tensors.pop(name) for name in list(tensors) if name.startswith(EXPERT)])


def _other_metadata(build: Path, _: Workshop) -> None:
    (shard,) = shards_of(build)
    content = shard.read_bytes()
    length = int.from_bytes(content[:8], "little")
    write_header(shard, content[8 : 8 + length].replace(b'"pt"', b'"np"'), content[8 + length :])


def _consistently(build: Path, workshop: Workshop) -> None:
    """A shard is altered, and the list of files with it; what is signed is not."""
    _tensor(f"{EXPERT}.weight", _first_byte)(build, workshop)
    list_anew(build)


def _by_a_link(build: Path, workshop: Workshop) -> None:
    (shard,) = shards_of(build)
    elsewhere = build.parent / f"{build.name}.safetensors"
    shutil.copyfile(shard, elsewhere)
    shard.unlink()
    shard.symlink_to(elsewhere)


def _signed_by_a_stranger(build: Path, workshop: Workshop) -> None:
    shutil.rmtree(build)
    make_key_pair(build.parent / "stranger.pem", build.parent / "stranger.pub.pem", curve="P-256")
    forge(Lie("nothing"), workshop.finished, workshop.unfinished, build, build.parent / "stranger.pem")


def _unsigned(build: Path, workshop: Workshop) -> None:
    """The same evidence without its signatures, as whoever altered the rest would leave it."""
    beside = build / "evidence"
    lines = (beside / "claims.jsonl").read_bytes().splitlines()
    plain = [base64.b64decode(json.loads(line)["payload"]) for line in lines]
    (beside / "statements.jsonl").write_bytes(b"".join(line + b"\n" for line in plain))
    for name in ("claims.jsonl", "evidence.sig", "model.sig"):
        (beside / name).unlink()


def _scales_swapped(build: Path, _: Workshop) -> None:
    """Each of two scales is one that the signer wrote; they have changed places."""
    tensors = read_shard(shards_of(build)[0])
    first = f"{EXPERT}.weight_scale"
    second = next(name for name, tensor in tensors.items() if name != first and tensor.shape == tensors[first].shape)
    edit_tensors(build, lambda held: held.update({first: held[second], second: held[first]}))


def _evidence_of_another_build(build: Path, workshop: Workshop) -> None:
    """Files of one build, and the evidence of another one, which is rightly signed."""
    lie = Lie("another file", before=lambda made: (made / "generation_config.json").write_text("{}"))
    other = workshop.forged(lie, build.parent / f"{build.name}-other")
    shutil.rmtree(build / "evidence")
    shutil.copytree(other / "evidence", build / "evidence")


def _remove(*names: str) -> Callable[[Path, Workshop], None]:
    def remove(build: Path, _: Workshop) -> None:
        for name in names:
            (build / name).unlink()

    return remove


def _add(name: str, content: bytes) -> Callable[[Path, Workshop], object]:
    return lambda build, _: (build / name).write_bytes(content)


def _append(name: str, content: bytes) -> Callable[[Path, Workshop], object]:
    return lambda build, _: rewrite(build / name, (build / name).read_bytes() + content)


def _unaudited(build: FinishedBuild) -> FinishedBuild:
    return replace(build, reports={name: said for name, said in build.reports.items() if name != AUDIT_REPORT})


def _audit(**metrics: int) -> Callable[[FinishedBuild], FinishedBuild]:
    """An audit that came to other verdicts."""
    return report(lambda said: replace(said, metrics={**said.metrics, **metrics}), AUDIT_REPORT)


def _uncounted(said: Report) -> Report:
    return replace(said, metrics={})


def _of_one(original: Callable[..., Any]) -> Callable[..., Any]:
    """A derivation that is stated although the report counts nothing."""
    return lambda said, *rest, **named: original(replace(said, metrics={"judged_exact_count": 1}), *rest, **named)


UNCOUNTED = {
    f"{WRITER}.derivation_statement": _of_one,
    f"{WRITER}.relation_of": lambda original: lambda verdicts: original(verdicts or {"exact": 1}),
}


def _diverging(said: Report) -> Report:
    """An audit that found something, and was signed all the same."""
    finding = Finding("audit/diverges", Severity.ERROR, EXPERT, "is not the base's")
    first, *rest = said.sections
    return replace(said, sections=(replace(first, findings=(finding,)), *rest))


def _explained(said: Report) -> Report:
    """A report in which something was found, and explained away."""
    finding = Finding("scale/zero", Severity.NOTE, EXPERT, "is zero", explained="it is said to be harmless")
    return replace(said, sections=(*said.sections[:-1], replace(said.sections[-1], findings=(finding,))))


OLD = {
    **provenance(
        lambda content: [
            put("predicate", "runDetails", "metadata", key, value="2026-01-01T00:00:00Z")(content)
            for key in ("startedOn", "finishedOn")
        ]
    )
}

ALTERED = [
    Fraud("a weight altered in a shard", "evidence/file-altered", after=_tensor(f"{EXPERT}.weight", _first_byte)),
    Fraud("a scale altered in a shard", "evidence/file-altered", after=_tensor(f"{EXPERT}.weight_scale", _first_byte)),
    Fraud("two scales in each other's place", "evidence/file-altered", after=_scales_swapped),
    Fraud("a shard altered, and listed anew", "evidence/", after=_consistently),
    Fraud("a shard's metadata altered", "evidence/file-altered", after=_other_metadata),
    Fraud("a byte behind a shard's last tensor", "evidence/", after=_append("model.safetensors", b"\0")),
    Fraud("an expert missing", "evidence/", after=_without_expert),
    Fraud("a shard behind a link", "evidence/link", after=_by_a_link),
    Fraud("no shard at all", "evidence/", after=_remove("model.safetensors")),
    Fraud(
        "config.json altered",
        "evidence/file-altered",
        after=lambda build, _: edit_config(build, lambda config: config["quantization_config"]["ignore"].append("x")),
    ),
    Fraud("the chat template altered", "evidence/file-altered", after=_append("chat_template.jinja", b"{# x #}")),
    Fraud(
        "the tokenizer altered",
        "evidence/file-altered",
        after=lambda build, _: edit_json(build / "tokenizer.json", lambda content: content.update(truncation=None)),
    ),
    Fraud("the tokenizer missing", "evidence/file-missing", after=_remove("tokenizer.json")),
    Fraud("code beside it", "evidence/file-added", after=_add("modeling_gemma4.py", b"import os\n")),
    Fraud("a pickle beside it", "evidence/file-added", after=_add("pytorch_model.bin", b"\x80\x04.")),
    Fraud("the model card altered", "evidence/file-altered", after=_append("README.md", b"\nbest of all\n")),
    Fraud("the list of files altered", "evidence/", after=lambda build, _: flip(build / "evidence/files.sha256", at=0)),
]
WRONGLY_SIGNED = [
    Fraud("not signed", "policy/signed-by", after=_unsigned),
    Fraud("signed with a stranger's key", "evidence/signature", after=_signed_by_a_stranger),
    Fraud("the evidence of another build", "evidence/", after=_evidence_of_another_build),
    Fraud("no evidence", "evidence/missing", after=lambda build, _: shutil.rmtree(build / "evidence")),
    Fraud(
        "a report's audit taken out",
        "evidence/missing",
        after=_remove(*(f"evidence/audit.{kind}" for kind in ("json", "md", "html"))),
    ),
    Fraud("a report altered", "evidence/altered", after=lambda build, _: flip(build / "evidence/report.json", at=0.5)),
    Fraud("the recipe altered", "evidence/", after=_append("evidence/recipe.yaml", b"# x\n")),
]
AGAINST_POLICY = [
    Fraud("never audited", "policy/audit", lie=Lie("never audited", build=_unaudited)),
    Fraud(
        "an audit that counts nothing",
        "policy/audit",
        lie=Lie("uncounted", build=report(_uncounted, AUDIT_REPORT), wraps=UNCOUNTED),
    ),
    Fraud("an audit of a part", "policy/audit", lie=Lie("part", build=_audit(elements_checked_count=10_000_000))),
    Fraud("an audit that failed", "policy/audit", lie=Lie("failed", build=report(_diverging, AUDIT_REPORT))),
    Fraud("nearest, where exact is asked for", "policy/audit", lie=Lie("n", build=_audit(judged_nearest_count=1))),
    Fraud(
        "compensated, where nearest is asked for",
        "policy/audit",
        lie=Lie("c", build=_audit(judged_compensated_count=1)),
        policy={"audit": "nearest"},
    ),
    Fraud("a base that is not asked for", "policy/base", policy={"base": {"of": ["google/gemma-4-26B-A4B-it"]}}),
    Fraud(
        "another commit of the base", "policy/base", policy={"base": {"of": [f"weighbridge/gemma-4-mini@{'0' * 40}"]}}
    ),
    Fraud(
        "another recipe", "policy/recipe", policy={"recipes": ["w4a16", {"name": "fp8-dynamic", "sha256": "0" * 64}]}
    ),
    Fraud("what was explained away", "policy/forbidden", lie=Lie("e", build=report(_explained))),
    Fraud("what a server must be told", "policy/forbidden", policy={"forbidden": ["serve/tensor-parallel"]}),
    Fraud("a licence that is not allowed", "policy/licence", policy={"licences": ["MIT"]}),
    Fraud("an old build", "policy/age", lie=Lie("old", wraps=OLD)),
    Fraud("never served", "policy/serving", policy={"serving_check": True}),
    Fraud("answers that were never measured", "policy/quality", policy={"quality": {"max_kl": 1.0}}),
    Fraud("a file of which no digest is known", "policy/carried", policy={"carried": ["README.base.md"]}),
]
FRAUDS = [*ALTERED, *WRONGLY_SIGNED, *AGAINST_POLICY]
