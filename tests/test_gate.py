"""The gate: an honest build passes a policy, frauds do not, and each key of a policy asks for one thing."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format
from in_toto_attestation.predicates.vsa.v1 import vsa_pb2
from in_toto_attestation.v1 import statement_pb2

from tests.checkpoints import without_evidence
from tests.conftest import call_main
from tests.dishonest import Lie, Workshop, errors, open_workshop
from tests.gate_frauds import FRAUDS, POLICY, Fraud, write_policy
from weighbridge.cli import gate as command
from weighbridge.errors import PolicyError
from weighbridge.evidence.signing import open_verifier, read_envelope
from weighbridge.evidence.subject import root_digest
from weighbridge.policy import judge, open_policy
from weighbridge.policy.demands import DEMANDS
from weighbridge.policy.digests import as_listed
from weighbridge.policy.schema import Policy

HONEST = Lie("nothing")


@pytest.fixture(scope="module")
def workshop(mini: Path, tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return open_workshop(tmp_path_factory.mktemp("workshop"), audited=True)


@pytest.fixture(scope="module")
def honest(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return workshop.forged(HONEST, tmp_path_factory.mktemp("honest") / "build")


@pytest.fixture(scope="module")
def policy(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_policy(tmp_path_factory.mktemp("policy"), workshop)


def test_every_key_of_a_policy_is_asked_and_stands_in_the_strict_one() -> None:
    assert set(DEMANDS) == set(Policy.model_fields)
    assert set(Policy.model_fields) - set(POLICY) == {"serving_check", "quality"}


def test_honest_build_passes(honest: Path, policy: Path) -> None:
    judged = judge(honest, open_policy(policy))
    assert errors(judged.report) == set()
    assert list(judged.held) == [key for key in DEMANDS if key in POLICY]


@pytest.mark.parametrize("fraud", FRAUDS, ids=lambda fraud: fraud.what)
def test_fraud_is_refused(fraud: Fraud, workshop: Workshop, tmp_path: Path) -> None:
    judged = judge(
        fraud.commit(workshop, tmp_path / "build"), open_policy(write_policy(tmp_path, workshop, fraud.policy))
    )
    found = errors(judged.report)
    assert [rule for rule in found if rule.startswith(fraud.rule)] != [], found


@pytest.mark.parametrize("fraud", [fraud for fraud in FRAUDS if fraud.policy], ids=lambda fraud: fraud.what)
def test_what_violates_one_key_violates_no_other(fraud: Fraud, workshop: Workshop, tmp_path: Path) -> None:
    judged = judge(
        fraud.commit(workshop, tmp_path / "build"), open_policy(write_policy(tmp_path, workshop, fraud.policy))
    )
    assert errors(judged.report) == {fraud.rule}


def test_a_shard_is_not_read_where_its_digest_is_promised(workshop: Workshop, tmp_path: Path, policy: Path) -> None:
    """What is promised is what the evidence lists: whoever loads the shard finds that it is not so."""
    (altered,) = [fraud for fraud in FRAUDS if fraud.what == "a weight altered in a shard"]
    judged = judge(altered.commit(workshop, tmp_path / "build"), open_policy(policy), hashing=as_listed)
    assert errors(judged.report) == set()
    assert judged.shards == {"model.safetensors": workshop.finished.shard_digests["model.safetensors"]}


def test_one_of_several_signers_is_enough(honest: Path, workshop: Workshop, tmp_path: Path) -> None:
    from weighbridge.evidence.signing import make_key_pair

    make_key_pair(tmp_path / "other.pem", tmp_path / "other.pub.pem", curve="P-384")
    both = [{"key": "other.pub.pem"}, {"key": "key.pub.pem"}]
    assert judge(honest, open_policy(write_policy(tmp_path, workshop, {"signed_by": both}))).report.holds
    other = write_policy(tmp_path, workshop, {"signed_by": both[:1]})
    assert errors(judge(honest, open_policy(other)).report) == {"evidence/signature"}


def test_a_policy_that_names_no_signer_is_warned_of(honest: Path, workshop: Workshop, tmp_path: Path) -> None:
    report = judge(honest, open_policy(write_policy(tmp_path, workshop, {"signed_by": None}))).report
    assert report.holds
    assert "policy/any-signer" in {finding.rule for finding in report.findings()}


def test_recorded_serving_check_and_measured_quality_are_found(workshop: Workshop, tmp_path: Path) -> None:
    from dataclasses import replace

    from weighbridge.evidence import QUALITY_REPORT
    from weighbridge.evidence.added import add_result
    from weighbridge.evidence.signing import KeySigner
    from weighbridge.progress import Progress
    from weighbridge.report import Report, Section

    section = Section("answers", "answers", "near")
    measured = Report("quality", "it", "near", (section,), metrics={"kl_nats": 0.02, "agreement_share": 0.9})
    lie = Lie("measured", build=lambda build: replace(build, reports={**build.reports, QUALITY_REPORT: measured}))
    build = workshop.forged(lie, tmp_path / "build")
    served = Report("serve-check", "it", "is served", (Section("loading", "loading", "all filled"),))
    add_result(build, "serving", served, names={}, signer=KeySigner.open(workshop.key), progress=Progress(shown=False))
    for limits, found in (
        ({"max_kl": 0.02, "min_agreement": 0.9}, set()),
        ({"max_kl": 0.0199}, {"policy/quality"}),
        ({"min_agreement": 0.91}, {"policy/quality"}),
        ({"max_perplexity_ratio": 2.0}, {"policy/quality"}),
    ):
        asked = write_policy(tmp_path, workshop, {"serving_check": True, "quality": limits})
        assert errors(judge(build, open_policy(asked)).report) == found, limits


WRONG: list[tuple[str, str]] = [
    ("", "is empty"),
    ("- a", "is not a YAML mapping"),
    ("signd_by: []", "unknown key 'signd_by'; did you mean 'signed_by'?"),
    ("frobnicate: 1", "unknown key 'frobnicate'; docs/how-to/gate.md lists the keys of a policy"),
    ("signed_by: []", "signed_by must not be empty"),
    ("signed_by: [{}]", "names either a key, or an identity with its issuer"),
    ("signed_by: [{key: a, identity: b}]", "names either a key, or an identity with its issuer"),
    ("signed_by: [{identity: b}]", "names either a key, or an identity with its issuer"),
    ("audit: perfect", "'perfect' is none of exact, nearest, compensated"),
    ("base: {of: [google]}", "is neither org/name nor org/name@ with a commit of 40 hex digits"),
    ("base: {of: ['google/x@main']}", "is neither org/name nor org/name@ with a commit of 40 hex digits"),
    ("recipes: [{name: x, sha256: abc}]", "recipes"),
    ("forbidden: []", "forbidden must not be empty"),
    ("licences: [1]", "licences.0 must be text"),
    ("max_age_days: 0", "max_age_days"),
    ("max_age_days: soon", "max_age_days must be a whole number"),
    ("serving_check: false", "serving_check"),
    ("quality: {}", "states no limit"),
    ("quality: {max_kl: .nan}", "quality"),
    ("carried: tokenizer", "carried must be a list"),
    ("audit: exact\naudit: nearest", "audit"),
    ("a: &x 1", "anchors"),
    ("\t- x", "is indented with a tab"),
]


@pytest.mark.parametrize(("text", "said"), WRONG, ids=[text for text, _ in WRONG])
def test_a_wrong_policy_is_one_sentence(
    text: str, said: str, honest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(text)
    with pytest.raises(PolicyError) as caught:
        open_policy(path)
    assert said in str(caught.value)
    assert command.main([str(honest), "--policy", str(path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"recipes": ["nope"]}, "is no recipe of the catalogue"),
        ({"signed_by": [{"key": "gone.pem"}]}, "the key cannot be read"),
        ({"signed_by": [{"key": "policy.yaml"}]}, "is no public key in PEM"),
    ],
    ids=["recipe", "key", "no key"],
)
def test_what_a_policy_names_must_be_there(
    changes: dict[str, Any], said: str, honest: Path, workshop: Workshop, tmp_path: Path
) -> None:
    outcome = call_main(command.main, [honest, "--policy", write_policy(tmp_path, workshop, changes)])
    assert (outcome.code, said in outcome.err) == (2, True), outcome.err


def test_command_says_by_its_exit_code_whether_it_may_be_served(
    honest: Path, policy: Path, workshop: Workshop, tmp_path: Path
) -> None:
    assert call_main(command.main, [honest, "--policy", policy]).code == 0
    assert (
        call_main(command.main, [honest, "--policy", write_policy(tmp_path, workshop, {"licences": ["MIT"]})]).code == 1
    )
    assert call_main(command.main, [tmp_path / "nothing", "--policy", policy]).code == 2
    assert call_main(command.main, [honest, "--policy", tmp_path / "nothing.yaml"]).code == 2
    assert call_main(command.main, [honest, "--policy", policy, "--sign", workshop.key]).code == 2
    assert call_main(command.main, [honest, "--policy", policy, "--vsa", honest / "x.json"]).code == 2


def summary(form: str, build: Path, policy: Path, directory: Path, *options: str | Path) -> dict[str, Any]:
    path = directory / f"{form}.json"
    call_main(command.main, [build, "--policy", policy, f"--{form}", path, *options])
    found: dict[str, Any] = json.loads(path.read_bytes())
    return found


def test_summaries_are_as_published(honest: Path, policy: Path, tmp_path: Path) -> None:
    for form, kind in (
        ("svr", "https://in-toto.io/attestation/svr/v0.2"),
        ("vsa", "https://slsa.dev/verification_summary/v1"),
    ):
        statement = summary(form, honest, policy, tmp_path)
        json_format.ParseDict(statement, statement_pb2.Statement())
        assert statement["predicateType"] == kind
        assert statement["subject"][0]["digest"]["sha256"]
    passed = summary("vsa", honest, policy, tmp_path)["predicate"]
    levels = passed.pop("verifiedLevels")  # a list by SLSA's text, and one word by the published messages
    read = json_format.ParseDict(passed, vsa_pb2.VerificationSummary())
    assert (read.verification_result, read.policy.digest["sha256"]) == ("PASSED", open_policy(policy).sha256)
    held = summary("svr", honest, policy, tmp_path)["predicate"]["properties"]
    assert {"WEIGHBRIDGE_EVIDENCE_VERIFIED", "WEIGHBRIDGE_POLICY_AUDIT"} <= set(held) <= set(levels)


def test_summary_of_what_is_refused_states_no_property(honest: Path, workshop: Workshop, tmp_path: Path) -> None:
    strict = write_policy(tmp_path, workshop, {"licences": ["MIT"]})
    assert summary("svr", honest, strict, tmp_path)["predicate"]["properties"] == []
    failed = summary("vsa", honest, strict, tmp_path)["predicate"]
    assert (failed["verificationResult"], failed["verifiedLevels"]) == ("FAILED", ["SLSA_BUILD_LEVEL_UNEVALUATED"])


def test_summary_is_signed_with_the_key_that_is_named(
    honest: Path, policy: Path, workshop: Workshop, tmp_path: Path
) -> None:
    path = tmp_path / "vsa.json"
    call_main(
        command.main,
        [honest, "--policy", policy, "--vsa", path, "--sign", workshop.key, "--verifier", "https://e.org/g"],
    )
    envelope = read_envelope(path.read_bytes(), where="")
    open_verifier(workshop.key.with_suffix(".pub.pem")).check(envelope)
    payload = json.loads(base64.b64decode(json.loads(path.read_bytes())["payload"]))
    assert payload["predicate"]["verifier"] == {"id": "https://e.org/g"}


@pytest.mark.parametrize("what", ["no evidence", "the chat template altered", "the evidence of another build"])
def test_summary_is_about_the_files_that_lie_there(what: str, workshop: Workshop, policy: Path, tmp_path: Path) -> None:
    """Evidence that does not hold may name somebody else's checkpoint, which nothing is said against."""
    (fraud,) = [fraud for fraud in FRAUDS if fraud.what == what]
    build = fraud.commit(workshop, tmp_path / "build")
    (subject,) = summary("vsa", build, policy, tmp_path)["subject"]
    files = {name: hashlib.sha256(content).hexdigest() for name, content in without_evidence(build).items()}
    assert subject == {"name": "build", "digest": {"sha256": root_digest(files)}}


