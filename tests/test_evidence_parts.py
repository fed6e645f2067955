"""The parts that evidence is made of: digests, installed packages, licences, cards, statements."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import zipfile
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from importlib.metadata import PathDistribution
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weighbridge.base.identity import Claim, Unproven
from weighbridge.base.model_card import Declared, card_metadata, declared_licence
from weighbridge.checkpoint.model import open_directory
from weighbridge.errors import StructureError
from weighbridge.evidence.card import BaseModel, CardFacts, blocks, kept_card, write_card
from weighbridge.evidence.environment import content_digest, installed, pinned_wheels, record_digest
from weighbridge.evidence.licence import judge_licence
from weighbridge.evidence.pages import _as_it_reads, _proven_in
from weighbridge.evidence.results import Result
from weighbridge.evidence.statements import read_statement
from weighbridge.evidence.subject import list_all, read_files, root_digest, write_files, write_tensors
from weighbridge.evidence.write import base_card
from weighbridge.formats.tensors import Tensor
from weighbridge.recipe import load_recipe

NAMES = st.lists(st.text(alphabet="ab-._", min_size=1, max_size=3), min_size=1, max_size=3).map("/".join)
PLAIN_NAMES = NAMES.filter(lambda name: ".." not in name and PurePosixPath(name).as_posix() == name and name != ".")
FILES = st.dictionaries(PLAIN_NAMES, st.binary(max_size=4).map(lambda raw: hashlib.sha256(raw).hexdigest()), min_size=1)


# What a text says of the base


@pytest.mark.parametrize(
    "text", ["/" * 200_000, "<a " * 200_000, "a/b " * 100_000, "a/b by SHA" * 50_000, "&#47;" * 100_000]
)
def test_long_text_is_looked_through_in_a_time_that_grows_with_it(text: str) -> None:
    """With a time that grows with the square, or the cube, this test would not end."""
    assert [found for reading in _as_it_reads(text) for found in _proven_in(reading)] == []


def test_what_is_proven_in_a_text_is_what_a_reader_reads() -> None:
    text = "It is **org/name** by SHA-256, and (other/one) by SHA-256; not a/b by hand, nor sha256 of c/d."
    assert list(_proven_in(text)) == ["org/name", "other/one"]


# Digests


@given(files=FILES)
def test_list_of_files_is_read_back_as_it_was_written(files: Mapping[str, str]) -> None:
    assert read_files(write_files(files), where="a") == files


@given(files=FILES)
def test_root_digest_is_the_digest_of_the_listed_digests_in_order(files: Mapping[str, str]) -> None:
    listed = bytes.fromhex("".join(line[:64] for line in write_files(files).decode().splitlines()))
    assert root_digest(files) == hashlib.sha256(listed).hexdigest()


@given(files=FILES)
def test_root_digest_is_that_of_model_signing(files: Mapping[str, str]) -> None:
    from model_signing import manifest
    from model_signing._hashing.hashing import Digest
    from model_signing._signing.signing import Payload

    serialization = manifest.SerializationType.from_args(
        {"method": "files", "hash_type": "sha256", "allow_symlinks": False}
    )
    items = [serialization.new_item(name, Digest("sha256", bytes.fromhex(digest))) for name, digest in files.items()]
    payload = Payload(manifest.Manifest("x", items, serialization))
    assert payload.statement.pb.subject[0].digest["sha256"] == root_digest(files)


@given(st.permutations(["b.weight", "a.weight", "a.scale"]))
def test_content_digest_does_not_depend_on_the_order_of_tensors(order: list[str]) -> None:
    structure = {name: Tensor("BF16", (len(name), 2)) for name in order}
    digests = {name: hashlib.sha256(name.encode()).hexdigest() for name in order}
    assert write_tensors(structure, digests) == write_tensors(dict(sorted(structure.items())), digests)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"0\n",
        b"0" * 64 + b"  a",
        b"0" * 64 + b"  ../a\n",
        b"0" * 64 + b"  /a\n",
        b"0" * 64 + b" *a\n",
        b"A" * 64 + b"  a\n",
        (b"0" * 64 + b"  a\n") * 2,
        b"\xff" * 64 + b"  a\n",
    ],
)
def test_what_is_no_list_of_files_is_refused(raw: bytes) -> None:
    with pytest.raises(StructureError):
        read_files(raw, where="a")


@pytest.mark.parametrize(("count", "refused"), [(10_000, False), (10_001, True)])
def test_list_of_more_files_than_a_checkpoint_has_is_refused(count: int, refused: bool) -> None:
    raw = b"".join(b"0" * 64 + f"  {number}\n".encode() for number in range(count))
    with pytest.raises(StructureError, match="10,000 are the most") if refused else nullcontext():
        read_files(raw, where="a")


def test_links_are_named_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    checkpoint = tmp_path / "in"
    checkpoint.mkdir()
    (checkpoint / "a.json").write_text("{}")
    (checkpoint / "b.json").symlink_to("a.json")
    (checkpoint / "folder").symlink_to(tmp_path / "out")
    os.mkfifo(checkpoint / "pipe")
    listing = list_all(checkpoint)
    assert listing.signed == ("a.json",)
    assert set(listing.odd) == {"b.json", "folder", "pipe"}


def test_links_into_the_blobs_of_the_hub_client_s_own_cache_are_files(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / ("0" * 40)
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    (blobs / "1").write_text("{}")
    (snapshot / "config.json").symlink_to(blobs / "1")
    assert list_all(snapshot).signed == ("config.json",)


# Installed packages


def make_wheel(directory: Path) -> Path:
    """A wheel of one module, a script and a data file; its RECORD is the wheel's own."""
    about = "toy-1.0.dist-info"
    files = {
        "toy/__init__.py": b"def main() -> None: ...\n",
        "toy/data,with comma.txt": b"x",
        f"{about}/METADATA": b"Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n",
        f"{about}/WHEEL": b"Wheel-Version: 1.0\nGenerator: toy\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{about}/entry_points.txt": b"[console_scripts]\ntoy = toy:main\n",
    }
    record = "".join(f"{_field(name)},sha256={_digest(raw)},{len(raw)}\n" for name, raw in files.items())
    path = directory / "toy-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for name, raw in files.items():
            wheel.writestr(name, raw)
        wheel.writestr(f"{about}/RECORD", f"{record}{about}/RECORD,,\n")
    return path


