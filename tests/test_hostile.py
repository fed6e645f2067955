"""Whatever a stranger hands over is refused in one sentence, or judged: never a traceback, a hang or a stray write."""

from __future__ import annotations

import faulthandler
import json
import os
import random
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests import hostile
from tests.conftest import run_script
from tests.hostile import Answer, HostileCase, answer, empty_directory, mutated
from weighbridge.checkpoint.header import parse_header
from weighbridge.errors import StructureError
from weighbridge.formats.quantization import read_declaration, resolve
from weighbridge.text.strict_json import parse_config, parse_object

CASES = list(hostile.cases())
SURVIVORS = list(hostile.survivors())
AS_SCRIPTS = random.Random(hostile.SEED).sample(CASES, 10)

LONGEST_SENTENCE = 400
LONGEST_REPORT = 100_000
HANG_SECONDS = 300
"""A watchdog, no limit: the slowest case takes a second."""

PIECES, PIECE = 20, 50_000
"""The campaign's million mutations of a header, in pieces that run on several cores."""

# What changes the world, by the names of Python's audit events; "open" is one where its flags say so.
CHANGES = frozenset(
    {
        *("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.chmod", "os.chown"),
        *("os.truncate", "os.utime", "os.system", "os.exec", "os.fork", "os.posix_spawn", "subprocess.Popen"),
        *("socket.connect", "socket.bind", "socket.getaddrinfo", "pickle.find_class", "tempfile.mkstemp"),
    }
)
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_changes: list[str] | None = None


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if _changes is None:
        return
    if event in CHANGES or (event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING):
        _changes.append(f"{event} {arguments!r:.200}")


sys.addaudithook(_audit)  # it cannot be taken away again, so it does nothing unless asked


@contextmanager
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Every change to files, every connection and every process that this process makes meanwhile."""
    global _changes  # noqa: PLW0603 (an audit hook has no other way to know)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # what a first import writes is not the command's doing
    _changes = []
    try:
        yield _changes
    finally:
        _changes = None


@pytest.fixture(autouse=True)
def watchdog() -> Iterator[None]:
    """Ends the process with a traceback of where it hangs."""
    assert sys.__stderr__ is not None
    faulthandler.dump_traceback_later(HANG_SECONDS, exit=True, file=sys.__stderr__)
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture
def place() -> Iterator[Path]:
    """An empty directory; pytest's own would be kept, and what is written here is large."""
    with empty_directory() as directory:
        yield directory


def faults(given: Answer) -> list[str]:
    """What is wrong with the way in which a hostile case was refused."""
    line = given.err.removesuffix("\n")
    found = {
        f"exit code {given.code}": given.code != 2,
        f"standard output {given.out[:80]!r}": bool(given.out),
        f"begins with {line[:20]!r}": not line.startswith("error: "),
        f"is not one printable line: {line[:300]!r}": not line.isprintable(),
        f"is {len(line):,} characters long: {line[:100]!r}": len(line) > LONGEST_SENTENCE,
    }
    return [fault for fault, so in found.items() if so]


def report_faults(given: Answer) -> list[str]:
    """What is wrong with the way in which an odd but legal case was judged."""
    found = {
        f"exit code {given.code}, {given.err[:300]!r}": given.code not in (0, 1),
        f"standard error {given.err[:300]!r}": bool(given.err),
        f"is {len(given.out):,} characters long": len(given.out) > LONGEST_REPORT,
        "has characters that a terminal obeys": not all(line.isprintable() for line in given.out.split("\n")),
    }
    return [fault for fault, so in found.items() if so]


def test_corpus_is_large_and_every_case_has_a_name_of_its_own() -> None:
    assert len(CASES) >= 300
    assert len({case.name for case in CASES + SURVIVORS}) == len(CASES) + len(SURVIVORS)


def test_corpus_depends_on_its_seed_alone() -> None:
    assert list(hostile.cases()) == CASES != list(hostile.cases(hostile.SEED + 1))


