"""Names in evidence and in a stranger's recipe: whatever they are, nothing is opened by them but what is our own.

What they would lead to is there: pipes that nobody writes into, a file of a terabyte, a directory, a link, secrets.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoints import copy_checkpoint, rewrite
from tests.conftest import Outcome, call_main
from tests.dishonest import Lie, Workshop, dependencies, dependency, errors, open_workshop, provenance, put, text
from tests.dishonest_table import MINI, recipe
from tests.evidence import EVIDENCE
from weighbridge.base.locks import REFERENCES, known_lock, lock_file
from weighbridge.checkpoint.opening import hub_name
from weighbridge.cli import reproduce
from weighbridge.errors import RecipeError, StructureError, WeighbridgeError
from weighbridge.evidence.signing import open_verifier
from weighbridge.evidence.verify import verify
from weighbridge.progress import Progress
from weighbridge.recipe import read_recipe
from weighbridge.recipe.foreign import without_files

TERABYTE = 1 << 40
GIGABYTE = 1 << 30
SECRET = "structure_lock: 1\nrepository: secret/lock\n"

_opened: list[str] | None = None


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if _opened is not None and event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
        _opened.append(os.fsdecode(arguments[0]))


sys.addaudithook(_audit)  # it cannot be taken away again, so it does nothing unless asked


@contextmanager
def watched() -> Iterator[list[str]]:
    """Every path that this process opens meanwhile."""
    global _opened  # noqa: PLW0603 (an audit hook has no other way to know)
    _opened = []
    try:
        yield _opened
    finally:
        _opened = None


@pytest.fixture(scope="module")
def workshop(mini: Path, tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return open_workshop(tmp_path_factory.mktemp("workshop"))


@pytest.fixture
def traps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory full of what must not be opened, under the names that hostile evidence has."""
    place = tmp_path / "traps"
    (place / "org").mkdir(parents=True)
    for suffix in ("", ".yaml"):
        os.mkfifo(place / f"pipe{suffix}")
        os.mkfifo(place / f"org/pipe{suffix}")
        with (place / f"sparse{suffix}").open("wb") as file:
            file.truncate(TERABYTE)
        (place / f"secret{suffix}").write_text(SECRET)
        (place / f"org/secret{suffix}").write_text(SECRET)
        (place / f"link{suffix}").symlink_to("/etc/passwd")
    (place / "org/folder").mkdir()
    monkeypatch.chdir(place)
    return place


def names(traps: Path) -> list[str]:
    """Names that lead to something that is none of a stranger's business, or to nothing at all."""
    there = [f"{traps}/{name}" for name in ("pipe", "sparse", "secret", "link", "org", "org/secret")]
    climbing = [os.path.relpath(path, REFERENCES) for path in there]
    return [
        *there,
        *(f"/{path}" for path in there),
        *climbing,
        *(f"google/../{path}" for path in climbing),
        *("pipe", "sparse", "secret", "link", "org", "./pipe", "org/pipe", "org/secret", "org/folder", "org//secret"),
        *(
            "/",
            "//",
            ".",
            "..",
            "../..",
            "~",
            "~root",
            "",
            " ",
            "/proc/kmsg",
            "/proc/self/mem",
            "/dev/zero",
            "/dev/stdin",
        ),
        *(
            "a/b/c",
            "a/..",
            "../a",
            "a/.",
            "a/b\0",
            "a\0/b",
            "google/gemma\n",
            "a/" + "b" * 5000,
            "ö/ü",
            "\uff41/\uff42",
            "a/\u202eb",
        ),
        *(
            "file:///etc/passwd",
            "https://example.org/x",
            "hf://a/b",
            "C:\\a",
            "a\\b/c",
            "$HOME/a",
            "`id`/a",
            "%2e%2e/a",
        ),
    ]


COUNT = len(names(Path("/x")))


# One function for each kind of name


@pytest.mark.parametrize("number", range(COUNT))
def test_name_comes_to_no_file_but_our_own_locks(number: int, traps: Path) -> None:
    name = names(traps)[number]
    with watched() as opened:
        assert lock_file(name) is None
        assert known_lock(name) is None
    assert opened == []


@pytest.mark.parametrize("name", [None, 1, [], {}, b"a/b", True])
def test_what_is_no_name_comes_to_no_lock(name: object) -> None:
    assert lock_file(name) is None


