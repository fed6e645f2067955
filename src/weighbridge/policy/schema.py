"""What an organisation asks of a checkpoint before it is served: a strict YAML file of ten keys."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from weighbridge.errors import PolicyError
from weighbridge.evidence.statements import Relation
from weighbridge.recipe.names import HUB_ID, REVISION
from weighbridge.text.strict_yaml import Document, Strict, parse_yaml, validate

MOST_BYTES = 1 << 20
"""Of a policy's file."""

Named = Annotated[str, Field(min_length=1, max_length=200)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class PolicySigner(Strict):
    """Who may have signed: whoever holds a key, or whoever proved to be an identity when Sigstore gave a certificate.

    Attributes:
        key: the public half of a key in PEM; a path relative to the policy's file.
        identity: as the certificate has it: an address, or the URI of a workflow.
        issuer: URL of who vouches for that identity.
    """

    key: Named | None = None
    identity: Named | None = None
    issuer: Named | None = None

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if (self.key is None) == (self.identity is None) or (self.identity is None) != (self.issuer is None):
            raise ValueError("names either a key, or an identity with its issuer")
        return self


class PolicyBase(Strict):
    """What the checkpoint may be made of.

    Attributes:
        proven: whether every file of the source must have the SHA-256 that the lock of the published base has.
        of: bases by their hub ids, each with its commit or without; empty for any.
    """

    proven: bool = True
    of: list[Named] = []

    @model_validator(mode="after")
    def _names_repositories(self) -> Self:
        for name in self.of:
            repository, at, revision = name.partition("@")
            if not re.fullmatch(HUB_ID, repository) or (at and not re.fullmatch(REVISION, revision)):
                raise ValueError(f"{name!r} is neither org/name nor org/name@ with a commit of 40 hex digits")
        return self


class PolicyRecipe(Strict):
    """A recipe by the digest of its bytes.

    Attributes:
        name: what it is called.
        sha256: of the copy in the evidence.
    """

    name: Named
    sha256: Sha256


class PolicyQuality(Strict):
    """How far answers may lie from the base's, as the quality report in the evidence measured them.

    Attributes:
        max_kl: mean KL divergence, base from build, in nats a token.
        min_agreement: share of places with the same most probable token, from 0 to 1.
        max_perplexity_ratio: the build's perplexity by the base's.
    """

    max_kl: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    min_agreement: float | None = Field(default=None, gt=0, le=1)
    max_perplexity_ratio: float | None = Field(default=None, gt=0, allow_inf_nan=False)

    @model_validator(mode="after")
    def _limits_something(self) -> Self:
        if all(value is None for value in vars(self).values()):
            raise ValueError("states no limit: max_kl, min_agreement or max_perplexity_ratio")
        return self


class Policy(Strict):
    """What must hold of a checkpoint; a key that is not there asks for nothing.

    Attributes:
        signed_by: who may have signed. Protects from evidence that was made up along with the files.
        base: what it may be made of. Protects from another model in the place of the one that was chosen.
        audit: the least verdict of the audit in the evidence. Protects from weights that do not come of the base.
        recipes: recipes that may have made it: of the catalogue by name, others by name and digest. Protects from a
            quantization that nobody here has looked at.
        forbidden: rules, ``*`` for any characters, of which no finding may stand in the evidence's reports or come of
            verifying them, whatever its severity. Protects from what a builder has explained away.
        licences: SPDX identifiers that the base may have. Protects from a licence that does not allow the use.
        max_age_days: how long ago the build may have ended. Protects from an old build offered anew.
        serving_check: whether a recorded serving check must be there. Protects from a checkpoint that loads and
            answers wrongly.
        quality: limits of the quality report in the evidence. Protects from a build whose answers are too far off.
        carried: patterns of files; those that match must be the base's by the digests of its lock. Protects from
            another chat template or tokenizer.
    """

    keys_listed_in: ClassVar[str] = "docs/how-to/gate.md lists the keys of a policy"

    signed_by: Annotated[list[PolicySigner], Field(min_length=1)] | None = None
    base: PolicyBase | None = None
    audit: Relation | None = None
    recipes: Annotated[list[Named | PolicyRecipe], Field(min_length=1)] | None = None
    forbidden: Annotated[list[Named], Field(min_length=1)] | None = None
    licences: Annotated[list[Named], Field(min_length=1)] | None = None
    max_age_days: Annotated[int, Field(ge=1, le=36_500)] | None = None
    serving_check: Literal[True] | None = None
    quality: PolicyQuality | None = None
    carried: Annotated[list[Named], Field(min_length=1)] | None = None


@dataclass(frozen=True)
class LoadedPolicy:
    """A policy and the file that it was read from.

    Attributes:
        path: of the file; keys are found relative to it.
    """

    policy: Policy
    document: Document
    path: Path
    raw: bytes

    @property
    def sha256(self) -> str:
        """Digest (hex) of the file."""
        return hashlib.sha256(self.raw).hexdigest()

    def place(self, key: str) -> str:
        """File and line of a key."""
        return self.document.place((key,))


def open_policy(path: Path) -> LoadedPolicy:
    """Read a policy.

    Raises:
        PolicyError: it cannot be read, or is none; with file and line.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MOST_BYTES + 1)
    except OSError as error:
        what = f"the policy cannot be read ({error.strerror})"
        raise PolicyError(what, where=str(path), remedy="name a file; docs/how-to/gate.md begins with one") from error
    if len(raw) > MOST_BYTES:
        raise PolicyError(f"is larger than {MOST_BYTES:,} bytes, which no policy is", where=str(path))
    document = parse_yaml(raw, where=path.name, error=PolicyError)
    return LoadedPolicy(validate(document, Policy, error=PolicyError), document, path, raw)
