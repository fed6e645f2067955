"""Signatures: keys of three curves, envelopes in one spelling, and what model_signing itself says of a signed build."""

from __future__ import annotations

import base64
import json
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from hypothesis import given
from hypothesis import strategies as st

from tests.checkpoints import copy_checkpoint, rewrite
from tests.conftest import Command, Outcome, call_main
from weighbridge.cli import key
from weighbridge.errors import EvidenceError, StructureError
from weighbridge.evidence.added import add_result
from weighbridge.evidence.signing import (
    IGNORED,
    Envelope,
    KeySigner,
    SigstoreVerifier,
    make_key_pair,
    open_signer,
    open_verifier,
    read_envelope,
    read_model_statement,
    write_envelope,
)
from weighbridge.evidence.subject import hash_files, list_all
from weighbridge.evidence.verify import verify
from weighbridge.progress import Progress
from weighbridge.report import Report, Section

CURVES = ("P-256", "P-384", "P-521")
PAYLOAD = b'{"_type":"https://in-toto.io/Statement/v1"}'


@pytest.fixture(params=CURVES)
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path]:
    private, public = tmp_path / "a.pem", tmp_path / "a.pub.pem"
    make_key_pair(private, public, curve=request.param)
    return private, public


@pytest.fixture
def private(tmp_path: Path) -> Path:
    make_key_pair(tmp_path / "key.pem", tmp_path / "key.pub.pem", curve="P-256")
    return tmp_path / "key.pem"


def test_statement_that_was_signed_is_accepted_with_the_public_half(pair: tuple[Path, Path]) -> None:
    line = open_signer(str(pair[0])).sign_statement(PAYLOAD)
    envelope = read_envelope(line, where="a")
    open_verifier(pair[1]).check(envelope)
    assert envelope.payload == PAYLOAD


def test_another_payload_under_the_same_signature_is_refused(pair: tuple[Path, Path]) -> None:
    envelope = read_envelope(open_signer(str(pair[0])).sign_statement(PAYLOAD), where="a")
    with pytest.raises(StructureError, match="not that of this key over these bytes"):
        open_verifier(pair[1]).check(Envelope(PAYLOAD + b" ", envelope.keyid, envelope.signature))


def test_signature_of_another_key_is_refused_by_name(pair: tuple[Path, Path], tmp_path: Path) -> None:
    make_key_pair(tmp_path / "b.pem", tmp_path / "b.pub.pem", curve="P-256")
    envelope = read_envelope(open_signer(str(tmp_path / "b.pem")).sign_statement(PAYLOAD), where="a")
    with pytest.raises(StructureError, match="another key than the one given, with key id"):
        open_verifier(pair[1]).check(envelope)


def run_model_signing(checkpoint: Path, public: Path, *, signature: str = "evidence/model.sig") -> Outcome:
    """``model_signing verify key`` as a person types it, with no further option.

    Args:
        signature: below the checkpoint; that of a folder of its evidence lies in the folder itself.
    """
    path = checkpoint / signature
    model = checkpoint if signature == "evidence/model.sig" else path.parent
    command = [sys.executable, "-m", "model_signing", "verify", "key", str(model)]
    command += ["--signature", str(path), "--public_key", str(public)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return Outcome(done.returncode, done.stdout, done.stderr)


def test_model_signing_accepts_a_bundle_of_each_curve(
    pair: tuple[Path, Path], mini_build: Path, tmp_path: Path
) -> None:
    copy = copy_checkpoint(mini_build, tmp_path / "copy")
    files = hash_files(copy, list_all(copy).signed, progress=Progress())
    (copy / "evidence/model.sig").write_bytes(open_signer(str(pair[0])).sign_model(files, name="x"))
    done = run_model_signing(copy, pair[1])
    assert done.code == 0, done.err + done.out


def test_model_signing_accepts_a_signed_build_as_it_stands(signed_builds: Path) -> None:
    done = run_model_signing(signed_builds / "build", signed_builds / "key.pub.pem")
    assert done.code == 0, done.err + done.out
    assert "succeeded" in done.out


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "README.md"])
def test_model_signing_refuses_a_build_that_was_altered(name: str, signed_builds: Path, tmp_path: Path) -> None:
    copy = copy_checkpoint(signed_builds / "build", tmp_path / "copy")
    rewrite(copy / name, (copy / name).read_bytes() + b"\n")
    assert run_model_signing(copy, signed_builds / "key.pub.pem").code != 0