def test_link_in_references_that_leads_elsewhere_is_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("weighbridge.base.locks.REFERENCES", tmp_path / "references")
    (tmp_path / "references/org").mkdir(parents=True)
    (tmp_path / "secret.yaml").write_text(SECRET)
    (tmp_path / "references/org/a.yaml").symlink_to(tmp_path / "secret.yaml")
    (tmp_path / "references/org/b.yaml").write_text(SECRET)
    assert lock_file("org/a") is None
    assert lock_file("org/b") is not None


@pytest.mark.parametrize("number", range(COUNT))
def test_name_is_no_hub_id_or_something_here(number: int, traps: Path) -> None:
    name = names(traps)[number]
    with watched() as opened, pytest.raises(StructureError):
        hub_name(name)
    assert opened == []


RECIPE = (REFERENCES.parent / "recipes/google/gemma-4-26B-A4B-it/fp8-dynamic.yaml").read_text()


@pytest.mark.parametrize("number", range(COUNT))
def test_text_that_a_stranger_s_recipe_names_is_refused(number: int, traps: Path) -> None:
    name = names(traps)[number] or "x"
    raw = f"{RECIPE}quality:\n  max_kl: 1.0\n  text: {json.dumps(name)}\n".encode()
    with watched() as opened, pytest.raises(RecipeError) as refusal:
        without_files(read_recipe(raw, where="recipe.yaml"))
    assert outside(opened, traps) == []
    assert len(str(refusal.value)) < 800


@pytest.mark.parametrize("name", ["code", "english"])
def test_text_that_every_environment_carries_is_taken(name: str) -> None:
    raw = f"{RECIPE}quality: {{max_kl: 1.0, text: {name}}}\n".encode()
    loaded = read_recipe(raw, where="recipe.yaml")
    assert without_files(loaded) == loaded


CONVERTED = """\
name: converted
description: a conversion
base:
  model: RedHatAI/gemma-4-26B-A4B-it-NVFP4
  licence: apache-2.0
  recipe: {name}
method: convert
convert: {{experts: split}}
"""


@pytest.mark.parametrize("number", range(COUNT))
def test_recipe_that_a_stranger_s_recipe_names_is_of_the_catalogue(number: int, traps: Path) -> None:
    name = names(traps)[number] or "x"
    raw = CONVERTED.format(name=json.dumps(name)).encode()
    with watched() as opened, pytest.raises(WeighbridgeError):
        without_files(read_recipe(raw, where="recipe.yaml"))
    assert outside(opened, traps) == []


def test_recipe_of_the_catalogue_is_taken_from_there_and_not_from_here(traps: Path) -> None:
    """A file of that name in the working directory is not what was meant."""
    (traps / "nvfp4").write_text("name: other\n")
    loaded = without_files(read_recipe(CONVERTED.format(name="nvfp4").encode(), where="recipe.yaml"))
    assert str(loaded.recipe.base.recipe).startswith(str(REFERENCES.parent / "recipes"))


@pytest.mark.parametrize("file", ["/etc/data.txt", "data.jsonl", "../../x.parquet"])
def test_calibration_file_that_a_stranger_s_recipe_names_is_refused(file: str) -> None:
    calibration = f"calibration: {{dataset: {{file: {file}}}, samples: 1, sequence_length: 8, experts: all}}\n"
    raw = RECIPE.replace("model_free_ptq", "oneshot", 1).replace("model_free_ptq quantizes", "it quantizes")
    with pytest.raises(RecipeError, match="names a file of whoever wrote it"):
        without_files(read_recipe(f"{raw}{calibration}".encode(), where="recipe.yaml"))


def test_stranger_s_recipe_extends_nothing() -> None:
    with pytest.raises(RecipeError):
        read_recipe(b"extends: fp8-dynamic\nname: x\n", where="recipe.yaml")


# The commands: evidence that names such things, rightly signed


