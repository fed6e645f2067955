"""What a hostile stranger may hand over: malformed headers, indexes, configs, locks and recipes, made from a seed.

`cases` must each be refused: exit code 2 and one sentence. `survivors` look as bad and are legal: exit code 0 or 1.
Nothing here uses the readers or writers that are under test. Each family draws from a generator of its own, so that a
case added to one does not change another.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Literal

SEED = 3

CHECKPOINT, LOCK, RECIPE, SOURCE = "checkpoint", "lock.yaml", "recipe.yaml", "source.yaml"
SINGLE, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
TWICE = '"twice": 1, "twice": 2'


# What lies on disk ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Repeated:
    """A file too large to keep in memory with all the others: `unit` written `times` times between head and tail."""

    head: bytes
    unit: bytes
    times: int
    tail: bytes = b""


@dataclass(frozen=True)
class Sparse:
    """A file of `size` bytes that begins with `head` and is zero after it, without taking room on disk."""

    head: bytes
    size: int


@dataclass(frozen=True)
class Link:
    """A symbolic link."""

    target: str


@dataclass(frozen=True)
class Pipe:
    """A named pipe: whoever opens it for reading waits for ever."""


@dataclass(frozen=True)
class Folder:
    """A directory with so many others nested in it."""

    depth: int = 0


Content = bytes | Repeated | Sparse | Link | Pipe | Folder
Files = Mapping[str, Content]


@dataclass(frozen=True)
class HostileCase:
    """Files, and the command that is to judge them.

    Attributes:
        name: ``family/variation``, unique among all cases.
        command: the script, without its suffix.
        arguments: its arguments; paths in them are relative to the directory that `write` was given.
        files: relative path -> content.
    """

    name: str
    command: Literal["build", "validate"]
    arguments: tuple[str, ...]
    files: Files

    def write(self, directory: Path) -> None:
        """Write the files of the case below an empty directory."""
        for name, content in self.files.items():
            path = directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            _place(path, content)


@dataclass(frozen=True)
class Answer:
    """What a command answered: its exit code, and what it wrote as a terminal would get it."""

    code: int
    out: str
    err: str


def answer(case: HostileCase, directory: Path) -> Answer:
    """Run the command of a case in this process, in the directory that holds its files."""
    from weighbridge.cli import build, validate

    main = {"build": build.main, "validate": validate.main}[case.command]
    # As strict and as lenient as a process's own streams: a lone surrogate cannot be printed to the first.
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="strict", newline="")
    err = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="backslashreplace", newline="")
    with chdir(directory), redirect_stdout(out), redirect_stderr(err):
        code = main(list(case.arguments))
    return Answer(code, *(_written(stream) for stream in (out, err)))


@contextmanager
def empty_directory() -> Iterator[Path]:
    """A directory to write a case to; taken away afterwards, whatever lies in it."""
    directory = Path(tempfile.mkdtemp(prefix="hostile-"))
    try:
        yield directory
    finally:
        try:
            shutil.rmtree(directory)
        except (RecursionError, OSError):  # nested more deeply than shutil follows
            subprocess.run(["rm", "-rf", str(directory)], check=True)


def _written(stream: io.TextIOWrapper) -> str:
    stream.flush()
    assert isinstance(stream.buffer, io.BytesIO)
    return stream.buffer.getvalue().decode()


def _place(path: Path, content: Content) -> None:
    match content:
        case bytes():
            path.write_bytes(content)
        case Repeated(head, unit, times, tail):
            with path.open("wb") as file:
                file.write(head)
                for _ in range(times // 4096):
                    file.write(unit * 4096)
                file.write(unit * (times % 4096) + tail)
        case Sparse(head, size):
            with path.open("wb") as file:
                file.write(head)
                file.truncate(size)
        case Link(target):
            path.symlink_to(target)
        case Pipe():
            os.mkfifo(path)
        case Folder(depth):
            path.mkdir()
            with chdir(path):  # a path of all the names would take its time, and has a limit
                for _ in range(depth):
                    Path("d").mkdir()
                    os.chdir("d")


# What is well-formed, and what the cases are made from by damage -----------------------------------------------------

BITS = {"BF16": 16, "F32": 32, "F8_E4M3": 8, "U8": 8, "F4": 4, "F6_E2M3": 6}
Shapes = Mapping[str, tuple[str, tuple[int, ...]]]


def quantized_shapes() -> dict[str, tuple[str, tuple[int, ...]]]:
    """Two layers of attention in FP8 with a scale for each row, and what stays BF16."""
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {"model.embed_tokens.weight": ("BF16", (8, 4))}
    for layer in range(2):
        for member in ("q_proj", "k_proj", "v_proj", "o_proj"):
            module = f"model.layers.{layer}.self_attn.{member}"
            shapes[f"{module}.weight"] = ("F8_E4M3", (4, 4))
            shapes[f"{module}.weight_scale"] = ("BF16", (4, 1))
        shapes[f"model.layers.{layer}.input_layernorm.weight"] = ("BF16", (4,))
    return shapes


WEIGHT, OTHER_WEIGHT = "model.layers.0.self_attn.q_proj.weight", "model.layers.1.self_attn.q_proj.weight"


def header_of(shapes: Shapes) -> dict[str, Any]:
    """The header of a file that holds these tensors in this order."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, (dtype, shape) in shapes.items():
        count = 1
        for axis in shape:
            count *= axis
        begin, position = position, position + count * BITS[dtype] // 8
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, position]}
    return header


def payload_of(header: Mapping[str, Any]) -> int:
    """Bytes that a well-formed header describes."""
    ends: list[int] = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    return max(ends)


def header_bytes(header: Mapping[str, Any]) -> bytes:
    """A header as JSON, compact and unescaped, as safetensors writes it."""
    return json.dumps(header, separators=(",", ":")).encode()


def shard(header: bytes, payload: int) -> bytes:
    """A safetensors file with this header, whatever it is, and so many bytes of tensors."""
    return struct.pack("<Q", len(header)) + header + bytes(payload)


HEADER = header_of(quantized_shapes())
PAYLOAD = payload_of(HEADER)
CONFIG_GROUP: dict[str, Any] = {
    "targets": ["Linear"],
    "weights": {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True, "dynamic": False},
    "input_activations": {"num_bits": 8, "type": "float", "strategy": "token", "symmetric": True, "dynamic": True},
}
CONFIG_JSON: dict[str, Any] = {
    "model_type": "llama",
    "quantization_config": {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "config_groups": {"group_0": CONFIG_GROUP},
        "ignore": ["lm_head", "re:.*embed.*"],
    },
}
LOCK_YAML: dict[str, Any] = {
    "structure_lock": 1,
    "repository": "stranger/model",
    "revision": "0" * 40,
    "base": "stranger/base",
    "basis": "seen",
    "note": "a lock that is well-formed",
    "tensors": [
        "model.embed_tokens.weight BF16 [8, 4]",
        "model.layers.{0-1}.input_layernorm.weight BF16 [4]",
        "model.layers.{0-1}.self_attn.q_proj.weight F8_E4M3 [4, 4]",
        "model.layers.{0-1}.self_attn.q_proj.weight_scale BF16 [4, 1]",
    ],
    "quantization": {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "schemes": {
            "fp8": {"weights": CONFIG_GROUP["weights"], "input_activations": CONFIG_GROUP["input_activations"]}
        },
        "modules": ["model.layers.{0-1}.self_attn.q_proj fp8"],
    },
    "files": {"model.safetensors": {"size": 1024, "sha256": "0" * 64}},
}
SOURCE_YAML: dict[str, Any] = {
    "structure_lock": 1,
    "repository": "stranger/base",
    "base": "stranger/base",
    "basis": "seen",
    "tensors": [
        "model.embed_tokens.weight BF16 [64, 32]",
        "model.layers.{0-1}.input_layernorm.weight BF16 [32]",
        "model.layers.{0-1}.mlp.experts.down_proj BF16 [2, 32, 64]",
        "model.layers.{0-1}.mlp.experts.gate_up_proj BF16 [2, 128, 32]",
        "model.layers.{0-1}.self_attn.{NAME}_proj.weight BF16 [32, 32]",
    ],
    "config": {"model_type": "llama", "tie_word_embeddings": True},
}
SOURCE_YAML["tensors"][-1:] = [SOURCE_YAML["tensors"][-1].replace("{NAME}", name) for name in "qkvo"]
RECIPE_YAML: dict[str, Any] = {
    "name": "fp8-dynamic",
    "description": "a recipe that is well-formed",
    "base": {"model": "stranger/base", "revision": "0" * 40, "licence": "apache-2.0"},
    "method": "model_free_ptq",
    "scheme": "FP8_DYNAMIC",
    "ignore": ["lm_head", "re:.*embed.*", "re:.*norm.*"],
}


def as_yaml(value: object) -> bytes:
    """A value as YAML: JSON is YAML, and spells out every character that is not ASCII."""
    return json.dumps(value).encode()


def single_file(
    header: bytes | Mapping[str, Any] = HEADER, payload: int = PAYLOAD, config: object = CONFIG_JSON
) -> Files:
    """A checkpoint of one shard."""
    raw = header if isinstance(header, bytes) else header_bytes(header)
    return {f"{CHECKPOINT}/{SINGLE}": shard(raw, payload), f"{CHECKPOINT}/{CONFIG}": as_yaml(config)}


