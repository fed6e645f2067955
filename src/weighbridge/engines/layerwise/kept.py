"""What a calibration keeps beside its target, so that one that was killed goes on at the layer where it was.

Of each pass over the model and each part of it: the tensors that came of it, and a line in the journal. Between two
passes the tensors are the model's own, as a modifier left them; those of the last are what the checkpoint stores.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weighbridge.errors import BuildError
from weighbridge.output.staging import clear_but, make_own
from weighbridge.work.journal import Journal

if TYPE_CHECKING:
    import torch

PASS = 1_000_000
"""More parts than a model has: the parts of the second pass are counted from here."""
_UNFINISHED = ".part"


@dataclass(frozen=True)
class Kept:
    """The folders and the journal.

    Attributes:
        directory: an existing directory that is this build's alone.
        journal: one line for each part of each pass.
        passes: how many there will be.
    """

    directory: Path
    journal: Journal
    passes: int

    @property
    def shards(self) -> Path:
        """Where the last pass leaves what the checkpoint stores."""
        return self.directory / "shards"

    @property
    def activations(self) -> Path:
        return self.directory / "activations"

    def place(self, number: int, part: int) -> Path:
        """The file of a part in a pass, both counted from zero."""
        if number == self.passes - 1:
            return self.shards / f"part-{part:05}.safetensors"
        return self.directory / f"pass-{number}" / f"part-{part:05}.safetensors"

    def clear(self) -> None:
        """Take away whatever is none of the parts that the journal knows; what is no journal gives way to one."""
        known = self.journal.finished()
        self.journal.rewrite(known)
        for number in range(self.passes):
            folder = self.place(number, 0).parent
            make_own(folder)
            clear_but(folder, {self.place(*divmod(entry, PASS)).name for entry in known if entry // PASS == number})

    def finished(self, number: int) -> list[Any]:
        """What was written down of the parts of a pass that are finished, from its first on without a gap."""
        done = self.journal.finished()
        said: list[Any] = []
        while (entry := done.get(number * PASS + len(said))) is not None:
            if digest(self.place(number, len(said))) != entry["sha256"]:
                break
            said.append(entry)
        return said

    def keep(self, number: int, part: int, tensors: Mapping[str, torch.Tensor], said: Mapping[str, Any]) -> Any:
        """Write down the tensors of a part, then that it is finished.

        Returns:
            What `finished` will say of it.

        Raises:
            OSError, BuildError: as `write_tensors`.
        """
        place = self.place(number, part)
        write_tensors(place, tensors)
        entry = {**said, "sha256": digest(place)}
        self.journal.add(number * PASS + part, entry)
        return entry


def write_tensors(place: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write a file of tensors, whole or not at all, whatever stands where it grows: a link is not followed.

    Raises:
        OSError: the file cannot be written.
        BuildError: safetensors takes no such tensor.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    growing = place.with_name(f"{place.name}{_UNFINISHED}")
    growing.unlink(missing_ok=True)
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, growing, metadata={"format": "pt"})
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is not None:  # a full disk, say, which another run may go on after
            raise OSError(int(number[1]), os.strerror(int(number[1])), str(place)) from error
        raise BuildError(f"tensors cannot be written ({error})", where=str(place)) from error
    growing.rename(place)


def digest(place: Path) -> str:
    """SHA-256 of a file; of one that is not there, nothing."""
    if place.is_symlink() or not place.is_file():
        return ""
    with place.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
