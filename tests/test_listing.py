"""Which links of a directory are followed: those of the hub client's own cache, those that stay, and no others."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.checkpoints import CONFIG, RawTensor, write_tensors
from tests.conftest import Command, call_main
from weighbridge.checkpoint.listing import list_files
from weighbridge.checkpoint.model import open_directory
from weighbridge.cli import evaluate
from weighbridge.errors import StructureError
from weighbridge.evidence.subject import list_all

SHARD = "model.safetensors"
MARKER = ".huggingface-shared-blobs"


def write_plain(directory: Path) -> Path:
    """A checkpoint of one shard in regular files."""
    directory.mkdir(parents=True)
    write_tensors(directory, {"model.layers.0.mlp.up_proj.weight": RawTensor("BF16", (4, 4), bytes(32))})
    (directory / CONFIG).write_text(json.dumps({"architectures": ["TinyForCausalLM"], "model_type": "tiny"}))
    return directory


@dataclass(frozen=True)
class Cache:
    """A cache as huggingface_hub 1.33 lays it out by default: one repository, its shard in the shared store."""

    root: Path
    commit: str = "1" * 40

    @property
    def repository(self) -> Path:
        return self.root / "models--org--tiny"

    @property
    def snapshot(self) -> Path:
        return self.repository / "snapshots" / self.commit

    @property
    def stored(self) -> Path:
        """The shard in the store."""
        return next(path for path in (self.root / "blobs").rglob("*") if len(path.name) == 64)


def write_cache(root: Path) -> Cache:
    cache = Cache(root)
    plain = write_plain(root.parent / "plain")
    blobs, store = cache.repository / "blobs", root / "blobs"
    for folder in (cache.snapshot, blobs, store, cache.repository / "refs"):
        folder.mkdir(parents=True)
    (store / MARKER).write_text("1\n")
    (cache.repository / "refs" / "main").write_text(cache.commit)
    for path in plain.iterdir():
        content = path.read_bytes()
        blob = blobs / hashlib.sha256(content).hexdigest()
        if path.name == SHARD:
            key = hashlib.sha256(b"xet" + content).hexdigest()
            (store / key[:2]).mkdir()
            (store / key[:2] / key).write_bytes(content)
            (store / key[:2] / f"{key}.refs").write_text(f"{cache.repository.name}/blobs/{blob.name}\n")
            blob.symlink_to(os.path.relpath(store / key[:2] / key, blobs))
        else:
            blob.write_bytes(content)
        (cache.snapshot / path.name).symlink_to(os.path.relpath(blob, cache.snapshot))
    shutil.rmtree(plain)
    return cache


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return write_cache(tmp_path / "cache")


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A file outside of everything."""
    (tmp_path / "outside").mkdir()
    path = tmp_path / "outside" / ("a" * 64)
    path.write_text("secret")
    return path


def blob_of(cache: Cache) -> Path:
    return cache.repository / "blobs" / (cache.snapshot / SHARD).readlink().name


def relink(link: Path, target: Path | str) -> None:
    link.unlink()
    link.symlink_to(target)


# What is followed


def moved(cache: Cache) -> Path:
    """The whole cache lies on another disk, and a link leads there."""
    elsewhere = cache.root.parent / "big disk"
    cache.root.rename(elsewhere)
    cache.root.symlink_to(elsewhere)
    return cache.snapshot


def named(cache: Cache) -> Path:
    """The snapshot is called by a link of one's own."""
    link = cache.root.parent / "my-model"
    link.symlink_to(cache.snapshot)
    return link


def own_blob(cache: Cache) -> Path:
    """A file that did not come by Xet lies among the repository's own blobs."""
    blob, stored = blob_of(cache), cache.stored
    blob.unlink()
    stored.rename(blob)
    return cache.snapshot


def folder_of_a_snapshot(cache: Cache) -> Path:
    """The checkpoint is a folder of its repository."""
    folder = cache.snapshot / "transformer"
    folder.mkdir()
    for name in (SHARD, CONFIG):
        blob = cache.repository / "blobs" / (cache.snapshot / name).readlink().name
        (folder / name).symlink_to(os.path.relpath(blob, folder))
    return folder


def without_links(cache: Cache) -> Path:
    """What the client makes with HF_HUB_DISABLE_SYMLINKS=1."""
    for path in list(cache.snapshot.iterdir()):
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content)
    return cache.snapshot


@pytest.mark.parametrize(
    "arrange",
    [lambda cache: cache.snapshot, moved, named, own_blob, folder_of_a_snapshot, without_links],
    ids=["shared store", "cache behind a link", "snapshot by a link", "own blobs", "folder", "no links at all"],
)
def test_what_the_hubs_client_leaves_is_opened(arrange: Callable[[Cache], Path], cache: Cache) -> None:
    directory = arrange(cache)
    assert {SHARD, CONFIG} <= set(list_files(directory, label="x"))
    assert open_directory(directory).structure
    listing = list_all(directory)
    assert {SHARD, CONFIG} <= set(listing.signed)
    assert not listing.odd


