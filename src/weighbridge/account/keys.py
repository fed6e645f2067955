"""Keys of config.json and its siblings, each held against the base's.

What a build adds to config.json follows from the scheme. Any other difference is judged by what the key decides:
config_keys.yaml says of each key whether it changes the function, or is harmless.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path as File
from typing import Any

from weighbridge.account.base import Base
from weighbridge.account.leaves import Path, kind_of, leaves, shown
from weighbridge.account.model import Kind, State, Verdict
from weighbridge.account.sizes import BY, sizes_by_tensors
from weighbridge.checkpoint.model import Checkpoint
from weighbridge.errors import StructureError
from weighbridge.formats.quantization import without_quantization
from weighbridge.report import Finding, Severity
from weighbridge.text.strict_yaml import Strict, parse_yaml, validate

NOTHING_TO_HOLD_AGAINST = "nothing was given to hold it against"
UNKNOWN_KEY = "what the key decides is not known here, and it is not as in the base"
UNSEEN_KEY = "nobody here has seen the whole config.json of the base, and the base is not at hand"
MOST_KEYS = 60_000
"""More keys than any config has, the settings of tokenizers included; each is a line of its own where it differs."""
RENAMED = {"torch_dtype": "dtype"}
"""Keys that transformers 5 writes under another name than before, with one meaning."""

_VERSION = re.compile(r'"[0-9]+(\.[0-9]+){0,3}([.+-]?[a-z0-9]+)*"')
_TABLE = File(__file__).with_name("config_keys.yaml")


class Keys(Strict):
    """Keys that are alike.

    Attributes:
        why: what they decide, or why nothing depends on them.
    """

    why: str
    keys: list[str]


class KeyTable(Strict):
    """What is known of the keys of config.json."""

    changes_the_function: list[Keys]
    harmless: list[Keys]


Meaning = tuple[State, str]
"""`HELD` for what changes the function, `HARMLESS`, or `NOT_JUDGED`; and why."""


@cache
def config_keys() -> Mapping[str, Meaning]:
    """Key -> what it means that it differs, from config_keys.yaml."""
    document = parse_yaml(_TABLE.read_bytes(), where=_TABLE.name, error=StructureError)
    table = validate(document, KeyTable, error=StructureError)
    found = {key: (State.HELD, group.why) for group in table.changes_the_function for key in group.keys}
    return found | {key: (State.HARMLESS, group.why) for group in table.harmless for key in group.keys}


def meaning_in_config(path: Path) -> Meaning:
    """What a key of config.json decides, by the innermost part of its path that is known (``rope_parameters.x``)."""
    table = config_keys()
    own = table.get(path[-1], (State.NOT_JUDGED, UNKNOWN_KEY))
    outer = next((table[part] for part in reversed(path[:-1]) if part in table and not _is_config(part)), None)
    if all(map(_is_config, path[:-1])):
        return own
    return outer or ((State.NOT_JUDGED, UNKNOWN_KEY) if own[0] is State.HARMLESS else own)


def _is_config(part: str) -> bool:
    """Whether a key holds the config of a part of the model, in which keys mean what they mean at the top."""
    return part.endswith("_config")


def meaning_beside(path: Path) -> Meaning:
    """The same for a JSON file beside config.json: all decide how the model answers, but for records."""
    if path in (("transformers_version",), ("name_or_path",)):
        return State.HARMLESS, "a record of what wrote the file; nothing is computed from it"
    return State.HELD, "how text, pictures or sound go into the model, or how its answer is drawn"


def judge_config(checkpoint: Checkpoint, base: Base | None) -> Iterator[Verdict]:
    """Every key of the config but those of the quantization config, against the base's.

    Without a base, sizes are held against the tensors.
    """
    bare, file = without_quantization(checkpoint.config), checkpoint.form.config
    if base is None or not base.checkpoint.config:
        sizes = {_name(file, path): wrong for path, wrong in sizes_by_tensors(bare, checkpoint.structure)}
        by = NOTHING_TO_HOLD_AGAINST if base is None else UNSEEN_KEY
        for verdict in judge_document(file, bare, None, meaning_in_config, against=""):
            unheld = Verdict(verdict.kind, verdict.name, verdict.state, by)
            yield _by_tensors(verdict, sizes[verdict.name]) if verdict.name in sizes else unheld
        return
    theirs = without_quantization(base.checkpoint.config)
    verdicts = judge_document(file, bare, theirs, meaning_in_config, against=base.name)
    known = {_name(file, path) for path in _renamed(leaves(theirs))}
    for verdict in verdicts:
        if base.has_whole_config or verdict.name in known:
            yield verdict
        else:
            yield Verdict(Kind.KEY, verdict.name, State.NOT_JUDGED, UNSEEN_KEY)


def _by_tensors(verdict: Verdict, wrong: str) -> Verdict:
    remedy = "set it to what is stored, or take the tensors that it speaks of from the base"
    finding = Finding("config/sizes", Severity.ERROR, verdict.name, wrong, remedy=remedy)
    return Verdict(Kind.KEY, verdict.name, State.HELD, BY, (finding,) if wrong else ())


def judge_document(
    file: str,
    own: Mapping[str, Any],
    base: Mapping[str, Any] | None,
    meaning: Callable[[Path], Meaning],
    *,
    against: str,
) -> Iterator[Verdict]:
    """Every leaf of a JSON document against the base's, those that it lacks too.

    Args:
        base: the base's document; None where nobody knows it.
        meaning: what it means that a key is not as the base has it.
        against: how the base is called.
    """
    if base is None:
        found = leaves(own)
        if len(found) > MOST_KEYS:
            raise StructureError(f"holds more than {MOST_KEYS:,} keys", where=file)
        for path in found:
            yield Verdict(Kind.KEY, _name(file, path), State.NOT_JUDGED, NOTHING_TO_HOLD_AGAINST)
        return
    ours, theirs = leaves(own), leaves(base)
    if meaning is meaning_in_config:
        ours, theirs = _renamed(ours), _renamed(theirs)
    if len(ours) + len(theirs) > MOST_KEYS:
        raise StructureError(f"holds more than {MOST_KEYS:,} keys", where=file)
    shared = {path[:-1] for path in ours} & {path[:-1] for path in theirs} | {()}
    for path in [*ours, *(path for path in theirs if path not in ours)]:
        state, why = meaning(path)
        if state is State.HARMLESS and (path[:-1] not in shared or not _is_record(path, ours.get(path))):
            state, why = State.NOT_JUDGED, UNKNOWN_KEY  # a mapping of its own, or no version at all
        yield _judge_leaf(file, path, ours.get(path), theirs.get(path), (state, why), against=against)


def _is_record(path: Path, own: str | None) -> bool:
    """Whether a version is one: transformers reads that of the config, and stops at what it cannot read."""
    return path[-1] != "transformers_version" or (own is not None and _VERSION.fullmatch(own) is not None)


def _renamed(found: dict[Path, str]) -> dict[Path, str]:
    """Leaves of a config.json under today's names; where both names stand there, each is a key of its own."""
    today = {path: (*path[:-1], RENAMED.get(path[-1], path[-1])) for path in found if all(map(_is_config, path[:-1]))}
    today = {path: today.get(path, path) for path in found}
    return {path if today[path] in found else today[path]: text for path, text in found.items()}


def _judge_leaf(file: str, path: Path, own: str | None, base: str | None, meaning: Meaning, *, against: str) -> Verdict:
    name = _name(file, path)
    if own == base:
        return Verdict(Kind.KEY, name, State.SAME, against)
    state, why = meaning
    alike = own is None or base is None or kind_of(own) == kind_of(base)
    if state is State.NOT_JUDGED or (state is State.HARMLESS and alike):
        return Verdict(Kind.KEY, name, state, why)
    finding = Finding(
        "account/key-changed",
        Severity.ERROR,
        name,
        f"is {shown(own)}, and {shown(base)} in {against}; the key decides: {why}",
        remedy="set it to the base's value again, or name the base that this was made from",
    )
    return Verdict(Kind.KEY, name, State.HELD, against, (finding,))


def _name(file: str, path: Path) -> str:
    return f"{file}:{'.'.join(path)}"
