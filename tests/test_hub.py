"""The real client against a hub on this machine: headers alone are read, a bad hub is refused in one sentence."""

from __future__ import annotations

import json
import re
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from socket import socket
from typing import Any

import pytest
from huggingface_hub import HfApi, constants, hf_hub_download, set_client_factory, snapshot_download
from huggingface_hub.utils._http import default_client_factory
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import mistral_native, xet_storage
from tests.checkpoints import (
    CONFIG,
    INDEX,
    RawTensor,
    contents,
    copy_checkpoint,
    edit_json,
    rewrite,
    without_evidence,
    write_tensors,
)
from tests.conftest import Command, Outcome, environment
from tests.hub_server import (
    Alteration,
    Answer,
    Hub,
    chunked,
    dripping,
    failing,
    garbled,
    once,
    replaced,
    rewritten,
    serve,
    silent,
    stalled,
    truncated,
    with_headers,
)
from weighbridge.base.source import fetch
from weighbridge.checkpoint import hub_client
from weighbridge.checkpoint.hub import FIRST_READ, HubId, download, open_hub, parse_hub_id
from weighbridge.checkpoint.lock import write_lock
from weighbridge.checkpoint.model import open_directory
from weighbridge.errors import HubError, StructureError
from weighbridge.recipe import load_recipe

TINY = "org/tiny"
TOKEN = "hf_good"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
WEIGHTS, LISTING = r"safetensors$", r"^/api/models/"
PUBLISHERS = ("original/consolidated.00.pth", "onnx/model.onnx")
"""What publishers keep for other programs, where no server looks."""
STRAYS = (*PUBLISHERS, "consolidated.safetensors", "pytorch_model.bin", "model.gguf")