def test_model_signing_refuses_a_file_that_was_added(signed_builds: Path, tmp_path: Path) -> None:
    copy = copy_checkpoint(signed_builds / "build", tmp_path / "copy")
    (copy / "more.json").write_text("{}")
    assert run_model_signing(copy, signed_builds / "key.pub.pem").code != 0


SEAL, LATER = "evidence/evidence.sig", "evidence/added/added.sig"


def test_model_signing_accepts_the_evidence_as_it_stands(signed_builds: Path) -> None:
    done = run_model_signing(signed_builds / "build", signed_builds / "key.pub.pem", signature=SEAL)
    assert done.code == 0, done.err + done.out


@pytest.mark.parametrize("name", ["report.html", "report.md", "bom.cdx.json", "claims.jsonl", "log.jsonl", "model.sig"])
def test_model_signing_sees_altered_evidence(name: str, signed_builds: Path, tmp_path: Path) -> None:
    copy = copy_checkpoint(signed_builds / "build", tmp_path / "copy")
    rewrite(copy / "evidence" / name, (copy / "evidence" / name).read_bytes() + b"\n")
    done = run_model_signing(copy, signed_builds / "key.pub.pem", signature=SEAL)
    assert done.code != 0
    assert name in done.err + done.out


def test_model_signing_sees_what_was_put_into_the_evidence(signed_builds: Path, tmp_path: Path) -> None:
    copy = copy_checkpoint(signed_builds / "build", tmp_path / "copy")
    (copy / "evidence/certificate.pdf").write_bytes(b"%PDF")
    assert run_model_signing(copy, signed_builds / "key.pub.pem", signature=SEAL).code != 0


@pytest.fixture
def recorded(signed_builds: Path, tmp_path: Path) -> Path:
    """A signed build with two results that came later."""
    copy = copy_checkpoint(signed_builds / "build", tmp_path / "copy")
    report = Report("serve-check", "x", "x serves", (Section("loading", "loading in vLLM", "as expected"),))
    signer = KeySigner.open(signed_builds / "key.pem")
    for name in ("serving", "quality"):
        add_result(copy, name, report, names={}, signer=signer, progress=Progress())
    return copy


@pytest.mark.parametrize("signature", ["evidence/model.sig", SEAL, LATER])
def test_model_signing_accepts_a_build_with_results_that_came_later(
    signature: str, recorded: Path, signed_builds: Path
) -> None:
    done = run_model_signing(recorded, signed_builds / "key.pub.pem", signature=signature)
    assert done.code == 0, done.err + done.out


def _with(change: Callable[[dict[str, Any]], object]) -> Callable[[bytes], bytes]:
    def altered(raw: bytes) -> bytes:
        content = json.loads(raw)
        change(content)
        return json.dumps(content, separators=(",", ":")).encode()

    return altered


AROUND: dict[str, Callable[[bytes], bytes]] = {
    "a word of one's own": _with(lambda bundle: bundle.update(certified="by Google")),
    "a key's other name": _with(lambda bundle: bundle["verificationMaterial"]["publicKey"].update(hint="0" * 64)),
    "a log that nobody keeps": _with(lambda bundle: bundle["verificationMaterial"].update(tlogEntries=[{}])),
    "a word beside the signature": _with(lambda bundle: bundle["dsseEnvelope"]["signatures"][0].update(by="Google")),
    "another order": _with(lambda bundle: bundle.update(mediaType=bundle.pop("mediaType"))),
    "blanks": lambda raw: raw + b"  ",
    "another spelling": lambda raw: json.dumps(json.loads(raw), indent=1).encode(),
}


