"""Evidence as a hostile stranger may write it: whatever stands in it, checking ends with a report and never breaks."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoints import copy_checkpoint, rewrite
from tests.evidence import EVIDENCE, lines_of, write_lines
from weighbridge.evidence.signing import KeySigner, open_verifier
from weighbridge.evidence.verify import verify
from weighbridge.progress import Progress

DOCUMENTS = ("bom.cdx.json", "report.json", "model.sig")
CLAIMS = (0, 1)
VALUES: tuple[Any, ...] = (
    *(None, True, 0, -1, 1.5, 10**40, "", "x", "../x", "/etc/passwd", "a" * 5000, "\x1b[31m", "\u202e"),
    *([], {}, [1], {"a": 1}, [[]], [{}], {"name": []}),
)
SHARE, CAMPAIGN = range(40), range(40, 1000)


def places(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value in a JSON document."""
    yield path
    pairs = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in pairs:
        yield from places(value, (*path, key))


def altered(content: Any, chance: random.Random) -> Any:
    """The document with one value removed, or another in its place."""
    path = chance.choice(list(places(content)))
    if not path:
        return chance.choice(VALUES)
    holder = content
    for key in path[:-1]:
        holder = holder[key]
    if chance.random() < 0.2:
        del holder[path[-1]]
    else:
        holder[path[-1]] = chance.choice(VALUES)
    return content


def check_one(seed: int, signed_builds: Path, scratch: Path) -> None:
    """Alter one value anywhere in the evidence, sign it rightly where it is a statement, and check it."""
    chance = random.Random(seed)
    copy = copy_checkpoint(signed_builds / "build", scratch / "copy")
    parts: list[str | int] = [*DOCUMENTS, *CLAIMS, *CLAIMS]
    what = chance.choice(parts)
    if isinstance(what, int):
        lines = lines_of(copy)
        statement = altered(json.loads(base64.b64decode(json.loads(lines[what])["payload"])), chance)
        signer = KeySigner.open(signed_builds / "key.pem")
        lines[what] = signer.sign_statement(json.dumps(statement, separators=(",", ":")).encode())
        write_lines(copy, lines)
    else:
        document = altered(json.loads((copy / EVIDENCE / what).read_bytes()), chance)
        rewrite(copy / EVIDENCE / what, json.dumps(document).encode())
    report = verify(copy, verifier=open_verifier(signed_builds / "key.pub.pem"), progress=Progress())
    assert report.verdict
    if not isinstance(what, int):
        assert not report.holds


@pytest.mark.parametrize("seed", SHARE)
def test_whatever_stands_in_the_evidence_checking_ends_with_a_report(
    seed: int, signed_builds: Path, tmp_path: Path
) -> None:
    check_one(seed, signed_builds, tmp_path)


@pytest.mark.campaign
@pytest.mark.parametrize("seed", CAMPAIGN)
def test_whatever_stands_in_the_evidence_checking_ends_with_a_report_in_the_long_run(
    seed: int, signed_builds: Path, tmp_path: Path
) -> None:
    check_one(seed, signed_builds, tmp_path)