@pytest.mark.parametrize("inside", ["policy", "key"])
def test_a_checkpoint_does_not_bring_along_what_it_is_judged_by(
    inside: str, workshop: Workshop, tmp_path: Path
) -> None:
    build = workshop.forged(HONEST, tmp_path / "build")
    place = build / "policy" if inside == "policy" else tmp_path
    path = write_policy(place, workshop)
    if inside == "key":
        shutil.move(tmp_path / "key.pub.pem", build / "key.pub.pem")
        path = write_policy(tmp_path, workshop, {"signed_by": [{"key": "build/key.pub.pem"}]})
    with pytest.raises(PolicyError, match="is part of the checkpoint"):
        judge(build, open_policy(path))


def test_a_gate_imports_nothing_that_computes_or_signs(honest: Path, policy: Path) -> None:
    script = f"""
import sys
from pathlib import Path
from weighbridge.evidence.subject import root_digest
from weighbridge.policy import judge, open_policy
assert judge(Path({str(honest)!r}), open_policy(Path({str(policy)!r}))).report.holds
print(sorted({{name.partition(".")[0] for name in sys.modules}} & set({HEAVY!r})))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


HEAVY = [
    "torch",
    "transformers",
    "llmcompressor",
    "compressed_tensors",
    "numba",
    "datasets",
    "model_signing",
    "sigstore",
]