@pytest.mark.parametrize("case", hostile.good(), ids=lambda case: case.name)
def test_what_the_cases_are_damaged_from_holds(case: HostileCase, place: Path) -> None:
    case.write(place)
    given = answer(case, place)
    assert (given.code, given.err) == (0, "")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_hostile_case_is_refused_in_one_sentence_and_changes_nothing(
    case: HostileCase, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case.write(place)
    with watched(monkeypatch) as changes:
        given = answer(case, place)
    assert faults(given) == []
    assert changes == []


@pytest.mark.parametrize("case", SURVIVORS, ids=lambda case: case.name)
def test_odd_but_legal_case_is_judged(case: HostileCase, place: Path) -> None:
    case.write(place)
    assert report_faults(answer(case, place)) == []


@pytest.mark.parametrize("case", AS_SCRIPTS, ids=lambda case: case.name)
def test_hostile_case_is_refused_by_the_script_too(case: HostileCase, place: Path) -> None:
    case.write(place)
    outcome = run_script(f"{case.command}.py", *case.arguments, cwd=place)
    assert faults(Answer(outcome.code, outcome.out, outcome.err)) == []


# Random damage: whatever comes out is an answer or a refusal ---------------------------------------------------------

SMALL_HEADER = hostile.header_of(dict(list(hostile.quantized_shapes().items())[:4]))
SMALL_PAYLOAD = hostile.payload_of(SMALL_HEADER)
MODULES = tuple(f"model.layers.{layer}.self_attn.{name}_proj" for layer in range(2) for name in "qkvo")

Read = Callable[[bytes], object]


def read_header(raw: bytes) -> object:
    return parse_header(raw, file_size=8 + len(raw) + SMALL_PAYLOAD, where="shard")


def read_config(raw: bytes) -> object:
    declaration = read_declaration(parse_object(raw, where="config"), where="config")
    return declaration and resolve(declaration, MODULES, where="config")


def damage(read: Read, value: Mapping[str, Any], *, count: int, seed: int) -> list[str]:
    """Read `count` mutations of `value`; gives what came out that is neither an answer nor a refusal."""
    chance, found = random.Random(seed), []
    for number in range(count):
        raw = mutated(value, chance)
        try:
            read(raw)
        except StructureError as refusal:
            sentence = str(refusal)
            if not sentence.isprintable() or len(sentence) > LONGEST_SENTENCE:
                found.append(f"seed {seed}, mutation {number}: {raw!r}: {sentence!r:.500}")
        except Exception as error:  # every other one is what this looks for
            found.append(f"seed {seed}, mutation {number}: {raw!r}: {error!r:.500}")
    return found


READERS: dict[str, tuple[Read, Mapping[str, Any], int]] = {
    "header": (read_header, SMALL_HEADER, 20_000),
    "config": (read_config, hostile.CONFIG_JSON, 5_000),
}


@pytest.mark.parametrize(("read", "value", "count"), READERS.values(), ids=READERS)
def test_mutation_is_read_or_refused(read: Read, value: Mapping[str, Any], count: int) -> None:
    assert damage(read, value, count=count, seed=hostile.SEED) == []


@pytest.mark.campaign
@pytest.mark.parametrize("piece", range(PIECES))
def test_a_million_mutations_of_a_header_are_read_or_refused(piece: int) -> None:
    assert damage(read_header, SMALL_HEADER, count=PIECE, seed=fresh_seed()) == []


@pytest.mark.campaign
def test_a_hundred_thousand_mutations_of_a_config_are_read_or_refused() -> None:
    assert damage(read_config, hostile.CONFIG_JSON, count=100_000, seed=fresh_seed()) == []


def config_case(raw: bytes) -> HostileCase:
    files = {**hostile.single_file(), f"{hostile.CHECKPOINT}/{hostile.CONFIG}": raw}
    return HostileCase("config", "validate", (hostile.CHECKPOINT,), files)


def header_case(raw: bytes) -> HostileCase:
    return HostileCase("header", "validate", (hostile.CHECKPOINT,), hostile.single_file(raw))


def index_case(raw: bytes) -> HostileCase:
    return HostileCase("index", "validate", (hostile.CHECKPOINT,), hostile.sharded(raw))


def lock_case(raw: bytes) -> HostileCase:
    return HostileCase("lock", "validate", (hostile.LOCK,), {hostile.LOCK: raw})


def source_case(raw: bytes) -> HostileCase:
    recipe = hostile.as_yaml(hostile.RECIPE_YAML)
    return HostileCase("source", "build", hostile.PLAN, {hostile.RECIPE: recipe, hostile.SOURCE: raw})


def recipe_case(raw: bytes) -> HostileCase:
    source = hostile.as_yaml(hostile.SOURCE_YAML)
    return HostileCase("recipe", "build", hostile.PLAN, {hostile.RECIPE: raw, hostile.SOURCE: source})


CaseOf = Callable[[bytes], HostileCase]

# What is mutated, what judges it, how often in a normal run.
COMMANDS: dict[str, tuple[CaseOf, Mapping[str, Any], int]] = {
    "header": (header_case, hostile.HEADER, 200),
    "index": (index_case, hostile.good_index(), 200),
    "config": (config_case, hostile.CONFIG_JSON, 400),
    "lock": (lock_case, hostile.LOCK_YAML, 400),
    "source": (source_case, hostile.SOURCE_YAML, 150),
    "recipe": (recipe_case, hostile.RECIPE_YAML, 150),
}


def command_damage(case_of: CaseOf, value: Mapping[str, Any], place: Path, *, count: int, seed: int) -> list[str]:
    """Give a command `count` mutations of `value`; gives what it answered that is neither a verdict nor a refusal."""
    chance, found = random.Random(seed), []
    for number in range(count):
        raw = mutated(value, chance)
        case = case_of(raw)
        case.write(place)
        try:
            given = answer(case, place)
        except Exception as error:  # every one is what this looks for
            found.append(f"seed {seed}, mutation {number}: {raw!r}: {error!r}")
            continue
        wrong = faults(given) if given.code == 2 else report_faults(given)
        found += [f"seed {seed}, mutation {number}: {raw!r}: {fault}" for fault in wrong]
    return found


@pytest.mark.parametrize(("case_of", "value", "count"), COMMANDS.values(), ids=COMMANDS)
def test_mutation_is_judged_or_refused_by_the_command(
    case_of: CaseOf, value: Mapping[str, Any], count: int, place: Path
) -> None:
    assert command_damage(case_of, value, place, count=count, seed=hostile.SEED) == []


@pytest.mark.campaign
@pytest.mark.parametrize(("case_of", "value", "count"), COMMANDS.values(), ids=COMMANDS)
def test_many_mutations_are_judged_or_refused_by_the_command(
    case_of: CaseOf, value: Mapping[str, Any], count: int, place: Path
) -> None:
    assert command_damage(case_of, value, place, count=20 * count, seed=fresh_seed()) == []


def fresh_seed() -> int:
    """Another seed in every campaign; what is found names it."""
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")  # noqa: T201 (pytest shows it when the test fails)
    return seed


# the most that is allowed, and one more than that
LIMITS_OF_JSON: dict[str, tuple[Callable[[int], bytes], int]] = {
    "objects in objects": (lambda count: b'{"a":' * count + b"1" + b"}" * count, 64),
    "arrays in an object": (lambda count: b'{"a":' + b"[" * (count - 1) + b"]" * (count - 1) + b"}", 64),
    "values": (lambda count: b'{"a":[' + b"0," * (count - 2) + b"0]}", 1_000_000),
    "bytes": (lambda count: b'{"a":1}' + b" " * (count - 7), 64 * 1024 * 1024),
}


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity"])
def test_pythons_constants_are_read_in_configurations_alone(constant: str) -> None:
    raw = f'{{"limits": [0.0, {constant}]}}'.encode()
    assert parse_config(raw, where="config.json") == parse_config(raw, where="config.json")
    assert json.dumps(parse_config(raw, where="config.json")) == raw.decode()
    with pytest.raises(StructureError, match=f"{constant} is not a JSON number"):
        parse_object(raw, where="header")


@pytest.mark.parametrize(("made", "most"), LIMITS_OF_JSON.values(), ids=LIMITS_OF_JSON)
def test_json_is_read_up_to_its_limits_and_refused_beyond(made: Callable[[int], bytes], most: int) -> None:
    parse_object(made(most), where="here")
    with pytest.raises(StructureError):
        parse_object(made(most + 1), where="here")
