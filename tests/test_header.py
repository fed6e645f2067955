"""The strict header reader takes every file that safetensors writes, and refuses the rest in one sentence."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import deserialize

from tests.strategies import structures
from weighbridge.checkpoint.header import MAX_HEADER_BYTES, Header, check_name, check_names, parse_header, read_header
from weighbridge.checkpoint.layout import lay_out
from weighbridge.errors import StructureError
from weighbridge.formats.tensors import DTYPE_BITS, Structure, Tensor
from weighbridge.text.strict_json import parse_object

MUTATIONS = 1_000_000


def entry(dtype: Any = "U8", shape: Any = (4,), offsets: Any = (0, 4)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def parse(header: object, payload: int) -> Header:
    """Parse a header (bytes as they are, anything else as JSON) of a file that holds `payload` bytes of tensors."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return parse_header(raw, file_size=8 + len(raw) + payload, where="shard")


def as_safetensors_reads(file: bytes) -> Structure:
    """What the reference reader finds in a file.

    Raises:
        SafetensorError: it refuses it.
    """
    tensors = deserialize(file)  # type: ignore[no-untyped-call]
    return {name: Tensor(found["dtype"], tuple(found["shape"])) for name, found in tensors}


# header, bytes of payload, what the sentence says
MALFORMED: dict[str, tuple[object, int, str]] = {
    "not a mapping": ([1], 0, "is not a JSON object"),
    "not JSON": (b"{", 0, "is not JSON"),
    "nothing": (b"", 0, "its header is not a JSON object"),
    "trailing bytes": (b"{}\0", 0, "is not JSON"),
    "not UTF-8": (b'{"\xff": 1}', 0, "is not UTF-8"),
    "deep": (b'{"w":' + b"[" * 100_000 + b"]" * 100_000 + b"}", 0, "nested too deeply"),
    "huge number": (b'{"w":' + b"9" * 5000 + b"}", 0, "is not JSON"),
    "NaN": (b'{"w": NaN}', 0, "NaN is not a JSON number"),
    "tensor twice": (b'{"w": 1, "w": 2}', 0, "the key 'w' stands twice"),
    "key twice": (b'{"w": {"dtype": "U8", "dtype": "U8"}}', 0, "the key 'dtype' stands twice"),
    "metadata is a list": ({"__metadata__": []}, 0, "__metadata__ is not a mapping of strings"),
    "metadata of a number": ({"__metadata__": {"format": 1}}, 0, "__metadata__ is not a mapping of strings"),
    "empty name": ({"": entry()}, 4, "a tensor name is empty, too long or no string: ''"),
    "long name": ({"w" * 1025: entry()}, 4, "a tensor name is empty, too long or no string: 'www"),
    "name with a line break": ({"a\nb": entry()}, 4, r"the tensor name 'a\nb' has characters"),
    "name with a space": ({"a b": entry()}, 4, "the tensor name 'a b' has characters"),
    "name of other letters": ({"wé": entry()}, 4, "the tensor name 'wé' has characters"),
    "name with an escape": ({"\x1b[2J": entry()}, 4, r"the tensor name '\x1b[2J' has characters"),
    "entry is a list": ({"w": []}, 0, "tensor 'w' is not described by exactly dtype, shape and data_offsets"),
    "no offsets": ({"w": {"dtype": "U8", "shape": [4]}}, 4, "tensor 'w' is not described by exactly"),
    "a key too many": ({"w": entry() | {"strides": [1]}}, 4, "tensor 'w' is not described by exactly"),
    "unknown dtype": ({"w": entry(dtype="F128")}, 4, "tensor 'w' has the unknown dtype 'F128'"),
    "dtype is no string": ({"w": entry(dtype=["U8"])}, 4, "tensor 'w' has the unknown dtype"),
    "shape is a number": ({"w": entry(shape=4)}, 4, "tensor 'w' has no proper shape"),
    "too many axes": ({"w": entry(shape=[1] * 17, offsets=[0, 1])}, 1, "tensor 'w' has no proper shape"),
    "negative axis": ({"w": entry(shape=[-4])}, 4, "tensor 'w' has an impossible axis '-4'"),
    "axis is a float": ({"w": entry(shape=[4.0])}, 4, "tensor 'w' has an impossible axis '4.0'"),
    "axis is true": ({"w": entry(shape=[True], offsets=[0, 1])}, 1, "tensor 'w' has an impossible axis 'True'"),
    "absurd axis": ({"w": entry(shape=[2**60, 0], offsets=[0, 0])}, 0, "tensor 'w' has an impossible axis"),
    "one offset": ({"w": entry(offsets=[0])}, 4, "tensor 'w' has no proper data_offsets"),
    "negative offset": ({"w": entry(offsets=[-4, 0])}, 4, "tensor 'w' has no proper data_offsets"),
    "offset is a float": ({"w": entry(offsets=[0, 4.0])}, 4, "tensor 'w' has no proper data_offsets"),
    "range too small": ({"w": entry(offsets=[0, 3])}, 3, "tensor 'w' is U8 [4], 4 bytes, but its byte range holds 3"),
    "range backwards": ({"w": entry(offsets=[4, 0])}, 4, "tensor 'w' is U8 [4], 4 bytes, but its byte range holds -4"),
    "half a byte": ({"w": entry("F4", [3], [0, 1])}, 1, "tensor 'w' is F4 [3], 1.5 bytes"),
    "overflowing size": (
        {"w": entry("F64", [2**48] * 16, [0, 4])},
        4,
        "tensor 'w' is F64 [281474976710656, 281474976710656",
    ),
    "hole at the start": ({"w": entry(offsets=[2, 6])}, 6, "tensor 'w' begins at byte 2 and leaves a hole before it"),
    "hole between": (
        {"v": entry(), "w": entry(offsets=[5, 9])},
        9,
        "tensor 'w' begins at byte 5 and leaves a hole before it",
    ),
    "overlap": (
        {"v": entry(), "w": entry(offsets=[3, 7])},
        7,
        "tensor 'w' begins at byte 3 and overlaps the tensor before it",
    ),
    "same bytes twice": ({"v": entry(), "w": entry()}, 4, "tensor 'w' begins at byte 0 and overlaps"),
    "cut off": ({"w": entry()}, 3, "is cut off: the header describes 4 bytes of tensors, the file holds 3"),
    "grown": ({"w": entry()}, 5, "has bytes that belong to no tensor: the header describes 4 bytes"),
}