def test_shared_store_is_named_as_the_client_names_it(cache: Cache) -> None:
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.utils import _shared_blobs

    assert _shared_blobs.is_shared_blobs_dir(cache.root / "blobs")
    assert _shared_blobs.shared_blob_target(blob_of(cache), cache.root) == cache.stored
    assert not scan_cache_dir(cache.root).warnings


def test_link_that_stays_in_the_directory_is_followed(tmp_path: Path) -> None:
    plain = write_plain(tmp_path / "plain")
    (plain / "alias.json").symlink_to(CONFIG)
    assert "alias.json" in list_files(plain, label="x")
    assert list_all(plain).odd == {"alias.json": "is a link"}, "what is signed holds no links of anybody's"


# What is not


def straight(cache: Cache, secret: Path) -> None:
    relink(cache.snapshot / SHARD, secret)


def through_the_blob(cache: Cache, secret: Path) -> None:
    relink(blob_of(cache), secret)


def through_the_store(cache: Cache, secret: Path) -> None:
    stored = cache.stored
    relink(stored, secret)


def through_a_folder_of_the_store(cache: Cache, secret: Path) -> None:
    folder = cache.stored.parent
    content = cache.stored.name
    shutil.rmtree(folder)
    secret.rename(secret.with_name(content))
    folder.symlink_to(secret.parent)


def store_elsewhere(cache: Cache, secret: Path) -> None:
    store = cache.root / "blobs"
    store.rename(secret.parent / "store")
    store.symlink_to(secret.parent / "store")


def store_unmarked(cache: Cache, secret: Path) -> None:
    (cache.root / "blobs" / MARKER).unlink()


def marked_otherwise(content: bytes) -> Callable[[Cache, Path], None]:
    def mark(cache: Cache, secret: Path) -> None:
        (cache.root / "blobs" / MARKER).write_bytes(content)

    return mark


def marked_by_a_link(cache: Cache, secret: Path) -> None:
    secret.write_text("1\n")
    relink(cache.root / "blobs" / MARKER, secret)


def blobs_lead(cache: Cache, place: Path, name: str) -> None:
    """The repository's blobs are a link, through which the shard is linked to a file there."""
    shutil.rmtree(cache.repository / "blobs")
    (cache.repository / "blobs").symlink_to(place)
    relink(cache.snapshot / SHARD, f"../../blobs/{name}")
    (cache.snapshot / CONFIG).unlink()
    (cache.snapshot / CONFIG).write_text("{}")


def blobs_are_all_of_the_disk(cache: Cache, secret: Path) -> None:
    blobs_lead(cache, Path("/"), str(secret.relative_to("/")))


def blobs_are_elsewhere(cache: Cache, secret: Path) -> None:
    blobs_lead(cache, secret.parent, secret.name)


def under_the_name_of_a_branch(cache: Cache, secret: Path) -> None:
    cache.snapshot.rename(cache.snapshot.with_name("main"))
    (cache.snapshot).symlink_to("main")


def of_another_repository(cache: Cache, secret: Path) -> None:
    other = cache.root / "models--org--private" / "blobs"
    other.mkdir(parents=True)
    (other / "b").write_text("private")
    relink(cache.snapshot / SHARD, other / "b")


def another_blob_of_the_store(cache: Cache, secret: Path) -> None:
    relink(cache.snapshot / SHARD, cache.stored)  # not through a blob of its own


def name_that_is_no_hash(cache: Cache, secret: Path) -> None:
    renamed = cache.stored.with_name("weights")
    cache.stored.rename(renamed)
    relink(blob_of(cache), renamed)


def back_by_dots(cache: Cache, secret: Path) -> None:
    relink(cache.snapshot / SHARD, f"../../blobs/../../../outside/{secret.name}")


def folder_of_blobs(cache: Cache, secret: Path) -> None:
    relink(cache.snapshot / SHARD, "../../blobs")


HOSTILE = {
    "straight": straight,
    "through the blob": through_the_blob,
    "through the store": through_the_store,
    "through a folder of the store": through_a_folder_of_the_store,
    "store elsewhere": store_elsewhere,
    "store unmarked": store_unmarked,
    "store of another layout": marked_otherwise(b"2\n"),
    "marker that is no text": marked_otherwise(b"\xff\xfe"),
    "marker without end": marked_otherwise(b"1" * 1_000_000),
    "marker by a link": marked_by_a_link,
    "blobs are all of the disk": blobs_are_all_of_the_disk,
    "blobs are elsewhere": blobs_are_elsewhere,
    "under the name of a branch": under_the_name_of_a_branch,
    "of another repository": of_another_repository,
    "past the blobs": another_blob_of_the_store,
    "name that is no hash": name_that_is_no_hash,
    "back by dots": back_by_dots,
    "folder of blobs": folder_of_blobs,
}