def _field(name: str) -> str:
    return f'"{name}"' if "," in name else name


def _digest(raw: bytes) -> str:
    return urlsafe_b64encode(hashlib.sha256(raw).digest()).rstrip(b"=").decode()


def test_digest_of_what_is_installed_is_that_of_the_wheel_wherever_it_is_installed(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path)
    with zipfile.ZipFile(wheel) as opened:
        expected = record_digest(opened.read("toy-1.0.dist-info/RECORD").decode())
    for place in (tmp_path / "one", tmp_path / "another" / "place"):
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--target", str(place), str(wheel)]
        subprocess.run(command, check=True, env=os.environ | {"PIP_DISABLE_PIP_VERSION_CHECK": "1"})
        assert content_digest(PathDistribution(place / "toy-1.0.dist-info")) == expected


def test_digest_of_what_is_installed_sees_one_other_byte(tmp_path: Path) -> None:
    record = "toy/__init__.py,sha256=aaaa,3\ntoy-1.0.dist-info/RECORD,,\n"
    assert record_digest(record) != record_digest(record.replace("aaaa", "aaab"))


@pytest.mark.parametrize(
    "line",
    [
        "../../../bin/toy,sha256=aaaa,200",
        "toy/__pycache__/__init__.cpython-311.pyc,,",
        "toy-1.0.dist-info/INSTALLER,sha256=aaaa,4",
        "toy-1.0.dist-info/REQUESTED,sha256=aaaa,0",
        "toy-1.0.dist-info/direct_url.json,sha256=aaaa,60",
        "/usr/share/man/toy.1,sha256=aaaa,60",
    ],
)
def test_what_differs_from_place_to_place_does_not_count(line: str) -> None:
    record = "toy/__init__.py,sha256=aaaa,3\n"
    assert record_digest(f"{line}\n{record}") == record_digest(record)


def test_distribution_without_a_record_is_unknown(tmp_path: Path) -> None:
    (tmp_path / "toy-1.0.dist-info").mkdir()
    assert content_digest(PathDistribution(tmp_path / "toy-1.0.dist-info")) == "unknown"


def test_wheels_of_the_environment_are_pinned_by_hash_but_for_those_with_a_local_version() -> None:
    pinned = pinned_wheels()
    without = [found.name for found in installed() if (found.name, found.version) not in pinned]
    assert {name for name in without if name not in ("pip", "setuptools", "torch")} == set()


