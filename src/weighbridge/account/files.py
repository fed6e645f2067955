"""Every file of a checkpoint: a shard, the base's own, harmless by a closed list, or somebody else's."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache

from weighbridge.account.base import Base, digest, read
from weighbridge.account.container import is_plainly_written, judge_index, judge_metadata
from weighbridge.account.keys import NOTHING_TO_HOLD_AGAINST, judge_config, judge_document, meaning_beside
from weighbridge.account.model import Kind, State, Verdict
from weighbridge.account.quantization import judge_hf_quant_config, judge_quantization
from weighbridge.account.redirects import redirects_beside
from weighbridge.checkpoint.listing import UNCARRIED_DIRECTORIES
from weighbridge.checkpoint.model import EVIDENCE, Checkpoint
from weighbridge.checkpoint.needed import needed
from weighbridge.checkpoint.weights import PUBLISHERS_FOLDERS, is_weights, taken_by
from weighbridge.errors import StructureError
from weighbridge.formats import modelopt
from weighbridge.planning import Plan
from weighbridge.report import Finding, Severity
from weighbridge.text.strict_json import MAX_JSON_BYTES, parse_config

HARMLESS_FILES: tuple[tuple[str, str], ...] = (
    (rf"{EVIDENCE}/.*", "servers do not read it; validate.py --evidence judges it"),
    (r"(.*/)?[^/]*\.(md|rst)", "text for people; servers do not read it"),
    (r"(LICEN[CS]E|NOTICE|COPYING|USE_POLICY)([-_][\w-]+)?(\.txt)?", "terms, which servers do not read"),
    (r"(.*/)?[^/]*\.(png|jpe?g|gif|svg|webp|ico|pdf|bib)", "pictures and papers, which servers do not read"),
    (r"(.*/)?\.git(attributes|ignore|keep)", "git's own"),
)
"""Expressions for whole names of files that nothing depends on, and why; the closed list."""

JSON_BESIDE = frozenset(
    {
        *("generation_config.json", "processor_config.json", "preprocessor_config.json"),
        *("video_preprocessor_config.json", "audio_preprocessor_config.json"),
    }
)
"""Files whose every key stands in the account."""

UNSEEN = "nobody here has seen the base's, and the base is not at hand"
UNLISTED = "the lock of the base lists no such file, and the base is not at hand"


def judge_files(checkpoint: Checkpoint, base: Base | None, plan: Plan | None) -> Iterator[Verdict]:
    """Every file, and every key of those that are read by keys.

    Args:
        base: what files and keys are held against; None where nothing is at hand.
        plan: what a recipe declares.

    Raises:
        StructureError, HubError: a file cannot be read.
    """
    yield from judge_config(checkpoint, base)
    yield from judge_quantization(checkpoint, plan, base)
    for name in sorted(checkpoint.files.keys() | checkpoint.shards.keys()):
        yield from _judge_file(name, checkpoint, base, plan)
    yield from _folders(checkpoint)
    for name in () if plan is None else sorted(plan.documents.keys() - checkpoint.files.keys()):
        finding = Finding("account/missing-file", Severity.ERROR, name, "is missing; the recipe's plan writes it")
        yield _file(name, State.HELD, "the recipe's plan", finding)
    if base is not None:
        yield from _missing(checkpoint, base)


def judge_lock(checkpoint: Checkpoint, base: Base | None) -> Iterator[Verdict]:
    """The keys of config.json that a lock has; of its files it knows no more than digests, if that."""
    if checkpoint.config and checkpoint.declaration is not None:
        yield from judge_config(checkpoint, base)


def _judge_file(name: str, checkpoint: Checkpoint, base: Base | None, plan: Plan | None) -> Iterator[Verdict]:
    if name in checkpoint.shards:
        yield _file(name, State.HELD, f"{checkpoint.form.config}, tensor by tensor", *_called(name, checkpoint, base))
        yield from judge_metadata(name, checkpoint.shards[name].metadata)
    elif name == checkpoint.form.config:
        yield _by_keys(name, checkpoint)
    elif name == checkpoint.form.index:
        yield _by_keys(name, checkpoint)
        yield from judge_index(name, _content(checkpoint, name))
    elif is_weights(name):
        yield _judge_weights(name, checkpoint, base)
    elif (why := harmless(name)) is not None:
        yield _file(name, State.HARMLESS, why)
    elif name == modelopt.HF_QUANT_CONFIG and _is_modelopt(checkpoint):
        yield _by_keys(name, checkpoint)
        yield from judge_hf_quant_config(_content(checkpoint, name), checkpoint, plan)
    else:
        yield from _judge_carried(name, checkpoint, base)


def _by_keys(name: str, checkpoint: Checkpoint) -> Verdict:
    """A JSON file whose keys are judged one by one, so that only its white space is left."""
    if is_plainly_written(_content(checkpoint, name)):
        return _file(name, State.HELD, "key by key")
    return _file(name, State.HARMLESS, "its white space is its own; its keys are judged one by one")


@cache
def harmless(name: str) -> str | None:
    """Why nothing depends on a file of this name; None where something may."""
    return next((why for expression, why in HARMLESS_FILES if re.fullmatch(expression, name)), None)


def _called(name: str, checkpoint: Checkpoint, base: Base | None) -> Iterator[Finding]:
    """The one shard of a checkpoint without an index is looked for by its name; vLLM alone takes any."""
    form = checkpoint.form
    if form.index not in checkpoint.files and name != form.single:
        severity = Severity.WARNING if base is None else Severity.ERROR
        what = f"is no name by which transformers finds a shard, which is {form.single}"
        yield Finding("account/shard-name", severity, name, what, remedy=f"call it {form.single}")


def _is_modelopt(checkpoint: Checkpoint) -> bool:
    return checkpoint.declaration is not None and checkpoint.declaration.quant_method == modelopt.METHOD


def _judge_weights(name: str, checkpoint: Checkpoint, base: Base | None) -> Verdict:
    """Weights that no shard is: somebody would take them in place of what is judged here."""
    if name.startswith(PUBLISHERS_FOLDERS) and (base is None or _is_the_same(name, checkpoint, base)):
        return _file(name, State.HARMLESS, "what publishers keep for other programs; no server looks there")
    indexed = checkpoint.form.index in checkpoint.files
    finding = Finding(
        "account/other-weights",
        Severity.ERROR,
        name,
        f"holds weights that are not judged: {taken_by(name, indexed=indexed)}",
        remedy="take it out of the directory",
    )
    return _file(name, State.HELD, "the list of shards", finding)


def _is_the_same(name: str, checkpoint: Checkpoint, base: Base) -> bool:
    theirs = base.checkpoint.files.get(name)
    if theirs is None or theirs.size != checkpoint.files[name].size:
        return False
    here, there = checkpoint.files[name].sha256, theirs.sha256
    if here is not None and there is not None:
        return here == there
    return (checkpoint.files[name].size or 0) <= MAX_JSON_BYTES and digest(checkpoint, name) == base.digest(name)


def _judge_carried(name: str, checkpoint: Checkpoint, base: Base | None) -> Iterator[Verdict]:
    """A file that a build takes over from its base: the tokenizer, templates, configs of processors, code."""
    if base is None:
        document = _document(checkpoint, name)
        elsewhere = () if document is None else redirects_beside(name, document)
        yield _file(name, State.NOT_JUDGED, NOTHING_TO_HOLD_AGAINST, *_code(name), *elsewhere)
        if document is not None and name in JSON_BESIDE:
            yield from judge_document(name, document, None, meaning_beside, against="")
        return
    if name not in base.checkpoint.files:
        if not base.listed:
            yield _file(name, State.NOT_JUDGED, UNLISTED, *_code(name))
            return
        what = f"is not in {base.name}, and a server may obey it"
        remedy = "take it out, or name the base that it came from"
        finding = Finding("account/added-file", Severity.ERROR, name, what, remedy=remedy)
        yield _file(name, State.HELD, base.name, finding)
        return
    theirs = base.digest(name)
    if theirs is None:
        yield _file(name, State.NOT_JUDGED, UNSEEN)
    elif digest(checkpoint, name) == theirs:
        yield _file(name, State.SAME, base.name)
        if name in JSON_BESIDE and (document := _document(checkpoint, name)) is not None:
            yield from judge_document(name, document, document, meaning_beside, against=base.name)
    else:
        yield from _judge_changed(name, checkpoint, base)


def _judge_changed(name: str, checkpoint: Checkpoint, base: Base) -> Iterator[Verdict]:
    """A file whose bytes are not the base's: JSON by its keys, where both can be read; anything else as a whole."""
    ours, theirs = _document(checkpoint, name), _document(base.checkpoint, name)
    if ours is None or theirs is None:
        what = f"is not the file of {base.name}"
        if theirs is None and name.endswith(".json") and base.checkpoint.directory is None:
            what += ", by its digest; whether that matters can be seen with the base itself at hand"
        finding = Finding("account/file-changed", Severity.ERROR, name, what, remedy="take the base's own file")
        yield _file(name, State.HELD, base.name, finding)
        return
    if ours == theirs:
        yield _file(name, State.HARMLESS, "written otherwise than the base's; every key and value is the same")
    else:
        yield _file(name, State.HELD, f"{base.name}, key by key")
    yield from judge_document(name, ours, theirs, meaning_beside, against=base.name)