def sharded(index: object = None, *, replaced: Files | None = None) -> Files:
    """A checkpoint of two shards with an index (bytes as they are, anything else as JSON) and files replaced."""
    shapes = quantized_shapes()
    names = list(shapes)
    held = {FIRST: names[: len(names) // 2], SECOND: names[len(names) // 2 :]}
    files: dict[str, Content] = {f"{CHECKPOINT}/{CONFIG}": as_yaml(CONFIG_JSON)}
    for name, members in held.items():
        header = header_of({member: shapes[member] for member in members})
        files[f"{CHECKPOINT}/{name}"] = shard(header_bytes(header), payload_of(header))
    raw = index if isinstance(index, bytes) else json.dumps(good_index() if index is None else index).encode()
    files[f"{CHECKPOINT}/{INDEX}"] = raw
    return {**files, **{f"{CHECKPOINT}/{name}": content for name, content in (replaced or {}).items()}}


def good_index() -> dict[str, Any]:
    """The index that belongs to `sharded`."""
    names = list(quantized_shapes())
    half = len(names) // 2
    weight_map = {name: FIRST if position < half else SECOND for position, name in enumerate(names)}
    return {"metadata": {"total_size": PAYLOAD}, "weight_map": weight_map}


def edited(value: Any, *path: str | int, to: Any) -> Any:
    """A copy of nested JSON with the value at `path` replaced, or added."""
    copy = deepcopy(value)
    holder = copy
    for step in path[:-1]:
        holder = holder[step]
    holder[path[-1]] = to
    return copy


def without(value: Any, *path: str | int) -> Any:
    """A copy of nested JSON with the value at `path` taken out."""
    copy = deepcopy(value)
    holder = copy
    for step in path[:-1]:
        holder = holder[step]
    del holder[path[-1]]
    return copy


# What is wrong with text, whatever it says ---------------------------------------------------------------------------

HUGE = "9" * 5000
"""An integer of more digits than Python turns into a number by default."""

NESTED = 100_000


def malformed_json(value: Mapping[str, Any], chance: Random) -> Iterator[tuple[str, bytes]]:
    """Everything that is not one strict JSON object, made from the object `value`."""
    text = json.dumps(value)
    rest = text[1:]

    def member(added: str) -> bytes:
        return f'{{"added": {added}, {rest}'.encode()

    within = chance.randrange(2, len(text) - 1)
    yield "empty", b""
    yield "white space alone", b" \n\t "
    yield "byte order mark", b"\xef\xbb\xbf" + text.encode()
    yield "UTF-16", text.encode("utf-16")
    yield "UTF-32", text.encode("utf-32")
    for name, bad in {
        "byte 0xff": b"\xff",
        "lone continuation byte": b"\x80",
        "overlong slash": b"\xc0\xaf",
        "encoded surrogate": b"\xed\xa0\x80",
        "code point beyond Unicode": b"\xf4\x90\x80\x80",
        "cut multi-byte character": b"\xe2\x82",
    }.items():
        yield name, b'{"' + bad + b'": 1, ' + rest.encode()
    yield "byte 0xfe anywhere", text[:within].encode() + b"\xfe" + text[within:].encode()
    yield "raw control character", f'{{"a\x01b": 1, {rest}'.encode()
    yield "raw line break in a string", f'{{"a\nb": 1, {rest}'.encode()
    yield "NUL after the object", text.encode() + b"\0"
    yield "second object", (text + text).encode()
    yield "trailing word", (text + " x").encode()
    yield "trailing bracket", (text + "}").encode()
    yield "trailing comma", (text[:-1] + ",}").encode()
    yield "unclosed", text[:-1].encode()
    yield "cut anywhere", text[:within].encode()
    yield "unclosed string", f'{{"a: 1, {rest.replace(chr(34), chr(39))}'.encode()
    yield "single quotes", f"{{'a': 1, {rest}".encode()
    yield "comment", f"{{/* a */ {rest}".encode()
    yield "key without quotes", f"{{a: 1, {rest}".encode()
    yield "lone high surrogate in a value", member('"\\ud800"')
    yield "lone low surrogate in a key", member('{"\\udfff": 1}')
    yield "surrogates in the wrong order", member('"\\udc00\\ud800"')
    yield "bad escape", f'{{"\\x41": 1, {rest}'.encode()
    yield "cut escape", f'{{"\\u12": 1, {rest}'.encode()
    for number in ("NaN", "Infinity", "-Infinity", "0x10", "01", "+1", "1.", ".5", "1e", "True", "None", "undefined"):
        yield f"number {number}", member(number)
    yield "number too large for any", member("1e400")
    yield "negative number too large for any, deep within", member('[{"a": -1e400}]')
    yield "integer of 5,000 digits", member(HUGE)
    yield "negative integer of a million digits", member("-" + "9" * 1_000_000)
    yield "arrays nested too deeply", member("[" * NESTED + "]" * NESTED)
    yield "arrays nested and unclosed", member("[" * NESTED)
    yield "objects nested too deeply", member('{"a":' * NESTED + "1" + "}" * NESTED)
    yield "objects and arrays nested too deeply", member('[{"a":' * NESTED + "1" + "}]" * NESTED)
    yield "arrays nested 500 deep", member("[" * 500 + "]" * 500)
    yield "objects nested 500 deep", member('{"a":' * 500 + "1" + "}" * 500)
    yield "key twice", f"{{{TWICE}, {rest}".encode()
    yield "key twice, once escaped", f'{{"twice": 1, "tw\\u0069ce": 2, {rest}'.encode()
    yield "key twice, a megabyte long", f'{{"{"k" * 1_000_000}": 1, "{"k" * 1_000_000}": 1, {rest}'.encode()
    yield "key twice, of terminal escapes", f'{{"\\u001b[2J": 1, "\\u001b[2J": 1, {rest}'.encode()
    yield "key twice, a lone surrogate", f'{{"\\ud800": 1, "\\ud800": 1, {rest}'.encode()
    yield "key twice within an object", member(f"{{{TWICE}}}")
    yield "key twice within an array", member(f"[1, {{{TWICE}}}]")
    yield "key twice far down", member('{"a":' * 50 + f"{{{TWICE}}}" + "}" * 50)
    yield "empty key twice", f'{{"": 1, "": 2, {rest}'.encode()
    for name, other in {
        "an array": f"[{text}]",
        "an empty array": "[]",
        "a string": json.dumps(text),
        "a number": "1",
        "true": "true",
        "null": "null",
    }.items():
        yield f"{name} in place of the object", other.encode()


def malformed_yaml(value: Mapping[str, Any], chance: Random) -> Iterator[tuple[str, Content]]:
    """Everything that is not one plain YAML mapping without a key twice, made from the mapping `value`."""
    whole = as_yaml(value)
    block = b"".join(key.encode() + b": " + json.dumps(item).encode() + b"\n" for key, item in value.items())
    first = next(iter(value))

    def added(text: str) -> bytes:
        return block + text.encode()

    yield "empty", b""
    yield "comments alone", b"# nothing\n# at all\n"
    yield "null", b"null\n"
    yield "a list", b"- " + whole.replace(b"\n", b" ")
    yield "a word", b"word\n"
    yield "two documents", block + b"---\n" + block
    yield "bytes that are not UTF-8", block + b"x: \xff\xfe\n"
    yield "UTF-16", whole.decode().encode("utf-16")
    yield "Latin-1", block + "x: é\n".encode("latin-1")
    yield "NUL", block + b"x: \0\n"
    yield "terminal escape", block + b"x: \x1b[2J\n"
    yield "C1 control character", added("x: \x9b2J\n")
    yield "tab as indentation", block + b"x:\n\ty: 1\n"
    yield "unclosed list", block + b"x: [1, 2\n"
    yield "unclosed string", block + b'x: "abc\n'
    yield "unclosed mapping, cut anywhere", whole[: chance.randrange(2, len(whole) - 1)]
    yield "unknown escape", block + b'x: "\\q"\n'
    yield "escaped surrogate", block + b'x: "\\uD800"\n'
    yield "bad directive", b"%YAML 9.9\n---\n" + block
    yield "unknown tag handle", block + b"x: !e!y 1\n"
    yield "colon in a plain value", block + b"x: y: z\n"
    yield "value at the wrong column", block + b" x: 1\n"
    yield "key twice", block + f"{first}: 1\n".encode()
    yield "key twice, quoted", block + f'"{first}": 1\n'.encode()
    yield "key twice within a value", block + b"x: {y: 1, y: 2}\n"
    yield "key twice, a megabyte long", block + (b"? " + b"k" * 1_000_000 + b"\n: 1\n") * 2
    yield "key twice, of terminal escapes", block + b'"\\e[2J": 1\n"\\e[2J": 1\n'
    yield "list as a key", block + b"? [1, 2]\n: 3\n"
    yield "mapping as a key", block + b"{y: 1}: 2\n"
    yield "anchor", block + b"x: &a 1\n"
    yield "alias", block + b"x: *a\n"
    yield (
        "a billion laughs",
        b"".join(f"x{n}: &x{n} [{', '.join([f'*x{n - 1}'] * 10) if n else 'lol'}]\n".encode() for n in range(10)),
    )
    yield "merge of an alias", block + b"x: &a {y: 1}\nz:\n  <<: *a\n"
    yield "list that holds itself", block + b"x: &a [*a]\n"
    for tag in ("!!python/object/apply:os.system [id]", "!!python/name:os.system", "!!binary aGk=", "!!set {a}"):
        yield f"tag {tag.partition(' ')[0]}", added(f"x: {tag}\n")
    yield "tag on a plain value", block + b"x: !!int '1'\n"
    yield "tag of one's own", block + b"x: !lua os.exit()\n"
    for opening, name in (("[", "lists"), ("{a: ", "mappings"), ("[{a: ", "lists of mappings")):
        yield f"{name} nested 40 deep", added("x: " + opening * 40 + "\n")
        yield f"{name} nested {NESTED:,} deep", added("x: " + opening * NESTED + "\n")
    yield "dashes nested too deeply", added("x:\n  " + "- " * NESTED + "1\n")
    yield "question marks nested too deeply", added("? " * NESTED + "1\n")
    yield "indentation nested too deeply", added("x:\n" + "".join(" " * n + "a:\n" for n in range(1, 500)))
    yield "integer of 5,000 digits", added(f"x: {HUGE}\n")
    yield "integer of 5,000 digits as a value that counts", edited_yaml(value, first, HUGE)
    yield "hexadecimal integer of a megabyte", edited_yaml(value, first, "0x" + "f" * 1_000_000)
    yield "binary integer of a megabyte", edited_yaml(value, first, "0b" + "1" * 1_000_000)
    yield "sexagesimal integer of 100,000 places", edited_yaml(value, first, "1" + ":59" * 100_000)
    yield "sexagesimal fraction of 1,000 places", edited_yaml(value, first, "1" + ":59" * 1000 + ".5")
    yield "not a number", edited_yaml(value, first, ".nan")
    yield "infinity", edited_yaml(value, first, "-.inf")
    yield "list in place of a plain value", edited_yaml(value, first, "[1]")
    yield "null in place of a plain value", edited_yaml(value, first, "~")
    yield "unknown key", added("surprise: 1\n")
    yield "unknown key of terminal escapes", block + b'"\\e]0;owned\\a": 1\n'
    yield "unknown key of a right-to-left override", block + b'"\\u202eteg": 1\n'
    yield "unknown key of 100,000 characters", added(f"? {'k' * 100_000}\n: 1\n")
    yield "empty key", block + b'"": 1\n'
    yield "key that is null", block + b"~: 1\n"
    yield "nine megabytes", Repeated(block, b"# nine million and nothing to say\n", 9_000_000 // 34)
    yield "seven megabytes of a list", Repeated(block + b"x: [", b"1,", 3_500_000, b"1]\n")
    yield "seven megabytes of brackets", Repeated(block + b"x: [", b"[],", 2_300_000, b"1]\n")
    yield "seven megabytes of keys", Repeated(block, b"- {a: b}\n", 770_000)
    yield "seven megabytes of one word", Repeated(block + b"x: ", b"word ", 1_400_000, b"\n")
    yield "seven megabytes of line breaks", Repeated(block + b"x: |\n", b"  \n", 2_300_000, b"\n")
    yield "six megabytes of quotes", Repeated(block + b"x: '", b"''", 3_000_000, b"\n")


def edited_yaml(value: Mapping[str, Any], key: str, to: str) -> bytes:
    """The mapping as block YAML with the text `to` in place of the value of `key`."""
    return "".join(f"{name}: {to if name == key else json.dumps(item)}\n" for name, item in value.items()).encode()


EVIL_PATTERNS: Mapping[str, str] = {
    "unbalanced parenthesis": "re:(",
    "closing parenthesis": "re:a)",
    "unbalanced bracket": "re:[a",
    "range that descends": "re:[z-a]",
    "star first": "re:*.embed.*",
    "two stars": "re:a**",
    "trailing backslash": "re:a\\",
    "repetition beyond counting": "re:a{100000}",
    "repetition of 30 digits": "re:a{" + "9" * 30 + "}",
    "repetitions of repetitions": "re:((a{100}){100}){100}",
    "nested stars of repetitions": "re:(((a{0,999}){0,999}){0,999}){0,999}",
    "back reference": "re:(a+)\\1",
    "lookahead and a back reference": "re:(?=(a))\\1",
    "lookahead and an atomic group": "re:(?!a)(?>b+)",
    "lookbehind of any width": "re:(?<=a*)b",
    "back reference by name": "re:(?P<x>a)(?P=x)",
    "back reference that warns": "re:([[a])\\1",
    "conditional": "re:(a)?(?(1)b|c)",
    "atomic group": "re:(?>a+)b",
    "possessive star": "re:a*+b",
    "Python's end": "re:.*proj\\Z",
    "unknown property": "re:\\p{Nonsense}",
    "unknown flag": "re:(?y)a",
    "flags that exclude each other": "re:(?a)(?u)a",
    "ungreedy flag, which Python lacks": "re:(?U).*",
    "flag that is not first": "re:a(?i)b",
    "class of POSIX, which Python reads otherwise": "re:[[:alpha:]]+",
    "literal of Perl, which Python lacks": "re:\\Qa.b\\E",
    "end of Perl, which Python lacks": "re:.*proj\\z",
    "repetition that RE2 takes for text": "re:a{,2}b",
    "slow classes and a back reference": "re:(?i)" + "[\\x00-\\uffff]" * 300 + "\\1",
    "flag that comes late": "re:a(?L)",
    "group name twice": "re:(?P<x>a)(?P<x>b)",
    "octal escape": "re:\\8",
    "accent": "re:.*é.*",
    "slow classes": "re:(?i)" + "[\0-\uffff]" * 300,
    "nested 2,000 deep": "re:" + "(" * 2000 + ")" * 2000,
    "unclosed 4,000 times": "re:" + "(" * 4000,
    "4,097 characters": "re:" + "a" * 4097,
    "a megabyte": "re:" + "a" * 1_000_000,
    "a megabyte of alternatives": "re:" + "a|" * 500_000,
    "lone surrogate": "re:\ud800",
    "lone surrogate within": "re:.*\udfff.*(",
    "terminal escape": "re:\x1b[2J(",
    "line break": "re:a\n(",
    "right-to-left override": "re:\u202e(",
}
"""Entries of an ignore or target list that cannot be matched in linear time, or not at all."""


# Families of cases ---------------------------------------------------------------------------------------------------

Family = Callable[[Random], Iterator[tuple[str, Files]]]


def header_lengths(chance: Random) -> Iterator[tuple[str, Files]]:
    """A first eight bytes that do not say how long the header is, and files that are something else."""
    raw = header_bytes(HEADER)
    contents: dict[str, Content] = {
        "empty file": b"",
        "one byte": b"\x01",
        "seven bytes": bytes(7),
        "eight zero bytes": bytes(8),
        "a megabyte of zeros": bytes(1 << 20),
        "half a gigabyte of zeros": Sparse(b"", 1 << 29),
        "big-endian": struct.pack(">Q", len(raw)) + raw + bytes(PAYLOAD),
        "four bytes": struct.pack("<I", len(raw)) + raw + bytes(PAYLOAD),
        "exactly over the limit": Sparse(struct.pack("<Q", (64 << 20) + 1) + b"{", 1 << 27),
        "100 MB of a larger file": Sparse(struct.pack("<Q", 100_000_000) + b"{", 1 << 30),
        "a megabyte of spaces": Sparse(struct.pack("<Q", 1 << 20) + b" " * (1 << 20), 1 << 27),
        "64 MiB of zeros": Sparse(struct.pack("<Q", 64 << 20), (64 << 20) + 8),
        "pickle": b"\x80\x04\x95\x00\x00\x00\x00\x00\x00\x00\x8c\x02os\x94\x8c\x06system\x94\x93\x94",
        "zip": b"PK\x03\x04" + bytes(100),
        "GGUF": b"GGUF\x03\x00\x00\x00" + bytes(100),
        "page of HTML": b"<!DOCTYPE html><html><head><title>404</title></head></html>",
        "LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 1024\n",
        "header without its length": raw + bytes(PAYLOAD),
    }
    lengths = {
        "1": 1, "2": 2, "2^31": 2**31, "2^32 + true length": 2**32 + len(raw), "2^63": 2**63, "2^64 - 1": 2**64 - 1,
        "one less": len(raw) - 1, "one more": len(raw) + 1, "whole file": len(raw) + PAYLOAD,
        "past the file": len(raw) + PAYLOAD + 1, "any": chance.randrange(2, len(raw) - 1),
    }  # fmt: skip
    for name, length in lengths.items():
        contents[f"length {name}"] = struct.pack("<Q", length) + raw + bytes(PAYLOAD)
    for name, content in contents.items():
        yield name, {**single_file(), f"{CHECKPOINT}/{SINGLE}": content}


def cut_files(chance: Random) -> Iterator[tuple[str, Files]]:
    """A shard that ends somewhere else."""
    whole = shard(header_bytes(HEADER), PAYLOAD)
    for position in sorted(chance.sample(range(8, len(whole)), 24)):
        yield f"cut at byte {position}", {**single_file(), f"{CHECKPOINT}/{SINGLE}": whole[:position]}
    for extra in (1, chance.randrange(2, 100), 4096):
        yield f"{extra} bytes too long", {**single_file(), f"{CHECKPOINT}/{SINGLE}": whole + bytes(extra)}


def header_json(chance: Random) -> Iterator[tuple[str, Files]]:
    """A header that is not one strict JSON object."""
    for name, raw in malformed_json(HEADER, chance):
        yield name, single_file(raw)
    yield "white space before the object", single_file(b" " + header_bytes(HEADER))
    yield "60 MB of empty objects", _large_header(b'{"w":[', b"{},", 20_000_000, b"{}]}")
    yield "60 MB of empty arrays", _large_header(b'{"w":[', b"[],", 20_000_000, b"[]]}")
    yield "60 MB of one string", _large_header(b'{"', b"aaaaaa", 10_000_000, b'":1}')
    yield "60 MB of digits", _large_header(b'{"w":', b"999999", 10_000_000, b"}")
    yield "60 MB of escapes", _large_header(b'{"w":"', b"\\u0041", 10_000_000, b'"}')


def _large_header(head: bytes, unit: bytes, times: int, tail: bytes) -> Files:
    length = len(head) + len(unit) * times + len(tail)
    return {f"{CHECKPOINT}/{SINGLE}": Repeated(struct.pack("<Q", length) + head, unit, times, tail)}


def tensor_entries(chance: Random) -> Iterator[tuple[str, Files]]:
    """A header whose JSON is well-formed and whose description of one tensor is not."""
    entry = HEADER[WEIGHT]
    begin, end = entry["data_offsets"]

    def changed(**keys: Any) -> Files:
        return single_file(edited(HEADER, WEIGHT, to={**entry, **keys}))

    for key in entry:
        yield f"without {key}", single_file(without(HEADER, WEIGHT, key))
    yield "with a key more", changed(strides=[1, 4])
    yield "with a misspelt key", changed(**{"Shape": [4, 4]})
    for name, other in _others("list", "text", "number", "null", "true", "empty object").items():
        yield f"is {name}", single_file(edited(HEADER, WEIGHT, to=other))

    dtypes = {
        "unknown": "F8_E4M3FN", "lower case": "f8_e4m3", "with a space": "F8_E4M3 ", "empty": "",
        "a megabyte long": "F" * 1_000_000, "terminal escapes": "\x1b[2J", "a lone surrogate": "\ud800",
    }  # fmt: skip
    for name, dtype in {**dtypes, **_others("list", "number", "null", "true", "empty object")}.items():
        yield f"dtype {name}", changed(dtype=dtype)

    shapes: dict[str, Any] = {
        "of text": ["4", "4"], "of fractions": [4.0, 4.0], "of true": [True, 16], "of null": [None],
        "of lists": [[4], 4], "of objects": [{}], "negative": [-4, -4], "one negative": [-16],
        "negative zero as a fraction": [-0.0], "not in one axis": [4, 5], "empty": [], "one axis too many": [4, 4, 2],
        "with a zero": [4, 0], "beyond 2^48": [2**48 + 1, 0], "2^63": [2**63], "2^64 + 16": [2**64 + 16],
        "wrapping to 0": [2**32, 2**32], "wrapping to 16": [2**60, 2**4 + 1, 2**4], "of 4,000 digits": [10**4000],
        "minus 4,000 digits": [-(10**4000)], "sixteen axes of 2^48": [2**48] * 16,
        "seventeen axes": [1] * 15 + [4, 4], "10,000 axes of 1": [1] * 10_000 + [16],
        "10,000 axes of 2^48": [2**48] * 10_000, "1e400": float("inf"),
    }  # fmt: skip
    for name, shape in {**shapes, **_others("text", "number", "null", "true", "empty object")}.items():
        raw = header_bytes(edited(HEADER, WEIGHT, to={**entry, "shape": shape})).replace(b"Infinity", b"[1e400]")
        yield f"shape {name}", single_file(raw)

    offsets: dict[str, Any] = {
        "empty": [], "one": [begin], "three": [begin, end, end], "text": [str(begin), str(end)],
        "fractions": [float(begin), float(end)], "true": [True, end], "null": [None, end], "lists": [[begin], [end]],
        "negative": [begin - 2**20, end - 2**20], "both negative": [-end, -begin], "reversed": [end, begin],
        "too short": [begin, end - 1], "too long": [begin, end + 1], "empty range": [begin, begin],
        "one byte later": [begin + 1, end + 1], "one byte earlier": [begin - 1, end - 1],
        "at 0 again": [0, end - begin], "past the file": [PAYLOAD, PAYLOAD + end - begin],
        "at 2^63": [2**63, 2**63 + end - begin], "beyond 2^64": [2**64 + begin, 2**64 + end],
        "of 4,000 digits": [10**4000, 10**4000 + end - begin], "to 4,000 digits": [begin, 10**4000],
        "1e400": float("inf"),
    }  # fmt: skip
    for name, pair in {**offsets, **_others("text", "number", "null", "true", "empty object")}.items():
        raw = header_bytes(edited(HEADER, WEIGHT, to={**entry, "data_offsets": pair}))
        yield f"offsets {name}", single_file(raw.replace(b"Infinity", b"[0,1e400]"))

    anywhere = chance.randrange(1, PAYLOAD)
    added = {
        "shares the bytes of another": ("F8_E4M3", [4, 4], [begin, end]),
        "covers all others": ("U8", [PAYLOAD], [0, PAYLOAD]),
        "begins within another": ("U8", [end - begin], [begin + 3, end + 3]),
        "is empty and within another": ("U8", [0], [begin + 5, begin + 5]),
        "is empty and past the file": ("U8", [0], [PAYLOAD + 1, PAYLOAD + 1]),
        "is empty at 2^63": ("U8", [0], [2**63, 2**63]),
        "is empty and of 2^48 squared": ("U8", [2**48 + 1, 0], [PAYLOAD, PAYLOAD]),
        "is one byte anywhere": ("U8", [1], [anywhere, anywhere + 1]),
        "is past the file": ("U8", [8], [PAYLOAD, PAYLOAD + 8]),
        "has a hole before it": ("U8", [8], [PAYLOAD + 8, PAYLOAD + 16]),
        "has three F4 in one byte": ("F4", [3], [PAYLOAD, PAYLOAD + 1]),
        "has three F4 in two bytes": ("F4", [3], [PAYLOAD, PAYLOAD + 2]),
        "has three F6 in two bytes": ("F6_E2M3", [3], [PAYLOAD, PAYLOAD + 2]),
        "has one F4": ("F4", [], [PAYLOAD, PAYLOAD]),
    }
    for name, (dtype, shape, pair) in added.items():
        tensor = {"dtype": dtype, "shape": shape, "data_offsets": pair}
        payload = max(PAYLOAD, pair[1]) if "F4" in name or "F6" in name or "hole" in name else PAYLOAD
        yield f"tensor that {name}", single_file({**HEADER, "added": tensor}, payload)
    many = {f"w.{n}": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for n in range(40_000)}
    yield "40,000 tensors of which the last is wrong", single_file({**many, "last": 1}, 0)
    yield "no tensors and a payload", single_file({"__metadata__": {}}, 8)
    first = next(name for name in HEADER if name != "__metadata__")
    yield "hole at the start", single_file(without(HEADER, first))
    yield "hole in the middle", single_file(without(HEADER, WEIGHT))
    yield "hole at the end", single_file(without(HEADER, list(HEADER)[-1]))


BAD_NAMES: Mapping[str, str] = {
    "empty": "", "space": " ", "with a space": "a b.weight", "of 1,025 characters": "a" * 1025,
    "of a megabyte": "a" * 1_000_000, "of a megabyte of dots": "." * 1_000_000, "with a NUL": "a\0b",
    "line break": "a\nb", "carriage return": "a\rerror: b", "tab": "a\tb", "backspaces": "abc\b\b\b",
    "clearing the screen": "\x1b[2J\x1b[H", "setting the title": "\x1b]0;owned\x07",
    "hiding itself": "\x1b[8mw\x1b[0m", "DEL": "a\x7fb", "C1": "a\x9bb", "right-to-left override": "a\u202etb",
    "line separator": "a\u2028b", "zero-width space": "a\u200bb", "byte order mark": "\ufeffa",
    "no-break space": "a\u00a0b", "accent": "poids_é", "Cyrillic": "m\u043edel.weight", "emoji": "a\U0001f600",
    "lone high surrogate": "a\ud800", "lone low surrogate": "a\udc00b", "variation": "a\ufe0f",
    "braces of a format": "{0.__class__.__mro__}", "empty braces": "model.{}.weight", "range": "model.{0-3}.weight",
    "opening brace": "a{", "closing brace": "}a",
}  # fmt: skip
"""Names that no tensor has, and that would be dangerous to print, to compare or to expand."""


def tensor_names(chance: Random) -> Iterator[tuple[str, Files]]:
    """A header with one more tensor, of no bytes, that has a name that none has."""
    tensor = {"dtype": "U8", "shape": [0], "data_offsets": [PAYLOAD, PAYLOAD]}
    for name, bad in BAD_NAMES.items():
        yield name, single_file({**HEADER, bad: tensor})
    character = chr(chance.choice([*range(0x80, 0xA0), *range(0x2000, 0x2010), *range(0xD800, 0xE000)]))
    yield "any character that is not printed", single_file({**HEADER, f"a{character}": tensor})
    for name, other in {
        **_others("list", "text", "number", "null", "true"), "numbers": {"a": 1}, "null inside": {"a": None},
        "an object inside": {"a": {}}, "a list inside": {"a": ["pt"]},
    }.items():  # fmt: skip
        yield f"__metadata__ is {name}", single_file({**HEADER, "__metadata__": other})
    metadata = {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}
    yield "__metadata__ is a tensor", single_file({**HEADER, "__metadata__": metadata})


def index_json(chance: Random) -> Iterator[tuple[str, Files]]:
    """An index that is not one strict JSON object."""
    for name, raw in malformed_json(good_index(), chance):
        yield name, sharded(raw)
    yield "65 MB", sharded(replaced={INDEX: Sparse(b'{"weight_map": {}}', 65 << 20)})
    yield "60 MB of empty objects", sharded(replaced={INDEX: Repeated(b'{"w":[', b"{},", 20_000_000, b"{}]}")})


def index_entries(chance: Random) -> Iterator[tuple[str, Files]]:
    """An index that is well-formed JSON and names the wrong things."""
    good = good_index()
    yield "no weight_map", sharded(without(good, "weight_map"))
    for name, other in _others("list", "text", "number", "null", "true", "empty object").items():
        yield f"weight_map is {name}", sharded(edited(good, "weight_map", to=other))
    yield "weight_map is a list of pairs", sharded(edited(good, "weight_map", to=list(good["weight_map"].items())))
    yield "weight_map has a key twice", sharded(f'{{"weight_map": {{{TWICE}}}}}'.encode())

    shards: dict[str, Any] = {
        "absolute": "/etc/passwd.safetensors", "in the parent": f"../{FIRST}", "in a child": f"sub/{FIRST}",
        "by way of a child": f"sub/../{FIRST}", "with a dot": f"./{FIRST}", "parent itself": "..", "dot": ".",
        "with a backslash": f"..\\{FIRST}", "on a drive": f"C:\\{FIRST}", "with a NUL": f"{FIRST}\0.safetensors",
        "with a NUL before its suffix": "a\0.safetensors", "a URL": f"https://example.org/{FIRST}", "empty": "",
        "of another suffix": "pytorch_model.bin", "without a suffix": "model", "upper case": FIRST.upper(),
        "with a space after it": f"{FIRST} ", "with a line break": f"a\n{FIRST}",
        "of terminal escapes": f"\x1b[2J{FIRST}", "accented": f"é{FIRST}", "a lone surrogate": f"\ud800{FIRST}",
        "right-to-left": f"\u202e{FIRST}", "of 10,000 characters": "a" * 10_000 + ".safetensors",
        "a suffix alone": ".safetensors", "absent": f"x{FIRST}", "a pattern": "*.safetensors", "the index": INDEX,
    }  # fmt: skip
    for name, value in {**shards, **_others("list", "number", "null", "true", "empty object")}.items():
        yield f"shard {name}", sharded(edited(good, "weight_map", WEIGHT, to=value))
    many = dict.fromkeys((f"w.{n}" for n in range(200_000)), FIRST)
    yield "200,000 tensors of which the last is wrong", sharded({"weight_map": {**many, "last": "x"}})
    yield "every shard absent", sharded({"weight_map": dict.fromkeys(good["weight_map"], "other.safetensors")})

    yield "tensor in the other shard", sharded(edited(good, "weight_map", WEIGHT, to=SECOND))
    yield "tensor that no shard holds", sharded(edited(good, "weight_map", "absent", to=FIRST))
    yield (
        "tensor of another case",
        sharded(edited(without(good, "weight_map", WEIGHT), "weight_map", WEIGHT.upper(), to=FIRST)),
    )
    yield "tensor that is not indexed", sharded(without(good, "weight_map", chance.choice(list(good["weight_map"]))))
    only_first = {name: value for name, value in good["weight_map"].items() if value == FIRST}
    yield (
        "tensor in two shards",
        sharded(replaced={SECOND: shard(header_bytes(HEADER), PAYLOAD), FIRST: shard(header_bytes(HEADER), PAYLOAD)}),
    )
    yield "tensor __metadata__", sharded(edited(good, "weight_map", "__metadata__", to=FIRST))
    yield "shard of an unindexed half", sharded({"weight_map": {**only_first, OTHER_WEIGHT: SECOND}})
    for name in chance.sample(sorted(BAD_NAMES), 12):
        yield f"tensor name {name}", sharded(edited(good, "weight_map", BAD_NAMES[name], to=FIRST))

    yield "shard is a folder", sharded(replaced={FIRST: Folder()})
    yield "shard is a pipe", sharded(replaced={FIRST: Pipe()})
    yield "shard is a link outside", sharded(replaced={FIRST: Link("/etc/hostname")})
    yield "shard is a link to the parent", sharded(replaced={FIRST: Link(f"../{FIRST}")})
    yield "shard is a link to nothing", sharded(replaced={FIRST: Link("nothing")})
    yield "shard is a link to itself", sharded(replaced={FIRST: Link(FIRST)})
    yield "shard is a link to endless zeros", sharded(replaced={FIRST: Link("/dev/zero")})
    yield "shard is a link to the index", sharded(replaced={FIRST: Link(INDEX)})
    yield "index is a folder", {**_without(sharded(), INDEX), f"{CHECKPOINT}/{INDEX}": Folder()}
    yield "index is a pipe", sharded(replaced={INDEX: Pipe()})
    yield "index is a link to endless zeros", sharded(replaced={INDEX: Link("/dev/zero")})
    yield "index is a link outside", {**sharded(replaced={INDEX: Link("../index.json")}), "index.json": b"{}"}


def directories(chance: Random) -> Iterator[tuple[str, Files]]:
    """A directory that is no checkpoint, or one that reaches out of itself."""
    good = single_file()
    inside = f"{CHECKPOINT}/"
    yield "nothing there", {}
    yield "empty", {CHECKPOINT: Folder()}
    yield "config alone", {f"{inside}{CONFIG}": as_yaml(CONFIG_JSON)}
    yield "pickles alone", {f"{inside}pytorch_model.bin": b"\x80\x04."}
    yield "pickle of another name", {f"{inside}consolidated.00.pth": b"\x80\x04."}
    yield "weights upper case", {f"{inside}MODEL.SAFETENSORS": good[f"{inside}{SINGLE}"]}
    yield "shards without an index", _without(sharded(), INDEX)
    yield "weights are a folder", {f"{inside}{SINGLE}": Folder()}
    yield "weights are a pipe", {**good, f"{inside}{SINGLE}": Pipe()}
    yield "weights link outside", {f"{inside}{SINGLE}": Link(f"../{SINGLE}"), SINGLE: good[f"{inside}{SINGLE}"]}
    yield "weights link to endless zeros", {f"{inside}{SINGLE}": Link("/dev/zero")}
    yield "config is a pipe", {**good, f"{inside}{CONFIG}": Pipe()}
    yield "config links outside", {**good, f"{inside}{CONFIG}": Link("../secret.json"), "secret.json": b"{}"}
    yield "config links to a password", {**good, f"{inside}{CONFIG}": Link("/etc/passwd")}
    yield "config links to endless zeros", {**good, f"{inside}{CONFIG}": Link("/dev/zero")}
    yield "config larger than any", {**good, f"{inside}{CONFIG}": Sparse(b"{}", 65 << 20)}
    yield "other file links outside", {**good, f"{inside}tokenizer.json": Link("../../../../../../../etc/passwd")}
    yield "folder links outside", {**good, f"{inside}assets": Link("/etc")}
    yield "folder links to its parent", {**good, f"{inside}assets": Link("..")}
    yield "pipe in a folder", {**good, f"{inside}assets/pipe": Pipe()}
    yield "link to nothing of terminal escapes", {**good, f"{inside}\x1b[2J\x1b[31m": Link("nothing")}
    yield "link to nothing with a line break", {**good, f"{inside}a\nerror: b": Link("nothing")}
    yield "link to nothing not in UTF-8", {**good, inside + os.fsdecode(b"\xff\xfe"): Link("nothing")}
    yield "link to nothing of 255 characters", {**good, inside + "n" * 255: Link("nothing")}
    links = {f"{inside}link{n}": Link(f"link{n + 1}") for n in range(50)}
    yield "links that go round", {**good, **links, f"{inside}link50": Link("link0")}
    yield "folders nested 1,050 deep", {**good, f"{inside}d": Folder(1050)}
    several = chance.sample("abcdefgh", 3)
    yield "several weights and no index", {f"{inside}{name}.safetensors": b"" for name in several}


def config_json(chance: Random) -> Iterator[tuple[str, Files]]:
    """A config.json that is no strict JSON object; Python's own constants are read as Python reads them."""
    constants = ("number NaN", "number Infinity", "number -Infinity")
    for name, raw in malformed_json(CONFIG_JSON, chance):
        if name in constants:
            continue
        yield name, {**single_file(), f"{CHECKPOINT}/{CONFIG}": raw}


def quantization_configs(chance: Random) -> Iterator[tuple[str, Files]]:
    """A config.json whose quantization config no quantizer writes."""
    path = ("quantization_config",)

    def changed(*steps: str | int, to: Any) -> Files:
        return single_file(config=edited(CONFIG_JSON, *path, *steps, to=to))

    for name, other in _others("list", "empty list", "text", "empty text", "number", "zero", "true", "false").items():
        yield f"is {name}", single_file(config=edited(CONFIG_JSON, *path, to=other))
        yield f"in text_config is {name}", single_file(config={"text_config": {"compression_config": other}})
    for name, other in _others("list", "number", "null", "true", "empty object").items():
        yield f"quant_method is {name}", changed("quant_method", to=other)
        yield f"format is {name}", changed("format", to=other)
    for method in ("hqq", "gptq", "bitsandbytes"):
        yield f"quant_method {method} is not read", changed("quant_method", to=method)
    for name, text in {
        "terminal escapes": "\x1b[2J\x1b]0;owned\x07", "a line break": "a\nPASS  b",
        "right-to-left override": "\u202etpircs", "a megabyte": "f" * 1_000_000, "Markdown": "a|b`c<script>",
    }.items():  # fmt: skip
        yield f"quant_method is {name}", changed("quant_method", to=text)
        yield f"format is {name}", changed("format", to=text)
    for name, other in _others("list", "text", "number", "true").items():
        yield f"config_groups is {name}", changed("config_groups", to=other)
        listed = [other] if isinstance(other, list) else other
        yield f"targets is {name}", changed("config_groups", "group_0", "targets", to=listed)
        yield f"ignore is {name}", changed("ignore", to=listed)
    for name, other in _others("list", "empty list", "text", "number", "null", "true", "empty object").items():
        yield f"config group is {name}", changed("config_groups", "group_0", to=other)
        if name != "null":
            yield (
                f"input_activations is {name}",
                changed("config_groups", "group_0", "input_activations", to=_bad(other)),
            )
            yield (
                f"output_activations is {name}",
                changed("config_groups", "group_0", "output_activations", to=_bad(other)),
            )
            yield f"kv_cache_scheme is {name}", changed("kv_cache_scheme", to=_bad(other))
        yield f"weights is {name}", changed("config_groups", "group_0", "weights", to=_bad(other))
    yield "targets is an object", changed("config_groups", "group_0", "targets", to={"Linear": 1})
    yield "format that is not known", changed("format", to="float-quantised")
    yield "quant_method that is not known", changed("quant_method", to="nonsense")
    yield "key that is not known", changed("config_groop", to={})
    yield "key of a megabyte", changed("k" * 1_000_000, to={})
    yield "key of a group that is not known", changed("config_groups", "group_0", "weight", to={})
    yield "key of terminal escapes in weights", changed("config_groups", "group_0", "weights", "\x1b[2J", to=4)
    yield "rotations", changed("transform_config", to={"config_groups": {"u": {"type": "hadamard"}}})
    yield "ignore is an object", changed("ignore", to={"lm_head": 1})
    yield "ignore holds null", changed("ignore", to=["lm_head", None])
    yield "preset unknown", changed("config_groups", to={"FP9": ["Linear"]})
    yield "preset of a megabyte", changed("config_groups", to={"F" * 1_000_000: ["Linear"]})
    for name, bad in {
        "terminal escapes": "\x1b[2J\x1b]0;owned\x07", "a line break": "a\nerror: b", "a lone surrogate": "\ud800",
        "a megabyte": "g" * 1_000_000, "right-to-left override": "\u202eg",
    }.items():  # fmt: skip
        yield f"bad group named by {name}", changed("config_groups", to={bad: 5})
        yield (
            f"bad weights in a group named by {name}",
            changed("config_groups", to={bad: {"weights": {"num_bits": 99}}}),
        )

    arguments: dict[str, dict[str, Any]] = {
        "num_bits": {
            "true": True, "text": "8", "a fraction": 8.0, "1e9": 10**9, "-1": -1, "0": 0, "17": 17, "null": None,
            "a list": [8], "an object": {}, "4,000 digits": 10**4000,
        },
        "type": {
            "unknown": "floot", "a number": 8, "null": None, "a list": ["float"], "a megabyte": "f" * 1_000_000,
            "terminal escapes": "\x1b[2J", "a lone surrogate": "\ud800",
        },
        "strategy": {
            "unknown": "channels", "a number": 8, "true": True, "a list": ["channel"], "an object": {"a": 1},
            "terminal escapes": "\x1b[2J", "a megabyte": "c" * 1_000_000,
        },
        "dynamic": {"text": "yes", "2": 2, "null": None, "a list": [True], "an object": {}},
        "symmetric": {"1": 1, "text": "true", "null": None, "a list": [True]},
    }  # fmt: skip
    weights = ("config_groups", "group_0", "weights")
    for key, values in arguments.items():
        for name, value in values.items():
            yield f"{key} {name}", changed(*weights, key, to=value)
    for name, size in {
        "0": 0, "-1": -1, "-5": -5, "true": True, "text": "128", "a fraction": 128.0, "null": None, "a list": [128],
        "2^21": 2**21, "4,000 digits": 10**4000, "minus 4,000 digits": -(10**4000),
    }.items():  # fmt: skip
        for strategy in ("group", "tensor_group"):
            yield f"group_size {name} per {strategy}", changed(*weights, to={"strategy": strategy, "group_size": size})
    for name, sides in {
        **_others("list", "empty list", "text", "number", "null", "true", "empty object"), "one": [128],
        "three": [128] * 3, "zero": [0, 128], "negative": [128, -1], "true twice": [True, True],
        "text twice": ["128", "128"], "fractions": [128.0, 128.0], "2^21": [2**21, 1], "4,000 digits": [10**4000] * 2,
    }.items():  # fmt: skip
        yield f"block_structure {name}", changed(*weights, to={"strategy": "block", "block_structure": sides})

    for name, pattern in EVIL_PATTERNS.items():
        yield f"ignore {name}", changed("ignore", to=["lm_head", pattern])
    for name in chance.sample(sorted(EVIL_PATTERNS), 12):
        yield f"target {name}", changed("config_groups", "group_0", "targets", to=["Linear", EVIL_PATTERNS[name]])
    many = [f"re:.*{chance.randrange(10**9)}" for _ in range(100_000)]
    yield "ignore 100,000 expressions", changed("ignore", to=many)
    yield "target 100,000 expressions", changed("config_groups", "group_0", "targets", to=many)


def lock_yaml(chance: Random) -> Iterator[tuple[str, Files]]:
    """A lock that is not one plain YAML mapping."""
    for name, content in malformed_yaml(LOCK_YAML, chance):
        yield name, {LOCK: content}


def locks(chance: Random) -> Iterator[tuple[str, Files]]:
    """A lock that is well-formed YAML and says what no lock says."""

    def changed(*steps: str | int, to: Any) -> Files:
        return {LOCK: as_yaml(edited(LOCK_YAML, *steps, to=to))}

    for name, version in {"2": 2, "0": 0, "-1": -1, "text": "1", "a fraction": 1.0, "true": True, "null": None}.items():
        yield f"version {name}", changed("structure_lock", to=version)
    for key in ("structure_lock", "repository", "base", "basis", "tensors"):
        yield f"without {key}", {LOCK: as_yaml(without(LOCK_YAML, key))}
    for key in ("repository", "revision", "base", "basis", "note", "tensors", "quantization", "files", "config"):
        yield f"{key} is a number", changed(key, to=5)
        yield f"{key} is a list of lists", changed(key, to=[[5]])
    yield "unknown basis", changed("basis", to="guessed")
    yield "unknown key in quantization", changed("quantization", "surprise", to=1)
    yield "unknown key in a file", changed("files", "model.safetensors", "surprise", to=1)
    yield "unknown key in a file named by terminal escapes", changed("files", "\x1b[2J", to={"surprise": 1})
    yield "bad digest of a file named by terminal escapes", changed("files", "\x1b[2J\n", to={"sha256": "0"})
    yield "bad digest of a file named by a megabyte", changed("files", "f" * 1_000_000, to={"sha256": "0"})
    for name, digest in {
        "short": "0" * 63, "long": "0" * 65, "upper case": "A" * 64, "no hex": "g" * 64, "empty": "",
        "with a line break": "0" * 64 + "\n", "a number": 0, "Arabic digits": "\u0660" * 64, "sha1": "0" * 40,
        "with a prefix": "sha256:" + "0" * 64,
    }.items():  # fmt: skip
        yield f"digest {name}", changed("files", "model.safetensors", "sha256", to=digest)
    for name, size in {"negative": -1, "text": "1024", "a fraction": 1024.5, "true": True, "a list": [1]}.items():
        yield f"size {name}", changed("files", "model.safetensors", "size", to=size)
    yield "a file that is text", changed("files", "model.safetensors", to="0" * 64)

    lines = {
        "empty": "", "a name alone": "w", "no shape": "w BF16", "shape without brackets": "w BF16 4",
        "unclosed": "w BF16 [4", "unopened": "w BF16 4]", "negative": "w BF16 [-4]", "a fraction": "w BF16 [4.0]",
        "empty axis": "w BF16 [4,,4]", "trailing comma": "w BF16 [4,]", "Arabic digits": "w BF16 [\u0664]",
        "superscript digit": "w BF16 [4\u00b2]", "hexadecimal": "w BF16 [0x4]", "underscore": "w BF16 [1_0]",
        "beyond 2^48": f"w BF16 [{2**48 + 1}]", "5,000 digits": f"w BF16 [{HUGE}]",
        "10,000 axes": f"w BF16 [{', '.join(['281474976710656'] * 10_000)}]",
        "seventeen axes": f"w BF16 [{', '.join(['1'] * 17)}]", "unknown dtype": "w F99 [4]",
        "lower case dtype": "w bf16 [4]", "no name": " BF16 [4]", "two spaces": "w  BF16 [4]",
        "after the shape": "w BF16 [4] x", "nested": "w BF16 [[4]]", "line break": "w\nBF16 [4]",
        "tab": "w\tBF16 [4]", "terminal escape": "\x1b[2J BF16 [4]", "accent": "é BF16 [4]",
        "name of 1,025": "a" * 1025 + " BF16 [4]", "name of a megabyte": "a" * 1_000_000 + " BF16 [4]",
        "a megabyte of braces": "a" + "{" * 1_000_000 + " BF16 [4]", "three F4": "w F4 [3]",
        "range descends": "w.{3-0} BF16 [4]", "range repeats": "w.{0,0} BF16 [4]",
        "ranges overlap": "w.{0-3,2} BF16 [4]", "ranges touch": "w.{0-3,3-5} BF16 [4]",
        "range of letters": "w.{a-c} BF16 [4]", "range open": "w.{0-} BF16 [4]",
        "range without a start": "w.{-3} BF16 [4]", "range with a zero first": "w.{00-03} BF16 [4]",
        "range unclosed": "w.{0-3 BF16 [4]", "range unopened": "w.0-3} BF16 [4]",
        "range doubled": "w.{{0-3}} BF16 [4]", "range within a part": "w{0-3} BF16 [4]",
        "range before a letter": "w.{0-3}a BF16 [4]", "empty braces": "w.{} BF16 [4]",
        "braces of a format": "w.{0.__class__} BF16 [4]", "comma alone": "w.{,} BF16 [4]",
        "range of 10,000,000": "w.{0-9999999} BF16 [4]", "range of eight digits": "w.{0-99999999} BF16 [4]",
        "ranges whose product is 10^12": "w.{0-999999}.{0-999999} BF16 [4]",
        "ranges whose product is 2^60": "w" + ".{0-1}" * 60 + " BF16 [4]",
        "seventy ranges of 4,000,000": "w" + ".{0-3999999}" * 70 + " BF16 [4]",
        "name that is described already": f"{WEIGHT} BF16 [4]",
        "range that holds a name already": "model.layers.{0-99}.self_attn.q_proj.weight BF16 [4]",
    }  # fmt: skip
    for name, line in lines.items():
        yield f"tensor line {name}", changed("tensors", to=[*LOCK_YAML["tensors"], line])
    many = [f"w{n} BF16 [4]" for n in range(20_000)]
    yield "20,000 tensor lines of which the last is wrong", changed("tensors", to=[*many, "w"])
    yield "tensors are numbers", changed("tensors", to=[1, 2])
    yield "tensors are null", changed("tensors", to=[None])
    yield "tensors beyond the limit, together", changed("tensors", to=[f"{n}.{{0-999999}} U8 [1]" for n in "abcdefgh"])

    for name, module in {
        "no scheme": "model.layers.0", "unknown scheme": "model fp9", "empty": "", "space": " ",
        "range of 10,000,000": "a.{0-9999999} fp8", "empty braces": "a.{} fp8",
        "seventy ranges": "a" + ".{0-3999999}" * 70 + " fp8", "range descends": "a.{3-0} fp8",
        "terminal escape": "\x1b[2J fp8", "line break": "a\nb fp8", "a megabyte": "a" * 1_000_000 + " fp8",
        "a megabyte of braces": "{" * 1_000_000 + " fp8",
    }.items():  # fmt: skip
        yield f"module {name}", changed("quantization", "modules", to=[module])
    yield "modules is text", changed("quantization", "modules", to="a fp8")
    yield "schemes is a list", changed("quantization", "schemes", to=[])
    yield "no schemes", {LOCK: as_yaml(without(LOCK_YAML, "quantization", "schemes"))}
    for name, scheme in {
        "empty": {}, "null weights": {"weights": None}, "weights of text": {"weights": "fp8"},
        "99 bits": {"weights": {"num_bits": 99}}, "no such strategy": {"weights": {"strategy": "x"}},
        "group size 0": {"weights": {"group_size": 0}},
        "activations of text": {"weights": {}, "input_activations": "x"},
    }.items():  # fmt: skip
        yield f"scheme {name}", changed("quantization", "schemes", to={"fp8": scheme})
    yield "bad scheme named by terminal escapes", changed("quantization", "schemes", to={"\x1b[2J": {}})
    yield "bad scheme named by a megabyte", changed("quantization", "schemes", to={"f" * 1_000_000: {}})
    for name, cache in {
        "99 bits": {"num_bits": 99},
        "text bits": {"num_bits": "8"},
        "no such type": {"type": "x"},
    }.items():
        yield f"kv_cache {name}", changed("quantization", "kv_cache", to=cache)
    yield "kv_cache is a list", changed("quantization", "kv_cache", to=[8])
    cut = chance.randrange(5, 50)
    yield "a checkpoint's config in its place", {LOCK: as_yaml(CONFIG_JSON)}
    yield "a recipe in its place", {LOCK: as_yaml(RECIPE_YAML)}
    yield "a safetensors file in its place", {LOCK: shard(header_bytes(HEADER), PAYLOAD)}
    yield "a pickle in its place", {LOCK: b"\x80\x04\x95" + bytes(cut)}


def recipe_yaml(chance: Random) -> Iterator[tuple[str, Files]]:
    """A recipe that is not one plain YAML mapping."""
    for name, content in malformed_yaml(RECIPE_YAML, chance):
        yield name, {RECIPE: content, SOURCE: as_yaml(SOURCE_YAML)}


def recipes(chance: Random) -> Iterator[tuple[str, Files]]:
    """A recipe that is well-formed YAML and asks for what none can."""
    source = as_yaml(SOURCE_YAML)

    def changed(*steps: str | int, to: Any) -> Files:
        return {RECIPE: as_yaml(edited(RECIPE_YAML, *steps, to=to)), SOURCE: source}

    for key in ("name", "description", "base", "method", "scheme"):
        yield f"without {key}", {RECIPE: as_yaml(without(RECIPE_YAML, key)), SOURCE: source}
    for key in (*RECIPE_YAML, "config_groups", "allow", "fused_groups", "references"):
        yield f"{key} is a number", changed(key, to=5)
        yield f"{key} is a list of lists of numbers", changed(key, to=[[5]])
    for name, bad in {
        "a path": "../x", "upper case": "FP8", "empty": "", "with a line break": "a\n", "a dot first": ".a",
        "terminal escapes": "\x1b[2J",
    }.items():  # fmt: skip
        yield f"name {name}", changed("name", to=bad)
    for name, bad in {
        "without an organization": "model", "of three parts": "a/b/c", "with a space": "a/b c",
        "with a revision": "a/b@main", "of terminal escapes": "a/\x1b[2J", "with a line break": "a/b\n",
        "in the parent": "../checkpoint", "of 5,000 characters": "a" * 5000 + "/b",
    }.items():  # fmt: skip
        yield f"model {name}", changed("base", "model", to=bad)
    revisions: dict[str, Any] = {"short": "0" * 39, "a branch": "main", "upper case": "A" * 40, "a number": 0}
    for name, revision in revisions.items():
        yield f"revision {name}", changed("base", "revision", to=revision)
    yield "licence empty", changed("base", "licence", to="")
    yield "unknown key in base", changed("base", "surprise", to=1)
    yield "method unknown", changed("method", to="rm")
    yield "scheme unknown", changed("scheme", to="FP9")
    yield "scheme of terminal escapes", changed("scheme", to="\x1b[2J")
    yield "scheme of a megabyte", changed("scheme", to="F" * 1_000_000)
    yield "scheme and config_groups", changed("config_groups", to={"a": {"scheme": "FP8_DYNAMIC"}})
    for name, pattern in EVIL_PATTERNS.items():
        yield f"ignore {name}", changed("ignore", to=["lm_head", pattern])
    for name, entry in {
        "a number": 5, "null": None, "empty": "", "a list": ["a"], "without a pattern": {"allow": "a/b because c"},
        "with an unknown key": {"pattern": "a", "surprise": 1},
        "allow without a reason": {"pattern": "a", "allow": "a/b"},
        "allow with a short reason": {"pattern": "a", "allow": "a/b because"},
    }.items():  # fmt: skip
        yield f"ignore entry {name}", changed("ignore", to=[entry])
    yield "ignore the same twice", changed("ignore", to=["a", "a"])
    names = [f"n{number}" for number in range(100_000)]
    yield "ignore 100,000 names, the last one twice", changed("ignore", to=[*names, names[-1]])
    yield "ignore 100,000 expressions", changed("ignore", to=[f"re:.*{chance.randrange(10**9)}" for _ in names])
    grouped = without(RECIPE_YAML, "scheme")

    def group(value: Any) -> Files:
        return {RECIPE: as_yaml({**grouped, "config_groups": {"a": value}}), SOURCE: source}

    for name, value in {
        "empty": {}, "a number": 5, "a list": ["Linear"], "scheme and weights": {"scheme": "FP8", "weights": {}},
        "unknown scheme": {"scheme": "x"}, "bad target": {"scheme": "FP8", "targets": ["re:("]},
        "target of a number": {"scheme": "FP8", "targets": [5]}, "weights of 99 bits": {"weights": {"num_bits": 99}},
        "weights of text": {"weights": "x"}, "group size 0": {"weights": {"group_size": 0}},
        "group size -5": {"weights": {"group_size": -5}},
        "block of one": {"weights": {"strategy": "block", "block_structure": [1]}},
        "target twice": {"scheme": "FP8", "targets": ["a", "a"]},
        "bad activations": {"weights": {}, "input_activations": {"type": 5}},
    }.items():  # fmt: skip
        yield f"config group {name}", group(value)
    for name, explained in {
        "range of 10,000,000": "a.{0-9999999}", "range descends": "a.{3-0}", "empty": "", "empty braces": "a.{}",
        "seventy ranges": "a" + ".{0-3999999}" * 70, "a megabyte of braces": "{" * 1_000_000,
    }.items():  # fmt: skip
        entry = {"difference": "shape", "tensors": explained, "why": "a reason that is long enough"}
        yield f"explains {name}", changed("references", to=[{"lock": "a/b", "explains": [entry]}])
    good = {"difference": "shape", "tensors": "a", "why": "a reason that is long enough"}
    yield (
        "explains an unknown difference",
        changed("references", to=[{"lock": "a/b", "explains": [{**good, "difference": "x"}]}]),
    )
    yield "explains without a reason", changed("references", to=[{"lock": "a/b", "explains": [{**good, "why": "no"}]}])
    for name, lock in {
        "absolute": "/etc/passwd", "in the parent": "../README", "of three parts": "../../a", "empty": "",
        "a URL": "https://example.org/a", "of 5,000 characters": "a" * 5000 + "/b",
    }.items():  # fmt: skip
        yield f"reference {name}", changed("references", to=[{"lock": lock}])
    yield "a lock in its place", {RECIPE: as_yaml(LOCK_YAML), SOURCE: source}
    yield "a safetensors file in its place", {RECIPE: shard(header_bytes(HEADER), PAYLOAD), SOURCE: source}
    yield "a folder in its place", {RECIPE: Folder(), SOURCE: source}
    yield "a pipe in its place", {RECIPE: Pipe(), SOURCE: source}


def sources(chance: Random) -> Iterator[tuple[str, Files]]:
    """What a plan is asked to be made for, and cannot be."""
    recipe = as_yaml(RECIPE_YAML)

    def lock(*lines: str) -> Files:
        return {RECIPE: recipe, SOURCE: as_yaml(edited(SOURCE_YAML, "tensors", to=[*SOURCE_YAML["tensors"], *lines]))}

    other = edited(LOCK_YAML, "quantization", "quant_method", to="hqq")
    yield "already quantized, and not decoded", {RECIPE: recipe, SOURCE: as_yaml(other)}
    yield "quantized without saying so", lock("model.a.weight F8_E4M3 [4, 4]")
    yield "integer weights", lock("model.a.weight I32 [4, 4]")
    yield "2^48 experts of no rows", lock("model.mlp.experts.gate_up_proj BF16 [281474976710656, 0, 32]")
    yield "2^48 experts", lock("model.mlp.experts.down_proj BF16 [281474976710656, 32, 32]")
    yield (
        "ten million experts",
        lock(f"model.mlp.experts.down_proj BF16 [{10_000_000 + chance.randrange(100)}, 32, 32]"),
    )
    yield "a million layers of many experts", lock("a.{0-999999}.experts.down_proj BF16 [1000, 32, 32]")
    yield "experts fused and one by one", lock("model.layers.0.mlp.experts.0.down_proj.weight BF16 [32, 64]")
    yield "gate and up of unequal height", lock("model.mlp.experts.gate_up_proj BF16 [2, 127, 32]")
    for name, content in {"nothing there": None, "empty": b"", "a pickle": b"\x80\x04.", "a word": b"word"}.items():
        yield name, {RECIPE: recipe} if content is None else {RECIPE: recipe, SOURCE: content}


def source_directories(chance: Random) -> Iterator[tuple[str, Files]]:
    """A directory as the source of a plan that cannot be."""
    recipe = as_yaml(RECIPE_YAML)
    header = header_of({"model.a.weight": ("BF16", (4, 4))})
    end = payload_of(header)
    for name, shape in {
        "2^48 experts of no rows": [2**48, 0, 32],
        "2^40 experts of no columns": [2**40, 32, 0],
    }.items():
        tensor = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end]}
        files = single_file({**header, "model.mlp.experts.gate_up_proj": tensor}, end, config={})
        yield name, {RECIPE: recipe, **files}
    other = edited(CONFIG_JSON, "quantization_config", "quant_method", to="hqq")
    yield "already quantized, and not decoded", {RECIPE: recipe, **single_file(config=other)}
    position = chance.randrange(8, 200)
    cut = shard(header_bytes(HEADER), PAYLOAD)[:position]
    yield "cut", {RECIPE: recipe, **single_file(), f"{CHECKPOINT}/{SINGLE}": cut}


def references(chance: Random) -> Iterator[tuple[str, Files]]:
    """A good checkpoint that is to be held against a hostile lock."""
    for family in (locks, lock_yaml):
        found = list(family(chance))
        for name, files in chance.sample(found, 6):
            yield name, {**single_file(), **files}


def _others(*kinds: str) -> dict[str, Any]:
    """JSON values of other kinds than the one that belongs there."""
    values: dict[str, Any] = {
        "list": [1], "empty list": [], "text": "text", "empty text": "", "number": 5, "zero": 0, "null": None,
        "true": True, "false": False, "empty object": {},
    }  # fmt: skip
    names = {
        "null": "null",
        "true": "true",
        "false": "false",
        "text": "text",
        "zero": "zero",
        "empty text": "empty text",
    }
    article = {"list": "a list", "empty list": "an empty list", "number": "a number", "empty object": "an empty object"}
    return {(names | article)[kind]: values[kind] for kind in kinds}


def _bad(other: Any) -> Any:
    """Quantization arguments that cannot be: an empty object can, so it gets a wrong one."""
    return {"num_bits": []} if other == {} else other


def _without(files: Files, name: str) -> dict[str, Content]:
    return {path: content for path, content in files.items() if path != f"{CHECKPOINT}/{name}"}


REFERENCE = (CHECKPOINT, "--reference", LOCK)
PLAN = (RECIPE, "--plan", "--model", SOURCE)
FAMILIES: Mapping[str, tuple[Literal["build", "validate"], tuple[str, ...], Family]] = {
    "header length": ("validate", (CHECKPOINT,), header_lengths),
    "cut file": ("validate", (CHECKPOINT,), cut_files),
    "header": ("validate", (CHECKPOINT,), header_json),
    "tensor": ("validate", (CHECKPOINT,), tensor_entries),
    "tensor name": ("validate", (CHECKPOINT,), tensor_names),
    "index": ("validate", (CHECKPOINT,), index_json),
    "index entry": ("validate", (CHECKPOINT,), index_entries),
    "directory": ("validate", (CHECKPOINT,), directories),
    "config": ("validate", (CHECKPOINT,), config_json),
    "quantization config": ("validate", (CHECKPOINT,), quantization_configs),
    "lock text": ("validate", (LOCK,), lock_yaml),
    "lock": ("validate", (LOCK,), locks),
    "reference": ("validate", REFERENCE, references),
    "recipe text": ("build", PLAN, recipe_yaml),
    "recipe": ("build", PLAN, recipes),
    "source": ("build", PLAN, sources),
    "source directory": ("build", (RECIPE, "--plan", "--model", CHECKPOINT), source_directories),
}


def cases(seed: int = SEED) -> Iterator[HostileCase]:
    """Every case that must be refused with exit code 2 and one sentence."""
    for family, (command, arguments, variations) in FAMILIES.items():
        for variation, files in variations(Random(f"{seed} {family}")):
            yield HostileCase(f"{family}/{variation}", command, arguments, files)


def good() -> list[HostileCase]:
    """What the cases are made from, undamaged: each must hold."""
    recipe, source, lock = as_yaml(RECIPE_YAML), as_yaml(SOURCE_YAML), as_yaml(LOCK_YAML)
    return [
        HostileCase("single file", "validate", (CHECKPOINT,), single_file()),
        HostileCase("sharded", "validate", (CHECKPOINT,), sharded()),
        HostileCase("lock", "validate", (LOCK,), {LOCK: lock}),
        HostileCase("recipe", "build", PLAN, {RECIPE: recipe, SOURCE: source}),
    ]


ODD_PATTERNS: Mapping[str, str] = {
    "nested stars": "re:(a+)+$", "stars of alternatives": "re:(a|a)*$", "stars of stars": "re:(.*)*(.*)*(.*)*x",
    "optional characters": "re:" + "a?" * 150 + "a" * 150, "many states": "re:(?:.*a.{300}){2}",
    "lookahead": "re:.*(?=proj)", "negative lookahead": "re:(?!.*vision).*", "lookbehind": "re:.*(?<=q)_proj",
    "negative lookbehind": "re:.*(?<!q)_proj", "evil lookahead": "re:(?=(a+)+$)a",
    "evil after a lookahead": "re:(?!x)(((.+)+)+)+y", "lookaheads within": "re:(?=(?=(?=(.*)*x)*.*)*z)*.*",
    "lookahead of repetitions": "re:(?!x)((((a{99}){99}){99}){99}){99}",
    "empty expression": "re:", "line break": "re:a\nb", "empty name": "",
    "name like a path": "../../etc/passwd", "name of format braces": "{0.__class__}",
    "name of terminal escapes": "\x1b[2J",
    "name of a megabyte": "a" * 1_000_000,
}  # fmt: skip
"""Entries of an ignore list that would hang a matcher that backtracks, or that look worse than they are."""


def survivors(seed: int = SEED) -> Iterator[HostileCase]:
    """Cases that are as odd as the others and legal: each is judged, with exit code 0 or 1."""
    chance = Random(f"{seed} survivors")
    for family, files in _legal(chance):
        yield HostileCase(family, "validate", (LOCK if LOCK in files else CHECKPOINT,), files)
    for name in ("repository", "revision", "base", "note"):
        lock = as_yaml(edited(LOCK_YAML, name, to="\x1b[2J\nPASS"))
        files = {**single_file(), LOCK: lock}
        yield HostileCase(f"reference with a {name} of terminal escapes", "validate", REFERENCE, files)
    for family, files in _legal_sources():
        arguments = (RECIPE, "--plan", "--model", SOURCE if SOURCE in files else CHECKPOINT)
        yield HostileCase(family, "build", arguments, {RECIPE: as_yaml(RECIPE_YAML), **files})


def _legal(chance: Random) -> Iterator[tuple[str, Files]]:
    def configured(**keys: Any) -> Files:
        return single_file(
            config=edited(CONFIG_JSON, "quantization_config", to={**CONFIG_JSON["quantization_config"], **keys})
        )

    for name, pattern in ODD_PATTERNS.items():
        yield f"ignore {name}", configured(ignore=[pattern])
        yield f"target {name}", configured(config_groups={"group_0": {**CONFIG_GROUP, "targets": ["Linear", pattern]}})
    yield "ignore nested stars 250 times", configured(ignore=[f"re:(a+)+{n}$" for n in range(250)])
    yield "ignore 50,000 names", configured(ignore=[f"model.layers.{n}.proj" for n in range(50_000)])
    yield (
        "quant_method whose modules are stored otherwise",
        single_file(
            config=edited(
                CONFIG_JSON,
                "quantization_config",
                to={"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True, "desc_act": False},
            )
        ),
    )
    yield "config with numbers out of range", single_file(config={**CONFIG_JSON, "rope_theta": 10**400})
    raw = json.dumps(CONFIG_JSON)
    nested = "[" * 30 + "]" * 30
    yield (
        "config nested 30 deep",
        {**single_file(), f"{CHECKPOINT}/{CONFIG}": raw.replace("{", f'{{"x": {nested}, ', 1).encode()},
    )

    names = list(HEADER)
    chance.shuffle(names)
    yield "header in any order", single_file({name: HEADER[name] for name in names})
    empty = {"dtype": "U8", "shape": [0], "data_offsets": [PAYLOAD, PAYLOAD]}
    yield "header with a tensor of no bytes", single_file({**HEADER, "empty": empty})
    yield (
        "header with 10,000 tensors of no bytes",
        single_file({**HEADER, **{f"empty.{n}": empty for n in range(10_000)}}),
    )
    yield "header with an empty tensor of 2^48", single_file({**HEADER, "empty": {**empty, "shape": [2**48, 0]}})
    yield "header with sixteen axes", single_file({**HEADER, "empty": {**empty, "shape": [2**48] * 15 + [0]}})
    yield "header with a million spaces", single_file(header_bytes(HEADER) + b" " * 1_000_000)
    yield "header with metadata of terminal escapes", single_file({**HEADER, "__metadata__": {"\x1b[2J": "\x1b"}})
    yield "header without metadata", single_file(without(HEADER, "__metadata__"))
    for name in (
        "../../etc/passwd", "/etc/passwd", "%s%n", "$(id)", "re:.*", "-rf", "'\"`", "<script>", "a|b", "\\",
        "a" * 1024, "a.4000000000.b", "..", ".", "weight", ".weight", "experts.gate_up_proj",
    ):  # fmt: skip
        yield f"tensor named {name[:20]}", single_file({**HEADER, name: empty})
    yield "index with odd metadata", sharded(edited(good_index(), "metadata", to=[10**400, {"\x1b[2J": None}]))
    files = single_file()
    odd = {
        "\x1b[2J.txt": b"",
        "a\nPASS b": b"",
        os.fsdecode(b"\xff.txt"): b"",
        "n" * 255: b"",
        "deep/" * 5 + "file": b"",
    }
    yield "files of odd names", {**files, **{f"{CHECKPOINT}/{name}": content for name, content in odd.items()}}
    yield "link to a neighbour", {**files, f"{CHECKPOINT}/link.json": Link(CONFIG)}
    yield (
        "lock of 200,000 tensors",
        {LOCK: as_yaml(edited(LOCK_YAML, "tensors", 1, to="a.{0-199999}.norm.weight BF16 [4]"))},
    )
    yield (
        "lock with files of odd names",
        {LOCK: as_yaml(edited(LOCK_YAML, "files", to={"../\x1b[2J": {"size": 2**80}}))},
    )
    yield "lock with a note of terminal escapes", {LOCK: as_yaml(edited(LOCK_YAML, "note", to="\x1b[2J\nPASS"))}


def _legal_sources() -> Iterator[tuple[str, Files]]:
    def ignoring(*entries: str) -> Files:
        recipe = edited(RECIPE_YAML, "ignore", to=[*RECIPE_YAML["ignore"], *entries])
        return {RECIPE: as_yaml(recipe), SOURCE: as_yaml(SOURCE_YAML)}

    for name, pattern in ODD_PATTERNS.items():
        if pattern:
            yield f"recipe ignores {name}", ignoring(pattern)
    yield "recipe ignores nested stars 250 times", ignoring(*(f"re:(a+)+{n}$" for n in range(250)))
    for key, value in {
        "tie_word_embeddings": [1],
        "text_config": [1],
        "model_type": {"a": 1},
        "architectures": 5,
    }.items():
        yield f"source whose {key} is odd", {SOURCE: as_yaml(edited(SOURCE_YAML, "config", key, to=value))}
    plain = header_of({f"model.layers.0.{name}_proj.weight": ("BF16", (64, 32)) for name in "qkvo"})
    odd: dict[str, Any] = {"config of lists": {"text_config": [], "quantization_config": None}, "no config": {}}
    for name, config in odd.items():
        yield f"source directory with {name}", single_file(plain, payload_of(plain), config)


# Random damage -------------------------------------------------------------------------------------------------------

TOKENS = (
    *(
        b'"',
        b"{",
        b"}",
        b"[",
        b"]",
        b",",
        b":",
        b"\\",
        b"-",
        b"0",
        b"1e400",
        b"0.5",
        b"NaN",
        b"null",
        b"true",
        b"[]",
        b"{}",
    ),
    *(
        b"18446744073709551616",
        b"281474976710657",
        b"999999999999",
        b'"dtype"',
        b'"shape"',
        b'"__metadata__"',
        b"\\ud800",
    ),
    *(
        b"\x00",
        b"\x1b[2J",
        b"\x80",
        b"\xff",
        b"\xef\xbb\xbf",
        b"\xe2\x80\xae",
        b"\n",
        b"\t",
        b"F4",
        b"re:(",
        b"{0-9}",
        b"&a ",
        b"*a",
    ),
)
ODD_VALUES: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        0,
        1,
        -1,
        2,
        0.5,
        -0.0,
        2**31,
        2**48,
        2**48 + 1,
        2**63,
        2**64,
        10**30,
        1e300,
        "",
        "x",
        "re:(",
        "re:.*",
    ),
    *(
        [],
        {},
        [[]],
        [0],
        [0, 0],
        {"": None},
        "\ud800",
        "\x1b[2J",
        "\n",
        "F4",
        "BF16",
        "Linear",
        "{0-9}",
        "a.{0-9999999}",
        "..",
        "model",
    ),
)
_NUMBER = re.compile(rb"\d+")