def hostile_provenance(name: str) -> Mapping[str, Lie]:
    """Where a provenance has names."""
    base = f"https://huggingface.co/{name}"
    reference = {"name": f"references/{name}.yaml", "digest": {"sha256": "0" * 64}}
    parameters = ("predicate", "buildDefinition", "externalParameters")
    return {
        "a reference": Lie("a", wraps=dependencies(lambda items: items.append(reference))),
        "a reference that is no lock": Lie(
            "b", wraps=dependencies(lambda items: items.append({**reference, "name": f"references/{name}"}))
        ),
        "the base": Lie("c", wraps=dependency("base model", put("uri", value=base))),
        "the model": Lie("d", wraps=provenance(put(*parameters, "model", value=name))),
        "the references asked for": Lie("e", wraps=provenance(put(*parameters, "references", value=[name]))),
        "a file of the source": Lie(
            "f", wraps=dependencies(lambda items: items.append({**reference, "name": f"source/{name}"}))
        ),
        "the start": Lie("g", wraps=text("_start", "base: weighbridge/gemma-4-mini\n", f"base: {quoted(name)}\n")),
        "the start's own name": Lie("h", wraps=text("_start", "repository: mini\n", f"repository: {quoted(name)}\n")),
        "a by-product": Lie(
            "i",
            wraps=provenance(
                lambda said: said["predicate"]["runDetails"]["byproducts"].append(
                    {**reference, "name": f"evidence/{name}"}
                )
            ),
        ),
    }


def quoted(name: str) -> str:
    return json.dumps(name)


PLACES = tuple(hostile_provenance("x"))
SOME = (0, 1, 3, 10, 18, 30, 33, 36, 41, 51)
"""Of the names, those that every place in the provenance is tried with; each has all of them by the functions above."""


def outside(opened: list[str], *places: Path) -> list[str]:
    """What was opened of the traps, or of the system where secrets and endless files lie."""
    return [
        path
        for path in opened
        if path.startswith(tuple(map(str, places))) or path.startswith(("/proc/kmsg", "/etc/passwd"))
    ]


@pytest.mark.parametrize("number", SOME[:3])
@pytest.mark.parametrize("place", PLACES)
def test_checking_opens_nothing_that_a_provenance_names(
    place: str, number: int, workshop: Workshop, traps: Path, tmp_path: Path
) -> None:
    check_checking(place, number, workshop, traps, tmp_path)


@pytest.mark.campaign
@pytest.mark.parametrize("number", range(COUNT))
@pytest.mark.parametrize("place", PLACES)
def test_checking_opens_nothing_of_any_name(
    place: str, number: int, workshop: Workshop, traps: Path, tmp_path: Path
) -> None:
    check_checking(place, number, workshop, traps, tmp_path)


def check_checking(place: str, number: int, workshop: Workshop, traps: Path, tmp_path: Path) -> None:
    lie = hostile_provenance(names(traps)[number])[place]
    build = workshop.forged(lie, tmp_path / "build")
    with watched() as opened:
        report = workshop.checked(build)
    assert outside(opened, traps) == []
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 < 4 * GIGABYTE
    if place != "the model" and place != "the references asked for":
        assert errors(report) != set()


def call_reproduce(*arguments: str | Path) -> Outcome:
    return call_main(reproduce.main, (*arguments, "--elsewhere", "--memory", "64GiB"))


@pytest.mark.parametrize("number", SOME)
def test_rebuilding_opens_no_reference_that_a_provenance_names(
    number: int, workshop: Workshop, traps: Path, tmp_path: Path
) -> None:
    check_rebuilding(number, workshop, traps, tmp_path)


@pytest.mark.campaign
@pytest.mark.parametrize("number", sorted(set(range(COUNT)) - set(SOME)))
def test_rebuilding_opens_no_reference_of_any_name(
    number: int, workshop: Workshop, traps: Path, tmp_path: Path
) -> None:
    check_rebuilding(number, workshop, traps, tmp_path)


def check_rebuilding(number: int, workshop: Workshop, traps: Path, tmp_path: Path) -> None:
    lie = hostile_provenance(names(traps)[number])["the references asked for"]
    build = workshop.forged(lie, tmp_path / "build")
    with watched() as opened:
        outcome = call_reproduce(build)
    assert outside(opened, traps) == []
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n") == 1


def test_reference_that_a_user_names_is_opened(workshop: Workshop, traps: Path, tmp_path: Path) -> None:
    lie = hostile_provenance("/somewhere")["the references asked for"]
    build = workshop.forged(lie, tmp_path / "build")
    lock = REFERENCES / "weighbridge/gemma-4-mini-FP8-dynamic.yaml"
    assert call_reproduce(build, "--reference", lock).code == 0


