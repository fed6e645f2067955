"""Ways of altering the evidence of a build; copies of it are made by links (`checkpoints.copy_checkpoint`)."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.checkpoints import rewrite
from weighbridge.evidence.signing import KeySigner
from weighbridge.evidence.subject import read_files, root_digest, write_files

EVIDENCE = Path("evidence")


def flip(path: Path, *, at: float) -> None:
    """Change one bit of the byte at a part (0 to 1) of a file's length."""
    content = bytearray(path.read_bytes())
    content[min(int(len(content) * at), len(content) - 1)] ^= 1
    rewrite(path, bytes(content))


def edit_document(path: Path, change: Callable[[Any], None]) -> None:
    """Change a JSON document, written as Weighbridge writes it."""
    content = json.loads(path.read_bytes())
    change(content)
    rewrite(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


def lines_of(checkpoint: Path, name: str = "claims.jsonl") -> list[bytes]:
    """The lines of a file of evidence/."""
    return (checkpoint / EVIDENCE / name).read_bytes().splitlines()


def write_lines(checkpoint: Path, lines: list[bytes], name: str = "claims.jsonl") -> None:
    """Write the lines of a file of evidence/."""
    rewrite(checkpoint / EVIDENCE / name, b"".join(line + b"\n" for line in lines))


def payload_of(line: bytes) -> dict[str, Any]:
    """The statement in an envelope."""
    statement: dict[str, Any] = json.loads(base64.b64decode(json.loads(line)["payload"]))
    return statement


def edit_claim(checkpoint: Path, number: int, change: Callable[[Any], None], *, key: Path | None = None) -> None:
    """Change the statement in an envelope; sign it anew with a key, or leave the old signature."""
    lines = lines_of(checkpoint)
    envelope = json.loads(lines[number])
    statement = json.loads(base64.b64decode(envelope["payload"]))
    change(statement)
    payload = json.dumps(statement, ensure_ascii=False, separators=(",", ":")).encode()
    if key is None:
        envelope["payload"] = base64.b64encode(payload).decode()
        lines[number] = json.dumps(envelope, separators=(",", ":")).encode()
    else:
        lines[number] = KeySigner.open(key).sign_statement(payload)
    write_lines(checkpoint, lines)


def list_anew(checkpoint: Path) -> str:
    """Let files.sha256 say what now lies there, as an attacker would; gives the root digest of that."""
    import hashlib

    old = read_files((checkpoint / EVIDENCE / "files.sha256").read_bytes(), where="")
    there = [path.relative_to(checkpoint).as_posix() for path in checkpoint.rglob("*") if path.is_file()]
    files = {
        name: hashlib.sha256((checkpoint / name).read_bytes()).hexdigest()
        for name in there
        if not name.startswith("evidence/")
    }
    assert files != old
    rewrite(checkpoint / EVIDENCE / "files.sha256", write_files(files))
    return root_digest(files)