@pytest.mark.parametrize(("header", "payload", "sentence"), MALFORMED.values(), ids=MALFORMED)
def test_malformed_header_is_refused_in_one_sentence(header: object, payload: int, sentence: str) -> None:
    with pytest.raises(StructureError) as caught:
        parse(header, payload)
    message = str(caught.value)
    assert sentence in message
    assert message.startswith("shard: ")
    assert "\n" not in message
    assert len(message) < 600


@pytest.mark.parametrize("name", ["a{b}", "a.{}", "{", "}"])
def test_name_that_would_read_as_a_pattern_is_refused(name: str) -> None:
    with pytest.raises(StructureError, match="has characters that no tensor name has"):
        check_name(name, where="shard")


@given(st.lists(st.text(st.sampled_from("aZ9._~!|{} \n\x7fé"), max_size=4), min_size=1))
def test_names_together_are_refused_where_one_of_them_is(names: list[str]) -> None:
    def refused(check: Callable[[], object]) -> bool:
        try:
            check()
        except StructureError:
            return True
        return False

    each = [refused(lambda name=name: check_name(name, where="shard")) for name in names]  # type: ignore[misc]
    assert refused(lambda: check_names(names, where="shard")) == any(each)


@given(
    layers=st.lists(st.tuples(st.booleans(), *[st.sampled_from(["", "]", "}", "[", "{", '"', "\\", "]]"])] * 2)),
    depth=st.sampled_from([63, 64, 65, 66, 128]),
)
def test_json_is_read_to_its_depth_whatever_brackets_stand_in_text(
    layers: list[tuple[bool, str, str]], depth: int
) -> None:
    value: object = 1
    for listed, before, after in islice(cycle(layers or [(False, "", "")]), depth - 1):
        value = [before, value, after] if listed else {f"{before}a": before, f"{before}b": value, f"{before}c": after}
    raw = json.dumps({"w": value}).encode()
    if depth <= 64:
        assert parse_object(raw, where="x") == {"w": value}
    else:
        with pytest.raises(StructureError, match="nested too deeply"):
            parse_object(raw, where="x")


@pytest.mark.parametrize("dtype", DTYPE_BITS)
def test_every_dtype_of_the_table_is_one_that_safetensors_reads(dtype: str) -> None:
    laid_out = lay_out({"w": Tensor(dtype, (8,))})
    assert as_safetensors_reads(laid_out.head + bytes(DTYPE_BITS[dtype])) == {"w": Tensor(dtype, (8,))}


@given(structures())
@settings(deadline=None)
def test_header_of_any_structure_reads_back(structure: Structure) -> None:
    laid_out = lay_out(structure)
    header = parse_header(laid_out.head[8:], file_size=laid_out.file_size, where="shard")
    assert {name: stored.tensor for name, stored in header.tensors.items()} == structure
    assert {name: (stored.begin, stored.end) for name, stored in header.tensors.items()} == laid_out.ranges
    assert header.metadata == {"format": "pt"}
    assert header.data_offset == len(laid_out.head)


