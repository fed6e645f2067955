"""What is asked of other libraries by doors that they do not document: where, and in which version it was read."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from typing import Any

import pytest

from tests.conftest import ROOT

SOURCE = ROOT / "src/weighbridge"


@dataclass(frozen=True)
class Doors:
    """Doors of one library.

    Attributes:
        read_in: the version that they were read in, as the module that goes through them says it.
        place: that module.
        names: ``module:name`` of each.
    """

    read_in: str
    place: str
    names: tuple[str, ...]


DOORS = {
    "huggingface_hub": Doors(
        "1.33.0",
        "checkpoint/hub_client.py",
        (
            "huggingface_hub.utils._http:default_client_factory",
            "huggingface_hub.utils._xet:abort_xet_session",
            *(f"huggingface_hub.utils._shared_blobs:{name}" for name in ("shared_blobs_dir", "is_shared_blobs_dir")),
            *(
                f"huggingface_hub.utils._shared_blobs:{name}"
                for name in ("shared_blob_target", "SHARED_BLOBS_MARKER_NAME")
            ),
        ),
    ),
    "model_signing": Doors("1.1.1", "evidence/signing.py", ("model_signing._hashing.hashing:Digest",)),
    "llmcompressor": Doors(
        "0.14.0.1",
        "engines/oneshot/calibrate.py",
        (
            "llmcompressor.pipelines.sequential.pipeline:get_main_device",
            "llmcompressor.pipelines.cache:IntermediatesCache.pin_memory",
            "llmcompressor.modeling.offset_norm:CalibrationOffsetNorm.restore",
        ),
    ),
    "compressed_tensors": Doors(
        "0.19.0",
        "engines/oneshot/calibrate.py",
        ("compressed_tensors.quantization.lifecycle.apply:tqdm",),
    ),
}
"""By library. Python does not say that nobody patches what is no door; these are all that the project knows of."""

UNDERSCORED = re.compile(r"^\s*(?:from|import) ((?!weighbridge)[\w.]*\._[a-z][\w.]*)", re.MULTILINE)


@pytest.mark.parametrize("library", DOORS)
def test_door_was_read_in_the_version_that_is_installed(library: str) -> None:
    doors = DOORS[library]
    assert version(library) == doors.read_in, f"read {', '.join(doors.names)} again, then say so in {doors.place}"


@pytest.mark.parametrize(("library", "name"), [(library, name) for library in DOORS for name in DOORS[library].names])
def test_door_is_there(library: str, name: str) -> None:
    module, _, path = name.partition(":")
    found: Any = import_module(module)
    for part in path.split("."):
        found = getattr(found, part, None)
    assert found is not None, f"{library} {version(library)} has no {name}: see {DOORS[library].place}"


@pytest.mark.parametrize("library", DOORS)
def test_module_that_goes_through_a_door_says_in_which_version_it_was_read(library: str) -> None:
    assert DOORS[library].read_in in (SOURCE / DOORS[library].place).read_text()


def test_private_modules_are_imported_in_these_places_alone() -> None:
    found = {
        (path.relative_to(SOURCE).as_posix(), module)
        for path in SOURCE.rglob("*.py")
        if "inside" not in path.parts  # runs in the server's own environment
        for module in UNDERSCORED.findall(path.read_text())
    }
    known = {(doors.place, name.partition(":")[0]) for doors in DOORS.values() for name in doors.names if "._" in name}
    assert {module for _, module in found} <= {module for _, module in known}
    assert {place for place, _ in found} <= {place for place, _ in known}
