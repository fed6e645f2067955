"""Where things are kept that can be made or fetched again: the user's cache directory."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from weighbridge.errors import WeighbridgeError


def cache_directory(*parts: str) -> Path:
    """A directory (made if need be) below ``$WEIGHBRIDGE_CACHE``, or ``$XDG_CACHE_HOME/weighbridge``, or ``~/.cache``.

    Raises:
        WeighbridgeError: it cannot be made.
    """
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    directory = Path(os.environ.get("WEIGHBRIDGE_CACHE") or Path(base) / "weighbridge").joinpath(*parts)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WeighbridgeError(
            f"the cache directory cannot be made ({error.strerror})",
            where=str(directory),
            remedy="set WEIGHBRIDGE_CACHE to a directory that can be written",
        ) from error
    return directory


KEY_DIGITS = 16


def key_of(determines: Mapping[str, Any]) -> str:
    """A short name for everything that determines what is kept: hex digits of its SHA-256."""
    content = json.dumps(determines, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(content.encode()).hexdigest()[:KEY_DIGITS]


SECRET_BYTES = 32


def secret() -> bytes:
    """A key of this user's alone, made the first time: what was authenticated with it was written by this user.

    Raises:
        WeighbridgeError: it cannot be made, or is not this user's alone.
    """
    path = cache_directory() / "secret"
    try:
        if not path.is_symlink() and not path.exists():
            handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".secret.")  # for its user alone
            with os.fdopen(handle, "wb") as file:
                file.write(os.urandom(SECRET_BYTES))
            Path(temporary).rename(path)
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as file:
            found = os.fstat(file.fileno())
            if found.st_uid == os.geteuid() and not found.st_mode & 0o077 and found.st_size == SECRET_BYTES:
                return file.read()
        what, remedy = "is not this user's alone, as a secret must be", "remove it; a new one is made"
    except OSError as error:
        what, remedy = f"cannot be made or read ({error.strerror})", "set WEIGHBRIDGE_CACHE to another directory"
    raise WeighbridgeError(what, where=str(path), remedy=remedy)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old content or the new, never a part. A file keeps its permissions.

    Raises:
        OSError: the file cannot be written.
    """
    put_in_place(path, content, stat.S_IMODE(path.stat().st_mode) if path.exists() else 0o666 & ~umask())


def put_in_place(path: Path, content: bytes, mode: int) -> None:
    """The same with these permissions, whatever stands there: a link is replaced, not followed.

    Raises:
        OSError: the file cannot be written.
    """
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        Path(temporary).chmod(mode)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def umask() -> int:
    """The process's umask: temporary files are private, what takes their place is as public as the user wants it."""
    value = os.umask(0)
    os.umask(value)
    return value