def mutated(value: Any, chance: Random) -> bytes:
    """JSON that was `value` before a few random changes: to the tree, to the text, or to both."""
    kind = chance.randrange(3)
    tree = value if kind == 0 else _mutated_tree(value, chance)
    text = json.dumps(tree, separators=(",", ":")).encode()
    return text if kind == 1 else _mutated_text(text, chance)


def _mutated_tree(value: Any, chance: Random) -> Any:
    """The value with one to three of its parts replaced, taken out, added, or put in another's place."""
    for _ in range(chance.randint(1, 3)):
        value = _changed(value, chance)
    return value


def _changed(value: Any, chance: Random) -> Any:
    inner = isinstance(value, (dict, list)) and value
    if not inner or chance.random() < 0.1:
        if isinstance(value, int) and chance.random() < 0.5:
            return value + chance.choice((-1, 1, 8, -value * 2, value, 2**32, 2**64))
        return chance.choice(ODD_VALUES)
    if isinstance(value, list):
        position = chance.randrange(len(value))
        match chance.randrange(5):
            case 0:
                return value[:position] + value[position + 1 :]
            case 1:
                return [*value, value[position]]
            case _:
                return [*value[:position], _changed(value[position], chance), *value[position + 1 :]]
    key = chance.choice(list(value))
    match chance.randrange(6):
        case 0:
            return {name: item for name, item in value.items() if name != key}
        case 1:
            return {**value, key: value[chance.choice(list(value))]}
        case 2:
            return {**value, str(chance.choice(ODD_VALUES)): value[key]}
        case _:
            return {**value, key: _changed(value[key], chance)}


def _mutated_text(text: bytes, chance: Random) -> bytes:
    for _ in range(chance.randint(1, 3)):
        position, length = chance.randrange(len(text) + 1), chance.choice((1, 1, 1, 2, 8, 40))
        before, span, after = text[:position], text[position : position + length], text[position + length :]
        match chance.randrange(6):
            case 0:
                text = before + bytes(byte ^ (1 << chance.randrange(8)) for byte in span[:1]) + span[1:] + after
            case 1:
                text = before + after
            case 2:
                text = before + chance.choice(TOKENS) + span + after
            case 3:
                text = before + chance.choice(TOKENS) + after
            case 4:
                text = before + span + span + after
            case _:
                number = chance.choice((b"0", b"1", b"-1", b"00", b"4294967296", b"9999999999999999999", b"1.5", b"7"))
                text = before + _NUMBER.sub(number, span + after, count=1)
    return text
