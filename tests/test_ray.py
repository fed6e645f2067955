"""Pieces done by a Ray cluster: the same bytes as here, also when a machine dies in the middle."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoints import without_evidence
from tests.sources import write_moe, write_recipe

ray = pytest.importorskip("ray", reason="the extra [ray] is not installed: pip install -e '.[ray]'")
pytestmark = pytest.mark.campaign

BUILD = [sys.executable, str(Path(__file__).resolve().parents[1] / "build.py")]


@pytest.fixture
def cluster() -> Iterator[Any]:
    """One machine, to which more can be added: Ray's own utility makes them on this one."""
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    yield made
    made.shutdown()


def digests(directory: Path) -> dict[str, str]:
    return {name: hashlib.sha256(content).hexdigest() for name, content in without_evidence(directory).items()}


@pytest.mark.parametrize("one_dies", [False, True], ids=["undisturbed", "one machine dies"])
def test_a_cluster_writes_the_bytes_of_a_local_run(one_dies: bool, cluster: Any, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    write_moe(source, layers=12, experts=32)
    recipe = write_recipe(tmp_path / "recipe.yaml", "NVFP4A16")
    command = [*BUILD, str(recipe), "--model", str(source), "--reference", "none", "--output"]
    subprocess.run([*command, str(tmp_path / "local")], check=True, capture_output=True)
    other = cluster.add_node(num_cpus=1)
    process = subprocess.Popen(
        [*command, str(tmp_path / "ray"), "--executor", "ray", "--ray", cluster.address, "--format", "json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while one_dies and process.poll() is None:
        journals = list(tmp_path.glob(".ray.staging-*/journal.jsonl"))
        if journals and len(journals[0].read_bytes().splitlines()) >= 3:
            cluster.remove_node(other, allow_graceful=False)
            break
        time.sleep(0.01)
    stdout, stderr = process.communicate()
    assert process.returncode == 0, stdout + stderr
    assert stdout.startswith("{"), stdout
    assert json.loads(stdout)["holds"]
    assert digests(tmp_path / "ray") == digests(tmp_path / "local")
