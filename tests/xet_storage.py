"""Xet's storage, as far as hf_xet 1.8 asks for it: which chunks make up a file, the chunks, and what is uploaded.

What is downloaded is stored as it is, in chunks of one size, 256 of which are an xorb (what Xet calls the block that is
fetched). What is uploaded comes in chunks of the client's choice, compressed, and a shard says which of them make up a
file. The formats are those of https://huggingface.co/docs/xet.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path

CHUNK_BYTES = 64 * 1024
HEAD_BYTES = 8
XORB_CHUNKS = 256
TOKEN = "xet_token"
"""What the hub gives for its storage; the hub's own token stays with the hub."""

_HEADER_BYTES, _ENTRY = 48, struct.Struct("<32s4I")
_VERIFIED, _DESCRIBED = 1 << 31, 1 << 30


def xet_hash(sha256: str) -> str:
    """What stands for the file in the storage; Xet's own is a tree of BLAKE3 digests, which no reader recomputes."""
    return hashlib.sha256(b"xet" + bytes.fromhex(sha256)).hexdigest()


def reconstruction(size: int, begin: int, end: int, *, place: str) -> dict[str, object]:
    """Of which chunks the bytes `begin` to `end` of a file of this size are made.

    Args:
        place: the address of its xorbs, up to their number.
    """
    first, last = begin // CHUNK_BYTES, -(-min(end, size) // CHUNK_BYTES)
    terms, fetched = [], {}
    for xorb in range(first // XORB_CHUNKS, -(-last // XORB_CHUNKS)):
        start, stop = max(first, xorb * XORB_CHUNKS), min(last, (xorb + 1) * XORB_CHUNKS)
        chunks = {"start": start - xorb * XORB_CHUNKS, "end": stop - xorb * XORB_CHUNKS}
        length = min(stop * CHUNK_BYTES, size) - start * CHUNK_BYTES
        offset = chunks["start"] * (CHUNK_BYTES + HEAD_BYTES)
        where = {"start": offset, "end": offset + length + HEAD_BYTES * (stop - start) - 1}
        name = hashlib.sha256(f"{place}/{xorb}".encode()).hexdigest()
        terms.append({"hash": name, "unpacked_length": length, "range": chunks})
        fetched[name] = [{"range": chunks, "url": f"{place}/{xorb}", "url_range": where}]
    return {"offset_into_first_range": begin - first * CHUNK_BYTES, "terms": terms, "fetch_info": fetched}


def xorb_of(path: Path, number: int) -> bytes:
    """An xorb of a file; before each chunk: a version, its stored length, how it is compressed (0: not), its length."""
    stored = bytearray()
    with path.open("rb") as file:
        file.seek(number * XORB_CHUNKS * CHUNK_BYTES)
        for _ in range(XORB_CHUNKS):
            chunk = file.read(CHUNK_BYTES)
            length = len(chunk).to_bytes(3, "little")
            stored += b"\0" + length + b"\0" + length + chunk if chunk else b""
    return bytes(stored)


def files_of(shard: bytes, xorbs: Mapping[str, bytes]) -> Iterator[bytes]:
    """The files that an uploaded shard describes, put together of uploaded xorbs (by their hash)."""
    offset = _HEADER_BYTES
    while True:
        name, flags, count, _, _ = _ENTRY.unpack_from(shard, offset)
        if name == b"\xff" * 32:
            return
        content = b""
        for index in range(1, count + 1):
            xorb, _, _, start, stop = _ENTRY.unpack_from(shard, offset + index * _ENTRY.size)
            content += b"".join(_chunks(xorbs[_hex(xorb)])[start:stop])
        yield content
        offset += _ENTRY.size * (1 + count * (2 if flags & _VERIFIED else 1) + bool(flags & _DESCRIBED))


def _hex(digest: bytes) -> str:
    return "".join(f"{word:016x}" for word in struct.unpack("<4Q", digest))


def _chunks(xorb: bytes) -> list[bytes]:
    chunks, offset = [], 0
    while offset + HEAD_BYTES <= len(xorb) and xorb[offset] == 0:  # a footer may follow
        stored, length = (int.from_bytes(xorb[offset + at : offset + at + 3], "little") for at in (1, 5))
        kind, offset = xorb[offset + 4], offset + HEAD_BYTES
        content = xorb[offset : offset + stored]
        if kind:
            content = _unpacked(content)
        if kind == 2:  # every fourth byte lay together
            content = _interleaved(content)
        assert len(content) == length
        chunks.append(content)
        offset += stored
    return chunks


def _interleaved(grouped: bytes) -> bytes:
    content, at = bytearray(len(grouped)), 0
    for lane in range(4):
        count = len(range(lane, len(grouped), 4))
        content[lane::4] = grouped[at : at + count]
        at += count
    return bytes(content)


def _unpacked(frame: bytes) -> bytes:
    """What an LZ4 frame without a dictionary or checksums holds."""
    assert frame[:4] == b"\x04\x22\x4d\x18"
    content, offset = bytearray(), 7
    while size := int.from_bytes(frame[offset : offset + 4], "little"):
        offset += 4
        block = frame[offset : offset + (size & 0x7FFFFFFF)]
        offset += len(block)
        if size >> 31:
            content += block
        else:
            _unpack(block, content)
    return bytes(content)


def _unpack(block: bytes, content: bytearray) -> None:
    """Add what an LZ4 block holds."""
    at = 0

    def length(short: int) -> int:
        nonlocal at
        while short >= 15:
            more, at = block[at], at + 1
            short += more
            if more < 255:
                break
        return short

    while True:
        token, at = block[at], at + 1
        literal = length(token >> 4)
        content += block[at : at + literal]
        at += literal
        if at >= len(block):
            return
        back, at = int.from_bytes(block[at : at + 2], "little"), at + 2
        copied = length(token & 15) + 4
        repeated = content[len(content) - back :][:copied]
        content += (repeated * (copied // len(repeated) + 1))[:copied]
