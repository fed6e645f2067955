"""What a build ran on: every installed distribution, this repository's commit, the kind of machine."""

from __future__ import annotations

import csv
import hashlib
import platform
import re
import subprocess
from dataclasses import dataclass
from importlib.metadata import Distribution, distributions

from weighbridge.machine.installation import ROOT

CONSTRAINTS = ROOT / "constraints.txt"
OWN_NAME = "weighbridge"
UNKNOWN = "unknown"

_NOT_OF_THE_WHEEL = re.compile(
    r"^(?:/|\.\.|[^/]*\.data/)"  # scripts and what else goes elsewhere
    r"|(?:^|/)__pycache__/"
    r"|\.dist-info/(?:INSTALLER|REQUESTED|RECORD|RECORD\.jws|RECORD\.p7s|direct_url\.json),"
)
_PINNED = re.compile(r"([A-Za-z0-9][\w.-]*)==([^\s#]+)\s+# sha256:([0-9a-f]{64})")


@dataclass(frozen=True)
class Installed:
    """A distribution as it is installed.

    Attributes:
        name: normalized, as a package URL has it.
        wheel: SHA-256 (hex) of the wheel that the constraints file pins for this version, or ``unknown``.
        content: SHA-256 (hex) over what the wheel installed, whatever directory it lies in; see `content_digest`.
    """

    name: str
    version: str
    wheel: str
    content: str

    @property
    def purl(self) -> str:
        """https://github.com/package-url/purl-spec: ``pkg:pypi/name@version``."""
        return f"pkg:pypi/{self.name}@{self.version.replace('+', '%2B')}"


@dataclass(frozen=True)
class Repository:
    """This repository's commit; `clean` says whether every tracked file was as committed and none was added."""

    commit: str
    clean: bool


def installed() -> tuple[Installed, ...]:
    """Every distribution on the path but this one (which is a commit), sorted by name."""
    pinned = pinned_wheels()
    found: dict[str, Installed] = {}
    for distribution in distributions():
        name, version = _called(distribution)
        if name != OWN_NAME and name not in found:  # the first on the path is the one that is imported
            found[name] = Installed(name, version, pinned.get((name, version), UNKNOWN), content_digest(distribution))
    return tuple(found[name] for name in sorted(found))


def _called(distribution: Distribution) -> tuple[str, str]:
    """Name and version, from the head of METADATA: ``Distribution.name`` would parse its README, too, each time."""
    head = (distribution.read_text("METADATA") or "").partition("\n\n")[0]
    name, version = (re.search(rf"^{field}: *(\S+)$", head, re.MULTILINE) for field in ("Name", "Version"))
    return normalized(name[1] if name else distribution.name), version[1] if version else distribution.version


def normalized(name: str) -> str:
    """A distribution's name as the registry compares it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def content_digest(distribution: Distribution) -> str:
    """SHA-256 (hex) over the sorted entries of a distribution's RECORD, or ``unknown`` where it has none.

    Entries of scripts, byte code and what an installer leaves about itself are left out: they differ from one directory
    to the next. What remains is what the wheel's own RECORD says, so the digest can be had from the wheel, too.
    """
    record = distribution.read_text("RECORD")
    return UNKNOWN if record is None else record_digest(record)


def record_digest(record: str) -> str:
    """The digest of a RECORD's text; see `content_digest`."""
    entries = [line if '"' not in line else ",".join(next(csv.reader([line]))) for line in record.splitlines()]
    # Half of the tens of thousands of entries are byte code, most others plain files: the expression is for the rest.
    files = [entry for entry in entries if entry and ".pyc," not in entry]
    kept = {entry for entry in files if not (_is_suspect(entry) and _NOT_OF_THE_WHEEL.search(entry))}
    return hashlib.sha256("".join(f"{entry}\n" for entry in sorted(kept)).encode()).hexdigest()


def _is_suspect(entry: str) -> bool:
    return ".dist-info/" in entry or ".data/" in entry or "__pycache__/" in entry or entry[0] in "/."


def pinned_wheels() -> dict[tuple[str, str], str]:
    """(name, version) -> SHA-256 (hex) of its wheel, from the constraints file: ``name==1.0  # sha256:…``."""
    if not CONSTRAINTS.is_file():
        return {}
    lines = map(_PINNED.fullmatch, CONSTRAINTS.read_text().splitlines())
    return {(normalized(line[1]), line[2]): line[3] for line in lines if line is not None}


def repository() -> Repository | None:
    """The commit of this repository; None where it is no git checkout, or git is not there."""
    commit = _git("rev-parse", "HEAD")
    status = _git("status", "--porcelain")
    return None if commit is None or status is None else Repository(commit.strip(), not status.strip())


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True)  # noqa: S603, S607
    except (OSError, subprocess.CalledProcessError):
        return None  # an installation without its history: the statement says that the commit is unknown
    return done.stdout if (ROOT / ".git").exists() else None


def machine() -> dict[str, str]:
    """The kind of machine, not which one: architecture, operating system, C library, Python."""
    return {
        "machine": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "libc": " ".join(platform.libc_ver()),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
    }