def write_tiny(directory: Path, *, names: int = 4) -> Path:
    """A checkpoint of two BF16 shards of 4 MB each, an index, a config, a tokenizer and other weights in folders."""
    rows = 4 * 1024 * 1024 // names // 1024
    write_tensors(
        directory,
        {f"layers.{n}.mlp.up_proj.weight": RawTensor("BF16", (rows, 1024), bytes(rows * 2048)) for n in range(names)},
        shards=2,
    )
    (directory / CONFIG).write_text(json.dumps({"architectures": ["TinyForCausalLM"], "model_type": "tiny"}))
    (directory / "tokenizer.json").write_text("{}")
    for name in PUBLISHERS:
        (directory / name).parent.mkdir()
        (directory / name).write_bytes(b"no safetensors file")
    return directory


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def visit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[str], None]]:
    """Points the client of this process to an endpoint, as ``HF_ENDPOINT`` and a fresh ``HF_HOME`` would."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setenv("TQDM_DISABLE", "1")
    monkeypatch.setenv("WEIGHBRIDGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    set_client_factory(default_client_factory)

    def point(endpoint: str) -> None:
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)

    yield point
    set_client_factory(default_client_factory)


@pytest.fixture
def hub(tiny: Path, visit: Callable[[str], None]) -> Iterator[Hub]:
    """A hub that the client of this process asks; it holds the tiny checkpoint, openly, privately and gated."""
    repositories = dict.fromkeys((TINY, "org/private", "org/gated"), tiny)
    with serve(repositories, token=TOKEN, private={"org/private"}, gated={"org/gated"}) as hub:
        visit(hub.endpoint)
        yield hub


@pytest.fixture
def variables(tmp_path: Path) -> Callable[..., dict[str, str]]:
    """Variables with which a process of its own asks an endpoint, from caches that are empty at first."""
    places = {"HF_HOME": str(tmp_path / "home"), "WEIGHBRIDGE_CACHE": str(tmp_path / "cache")}
    proxies = {"NO_PROXY": "127.0.0.1,localhost", "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_TELEMETRY": "1"}
    return lambda endpoint, **more: {**places, **proxies, "HF_ENDPOINT": endpoint, **more}


def refused(outcome: Outcome, *phrases: str) -> None:
    """The command could not judge, and says so in one sentence with these phrases in it."""
    assert outcome.code == 2
    assert outcome.out == ""
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n") == 1
    for phrase in phrases:
        assert phrase in outcome.err


def run_program(program: str, variables: dict[str, str]) -> Outcome:
    """Run Python source in a process of its own."""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=environment(variables), capture_output=True, text=True, check=False)
    return Outcome(done.returncode, done.stdout, done.stderr)


# What is read


def test_headers_alone_are_read_and_agree_with_a_lock_of_the_same_directory(
    hub: Hub, tiny: Path, tmp_path: Path, call_validate: Command
) -> None:
    lock = tmp_path / "lock.yaml"
    lock.write_text(write_lock(open_directory(tiny)))
    outcome = call_validate(f"{TINY}@main", "--reference", lock)
    assert outcome.code == 0, outcome.err + outcome.out
    assert (
        hub.bytes_sent(WEIGHTS) <= 2 * FIRST_READ < sum((tiny / shard).stat().st_size for shard in (FIRST, SECOND)) / 8
    )
    assert {exchange.range for exchange in hub.requests(WEIGHTS)} == {f"bytes=0-{FIRST_READ - 1}"}


@pytest.mark.parametrize("ranges", [True, False], ids=["ranges honoured", "ranges ignored"])
def test_header_longer_than_the_first_read_is_read_to_its_end(
    ranges: bool, visit: Callable[[str], None], tmp_path: Path
) -> None:
    directory = write_tiny(tmp_path, names=8192)
    with serve({TINY: directory}) as hub:
        visit(hub.endpoint)
        hub.ranges = ranges
        assert open_hub(HubId(TINY)).structure == open_directory(directory).structure
        asked = [exchange.range for exchange in hub.requests(FIRST) if exchange.server == "cdn"]
    header = 8 + struct.unpack("<Q", (directory / FIRST).read_bytes()[:8])[0]
    assert asked == [f"bytes=0-{FIRST_READ - 1}", f"bytes={FIRST_READ}-{header - 1}"]


def test_modelopts_own_file_is_read_remembered_and_downloaded(
    visit: Callable[[str], None], tiny: Path, tmp_path: Path
) -> None:
    directory = copy_checkpoint(tiny, tmp_path / "published")
    document = {"producer": {"name": "modelopt", "version": "0.29.0"}, "quantization": {"quant_algo": "FP8"}}
    (directory / "hf_quant_config.json").write_text(json.dumps(document))
    with serve({TINY: directory}) as hub:
        visit(hub.endpoint)
        named = open_hub(HubId(TINY, hub.commit_of(TINY)))
        asked = len(hub.requests("hf_quant_config.json"))
        again = open_hub(HubId(TINY, hub.commit_of(TINY)))
        assert len(hub.requests("hf_quant_config.json")) == asked
        assert named.quant_config == again.quant_config == document
        assert named.declaration is not None
        assert (named.declaration.quant_method, named.declaration.format) == ("modelopt", "FP8")
        assert json.loads((download(named) / "hf_quant_config.json").read_bytes()) == document


def test_mistrals_own_form_is_read_by_its_headers_downloaded_and_found_again(
    tmp_path: Path, visit: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = mistral_native.write_mistral(tmp_path / "it", mistral_native.DENSE, shards=2)
    with serve({TINY: directory}) as hub:
        visit(hub.endpoint)
        opened, here = open_hub(HubId(TINY)), open_directory(directory)
        assert (opened.structure, opened.config) == (here.structure, here.config)
        assert sorted(opened.shards) == sorted(here.shards)
        local = open_directory(download(opened))
        assert (local.structure, local.config) == (here.structure, here.config)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert open_hub(HubId(TINY, opened.origin.revision)).structure == here.structure


def test_weights_that_do_not_belong_are_not_touched(hub: Hub) -> None:
    open_hub(HubId(TINY))
    assert not hub.requests("|".join(STRAYS))


def test_branch_is_resolved_to_its_commit_and_named_by_it(hub: Hub, call_validate: Command) -> None:
    commit = hub.commit_of(TINY)
    assert f"{TINY}@{commit[:7]}" in call_validate(f"{TINY}@main").out
    assert open_hub(HubId(TINY)).origin.revision == commit


def test_branch_that_moves_is_followed_and_its_old_commit_still_read(hub: Hub, tiny: Path, tmp_path: Path) -> None:
    before = open_hub(HubId(TINY))
    changed = copy_checkpoint(tiny, tmp_path / "changed")
    write_tensors(changed, {"head.weight": RawTensor("BF16", (2, 2), bytes(8))})
    commit = hub.publish(TINY, changed)
    assert open_hub(HubId(TINY)).origin.revision == commit
    assert open_hub(HubId(TINY)).structure.keys() == {"head.weight"}
    assert open_hub(HubId(TINY, before.origin.revision)).structure == before.structure


# What is kept


def test_second_look_at_a_commit_asks_nothing(hub: Hub, call_validate: Command) -> None:
    named = f"{TINY}@{hub.commit_of(TINY)}"
    first = call_validate(named)
    hub.log.clear()
    assert call_validate(named) == first
    assert not hub.log


def test_commit_is_read_offline_once_it_is_known(
    hub: Hub, variables: Callable[..., dict[str, str]], run_validate: Command
) -> None:
    named, online = f"{TINY}@{hub.commit_of(TINY)}", variables(hub.endpoint)
    offline = {**online, "HF_HUB_OFFLINE": "1"}
    refused(run_validate(named, env=offline), TINY, "HF_HUB_OFFLINE")
    assert run_validate(f"{TINY}@main", env=online).code == 0
    assert run_validate(named, env=offline).code == 0


def test_two_endpoints_share_nothing(hub: Hub, tiny: Path, visit: Callable[[str], None]) -> None:
    commit = hub.commit_of(TINY)
    open_hub(HubId(TINY, commit))
    with serve({TINY: tiny}) as other:
        visit(other.endpoint)
        assert other.commit_of(TINY) == commit
        open_hub(HubId(TINY, commit))
        assert other.requests(WEIGHTS)


@pytest.mark.parametrize("left", [0, 20, 100], ids=lambda left: f"{left} bytes left")
def test_what_was_kept_by_halves_is_asked_for_again(left: int, hub: Hub, tmp_path: Path) -> None:
    whole = open_hub(HubId(TINY))
    kept = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    for path in kept:
        path.write_bytes(path.read_bytes()[:left])
    assert len(kept) == 5  # the list of files, index, config, two headers
    assert open_hub(HubId(TINY, whole.origin.revision)) == whole


def test_cache_that_cannot_be_used_is_named(hub: Hub, tmp_path: Path, call_validate: Command) -> None:
    call_validate(TINY)
    for path in [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]:
        path.unlink()
        path.mkdir()
    refused(call_validate(TINY), str(tmp_path / "cache"), "WEIGHBRIDGE_CACHE")


@pytest.mark.parametrize("path", [LISTING, INDEX, CONFIG, WEIGHTS])
@pytest.mark.parametrize("alteration", [truncated(after=50), garbled()], ids=["cut off", "garbled"])
def test_bad_answer_is_not_kept(path: str, alteration: Alteration, hub: Hub, call_validate: Command) -> None:
    hub.alter(path, alteration)
    refused(call_validate(TINY), TINY)
    hub.restore()
    assert call_validate(TINY).code == 0


# Who is asked, and who may ask


def test_token_goes_to_the_hub_and_to_no_other_host(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    download(open_hub(HubId("org/private")))
    sent = {(exchange.server, exchange.authorization) for exchange in hub.log}
    assert sent == {("hub", f"Bearer {TOKEN}"), ("cdn", ""), ("cdn", f"Bearer {xet_storage.TOKEN}")}


@pytest.mark.parametrize(
    ("model", "token", "phrases"),
    [
        ("org/missing", "", ("no such directory", "no such repository", "check the id", "HF_TOKEN")),
        ("org/missing", TOKEN, ("no such repository", "check the id", "HF_TOKEN")),
        ("org/private", "", ("no such repository, or not for this token", "HF_TOKEN")),
        ("org/gated", "", ("access to it must be asked for", "accept its terms", "HF_TOKEN")),
        (TINY, "hf_stale", ("answered with status 401", "HF_TOKEN")),
        (f"{TINY}@v9", "", ("no such revision", "check the branch, tag or commit")),
        (f"{TINY}@{'0' * 40}", "", ("no such revision", "check the branch, tag or commit")),
    ],
)
def test_refusal_says_what_to_do(
    model: str, token: str, phrases: tuple[str, ...], hub: Hub, monkeypatch: pytest.MonkeyPatch, call_validate: Command
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    refused(call_validate(model), model.partition("@")[0], *phrases)


@pytest.mark.parametrize("model", ["org/private", "org/gated"])
def test_right_token_opens_what_is_closed(
    model: str, hub: Hub, monkeypatch: pytest.MonkeyPatch, call_validate: Command
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert call_validate(model).code == 0


def test_no_network_is_said_at_once_and_names_the_ways_out(
    variables: Callable[..., dict[str, str]], run_validate: Command
) -> None:
    with closing(socket()) as unused:
        unused.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{unused.getsockname()[1]}"
        outcome = run_validate(TINY, env=variables(f"http://{host}"))
    refused(
        outcome, TINY, f"{host} cannot be reached", "no such directory", "Connection refused", "MODEL=path", "make demo"
    )


@pytest.mark.parametrize(
    ("endpoint", "proxy", "phrases"),
    [
        ("hub.example", "", ("cannot be reached", "http://")),
        ("http://hub.example", "gopher://127.0.0.1", ("gopher", "proxy settings")),
    ],
)
def test_settings_that_make_no_sense_are_named(
    endpoint: str,
    proxy: str,
    phrases: tuple[str, ...],
    visit: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
    call_validate: Command,
) -> None:
    visit(endpoint)
    monkeypatch.setenv("HTTP_PROXY", proxy)
    refused(call_validate(TINY), TINY, *phrases)


# A hub in trouble


@pytest.mark.parametrize(
    ("path", "alteration", "phrases"),
    [
        (LISTING, failing(500), ("status 500", "try again later")),
        (LISTING, failing(429), ("status 429", "try again later")),
        (LISTING, truncated(after=50), ("incomplete response", "try again")),
        (LISTING, replaced(b"<html>log in"), ("is not JSON",)),
        (LISTING, replaced(b""), ("is not JSON",)),
        (INDEX, failing(404, code="EntryNotFound"), (INDEX, "no such file")),
        (INDEX, truncated(after=50), (INDEX, "incomplete response", "try again")),
        (CONFIG, replaced(b"<html>log in"), (CONFIG, "lists it with")),
        (FIRST, failing(500), (FIRST, "status 500")),
        (FIRST, truncated(after=0), (FIRST, "incomplete response", "try again")),
        (FIRST, truncated(after=FIRST_READ - 1), (FIRST, "incomplete response", "try again")),
        (f"/objects/.*{FIRST}", failing(403), (FIRST, "localhost", "status 403")),
        (FIRST, with_headers(Location="http://127.0.0.1:1/x"), (FIRST, "127.0.0.1:1 cannot be reached")),
        (FIRST, with_headers(Location="gopher://127.0.0.1/x"), (FIRST, "cannot be reached")),
        (f"/resolve/.*{FIRST}", with_headers(Location="?again"), (FIRST, "redirects")),
    ],
)
def test_trouble_is_said_in_one_sentence(
    path: str, alteration: Alteration, phrases: tuple[str, ...], hub: Hub, call_validate: Command
) -> None:
    hub.alter(path, alteration)
    refused(call_validate(TINY), TINY, *phrases)


def test_trouble_is_not_asked_about_again(hub: Hub, call_validate: Command) -> None:
    hub.alter(LISTING, failing(500))
    call_validate(TINY)
    assert len(hub.log) == 1


@pytest.mark.parametrize("path", [LISTING, CONFIG, FIRST])
@pytest.mark.parametrize("alteration", [dripping(seconds_per_byte=0.01), silent(seconds=3600)], ids=["drip", "silence"])
def test_answer_that_would_take_for_ever_has_a_deadline(
    path: str, alteration: Alteration, hub: Hub, monkeypatch: pytest.MonkeyPatch, call_validate: Command
) -> None:
    monkeypatch.setattr(hub_client, "DEADLINE_SECONDS", 0.2)
    hub.alter(path, alteration)
    refused(call_validate(TINY), TINY, "0.2 seconds were not enough", "try again")


def test_answer_that_was_given_up_does_not_keep_the_program_from_ending(
    hub: Hub, variables: Callable[..., dict[str, str]]
) -> None:
    hub.alter(FIRST, dripping(seconds_per_byte=0.01))
    program = (
        "import sys; from weighbridge.checkpoint import hub_client; from weighbridge.cli.validate import main;"
        f"hub_client.DEADLINE_SECONDS = 0.5; sys.exit(main(['{TINY}']))"
    )
    refused(run_program(program, variables(hub.endpoint)), "0.5 seconds were not enough")


# A hub that means harm


def with_sibling(**changes: Any) -> Alteration:
    """The first shard is listed otherwise than it is."""

    def change(info: dict[str, Any]) -> dict[str, Any]:
        for sibling in info["siblings"]:
            if sibling["rfilename"] == FIRST:
                sibling.update(changes)
        return info

    return rewritten(change)


def with_info(**changes: Any) -> Alteration:
    """The commit is described otherwise than it is."""
    return rewritten(lambda info: {**info, **changes})


@pytest.mark.parametrize(
    ("alteration", "phrase"),
    [
        (with_info(sha="main"), "names no commit"),
        (with_info(sha="../" * 13 + "x"), "names no commit"),
        (with_info(sha=None), "names no commit"),
        (with_info(sha=7), "names no commit"),
        (with_info(siblings=None), "lists no files"),
        (with_info(siblings={"rfilename": "x"}), "lists no files"),
        (with_info(siblings=["x"]), "lists no files"),
        (with_info(siblings=[]), "no safetensors file"),
        (with_info(siblings=[{"rfilename": CONFIG}, {"rfilename": CONFIG}]), "lists a file twice"),
        (rewritten(lambda info: [info]), "is not a JSON object"),
        (with_sibling(rfilename="../../../.bashrc"), "'../../../.bashrc', which is no name"),
        (with_sibling(rfilename="/etc/passwd"), "'/etc/passwd', which is no name"),
        (with_sibling(rfilename="a/./b"), "'a/./b', which is no name"),
        (with_sibling(rfilename="..\\x"), "which is no name"),
        (with_sibling(rfilename="x\x1b[2J"), "which is no name"),
        (with_sibling(rfilename="x" * 5000), "which is no name"),
        (with_sibling(rfilename=""), "which is no name"),
        (with_sibling(rfilename=None), "which is no name"),
        (with_sibling(rfilename="elsewhere.safetensors"), f"names the shard {FIRST}, which is not there"),
        (with_sibling(size="big"), "impossible size or digest"),
        (with_sibling(size=-1), "impossible size or digest"),
        (with_sibling(size=True), "impossible size or digest"),
        (with_sibling(size=12), f"{FIRST}: the hub lists it with 12 bytes and serves"),
        (with_sibling(lfs={"sha256": "../x"}), "impossible size or digest"),
        (with_sibling(lfs=["sha256"]), "impossible size or digest"),
    ],
)
def test_listing_that_makes_no_sense_is_refused(
    alteration: Alteration, phrase: str, hub: Hub, call_validate: Command
) -> None:
    hub.alter(LISTING, alteration)
    refused(call_validate(TINY), TINY, phrase)


def test_listing_of_another_commit_than_was_asked_for_is_refused(hub: Hub, call_validate: Command) -> None:
    hub.alter(LISTING, with_info(sha="f" * 40))
    refused(call_validate(f"{TINY}@{hub.commit_of(TINY)}"), "another commit than was asked for")


def without_sizes() -> Alteration:
    """The names of the files are listed and no more."""
    return rewritten(lambda info: {**info, "siblings": [{"rfilename": s["rfilename"]} for s in info["siblings"]]})


def test_listing_without_sizes_is_made_up_for_by_the_files_themselves(hub: Hub, call_validate: Command) -> None:
    hub.alter(LISTING, without_sizes())
    assert call_validate(TINY).code == 0


def test_files_without_a_length_are_as_long_as_the_listing_says(hub: Hub, call_validate: Command) -> None:
    hub.ranges = False
    hub.alter("^/(objects|api/resolve-cache)/", chunked())
    assert call_validate(TINY).code == 0


def test_file_whose_length_nobody_says_is_refused(hub: Hub, call_validate: Command) -> None:
    hub.ranges = False
    hub.alter("^/(objects|api/resolve-cache)/", chunked())
    hub.alter(LISTING, without_sizes())
    refused(call_validate(TINY), TINY, "does not say how large the file is")


@pytest.mark.parametrize(
    ("alteration", "phrase"),
    [
        (with_headers(Content_Range=f"bytes 5-{FIRST_READ + 4}/4194560"), "about other bytes"),
        (with_headers(Content_Range="bytes 0-99/100"), "and serves 100"),
        (with_headers(Content_Range=f"bytes 0-9/{10**30}"), "about other bytes"),
        (with_headers(Content_Range="bytes 0-99/*"), "about other bytes"),
        (with_headers(Content_Range="bytes -1-99/-5"), "about other bytes"),
        (with_headers(Content_Range=""), "about other bytes"),
        (with_headers(Content_Length="100"), "the answer stops after 100"),
        (with_headers(Content_Length="many"), "incomplete response"),
        (with_headers(Content_Encoding="gzip"), "compressed"),
    ],
)
def test_lie_about_what_is_sent_is_refused(
    alteration: Alteration, phrase: str, hub: Hub, call_validate: Command
) -> None:
    hub.alter(f"/objects/.*{FIRST}", alteration)
    refused(call_validate(TINY), f"/{FIRST}: ", phrase)


@pytest.mark.parametrize(
    ("change", "phrase"),
    [
        (lambda content: struct.pack("<Q", 2**63) + content[8:], "announces a header of"),
        (lambda content: struct.pack("<Q", len(content)) + content[8:], "is cut off within its header"),
        (lambda content: struct.pack("<Q", 20) + content[8:], "is not JSON"),
        (lambda content: content[:-1], "is cut off"),
        (lambda content: content[:5], "too short"),
    ],
    ids=["absurd length", "length of the whole", "short length", "file cut off", "file of five bytes"],
)
def test_shard_that_lies_about_its_header_is_refused(
    change: Callable[[bytes], bytes], phrase: str, hub: Hub, tiny: Path, tmp_path: Path, call_validate: Command
) -> None:
    hostile = copy_checkpoint(tiny, tmp_path / "hostile")
    rewrite(hostile / FIRST, change((tiny / FIRST).read_bytes()))
    hub.publish(TINY, hostile)
    refused(call_validate(TINY), f"/{FIRST}: ", phrase)


@pytest.mark.parametrize("shard", ["../../x.safetensors", "/x.safetensors", "sub/x.safetensors", "x.bin", "", 5])
def test_index_that_leads_elsewhere_is_refused(
    shard: object, hub: Hub, tiny: Path, tmp_path: Path, call_validate: Command
) -> None:
    hostile = copy_checkpoint(tiny, tmp_path / "hostile")
    edit_json(hostile / INDEX, lambda index: index["weight_map"].update({"x": shard}))
    hub.publish(TINY, hostile)
    refused(call_validate(TINY), INDEX, "no plain name of a safetensors file")


@settings(deadline=None)
@given(st.from_regex(r"[\w.@/-]{1,40}"))
def test_hub_id_stands_for_itself_and_never_for_a_path(text: str) -> None:
    hub_id = parse_hub_id(text)
    assert hub_id is None or (str(hub_id) == text and ".." not in text and text.isascii() and text[0] not in "./~")


# Downloads


def test_download_holds_what_a_build_needs_and_nothing_else(hub: Hub, tiny: Path) -> None:
    local = download(open_hub(HubId(TINY)))
    wanted = {name: content for name, content in contents(tiny).items() if name not in STRAYS}
    assert contents(local) == wanted
    assert not hub.requests("|".join(STRAYS))


def test_weights_are_not_asked_for_before_every_small_file_has_come(hub: Hub) -> None:
    checkpoint = open_hub(HubId(TINY))
    hub.log.clear()
    download(checkpoint)
    weights = [".safetensors" in exchange.path for exchange in hub.requests("/resolve/")]
    assert weights == sorted(weights)
    assert set(weights) == {False, True}


def test_second_download_asks_nothing(hub: Hub) -> None:
    checkpoint = open_hub(HubId(TINY))
    first = download(checkpoint)
    hub.log.clear()
    assert download(checkpoint) == first
    assert not hub.log


def test_download_that_breaks_off_is_taken_up_again(hub: Hub, tiny: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpoint = open_hub(HubId(TINY))
    hub.alter(f"/objects/.*{FIRST}", once(truncated(after=1024 * 1024)))
    local = download(checkpoint)
    assert (local / FIRST).read_bytes() == (tiny / FIRST).read_bytes()
    assert not caplog.records


@pytest.mark.parametrize("header", ["ETag", "X_Linked_ETag"])
def test_etag_that_is_a_path_writes_nowhere(header: str, hub: Hub, tmp_path: Path) -> None:
    checkpoint = open_hub(HubId(TINY))
    hub.alter("/resolve/", with_headers(**{header: f'"{tmp_path}/planted"'}))
    with pytest.raises(HubError, match="which is no digest"):
        download(checkpoint)
    assert not (tmp_path / "planted").exists()


def test_download_of_another_commit_than_was_asked_for_is_refused(hub: Hub) -> None:
    checkpoint = open_hub(HubId(TINY))
    hub.alter("/resolve", with_headers(X_Repo_Commit="f" * 40))
    with pytest.raises(HubError, match="another commit"):
        download(checkpoint)


def test_download_with_other_tensors_than_the_headers_said_is_refused(hub: Hub, tiny: Path, tmp_path: Path) -> None:
    changing = copy_checkpoint(tiny, tmp_path / "changing")
    hub.publish(TINY, changing)
    checkpoint = open_hub(HubId(TINY))
    content = (tiny / FIRST).read_bytes()
    rewrite(changing / FIRST, content.replace(b"[1024,1024]", b"[2048, 512]").replace(b"[1024, 1024]", b"[2048,  512]"))
    with pytest.raises(StructureError, match="other tensors than the hub's headers said"):
        fetch(checkpoint)


def test_download_without_network_is_said_at_once(hub: Hub, visit: Callable[[str], None]) -> None:
    checkpoint = open_hub(HubId(TINY))
    hub.alter("", failing(503))
    hub.log.clear()
    with pytest.raises(HubError, match="status 503"):
        download(checkpoint)
    assert len(hub.log) == 1


def test_blocked_xet_storage_is_named_with_the_way_around(hub: Hub, variables: Callable[..., dict[str, str]]) -> None:
    refresh = f"{hub.endpoint}/api/agent-harnesses"
    hub.alter(r"/resolve/.*safetensors$", with_headers(X_Xet_Hash="a" * 64, X_Xet_Refresh_Route=refresh))
    access = {"X_Xet_Access_Token": "t", "X_Xet_Token_Expiration": "9999999999"}
    hub.alter(
        "agent-harnesses", lambda _: with_headers(X_Xet_Cas_Url="http://127.0.0.1:1", **access)(Answer(body=b"{}"))
    )
    program = (
        "import sys; from weighbridge.cli.run import run; from weighbridge.checkpoint.hub import *;"
        f"sys.exit(run(lambda: download(open_hub(HubId('{TINY}')))))"
    )
    refused(
        run_program(program, variables(hub.endpoint, HF_XET_CLIENT_RETRY_MAX_ATTEMPTS="1")),
        TINY,
        "HF_HUB_DISABLE_XET=1",
    )


def test_build_from_the_hub_is_the_build_from_the_directory(
    mini: Path,
    mini_build: Path,
    tmp_path: Path,
    variables: Callable[..., dict[str, str]],
    run_build: Command,
) -> None:
    published = copy_checkpoint(mini, tmp_path / "published")
    for name in STRAYS:
        (published / name).parent.mkdir(exist_ok=True)
        (published / name).write_bytes(b"no safetensors file")
    with serve({"org/mini": published}) as hub:
        environ = variables(hub.endpoint)
        outcome = run_build("fp8-dynamic", "--model", "org/mini", "--output", tmp_path / "build", env=environ)
        commit = hub.commit_of("org/mini")
    assert outcome.code == 0, outcome.err + outcome.out
    identity = rf"org/mini@{commit[:7]}:? is weighbridge/gemma-4-mini@[0-9a-f]{{7}} by SHA-256"
    assert re.search(identity, " ".join(outcome.out.split()))
    assert not hub.requests("|".join(STRAYS))
    built, wanted = without_evidence(tmp_path / "build"), without_evidence(mini_build)
    assert built == wanted, "a base that is proven has its published name, wherever it was fetched"


def test_recipe_is_drafted_from_headers_and_card(
    mini: Path, tmp_path: Path, variables: Callable[..., dict[str, str]], run_build: Command
) -> None:
    path = tmp_path / "recipe.yaml"
    with serve({"org/mini": mini}) as hub:
        outcome = run_build("--new-recipe", "org/mini", "--output", path, env=variables(hub.endpoint))
        commit = hub.commit_of("org/mini")
        weights = sum(shard.stat().st_size for shard in mini.glob("*.safetensors"))
        assert hub.bytes_sent(WEIGHTS) < weights / 10
    assert outcome.code == 0, outcome.err
    base = load_recipe(str(path)).recipe.base
    assert (base.model, base.revision, base.licence) == ("org/mini", commit, "apache-2.0")


# What was downloaded, offline

WHOLE = ["*.json", "model-*.safetensors"]
"""What belongs to the tiny checkpoint."""
REVISIONS = [None, "main", "v1", "release/2", "refs/pr/1", "commit"]


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[], None]:
    """From when it is called, this process is as ``HF_HUB_OFFLINE=1`` makes it, and nothing of its own is kept."""

    def cut() -> None:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        monkeypatch.setenv("WEIGHBRIDGE_CACHE", str(tmp_path / "another cache"))

    return cut


@pytest.mark.parametrize("revision", REVISIONS)
def test_what_the_client_downloaded_is_found_by_its_id(
    revision: str | None, hub: Hub, tiny: Path, offline: Callable[[], None], call_validate: Command
) -> None:
    commit = hub.commit_of(TINY)
    if revision == "commit":
        revision = commit
    elif revision not in (None, "main"):
        commit = hub.publish(TINY, tiny, ref=str(revision))
    snapshot_download(TINY, revision=revision, allow_patterns=WHOLE)
    online = open_hub(HubId(TINY, revision))
    hub.log.clear()
    offline()
    found = open_hub(HubId(TINY, revision))
    assert (found.origin, found.label) == (online.origin, online.label)
    assert found.origin.revision == commit
    assert found.structure == online.structure
    outcome = call_validate(TINY if revision is None else f"{TINY}@{revision}")
    assert outcome.code == 0, outcome.err + outcome.out
    assert not hub.log


@pytest.mark.parametrize("revision", [revision for revision in REVISIONS if revision != "commit"])
def test_what_was_downloaded_here_is_found_by_the_name_that_it_was_asked_for_by(
    revision: str | None, hub: Hub, tiny: Path, offline: Callable[[], None]
) -> None:
    if revision not in (None, "main"):
        hub.publish(TINY, tiny, ref=str(revision))
    downloaded = fetch(open_hub(HubId(TINY, revision)))
    offline()
    assert open_hub(HubId(TINY, revision)) == downloaded
    assert Path(snapshot_download(TINY, revision=revision, local_files_only=True)) == downloaded.directory


def test_branch_in_the_cache_stays_where_it_was_until_a_download_is_whole(
    hub: Hub, tiny: Path, tmp_path: Path, offline: Callable[[], None]
) -> None:
    before = fetch(open_hub(HubId(TINY)))
    changed = copy_checkpoint(tiny, tmp_path / "changed")
    (changed / "tokenizer.json").write_text('{"changed": true}')
    hub.publish(TINY, changed)
    hub.alter("tokenizer.json", failing(403))
    with pytest.raises(HubError, match="403"):
        fetch(open_hub(HubId(TINY)))
    offline()
    assert open_hub(HubId(TINY)) == before


@pytest.mark.parametrize("missing", [CONFIG, FIRST, INDEX])
def test_part_of_a_checkpoint_in_the_cache_is_said_to_be_one(
    missing: str, hub: Hub, offline: Callable[[], None], call_validate: Command
) -> None:
    snapshot = Path(snapshot_download(TINY, allow_patterns=WHOLE))
    (snapshot / missing).unlink()
    offline()
    phrases = {CONFIG: "not in the cache", FIRST: f"has it without {FIRST}", INDEX: "no model.safetensors.index.json"}
    refused(call_validate(TINY), TINY, phrases[missing])


def test_config_alone_in_the_cache_does_not_hide_headers_that_are_known(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    online = open_hub(HubId(TINY))
    hf_hub_download(TINY, CONFIG)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert open_hub(HubId(TINY)).structure == online.structure


@pytest.mark.parametrize("trouble", ["no network", "trouble of its own"])
def test_cache_that_would_do_is_named_when_the_hub_cannot_be_reached(
    trouble: str, hub: Hub, visit: Callable[[str], None], call_validate: Command
) -> None:
    snapshot_download(TINY, allow_patterns=WHOLE)
    hub.alter("", failing(503))
    if trouble == "no network":
        with closing(socket()) as unused:
            unused.bind(("127.0.0.1", 0))
            visit(f"http://127.0.0.1:{unused.getsockname()[1]}")
            outcome = call_validate(TINY)
    else:
        outcome = call_validate(TINY)
    refused(outcome, TINY, "cache has it whole", hub.commit_of(TINY)[:7], "set HF_HUB_OFFLINE=1")


def test_cache_is_not_taken_for_what_the_hub_refuses(hub: Hub, call_validate: Command) -> None:
    snapshot_download(TINY, allow_patterns=WHOLE)
    hub.alter("", failing(403, code="GatedRepo"))
    outcome = call_validate(TINY)
    refused(outcome, "accept its terms")
    assert "OFFLINE" not in outcome.err


def test_cache_behind_links_is_found(
    hub: Hub, tmp_path: Path, offline: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to("disk")
    (tmp_path / "disk").mkdir()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "link" / "hub"))
    downloaded = fetch(open_hub(HubId(TINY)))
    offline()
    assert open_hub(HubId(TINY)) == downloaded


@pytest.mark.parametrize(
    "setting", ["", "HF_HUB_DISABLE_XET", "HF_HUB_DISABLE_SHARED_BLOBS", "HF_HUB_DISABLE_SYMLINKS"]
)
def test_build_from_the_hub_is_made_again_offline(
    setting: str, mini: Path, tmp_path: Path, variables: Callable[..., dict[str, str]], run_build: Command
) -> None:
    added = {setting: "1"} if setting else {}
    with serve({"org/mini": mini}) as hub:
        environ = variables(hub.endpoint, **added)
        online = run_build("fp8-dynamic", "--model", "org/mini", "--output", tmp_path / "on-line", env=environ)
        assert online.code == 0, online.err + online.out
        by_xet = bool(hub.requests("^/xorbs/"))
        commit = hub.commit_of("org/mini")
    assert by_xet == (setting != "HF_HUB_DISABLE_XET")
    stored = list((tmp_path / "home" / "hub" / "blobs").glob("??/*"))
    assert bool(stored) == (setting == "")
    environ |= {"HF_HUB_OFFLINE": "1", "WEIGHBRIDGE_CACHE": str(tmp_path / "another cache")}
    offline = run_build("fp8-dynamic", "--model", "org/mini", "--output", tmp_path / "offline", env=environ)
    assert offline.code == 0, offline.err + offline.out
    told = [
        [
            line.replace("/offline", "/on-line")
            for line in done.out.splitlines()
            if not line.startswith(("at: ", "command: "))
        ]
        for done in (online, offline)
    ]
    assert told[0] == told[1]
    assert without_evidence(tmp_path / "offline") == without_evidence(tmp_path / "on-line")
    for build in ("on-line", "offline"):  # names of one length, which break lines alike
        statements = map(json.loads, (tmp_path / build / "evidence" / "statements.jsonl").read_text().splitlines())
        (said,) = [item["predicate"] for item in statements if "buildDefinition" in item["predicate"]]
        asked = said["buildDefinition"]["externalParameters"]
        assert (asked["model"], asked["revision"]) == ("org/mini", commit)


def test_plan_draft_and_audit_are_made_of_the_cache(
    mini: Path,
    mini_build: Path,
    tmp_path: Path,
    variables: Callable[..., dict[str, str]],
    run_build: Command,
    run_validate: Command,
) -> None:
    with serve({"org/mini": mini}) as hub:
        environ = variables(hub.endpoint)
        filled = run_program("import huggingface_hub as h; h.snapshot_download('org/mini')", environ)
        assert filled.code == 0, filled.err
        commit = hub.commit_of("org/mini")
    environ |= {"HF_HUB_OFFLINE": "1"}
    assert run_build("fp8-dynamic", "--plan", "--model", f"org/mini@{commit}", env=environ).code == 0
    draft = tmp_path / "recipe.yaml"
    outcome = run_build("--new-recipe", "org/mini", "--output", draft, env=environ)
    assert outcome.code == 0, outcome.err
    assert load_recipe(str(draft)).recipe.base.revision == commit
    outcome = run_validate(mini_build, "--source", "org/mini", "--recipe", "fp8-dynamic", env=environ)
    assert outcome.code == 0, outcome.err + outcome.out


# Mirrors, closed repositories, and downloads that stall


def test_mirror_below_a_path_is_a_hub(tiny: Path, visit: Callable[[str], None], call_validate: Command) -> None:
    with serve({TINY: tiny}, prefix="/mirrors/hub") as hub:
        visit(hub.endpoint)
        assert call_validate(f"{TINY}@main").code == 0
        local = download(open_hub(HubId(TINY)))
        assert all(exchange.path.startswith("/mirrors/hub/") for exchange in hub.log if exchange.server == "hub")
    assert (local / FIRST).read_bytes() == (tiny / FIRST).read_bytes()


@pytest.mark.parametrize(
    ("status", "code", "phrases"),
    [
        (401, "GatedRepo", ("access to it must be asked for", "accept its terms")),
        (403, "GatedRepo", ("access to it must be asked for", "accept its terms")),
        (401, "RepoNotFound", ("no such repository, or not for this token", "HF_TOKEN")),
        (404, "RepoNotFound", ("no such repository, or not for this token", "HF_TOKEN")),
        (401, "", ("status 401", "check HF_TOKEN")),
        (403, "", ("status 403", "check HF_TOKEN")),
    ],
)
@pytest.mark.parametrize("path", [LISTING, f"/resolve/.*{FIRST}", f"/resolve/.*{CONFIG}"])
@pytest.mark.parametrize("known", [False, True], ids=["opening", "downloading"])
def test_closed_door_is_one_sentence_with_a_token_too(
    known: bool, path: str, status: int, code: str, phrases: tuple[str, ...], hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    checkpoint = open_hub(HubId(TINY)) if known else None
    hub.alter(path, failing(status, code=code))
    with pytest.raises(HubError) as raised:
        download(checkpoint or open_hub(HubId(TINY)))
    assert all(phrase in str(raised.value) for phrase in phrases), str(raised.value)
    assert "\n" not in str(raised.value)
    assert {exchange.authorization for exchange in hub.requests(path) if exchange.server == "hub"} == {
        f"Bearer {TOKEN}"
    }


@pytest.mark.parametrize("path", ["^/xorbs/", "^/v1/reconstructions"])
def test_download_by_xet_of_which_no_byte_comes_ends(path: str, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = open_hub(HubId(TINY))
    monkeypatch.setattr(hub_client, "STALL_SECONDS", 0.5)
    hub.alter(path, silent(seconds=3600))
    with pytest.raises(HubError, match=r"the download has stalled: no byte came for 0\.5 seconds; try again"):
        download(checkpoint)
    assert not list(Path(constants.HF_HUB_CACHE).rglob("*.incomplete")), "nothing half-made is left"


def test_download_by_http_of_which_no_byte_comes_ends(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = open_hub(HubId(TINY))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.2)
    hub.alter(f"^/objects/.*{FIRST}", stalled(after=0))
    with pytest.raises(HubError, match="sent an incomplete response"):
        download(checkpoint)


@pytest.mark.parametrize("by_xet", [True, False], ids=["xet", "http"])
def test_download_that_was_stopped_goes_on_with_the_files_that_lack(
    by_xet: bool, hub: Hub, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = open_hub(HubId(TINY))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", not by_xet)
    hub.alter(f"/resolve/.*{SECOND}", failing(403))
    with pytest.raises(HubError, match="403"):
        download(checkpoint)
    hub.restore()
    hub.log.clear()
    local = download(checkpoint)
    assert not hub.requests(FIRST)
    assert (local / SECOND).read_bytes() == (tiny / SECOND).read_bytes()


def test_directory_that_the_client_downloaded_into_is_opened(hub: Hub, tmp_path: Path, call_validate: Command) -> None:
    local = Path(snapshot_download(TINY, local_dir=tmp_path / "local", allow_patterns=WHOLE))
    assert (local / ".cache" / "huggingface").is_dir()
    outcome = call_validate(local)
    assert outcome.code == 0, outcome.err + outcome.out
    assert not any(name.startswith(".cache/") for name in open_directory(local).files)


# The hub of these tests itself


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # of httpx, about huggingface_hub's own PUT
def test_what_the_client_uploads_it_can_download_again(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = tmp_path / "new"
    new.mkdir()
    write_tensors(new, {"head.weight": RawTensor("BF16", (2, 2), b"8 bytes!")})
    (new / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    api = HfApi()
    api.create_repo("org/new")
    commit = api.upload_folder(repo_id="org/new", folder_path=new).oid
    assert hub.commit_of("org/new") == commit
    assert hub.content("org/new") == contents(new)
    assert contents(Path(snapshot_download("org/new"))) == contents(new)


def test_nothing_is_written_without_the_token(hub: Hub) -> None:
    with pytest.raises(OSError, match="401"):
        HfApi().create_repo("org/new")