@pytest.mark.parametrize("place", [SEAL, LATER])
@pytest.mark.parametrize("change", AROUND)
def test_nothing_is_written_around_a_signature(change: str, place: str, recorded: Path, signed_builds: Path) -> None:
    verifier = open_verifier(signed_builds / "key.pub.pem")
    assert verify(recorded, verifier=verifier, source=None, progress=Progress(shown=False)).holds
    rewrite(recorded / place, AROUND[change]((recorded / place).read_bytes()))
    report = verify(recorded, verifier=verifier, source=None, progress=Progress(shown=False))
    assert {finding.where for finding in report.findings() if finding.rule == "evidence/signature"} == {place}


@pytest.mark.parametrize("name", ["serving.json", "serving.md", "quality.json", "added.jsonl"])
def test_model_signing_sees_an_altered_result_that_came_later(name: str, recorded: Path, signed_builds: Path) -> None:
    rewrite(recorded / "evidence/added" / name, (recorded / "evidence/added" / name).read_bytes() + b"\n")
    assert run_model_signing(recorded, signed_builds / "key.pub.pem", signature=LATER).code != 0


@pytest.mark.campaign
def test_model_signing_from_its_own_installation_accepts_a_signed_build(signed_builds: Path, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    python = tmp_path / "venv/bin/python"
    install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "model-signing==1.1.1", "pyOpenSSL"]
    subprocess.run([python, *install], check=True)
    build = signed_builds / "build"
    command = [python.parent / "model_signing", "verify", "key", build, "--signature", build / "evidence/model.sig"]
    done = subprocess.run(
        [*map(str, command), "--public_key", str(signed_builds / "key.pub.pem")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_root_digest_is_the_one_that_model_signing_signs(signed_builds: Path) -> None:
    bundle = read_envelope((signed_builds / "build/evidence/model.sig").read_bytes(), where="a")
    subject = json.loads(bundle.payload)["subject"][0]
    bom = json.loads((signed_builds / "build/evidence/bom.cdx.json").read_bytes())
    assert subject["digest"]["sha256"] == bom["metadata"]["component"]["version"]


@given(payload=st.binary(), keyid=st.text(alphabet="0123456789abcdef"), signature=st.binary(min_size=1))
def test_envelope_is_read_back_as_it_was_written(payload: bytes, keyid: str, signature: bytes) -> None:
    envelope = Envelope(payload, keyid, signature)
    assert read_envelope(write_envelope(envelope), where="a") == envelope


LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
RAGGED = st.binary(min_size=1).filter(lambda raw: len(raw) % 3 != 0)
"""Bytes whose last letter in base64 has bits to spare, so that other letters decode alike."""


def other_spellings(raw: bytes) -> list[str]:
    """What decodes to the same bytes and is not how they are written."""
    text = base64.b64encode(raw).decode()
    place = len(text.rstrip("=")) - 1
    changed = [text[:place] + letter + text[place + 1 :] for letter in LETTERS if letter != text[place]]
    return [other for other in changed if base64.b64decode(other, validate=True) == raw]


@pytest.mark.parametrize("part", ["payload", "sig"])
@given(raw=RAGGED)
def test_no_other_spelling_of_the_same_bytes_is_read(part: str, raw: bytes) -> None:
    spellings = other_spellings(raw)
    assert len(spellings) in (3, 15)
    for text in spellings:
        said = {"payload": "AAAA", "sig": "AAAA", part: text}
        envelope = {
            "payload": said["payload"],
            "payloadType": "application/vnd.in-toto+json",
            "signatures": [{"keyid": "", "sig": said["sig"]}],
        }
        with pytest.raises(StructureError):
            read_envelope(json.dumps(envelope).encode(), where="a")


def model_statement(**serialization: object) -> Envelope:
    """What a Model Signing bundle holds over one file, with some of how it was taken changed."""
    resource = {"name": "config.json", "algorithm": "sha256", "digest": "0" * 64}
    taken = {"method": "files", "hash_type": "sha256", "allow_symlinks": False, "ignore_paths": ["evidence", ".git"]}
    statement = {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": "x", "digest": {"sha256": "1" * 64}}],
        "predicateType": "https://model_signing/signature/v1.0",
        "predicate": {"serialization": {**taken, **serialization}, "resources": [resource]},
    }
    return Envelope(json.dumps(statement).encode(), "", b"")


def test_model_statement_over_all_files_is_read() -> None:
    assert read_model_statement(model_statement(), where="evidence/model.sig").files == {"config.json": "0" * 64}


LEFT_OUT = [
    *("config.json", "model.safetensors", ".", "", "./config.json", "evidence/../config.json", "/", "*", "README.md"),
    *(".cache", ".cache/huggingface/../..", "Evidence", "evidence/", "tokenizer.json", ".gitattributes/..", "added"),
]


@pytest.mark.parametrize("path", LEFT_OUT)
def test_model_statement_that_leaves_out_what_it_has_to_be_over_is_refused(path: str) -> None:
    envelope = model_statement(ignore_paths=["evidence", path])
    with pytest.raises(StructureError, match="leaves out files"):
        read_model_statement(envelope, where="evidence/model.sig")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hash_type", "blake3"),
        ("allow_symlinks", True),
        ("method", "shards"),
        ("shard_size", 1),
        ("ignore_paths", None),
    ],
)
def test_model_statement_that_was_taken_otherwise_is_refused(key: str, value: object) -> None:
    with pytest.raises(StructureError, match="is no Model Signing"):
        read_model_statement(model_statement(**{key: value}), where="evidence/model.sig")