# Licences


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlicense: apache-2.0\n---\n# a", "apache-2.0"),
        ("---\r\nlicense: MIT\r\n---\r\n", "mit"),
        ("---\nlicense: other\nlicense_name: gemma\n---\n", "gemma"),
        ("---\nlicense: [a, b]\n---\n", None),
        ("---\ntags: []\n---\n", None),
        ("# no metadata\n\n---\nlicense: mit\n---\n", None),
        ("---\nlicense: mit\n", None),
        ("", None),
    ],
)
def test_licence_is_the_one_in_the_card_s_metadata(card: str, licence: str | None, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(card)
    found = declared_licence(tmp_path)
    assert (found and found.licence) == licence


def test_licence_is_read_off_a_licence_file_where_the_card_says_none(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[1]
    (tmp_path / "LICENSE").write_bytes((root / "LICENSE").read_bytes())
    assert declared_licence(tmp_path) == Declared("apache-2.0", "LICENSE")


def test_card_goes_before_the_licence_file(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nlicense: gemma\n---\n")
    (tmp_path / "LICENSE").write_text("Apache License\nVersion 2.0, January 2004\n")
    assert declared_licence(tmp_path) == Declared("gemma", "card")


def test_metadata_that_is_no_yaml_is_refused() -> None:
    with pytest.raises(StructureError):
        card_metadata(b"---\na: [\n---\n", where="README.md")


@pytest.mark.parametrize(
    ("declared", "rule"),
    [
        (Declared("apache-2.0", "card"), None),
        (Declared("gemma", "card"), "licence/other"),
        (None, "licence/undeclared"),
    ],
)
def test_recipe_and_source_must_agree_on_the_licence(declared: Declared | None, rule: str | None) -> None:
    section = judge_licence(load_recipe("fp8-dynamic").recipe, declared)
    assert [finding.rule for finding in section.findings] == ([rule] if rule else [])
    assert section.holds == (rule != "licence/other")


# Cards


@pytest.fixture
def facts(mini_build: Path) -> CardFacts:
    base = BaseModel("weighbridge/gemma-4-mini", "", Claim("", "", Unproven.SAMPLED))
    return CardFacts(load_recipe("fp8-dynamic"), open_directory(mini_build), base, {})


def test_card_does_not_call_an_unproven_base_by_name_as_if_it_were_known(facts: CardFacts) -> None:
    assert "what was handed over as [weighbridge/gemma-4-mini]" in blocks(facts)["base"]
    assert "identity unproven: only a sample of it was read" in blocks(facts)["base"]


def test_card_names_no_directory_that_a_build_was_held_against(facts: CardFacts) -> None:
    results = [
        Result("against /home/me/reference", "PASSED", "same"),
        Result("against org/name@1234567 (seen)", "WARNED", "a | b"),
    ]
    text = blocks(replace(facts, results={"validation": results}))["results"]
    assert "/home" not in text
    assert "| against org/name@1234567 (seen) | passed with warnings | a \\| b |" in text


def test_recipe_with_fences_of_its_own_is_fenced_by_longer_ones(facts: CardFacts) -> None:
    loaded = replace(facts.loaded, raw=b"# ```sh\n# ````\nname: a\n")
    assert blocks(replace(facts, loaded=loaded))["recipe"].splitlines()[2] == "`````yaml"


def test_card_says_how_the_kv_cache_is_served(facts: CardFacts) -> None:
    loaded = load_recipe("fp8-dynamic-kv8")
    assert "--kv-cache-dtype fp8" in blocks(replace(facts, loaded=loaded))["serving"]
    assert "--kv-cache-dtype" not in blocks(facts)["serving"]


def test_table_of_the_card_adds_up_to_the_checkpoint(facts: CardFacts) -> None:
    rows = [line.split("|") for line in blocks(facts)["tensors"].splitlines() if line.startswith("| ")][1:]
    stored = sum(tensor.nbytes for tensor in facts.built.structure.values())
    assert sum(int(row[4].replace(",", "")) for row in rows) == stored


def test_card_is_a_function_of_its_facts(facts: CardFacts) -> None:
    assert write_card(facts) == write_card(replace(facts))


@pytest.mark.parametrize(
    ("names", "kept"),
    [
        ({"README.md": 0}, "README.base.md"),
        ({"README.md": 0, "README.base.md": 0}, "README.base.base.md"),
    ],
)
def test_source_card_is_kept_under_a_name_that_is_free(names: dict[str, object], kept: str) -> None:
    assert base_card(names) == kept
    assert kept_card([*names, kept]) == kept


# Statements


@pytest.mark.parametrize(
    "raw",
    [
        b"{}",
        b"[]",
        b'{"_type":"https://in-toto.io/Statement/v1","predicateType":"x","subject":[],"predicate":{}}',
        b'{"_type":"https://in-toto.io/Statement/v1","predicateType":"https://slsa.dev/provenance/v1",'
        b'"subject":[{}],"predicate":{}}',
        b'{"a":1,"a":2}',
        b'{"a":NaN}',
        b"[" * 100,
    ],
)
def test_what_is_no_statement_is_refused(raw: bytes) -> None:
    with pytest.raises(StructureError):
        read_statement(raw, where="a")