@pytest.mark.parametrize("name", [MINI, f"{MINI}@65c4c61b745416d0550b6de908d159b7091ab1ab"])
def test_rebuilding_does_not_take_a_directory_here_for_the_model_that_is_named(
    name: str, workshop: Workshop, traps: Path, tmp_path: Path
) -> None:
    (traps / name).mkdir(parents=True)
    lie = hostile_provenance("elsewhere")["the model"]
    build = workshop.forged(lie, tmp_path / "build")
    with watched() as opened:
        outcome = call_reproduce(build)
    assert outside(opened, traps) == []
    assert (outcome.code, outcome.out) == (2, "")


@pytest.mark.parametrize("name", ["pipe", "sparse", "secret", "/proc/kmsg"])
def test_rebuilding_opens_no_text_that_the_recipe_names(
    name: str, workshop: Workshop, traps: Path, tmp_path: Path
) -> None:
    limited = recipe("references:\n", f"quality: {{max_kl: 1.0, windows: 2, text: {name}}}\nreferences:\n")
    build = workshop.forged(Lie("a", build=limited), tmp_path / "build")
    with watched() as opened:
        outcome = call_reproduce(build)
    assert outside(opened, traps) == [] and name not in opened
    assert (outcome.code, outcome.out) == (2, "")


@pytest.mark.parametrize(
    "device", ["/dev/zero", "", "cuda:../../x", "a\0b", "x" * 10_000, "\uff43\uff50\uff55", 1, None]
)
def test_rebuilding_takes_no_device_that_is_none(device: object, workshop: Workshop, tmp_path: Path) -> None:
    lie = Lie("a", wraps=provenance(put("predicate", "buildDefinition", "externalParameters", "device", value=device)))
    build = workshop.forged(lie, tmp_path / "build")
    outcome = call_reproduce(build)
    assert (outcome.code, outcome.out) == (2, "")


# Files of the checkpoint that are no files


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(TERABYTE)


TRAPS: Mapping[str, Callable[[Path], None]] = {
    "a pipe": _pipe,
    "a link to an endless file": lambda path: path.symlink_to("/dev/zero"),
    "a link to the kernel's log": lambda path: path.symlink_to("/proc/kmsg"),
    "a folder": lambda path: path.mkdir(),
}
IN_EVIDENCE = (
    "files.sha256",
    "source.yaml",
    "recipe.yaml",
    "bom.cdx.json",
    "report.html",
    "claims.jsonl",
    "model.sig",
    "evidence.sig",
    "log.jsonl",
)


OWN = ("README.md", "README.base.md", "LICENSE")
"""Files of the checkpoint itself, which may be of any size: they are read in pieces."""
BESIDE = tuple(f"evidence/{name}" for name in IN_EVIDENCE)


@pytest.mark.parametrize(
    ("name", "trap"),
    [
        *((name, trap) for name in (*BESIDE, *OWN) for trap in TRAPS),
        *((name, "a file of a terabyte") for name in BESIDE),
    ],
)
def test_checking_ends_whatever_lies_in_the_place_of_a_file(
    name: str, trap: str, signed_builds: Path, tmp_path: Path
) -> None:
    copy = copy_checkpoint(signed_builds / "build", tmp_path / "copy")
    (copy / name).unlink(missing_ok=True)
    TRAPS.get(trap, _sparse)(copy / name)
    with watched() as opened:
        report = verify(copy, verifier=open_verifier(signed_builds / "key.pub.pem"), progress=Progress(shown=False))
    assert [path for path in opened if path.startswith(("/proc/kmsg", "/dev/zero"))] == []
    if trap != "a folder" or name != "LICENSE":
        assert not report.holds


def test_statement_of_many_small_parts_is_refused_by_its_size(signed_builds: Path, tmp_path: Path) -> None:
    copy = copy_checkpoint(signed_builds / "build", tmp_path / "copy")
    rewrite(copy / EVIDENCE / "bom.cdx.json", b'{"a":[' + b"[]," * 20_000_000 + b"[]]}")
    report = verify(copy, progress=Progress(shown=False))
    told = [finding.message for finding in report.findings() if finding.where == "evidence/bom.cdx.json"]
    assert any("larger than" in message for message in told)
