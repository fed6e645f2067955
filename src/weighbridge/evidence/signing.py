"""Signatures: DSSE envelopes around statements, and the Model Signing bundle around the checkpoint's own digests.

A key signs as ``model_signing sign key`` does (ECDSA with SHA-256, 384 or 512 for P-256, 384 or 521), so that
``model_signing verify key`` accepts the bundle as it stands. The envelope: https://github.com/secure-systems-lab/dsse.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Protocol

from weighbridge.checkpoint.model import EVIDENCE
from weighbridge.errors import Argument, Clause, EvidenceError, StructureError, first_line
from weighbridge.evidence.subject import HUB_CLIENT, UNSIGNED
from weighbridge.text.strict_json import parse_object

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.hashes import HashAlgorithm

PAYLOAD_TYPE = "application/vnd.in-toto+json"
MODEL_SIGNATURE = "https://model_signing/signature/v1.0"
SIGSTORE = "sigstore"
KEYS = ("cryptography",)
"""What a key's signatures are checked with; a gate has no more."""
SIGNING = (*KEYS, "OpenSSL", "model_signing", "sigstore")
"""What signs, and what checks whatever Sigstore vouches for."""
CURVES = ("secp256r1", "secp384r1", "secp521r1")
IGNORED = (EVIDENCE, *UNSIGNED, HUB_CLIENT)
"""What the checkpoint's signature is not over: the evidence, which has one of its own, and what git and the hub's
client keep beside a download."""

MODEL_SIGNATURE_FILE, EVIDENCE_SIGNATURE_FILE, ADDED_SIGNATURE_FILE = "model.sig", "evidence.sig", "added.sig"
"""The signatures over the checkpoint's own files, over evidence/ as the build leaves it, and over what comes later."""
ADDED_FOLDER = "added"
"""The folder of evidence/ for what comes after the build, which has a signature of its own, too."""

EVIDENCE_IGNORED = (EVIDENCE_SIGNATURE_FILE, ADDED_FOLDER, *UNSIGNED)
"""What the signature over evidence/ is not over: itself, and what comes after it."""

ADDED_IGNORED = (ADDED_SIGNATURE_FILE, *UNSIGNED)


@dataclass(frozen=True)
class Envelope:
    """A signed payload.

    Attributes:
        payload: the statement's bytes.
        keyid: what the envelope says of the key; not signed.
        signature: the signature's bytes.
        bundle: the Sigstore bundle that the envelope came in; None for a plain one.
    """

    payload: bytes
    keyid: str
    signature: bytes
    bundle: bytes | None = None