def test_signed_build_whose_signature_leaves_out_a_file_is_refused(signed_builds: Path, tmp_path: Path) -> None:
    """Rightly signed, over every file, with a list that lets other tools pass one over."""
    copy = copy_checkpoint(signed_builds / "build", tmp_path / "copy")
    files = hash_files(copy, list_all(copy).signed, progress=Progress())
    signer = KeySigner.open(signed_builds / "key.pem")
    ignored = (*IGNORED, "chat_template.jinja")
    rewrite(copy / "evidence/model.sig", signer.sign_model(files, name="gemma-4-mini-fp8-dynamic", ignored=ignored))
    report = verify(copy, verifier=open_verifier(signed_builds / "key.pub.pem"), progress=Progress())
    told = {finding.where: finding.message for finding in report.findings() if finding.rule == "evidence/unreadable"}
    assert "leaves out files" in told["evidence/model.sig"]


TYPE = b'"payloadType":"application/vnd.in-toto+json"'
BAD_ENVELOPES = {
    "no object": b"[]",
    "no payload": b"{" + TYPE + b',"signatures":[{"sig":"AA=="}]}',
    "another type": b'{"payload":"","payloadType":"text/plain","signatures":[{"sig":"AA=="}]}',
    "two signatures": b'{"payload":"",' + TYPE + b',"signatures":[{"sig":""},{"sig":""}]}',
    "a key that is no text": b'{"payload":"",' + TYPE + b',"signatures":[{"sig":"","keyid":1}]}',
    "a signature that is no base64": b'{"payload":"",' + TYPE + b',"signatures":[{"sig":"?"}]}',
    "a bundle of nothing": b'{"dsseEnvelope":1}',
    "a key twice": b'{"payload":"","payload":"",' + TYPE + b',"signatures":[]}',
}


