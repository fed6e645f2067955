"""What was signed, against what the build itself wrote."""

from __future__ import annotations

from pathlib import Path

from weighbridge.building.making import Made
from weighbridge.checkpoint.model import EVIDENCE, Checkpoint, check_unchanged
from weighbridge.errors import BuildError
from weighbridge.evidence.card import CARD
from weighbridge.evidence.subject import hash_files, read_files
from weighbridge.evidence.write import FILES, base_card
from weighbridge.output.staging import check_exact
from weighbridge.progress import Progress


def check_unaltered(directory: Path, built: Checkpoint, made: Made) -> None:
    """Refuse evidence that is about anything but what this build wrote: no file more, none less, none with other bytes.

    Args:
        built: the checkpoint as its headers were read, when its shards had been hashed.

    Raises:
        BuildError: somebody else wrote there meanwhile.
        StructureError: a shard changed since it was hashed.
    """
    written = dict(made.files)
    if CARD in written:
        written[base_card(written)] = written.pop(CARD)
    listed = read_files((directory / EVIDENCE / FILES).read_bytes(), where=f"{EVIDENCE}/{FILES}")
    differ = sorted(name for name in {*listed, *written} - {CARD} if listed.get(name) != written.get(name))
    differ += [name for name, standing in made.standings.items() if built.shards[name].standing != standing]
    if differ:
        raise _planted(directory / differ[0])
    check_unchanged(built, built.shards)
    evidence = [path.relative_to(directory).as_posix() for path in (directory / EVIDENCE).iterdir()]
    check_exact(directory, [*listed, *evidence])
    small = [name for name in listed if name not in built.shards]
    for name, digest in hash_files(directory, small, progress=Progress(shown=False)).items():
        if listed[name] != digest:
            raise _planted(directory / name)


def _planted(path: Path) -> BuildError:
    return BuildError(
        "is not what this build wrote: somebody else writes into the directory that it grows in",
        where=str(path),
        remedy="find out who, and build anew",
    )