def _document(checkpoint: Checkpoint, name: str) -> dict[str, object] | None:
    """A JSON file as a mapping; None where it is no JSON, or cannot be read by keys."""
    if not name.endswith(".json"):
        return None
    try:
        content = read(checkpoint, name)
        return None if content is None else parse_config(content, where=name)
    except StructureError:  # not readable by keys: then it is judged as a whole
        return None


def _content(checkpoint: Checkpoint, name: str) -> bytes:
    content = read(checkpoint, name)
    assert content is not None  # a lock has no files to be judged
    return content


def _folders(checkpoint: Checkpoint) -> Iterator[Verdict]:
    """Folders at the top that are not read at all."""
    for name in UNCARRIED_DIRECTORIES:
        if checkpoint.directory is not None and (checkpoint.directory / name).exists():
            yield _file(f"{name}/", State.HARMLESS, "notes of git or the hub's client, which servers do not read")


def _missing(checkpoint: Checkpoint, base: Base) -> Iterator[Verdict]:
    """What the base has and the checkpoint lacks: a server goes on without it, and answers otherwise."""
    for name in sorted(base.checkpoint.files.keys() - checkpoint.files.keys() - base.checkpoint.shards.keys()):
        made_anew = name in base.checkpoint.read_beside
        known = base.listed or base.checkpoint.files[name].sha256 is not None
        if not known or made_anew or is_weights(name) or harmless(name) is not None:
            continue
        what = f"is missing; {base.name} has it"
        if needed(name, base.checkpoint.config) is not None:
            finding = Finding("account/missing-file", Severity.ERROR, name, what, remedy="copy it from the base")
            yield _file(name, State.HELD, base.name, finding)
        elif name.endswith(".py"):
            what += ", and code that is there may need it"
            finding = Finding("account/missing-file", Severity.WARNING, name, what, remedy="take it over by its name")
            yield _file(name, State.HELD, base.name, finding)


def _code(name: str) -> tuple[Finding, ...]:
    if not name.endswith(".py"):
        return ()
    what = "is code that a server runs if it is told to trust it; nobody has judged it"
    return (Finding("account/code", Severity.WARNING, name, what, remedy="read it before you serve"),)


def _file(name: str, state: State, by: str, *findings: Finding) -> Verdict:
    return Verdict(Kind.FILE, name, state, by, findings)
