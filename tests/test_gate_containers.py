"""The gate where containers run it: as nobody, without a network, on a file system that it cannot write to; and as what
KServe fetches models with."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT, environment
from tests.dishonest import Lie, Workshop, open_workshop
from tests.gate_frauds import FRAUDS, write_policy
from tests.hub_server import Hub, serve

EXAMPLES = ROOT / "examples" / "kubernetes"
BIN = ROOT / ".venv" / "bin"
CONFINED = ("unshare", "--net", "--mount", "sh", "-c")
AS_NOBODY = "mount -o remount,ro,bind / && exec setpriv --reuid 65534 --regid 65534 --clear-groups --no-new-privs "


@pytest.fixture(scope="module")
def workshop(mini: Path, tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return open_workshop(tmp_path_factory.mktemp("workshop"), audited=True)


@pytest.fixture
def honest(workshop: Workshop, tmp_path: Path) -> Path:
    return workshop.forged(Lie("nothing"), tmp_path / "build")


@pytest.fixture
def altered(workshop: Workshop, tmp_path: Path) -> Path:
    (fraud,) = [fraud for fraud in FRAUDS if fraud.what == "the chat template altered"]
    return fraud.commit(workshop, tmp_path / "altered")


def may_confine() -> bool:
    if os.geteuid() != 0 or not all(map(shutil.which, ("unshare", "setpriv"))):
        return False
    started = [*CONFINED, f"{AS_NOBODY}{BIN / 'python'} -c pass"]
    return subprocess.run(started, capture_output=True, check=False).returncode == 0


def arguments_of_the_pod(build: Path, policy: Path) -> list[str]:
    """What the example's init container is called with, for these two."""
    (container,) = yaml.safe_load((EXAMPLES / "pod.yaml").read_text())["spec"]["initContainers"]
    places = {"/models/gemma-4": str(build), "/policy/policy.yaml": str(policy)}
    return [places.get(word, word) for word in container["args"]]


@pytest.fixture
def volume() -> Iterator[Path]:
    """A directory that anybody can read."""
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        yield Path(place)


@pytest.mark.skipif(not may_confine(), reason="only root may take away rights, network and a writable file system")
@pytest.mark.parametrize(("case", "code"), [("honest", 0), ("altered", 1), ("nothing", 2)])
def test_init_container_needs_no_rights_no_network_and_no_place_to_write(
    case: str, code: int, honest: Path, altered: Path, workshop: Workshop, volume: Path
) -> None:
    for name, build in (("honest", honest), ("altered", altered)):
        shutil.copytree(build, volume / name)
    words = arguments_of_the_pod(volume / case, write_policy(volume / "policy", workshop))
    done = subprocess.run(
        [*CONFINED, AS_NOBODY + '"$0" gate "$@"', str(BIN / "weighbridge"), *words],
        env={"PATH": os.environ["PATH"], "HOME": "/nonexistent"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr


@pytest.fixture
def hub(honest: Path, altered: Path) -> Iterator[Hub]:
    with serve({"org/honest": honest, "org/altered": altered}) as hub:
        yield hub


def fetch(uri: str, target: Path, policy: Path | None, hub: Hub, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    named = {} if policy is None else {"WEIGHBRIDGE_POLICY": str(policy)}
    asked = {"HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "home"), "NO_PROXY": "*"}
    kept = {key: value for key, value in environment().items() if key != "WEIGHBRIDGE_POLICY"}
    path = {"PATH": f"{BIN}:{os.environ['PATH']}"}
    command = [str(EXAMPLES / "gated-storage"), uri, str(target)]
    return subprocess.run(command, env={**kept, **asked, **path, **named}, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("uri", "code"),
    [
        ("hf://org/honest", 0),
        ("hf://org/honest:main", 0),
        ("hf://org/altered", 1),
        ("hf://org/nothing", 2),
        ("s3://bucket/model", 2),
    ],
)
def test_what_a_policy_does_not_let_pass_is_not_left_where_a_server_finds_it(
    uri: str, code: int, hub: Hub, workshop: Workshop, tmp_path: Path
) -> None:
    target = tmp_path / "model"
    target.mkdir()
    done = fetch(uri, target, write_policy(tmp_path / "policy", workshop), hub, tmp_path)
    assert done.returncode == code, done.stdout + done.stderr
    assert (target / "model.safetensors").exists() == (code == 0)
    assert bool(list(target.iterdir())) == (code == 0)


def test_without_a_policy_nothing_is_fetched(hub: Hub, tmp_path: Path) -> None:
    target = tmp_path / "model"
    target.mkdir()
    done = fetch("hf://org/honest", target, None, hub, tmp_path)
    assert (done.returncode != 0, list(target.iterdir())) == (True, [])


def test_containers_of_the_examples_give_up_their_rights() -> None:
    pod = yaml.safe_load((EXAMPLES / "pod.yaml").read_text())["spec"]
    storage = yaml.safe_load((EXAMPLES / "storage-container.yaml").read_text())["spec"]["container"]
    (gate,) = pod["initContainers"]
    assert pod["securityContext"]["runAsNonRoot"] is storage["securityContext"]["runAsNonRoot"] is True
    for container in (gate, storage):
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert storage["command"] == ["gated-storage"] and (EXAMPLES / "gated-storage").stat().st_mode & 0o111