@pytest.mark.parametrize("arrange", HOSTILE.values(), ids=HOSTILE)
def test_link_that_is_none_of_the_clients_is_refused(
    arrange: Callable[[Cache, Path], None], cache: Cache, secret: Path
) -> None:
    arrange(cache, secret)
    with pytest.raises(StructureError, match=r"`follow_links`|download it again") as refused:
        list_files(cache.snapshot, label="x")
    assert "\n" not in str(refused.value)
    assert list_all(cache.snapshot).odd[SHARD] == "is a link"


@given(data=st.data())
def test_however_links_are_chained_nothing_outside_is_read(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        base = Path(scratch).resolve()
        cache = write_cache(base / "cache")
        outside = base / "outside"
        outside.mkdir()
        (outside / ("b" * 64)).write_text("secret")
        store = cache.stored.parent
        places = [cache.snapshot, cache.repository / "blobs", store, cache.root / "blobs", outside, base]
        names = st.sampled_from([SHARD, blob_of(cache).name, cache.stored.name, "b" * 64, "..", "extra"])
        for _ in range(data.draw(st.integers(1, 5))):
            link = data.draw(st.sampled_from(places)) / data.draw(names.filter(lambda name: name != ".."))
            target = data.draw(st.sampled_from([*places, Path("/etc")])) / data.draw(names)
            if not link.is_dir() or link.is_symlink():
                link.unlink(missing_ok=True)
                link.symlink_to(os.path.relpath(target, link.parent) if data.draw(st.booleans()) else target)
        listing = list_all(cache.snapshot)
        try:
            followed = {*listing.signed, *list_files(cache.snapshot, label="x")}
        except StructureError:
            followed = set(listing.signed)
        kept = (cache.snapshot, cache.repository / "blobs", cache.root / "blobs")
        for name in followed:
            target = (cache.snapshot / name).resolve()
            assert target.is_file()
            assert any(target.is_relative_to(place) for place in kept), f"{name} leads to {target}"


# One's own links


@pytest.fixture
def linked(tmp_path: Path) -> Path:
    """A variant of a checkpoint: its own config.json, and a link to the one copy of the shard on another disk."""
    disk = write_plain(tmp_path / "disk" / "tiny")
    variant = tmp_path / "variant"
    variant.mkdir()
    (variant / CONFIG).write_bytes((disk / CONFIG).read_bytes())
    (variant / SHARD).symlink_to(disk / SHARD)
    return variant


def test_link_to_another_disk_is_refused_with_the_option_that_follows_it(
    linked: Path, call_validate: Command, call_build: Command
) -> None:
    for outcome in (call_validate(linked), call_build("fp8-dynamic", "--model", linked)):
        assert outcome.code == 2
        assert outcome.err.count("\n") == 1
        assert f"--follow-links {linked.parent / 'disk' / 'tiny'}" in outcome.err
        assert "cp -rL" in outcome.err


@pytest.mark.parametrize("command", ["evaluate", "sensitivity", "serve_check"])
def test_command_that_refuses_a_link_has_the_option_that_it_names(command: str) -> None:
    parser = import_module(f"weighbridge.cli.{command}")._parser()
    options = parser.parse_args(["builds/x", "--source", "mini", "--follow-links", "disk"])
    assert options.follow_links == [Path("disk")]


def test_measuring_follows_links_where_it_is_told(linked: Path) -> None:
    refused = call_main(evaluate.main, [linked, "--source", linked])
    assert f"--follow-links {linked.parent / 'disk' / 'tiny'}" in refused.err
    followed = call_main(evaluate.main, [linked, "--source", linked, "--follow-links", linked.parent / "disk"])
    assert "is a link" not in followed.err


@pytest.mark.parametrize("named", ["disk/tiny", "disk", "link to the disk"])
def test_links_are_followed_into_a_directory_that_is_named(named: str, linked: Path, call_validate: Command) -> None:
    (linked.parent / "link to the disk").symlink_to("disk")
    assert call_validate(linked, "--follow-links", linked.parent / named).code == 0


def test_links_are_followed_nowhere_else(linked: Path, call_validate: Command) -> None:
    beside = linked.parent / "beside"
    beside.mkdir()
    assert call_validate(linked, "--follow-links", beside).code == 2
    missing = call_validate(linked, "--follow-links", linked.parent / "missing")
    assert missing.code == 2
    assert "is no directory" in missing.err


def test_build_from_linked_shards_is_the_build_from_the_files(mini: Path, tmp_path: Path, run_build: Command) -> None:
    variant = tmp_path / "variant"
    variant.mkdir()
    for path in mini.iterdir():
        (variant / path.name).symlink_to(path)
    built = []
    for name, model, further in (("plain", mini, ()), ("linked", variant, ("--follow-links", mini))):
        output = tmp_path / name
        outcome = run_build("fp8-dynamic", "--model", model, "--output", output, *further)
        assert outcome.code == 0, outcome.err + outcome.out
        built.append((output / SHARD).read_bytes())
    assert built[0] == built[1]