@pytest.mark.parametrize("raw", BAD_ENVELOPES.values(), ids=BAD_ENVELOPES)
def test_what_is_no_envelope_is_refused(raw: bytes) -> None:
    with pytest.raises(StructureError):
        read_envelope(raw, where="a")


def refused_key(path: Path) -> str:
    with pytest.raises(EvidenceError) as refusal:
        open_signer(str(path))
    return str(refusal.value)


def test_key_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert "nowhere.pem" in refused_key(tmp_path / "nowhere.pem")


def test_what_is_no_key_is_refused_without_showing_it(tmp_path: Path) -> None:
    (tmp_path / "key.pem").write_text("-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n")
    sentence = refused_key(tmp_path / "key.pem")
    assert "no private key" in sentence
    assert "c2VjcmV0" not in sentence


def write_key(path: Path, key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey, password: bytes = b"") -> None:
    protection = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    path.write_bytes(key.private_bytes(pem, pkcs8, protection))


@pytest.mark.parametrize("other", [ec.generate_private_key(ec.SECP256K1()), ed25519.Ed25519PrivateKey.generate()])
def test_key_on_another_curve_is_refused(
    other: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey, tmp_path: Path
) -> None:
    write_key(tmp_path / "key.pem", other)
    assert "P-256, P-384 or P-521" in refused_key(tmp_path / "key.pem")


def test_encrypted_key_is_refused(tmp_path: Path) -> None:
    write_key(tmp_path / "key.pem", ec.generate_private_key(ec.SECP256R1()), password=b"secret")
    assert "encrypted" in refused_key(tmp_path / "key.pem")


def test_signer_does_not_show_its_key(private: Path) -> None:
    signer = KeySigner.open(private)
    assert str(signer.key.private_numbers().private_value) not in repr(signer)


def test_private_half_is_no_public_key(private: Path) -> None:
    with pytest.raises(EvidenceError, match="no public key"):
        open_verifier(private)


def test_key_pair_is_made_and_the_private_half_is_its_owner_s_alone(tmp_path: Path) -> None:
    outcome = call_main(key.main, [tmp_path / "mine.pem"])
    assert outcome.code == 0
    assert stat.S_IMODE((tmp_path / "mine.pem").stat().st_mode) == 0o600
    assert "PUBLIC KEY" in (tmp_path / "mine.pub.pem").read_text()


def test_key_is_not_replaced(private: Path) -> None:
    before = private.read_bytes()
    outcome = call_main(key.main, [private])
    assert outcome.code == 2
    assert private.read_bytes() == before


def test_key_signature_is_no_sigstore_signature(private: Path) -> None:
    envelope = read_envelope(KeySigner.open(private).sign_statement(PAYLOAD), where="a")
    with pytest.raises(StructureError, match="not through Sigstore"):
        SigstoreVerifier("me@example.org", "https://accounts.example.org").check(envelope)


NOWHERE = "http://127.0.0.1:9"


@pytest.fixture
def no_network(tmp_path: Path) -> dict[str, str]:
    """The environment of a process that reaches nobody and has nothing of Sigstore's kept."""
    return {"HTTPS_PROXY": NOWHERE, "https_proxy": NOWHERE, "HOME": str(tmp_path)}


def test_sigstore_without_a_network_is_one_honest_sentence(no_network: dict[str, str]) -> None:
    program = "from weighbridge.evidence.signing import open_signer\nopen_signer('sigstore')"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**no_network, "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert "EvidenceError" in last
    assert "Sigstore cannot be used here" in last


def test_identity_that_cannot_be_checked_without_a_network_is_no_finding(
    signed_builds: Path, run_validate: Command, no_network: dict[str, str]
) -> None:
    whoever = ("--identity", "me@example.org", "--issuer", "https://accounts.example.org")
    outcome = run_validate(signed_builds / "build", "--evidence", *whoever, env=no_network)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith("error: Sigstore cannot be used here")