class Signer(Protocol):
    """Whoever signs."""

    def sign_statement(self, payload: bytes) -> bytes:
        """One line of JSON: an envelope, or a bundle around one."""

    def sign_model(self, files: Mapping[str, str], *, name: str, ignored: Collection[str] = IGNORED) -> bytes:
        """The Model Signing bundle over the files of a folder: name -> SHA-256 (hex).

        Args:
            ignored: paths in that folder that it is not over.
        """

    def sign_document(self, content: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """A JSON Signature (JSF) over a document without one; None where whoever signs has no key that lasts."""


class Verifier(Protocol):
    """Who is expected to have signed."""

    def check(self, envelope: Envelope) -> None:
        """Nothing, if the envelope is signed so.

        Raises:
            StructureError: it is not.
        """


def pae(payload: bytes) -> bytes:
    """What is signed of a payload: DSSE's pre-authentication encoding."""
    return b"DSSEv1 %d %s %d %s" % (len(PAYLOAD_TYPE), PAYLOAD_TYPE.encode(), len(payload), payload)


def read_envelope(raw: bytes, *, where: str) -> Envelope:
    """Read an envelope, or a bundle around one, with exactly one signature.

    Raises:
        StructureError: neither.
    """
    content = parse_object(raw, where=where)
    bundled = "dsseEnvelope" in content
    envelope = content["dsseEnvelope"] if bundled else content
    try:
        (signature,) = envelope["signatures"]
        if envelope["payloadType"] != PAYLOAD_TYPE:
            raise StructureError("its payload is no in-toto statement", where=where)
        keyid = signature.get("keyid", "")
        if not isinstance(keyid, str):
            raise TypeError
        return Envelope(
            payload=_decoded(envelope["payload"]),
            keyid=keyid,
            signature=_decoded(signature["sig"]),
            bundle=raw if bundled else None,
        )
    except (KeyError, TypeError, AttributeError, ValueError):
        raise StructureError("is no envelope with one signature", where=where) from None


def _decoded(text: str) -> bytes:
    """Base64 in its one proper spelling: another spelling of the same bytes is an altered file."""
    content = base64.b64decode(text, validate=True)
    if base64.b64encode(content).decode() != text:
        raise binascii.Error
    return content


def write_envelope(envelope: Envelope) -> bytes:
    """A plain envelope as one line of JSON, without its end."""
    content = {
        "payload": base64.b64encode(envelope.payload).decode(),
        "payloadType": PAYLOAD_TYPE,
        "signatures": [{"keyid": envelope.keyid, "sig": base64.b64encode(envelope.signature).decode()}],
    }
    return json.dumps(content, separators=(",", ":")).encode()


def write_bundle(envelope: Envelope, hint: str) -> bytes:
    """The bundle that Model Signing 1.1.1 writes around an envelope that a key signed.

    Args:
        hint: what the key is called, as `key_id`.
    """
    content = {
        "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
        "verificationMaterial": {"publicKey": {"hint": hint}, "tlogEntries": []},
        "dsseEnvelope": {
            "payload": base64.b64encode(envelope.payload).decode(),
            "payloadType": PAYLOAD_TYPE,
            "signatures": [{"sig": base64.b64encode(envelope.signature).decode(), "keyid": envelope.keyid}],
        },
    }
    return json.dumps(content, separators=(",", ":")).encode()


def open_signer(named: str) -> Signer:
    """Who signs by that name: a private key's file, or ``sigstore``.

    Raises:
        EvidenceError: the libraries are not installed, no such key, one that is encrypted or of another kind, or
            Sigstore cannot be reached.
    """
    _check_installed()
    return SigstoreSigner() if named == SIGSTORE else KeySigner.open(Path(named))


def open_verifier(public_key: Path) -> Verifier:
    """Whoever holds the private half of a public key.

    Raises:
        EvidenceError: the libraries are not installed, or it is no public key on a curve that is signed with.
    """
    _check_installed(KEYS)
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(_read_key(public_key))
    except (ValueError, UnsupportedAlgorithm):
        raise EvidenceError(
            "is no public key in PEM",
            where=str(public_key),
            remedy="name the public half of the signer's key, which 'make key' calls NAME.pub.pem; it is had from the "
            "signer",
        ) from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name not in CURVES:
        raise EvidenceError("is no key on the curve P-256, P-384 or P-521", where=str(public_key))
    return KeyVerifier(key)


@dataclass(frozen=True, repr=False)
class KeySigner:
    """Signs with a private key; nothing of it is ever shown."""

    path: Path
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def open(cls, path: Path) -> KeySigner:
        """Read a private key in PEM that is not encrypted.

        Raises:
            EvidenceError: it is not that.
        """
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        try:
            key = load_pem_private_key(_read_key(path), password=None)
        except TypeError:
            raise EvidenceError(
                "the private key is encrypted", where=str(path), remedy="decrypt it for the build"
            ) from None
        except (ValueError, UnsupportedAlgorithm):
            what = "is no private key in PEM"
            remedy = "name the private half of a pair, NAME.pem where 'make key' made it"
            raise EvidenceError(what, where=str(path), remedy=remedy) from None
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name not in CURVES:
            raise EvidenceError("is no key on the curve P-256, P-384 or P-521", where=str(path))
        return cls(path, key)

    def sign_statement(self, payload: bytes) -> bytes:
        from cryptography.hazmat.primitives.asymmetric import ec

        public = self.key.public_key()
        signature = self.key.sign(pae(payload), ec.ECDSA(_hash_of(public)))
        return write_envelope(Envelope(payload, key_id(public), signature))

    def sign_model(self, files: Mapping[str, str], *, name: str, ignored: Collection[str] = IGNORED) -> bytes:
        from model_signing import signing

        config = signing.Config().use_elliptic_key_signer(private_key=self.path)
        return _sign_model(config, files, name=name, ignored=ignored)

    def sign_document(self, content: Mapping[str, Any]) -> Mapping[str, Any] | None:
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

        public = self.key.public_key()
        unsigned = {"algorithm": _ALGORITHMS[public.curve.name][0], "publicKey": _as_jwk(public)}
        signed = self.key.sign(_canonical({**content, "signature": unsigned}), ec.ECDSA(_hash_of(public)))
        value = b"".join(number.to_bytes(_width(public), "big") for number in decode_dss_signature(signed))
        return {**unsigned, "value": _base64url(value)}


class SigstoreSigner:
    """Signs with a short-lived certificate for an identity that Sigstore has seen proven.

    Raises:
        EvidenceError: Sigstore cannot be reached, or gives no certificate.
    """

    def __init__(self) -> None:
        from sigstore.models import ClientTrustConfig
        from sigstore.sign import SigningContext

        with _explained():
            self._trust = ClientTrustConfig.production()
            self._context = SigningContext.from_trust_config(self._trust)
        self._known_token: str | None = None

    def _token(self) -> str:
        """An identity token: of the machine that this runs on (CI), or else of the person who logs in."""
        from sigstore.oidc import Issuer, detect_credential

        if self._known_token is None:
            found = detect_credential()
            self._known_token = found or str(Issuer(self._trust.signing_config.get_oidc_url()).identity_token())
        return self._known_token

    def sign_statement(self, payload: bytes) -> bytes:
        from sigstore.dsse import Statement
        from sigstore.oidc import IdentityToken

        with _explained(), self._context.signer(IdentityToken(self._token())) as signer:
            bundle: str = signer.sign_dsse(Statement(payload)).to_json()
        return json.dumps(json.loads(bundle), separators=(",", ":")).encode()

    def sign_model(self, files: Mapping[str, str], *, name: str, ignored: Collection[str] = IGNORED) -> bytes:
        from model_signing import signing

        with _explained():
            config = signing.Config().use_sigstore_signer(identity_token=self._token())
            return _sign_model(config, files, name=name, ignored=ignored)

    def sign_document(self, content: Mapping[str, Any]) -> Mapping[str, Any] | None:  # noqa: ARG002
        return None


@dataclass(frozen=True)
class KeyVerifier:
    """Expects signatures of one key."""

    key: ec.EllipticCurvePublicKey

    def check(self, envelope: Envelope) -> None:
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric import ec

        if envelope.keyid not in ("", key_id(self.key)):
            raise StructureError(
                f"is signed with another key than the one given, with key id {envelope.keyid[:16]}…", where=""
            )
        try:
            self.key.verify(envelope.signature, pae(envelope.payload), ec.ECDSA(_hash_of(self.key)))
        except InvalidSignature:
            raise StructureError("its signature is not that of this key over these bytes", where="") from None
        # A signature is over the payload alone: what a stranger writes around it has to be what the signer wrote.
        if envelope.bundle is not None and envelope.bundle != write_bundle(envelope, key_id(self.key)):
            raise StructureError("holds more than a signature of this key, or another key's name", where="")


@dataclass(frozen=True)
class SigstoreVerifier:
    """Expects signatures of an identity that an issuer has seen proven."""

    identity: str
    issuer: str

    def check(self, envelope: Envelope) -> None:
        _check_installed()
        from sigstore.errors import VerificationError
        from sigstore.models import Bundle
        from sigstore.verify import Verifier as Sigstore
        from sigstore.verify.policy import Identity

        if envelope.bundle is None:
            raise StructureError("is signed with a key, not through Sigstore", where="")
        with _explained():
            verifier = Sigstore.production()
        try:
            verifier.verify_dsse(
                Bundle.from_json(envelope.bundle), Identity(identity=self.identity, issuer=self.issuer)
            )
        except (VerificationError, ValueError) as error:
            raise StructureError(f"its signature is not of {self.identity} ({first_line(error)})", where="") from None


def key_id(public: ec.EllipticCurvePublicKey) -> str:
    """How envelopes name a key: SHA-256 (hex) of its PEM, as Model Signing's bundles do."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return hashlib.sha256(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


_ALGORITHMS = {"secp256r1": ("ES256", "P-256"), "secp384r1": ("ES384", "P-384"), "secp521r1": ("ES512", "P-521")}
"""By curve: what JSON Web Algorithms (RFC 7518) call signatures on it, and the curve."""


def is_signed_by(keyid: str, document: Mapping[str, Any]) -> bool:
    """Whether a document's JSON Signature (JSF 0.82) is over all of it, and of the key of that id.

    Args:
        document: with its ``signature``.
    """
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

    signature = document.get("signature")
    if not isinstance(signature, dict):
        return False
    try:
        key, value = _of_jwk(signature["publicKey"]), _of_base64url(signature["value"])
        unsigned = {"algorithm": _ALGORITHMS[key.curve.name][0], "publicKey": _as_jwk(key)}
        width = _width(key)
        if key_id(key) != keyid or signature != {**unsigned, "value": signature["value"]} or len(value) != 2 * width:
            return False
        numbers = (int.from_bytes(half, "big") for half in (value[:width], value[width:]))
        content = _canonical({**document, "signature": unsigned})
        key.verify(encode_dss_signature(*numbers), content, ec.ECDSA(_hash_of(key)))
    except (KeyError, TypeError, ValueError, InvalidSignature):
        return False
    return True


def _canonical(content: Mapping[str, Any]) -> bytes:
    """JSON as RFC 8785 writes it, for documents without fractions whose keys are ASCII, as those here are."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _as_jwk(key: ec.EllipticCurvePublicKey) -> dict[str, str]:
    numbers, width = key.public_numbers(), _width(key)
    x, y = (_base64url(number.to_bytes(width, "big")) for number in (numbers.x, numbers.y))
    return {"kty": "EC", "crv": _ALGORITHMS[key.curve.name][1], "x": x, "y": y}


def _of_jwk(content: Mapping[str, str]) -> ec.EllipticCurvePublicKey:
    from cryptography.hazmat.primitives.asymmetric import ec

    x, y = (int.from_bytes(_of_base64url(content[axis]), "big") for axis in ("x", "y"))
    return ec.EllipticCurvePublicNumbers(x, y, _curve(content["crv"])).public_key()


def _curve(name: str) -> ec.EllipticCurve:
    """A curve by its usual name.

    Raises:
        KeyError: keys here are on no such curve.
    """
    from cryptography.hazmat.primitives.asymmetric import ec

    return {"P-256": ec.SECP256R1(), "P-384": ec.SECP384R1(), "P-521": ec.SECP521R1()}[name]


def _width(key: ec.EllipticCurvePublicKey) -> int:
    """Bytes of a coordinate, and of half a signature."""
    return (key.curve.key_size + 7) // 8


def _base64url(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def _of_base64url(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def make_key_pair(private: Path, public: Path, *, curve: str) -> None:
    """Write a new key pair in PEM; the private half can be read by its owner alone.

    Args:
        curve: ``P-256``, ``P-384`` or ``P-521``.

    Raises:
        EvidenceError: one of the files is there already.
        OSError: one cannot be written.
    """
    _check_installed()
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    for path in (private, public):
        if path.exists():
            raise EvidenceError("is there already", where=str(path), remedy="a key is not replaced; name another file")
    key = ec.generate_private_key(_curve(curve))
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    # Made by this call alone: what somebody put there meanwhile would keep its owner and mode.
    with os.fdopen(os.open(private, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "wb") as file:
        file.write(secret)
    public.write_bytes(
        key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )


@dataclass(frozen=True)
class SignedFiles:
    """What a Model Signing bundle is about.

    Attributes:
        name: what it calls the folder.
        root: its root digest (hex).
        files: name -> SHA-256 (hex).
    """

    name: str
    root: str
    files: Mapping[str, str]


def read_model_statement(envelope: Envelope, *, ignored: Collection[str] = IGNORED, where: str) -> SignedFiles:
    """What a Model Signing bundle is about.

    Args:
        ignored: paths that it may say that it is not over, beside itself.

    Raises:
        StructureError: it is no statement of Model Signing v1.0 over files by SHA-256, or says more than these do.
    """
    statement = parse_object(envelope.payload, where=where)
    try:
        (subject,) = statement["subject"]
        serialization, resources = statement["predicate"]["serialization"], statement["predicate"]["resources"]
        if statement["predicateType"] != MODEL_SIGNATURE or serialization["method"] != "files":
            raise StructureError("is no Model Signing v1.0 statement over files", where=where)
        if not set(serialization.get("ignore_paths", ())) <= {*ignored, where}:
            raise StructureError("leaves out files that a signature has to be over", where=where)
        files = {resource["name"]: resource["digest"] for resource in resources}
        root = subject["digest"]["sha256"]
        plain = (
            statement.keys() == {"_type", "subject", "predicateType", "predicate"}
            and subject.keys() == {"name", "digest"}
            and subject["digest"].keys() == {"sha256"}
            and statement["predicate"].keys() == {"serialization", "resources"}
            and serialization.keys() <= {"method", "hash_type", "allow_symlinks", "ignore_paths"}
            and (serialization["hash_type"], serialization["allow_symlinks"]) == ("sha256", False)
            and all(resource == _resource(*pair) for resource, pair in zip(resources, files.items(), strict=True))
        )
        if not plain or not all(_is_sha256(digest) for digest in (root, *files.values())):
            raise ValueError
        if not all(map(str.isprintable, (subject["name"], *files))):
            raise ValueError
    except (KeyError, TypeError, ValueError, AttributeError):
        raise StructureError("is no Model Signing v1.0 statement", where=where) from None
    return SignedFiles(subject["name"], root, files)


def _resource(name: str, digest: str) -> dict[str, str]:
    """A file as Model Signing v1.0 has it."""
    return {"name": name, "algorithm": "sha256", "digest": digest}


def _is_sha256(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def _hash_of(key: ec.EllipticCurvePublicKey) -> HashAlgorithm:
    """The hash that goes with a curve. Source: ``get_ec_key_hash`` in model_signing/_signing/sign_ec_key.py."""
    from cryptography.hazmat.primitives import hashes

    chosen: dict[int, HashAlgorithm] = {256: hashes.SHA256(), 384: hashes.SHA384(), 521: hashes.SHA512()}
    return chosen[key.curve.key_size]


def _sign_model(config: Any, files: Mapping[str, str], *, name: str, ignored: Collection[str]) -> bytes:
    """Sign digests that are known already: Model Signing would read every shard again to take them.

    The class of a digest stands in a module that it does not document (``_hashing``), as read in 1.1.1.
    """
    from model_signing import manifest
    from model_signing._hashing.hashing import Digest

    arguments = {"method": "files", "hash_type": "sha256", "allow_symlinks": False, "ignore_paths": list(ignored)}
    serialization = manifest.SerializationType.from_args(arguments)
    items = [serialization.new_item(file, Digest("sha256", bytes.fromhex(digest))) for file, digest in files.items()]
    known = manifest.Manifest(name, items, serialization)

    with tempfile.TemporaryDirectory() as scratch:  # it signs into a file, and evidence/ has one of that name
        path = Path(scratch) / MODEL_SIGNATURE_FILE
        config.set_hashing_config(SimpleNamespace(hash=lambda _: known)).sign(scratch, path)
        return path.read_bytes()


def _read_key(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(1 << 16)
    except OSError as error:
        what, remedy = f"the key cannot be read ({error.strerror})", "name a file, or make a pair with 'make key'"
        raise EvidenceError(what, where=str(path), remedy=remedy) from error


def _check_installed(packages: Collection[str] = SIGNING) -> None:
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        what = f"signatures need what is not installed ({', '.join(missing)})"
        raise EvidenceError(what, where=Argument("sign"), remedy="pip install -e '.[sign]'")


@contextmanager
def _explained() -> Iterator[None]:
    """One sentence for whatever the many parts of Sigstore's client raise where there is no network or no identity."""
    try:
        yield
    except Exception as error:
        what = f"Sigstore cannot be used here ({type(error).__name__}: {first_line(error)[:160]})"
        use = "check the network, or use a key, to sign ("
        remedy = Clause(use, Argument("sign"), ") and to check (", Argument("signed_by"), ")")
        raise EvidenceError(what, remedy=remedy) from error