def json_values() -> st.SearchStrategy[Any]:
    leaf = st.one_of(st.none(), st.booleans(), st.integers(-2, 2**70), st.floats(), st.sampled_from(["U8", "BF16", ""]))
    return st.recursive(
        leaf,
        lambda inner: st.one_of(
            st.lists(inner, max_size=4),
            st.dictionaries(st.sampled_from(["dtype", "shape", "data_offsets", "x"]), inner, max_size=4),
        ),
        max_leaves=8,
    )


@given(
    header=st.dictionaries(
        st.text(max_size=3),
        st.one_of(
            json_values(),
            st.fixed_dictionaries({"dtype": json_values(), "shape": json_values(), "data_offsets": json_values()}),
        ),
        max_size=3,
    ),
    payload=st.integers(0, 8),
)
@settings(deadline=None)
def test_any_json_reads_or_is_refused(header: object, payload: int) -> None:
    try:
        parse(header, payload)
    except StructureError:
        return


SMALL = lay_out({"model.layers.0.weight": Tensor("BF16", (2, 3)), "b": Tensor("F4", (2,)), "s": Tensor("F32", ())})


def read_or_refuse(mutated: bytes) -> None:
    """Read a file; what is read must be what safetensors reads of it."""
    try:
        (length,) = struct.unpack("<Q", mutated[:8])
        header = parse_header(mutated[8 : 8 + length], file_size=len(mutated), where="shard")
    except StructureError:
        return
    assert {name: stored.tensor for name, stored in header.tensors.items()} == as_safetensors_reads(mutated)


@given(position=st.integers(8, len(SMALL.head) - 1), byte=st.integers(0, 255))
@settings(deadline=None, max_examples=300)
def test_changed_byte_reads_as_safetensors_reads_it_or_is_refused(position: int, byte: int) -> None:
    file = bytearray(SMALL.head + bytes(SMALL.file_size - len(SMALL.head)))
    file[position] = byte
    read_or_refuse(bytes(file))


@pytest.mark.campaign
def test_a_million_changes_read_or_are_refused() -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # noqa: T201 (pytest shows it when the test fails)
    chance = random.Random(seed)
    whole = SMALL.head + bytes(SMALL.file_size - len(SMALL.head))
    for _ in range(MUTATIONS):
        file = bytearray(whole)
        for _ in range(chance.randint(1, 4)):
            file[chance.randrange(8, len(SMALL.head))] = chance.choice(b'0123456789"[]{},:ABFU \\n\x00\xff')
        try:
            parse_header(bytes(file[8 : len(SMALL.head)]), file_size=len(file), where="shard")
        except StructureError:
            continue


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


WHOLE = SMALL.head + bytes(SMALL.file_size - len(SMALL.head))


# bytes of the file, what the sentence says
DAMAGED_FILES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is 0 bytes long, too short for a safetensors file"),
    "seven bytes": (WHOLE[:7], "is 7 bytes long, too short"),
    "cut within its header": (WHOLE[:20], f"is cut off within its header: 20 bytes of at least {len(SMALL.head)}"),
    "cut within its tensors": (WHOLE[:-1], "is cut off: the header describes 17 bytes of tensors, the file holds 16"),
    "grown by a byte": (WHOLE + b"\0", "has bytes that belong to no tensor"),
    "absurd length": (
        struct.pack("<Q", MAX_HEADER_BYTES + 1) + bytes(8),
        f"announces a header of {MAX_HEADER_BYTES + 1:,} bytes",
    ),
    "an HTML page": (b"<!DOCTYPE html><html></html>", "it is no safetensors file or a damaged one"),
}


@pytest.mark.parametrize(("content", "sentence"), DAMAGED_FILES.values(), ids=DAMAGED_FILES)
def test_damaged_file_is_refused(tmp_path: Path, content: bytes, sentence: str) -> None:
    with pytest.raises(StructureError, match=r"^shard: ") as caught:
        read_header(written(tmp_path / "shard", content), where="shard")
    assert sentence in str(caught.value)


def test_absent_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StructureError, match=r"shard: cannot be read \(No such file or directory\)"):
        read_header(tmp_path / "shard", where="shard")


def test_whole_file_reads_with_its_tensors_in_the_order_of_their_bytes(tmp_path: Path) -> None:
    header = read_header(written(tmp_path / "shard", WHOLE), where="shard")
    assert list(header.tensors) == ["s", "model.layers.0.weight", "b"]
    assert header.tensors["b"].tensor == Tensor("F4", (2,))
