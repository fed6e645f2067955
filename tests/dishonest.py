"""Builders who lie: one writes the evidence of a build by this project's own writer, of values that are not so.

Whatever a lie touches is written of it, consistently, and rightly signed: files are not altered here, builders are.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch  # of the writer, by whoever lies; nothing of the checker is ever replaced

from weighbridge.base.source import open_source
from weighbridge.building import BuildRequest, build
from weighbridge.checkpoint.model import Checkpoint
from weighbridge.evidence import FinishedBuild, Signer, write
from weighbridge.evidence.environment import Installed, installed
from weighbridge.evidence.signing import KeySigner, make_key_pair, open_verifier
from weighbridge.evidence.statements import ProvenanceStatement, TestResultStatement
from weighbridge.evidence.verify import verify
from weighbridge.progress import Progress
from weighbridge.recipe import load_recipe
from weighbridge.report import Report, Section, SectionId, Severity

WRITER = "weighbridge.evidence.write"

Wrap = Callable[[Callable[..., Any]], Callable[..., Any]]


@dataclass(frozen=True)
class Lie:
    """One lie.

    Attributes:
        what: its id.
        rule: the rule of an error that refuses it; empty where nobody can know.
        word: where nobody can know: what the report says that it takes the builder's word for.
        seen: the rule that refuses it where the source is at hand, if that makes a difference.
        before: changes files of the checkpoint, before its evidence is written.
        build: changes the values that evidence is written of.
        wraps: functions of the writer -> what takes the place of each.
    """

    what: str
    rule: str = ""
    word: str = ""
    seen: str = ""
    before: Callable[[Path], object] = lambda directory: None
    build: Callable[[FinishedBuild], FinishedBuild] = lambda build: build
    wraps: Mapping[str, Wrap] = field(default_factory=dict)


_PACKAGES: list[tuple[Installed, ...]] = []


def packages() -> tuple[Installed, ...]:
    """What is installed, looked up once."""
    if not _PACKAGES:
        _PACKAGES.append(installed())
    return _PACKAGES[0]


@contextmanager
def _lying(lie: Lie) -> Iterator[None]:
    """The writer as the liar has changed it."""
    wraps: dict[str, Wrap] = {f"{WRITER}.installed": lambda _: packages, **lie.wraps}
    with ExitStack() as stack:
        for name, wrap in wraps.items():
            module, _, function = name.rpartition(".")
            original = getattr(__import__(module, fromlist=[function]), function)
            stack.enter_context(patch(name, wrap(original)))
        yield


def forge(lie: Lie, honest: FinishedBuild, unfinished: Path, target: Path, key: Path) -> Path:
    """The build of a liar, with its evidence; its weights are hard links to those of the honest one."""
    shutil.copytree(unfinished, target, copy_function=_link_weights)
    lie.before(target)
    with _lying(lie):
        write(target, lie.build(honest), signer=KeySigner.open(key), progress=Progress(shown=False))
    return target


def _link_weights(source: str, target: str) -> str:
    if source.endswith(".safetensors"):
        Path(target).hardlink_to(source)
        return target
    return str(shutil.copyfile(source, target))


# What lies are made of


def provenance(change: Callable[[Any], object]) -> dict[str, Wrap]:
    """Change the provenance as JSON, before it is signed."""

    def wrap(original: Callable[..., ProvenanceStatement]) -> Callable[..., ProvenanceStatement]:
        def lied(*arguments: Any, **named: Any) -> ProvenanceStatement:
            content = original(*arguments, **named).model_dump(mode="json", by_alias=True, exclude_none=True)
            change(content)
            return ProvenanceStatement.model_validate(content)

        return lied

    return {f"{WRITER}.provenance_statement": wrap}


def result(change: Callable[[Any], object]) -> dict[str, Wrap]:
    """Change the statement of the results as JSON, before it is signed."""

    def wrap(original: Callable[..., TestResultStatement]) -> Callable[..., TestResultStatement]:
        def lied(*arguments: Any, **named: Any) -> TestResultStatement:
            content = original(*arguments, **named).model_dump(mode="json", by_alias=True, exclude_none=True)
            change(content)
            return TestResultStatement.model_validate(content)

        return lied

    return {f"{WRITER}.result_statement": wrap}


def output(function: str, change: Callable[[Any], Any]) -> dict[str, Wrap]:
    """Change what a function of the writer gives."""
    name = function if "." in function else f"{WRITER}.{function}"
    return {name: lambda original: lambda *arguments, **named: change(original(*arguments, **named))}


def text(function: str, old: str, new: str) -> dict[str, Wrap]:
    """Other words in what a function of the writer gives, bytes or text."""

    def change(said: Any) -> Any:
        before = said.decode() if isinstance(said, bytes) else said
        assert old in before, f"{function} says nothing of {old!r}"
        after = before.replace(old, new)
        return after.encode() if isinstance(said, bytes) else after

    return output(function, change)


def put(*keys: str | int, value: Any) -> Callable[[Any], None]:
    """Set a value in a JSON document."""

    def change(content: Any) -> None:
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = value

    return change


def drop(*keys: str | int) -> Callable[[Any], None]:
    """Remove a value of a JSON document."""

    def change(content: Any) -> None:
        for key in keys[:-1]:
            content = content[key]
        del content[keys[-1]]

    return change


def dependency(name: str, change: Callable[[dict[str, Any]], object]) -> dict[str, Wrap]:
    """Change one of the things that the provenance says that a build was made from."""

    def within(content: Any) -> None:
        stated = content["predicate"]["buildDefinition"]["resolvedDependencies"]
        (item,) = [item for item in stated if item["name"] == name]
        change(item)

    return provenance(within)


def dependencies(change: Callable[[list[dict[str, Any]]], object]) -> dict[str, Wrap]:
    """Change the list of them."""
    return provenance(lambda content: change(content["predicate"]["buildDefinition"]["resolvedDependencies"]))


def byproducts(change: Callable[[list[dict[str, Any]]], object]) -> dict[str, Wrap]:
    """Change the list of what lies beside."""
    return provenance(lambda content: change(content["predicate"]["runDetails"]["byproducts"]))


def report(change: Callable[[Report], Report], name: str = "report") -> Callable[[FinishedBuild], FinishedBuild]:
    """Another report, of which everything is written that says how the build was judged."""
    return lambda build: replace(build, reports={**build.reports, name: change(build.reports[name])})


def section(id: SectionId, /, **parts: Any) -> Callable[[FinishedBuild], FinishedBuild]:
    """Other parts of one section of the build's own report."""

    def change(said: Report) -> Report:
        assert any(part.id == id for part in said.sections), [part.id for part in said.sections]
        sections = [replace(part, **parts) if part.id == id else part for part in said.sections]
        return replace(said, sections=tuple(sections))

    return report(change)


def more_section(added: Section) -> Callable[[FinishedBuild], FinishedBuild]:
    return report(lambda said: replace(said, sections=(*said.sections, added)))


def all_of(*changes: Callable[[FinishedBuild], FinishedBuild]) -> Callable[[FinishedBuild], FinishedBuild]:
    def change(build: FinishedBuild) -> FinishedBuild:
        for part in changes:
            build = part(build)
        return build

    return change


@dataclass(frozen=True)
class Workshop:
    """Where liars work: a build that is finished but for its evidence, what it says of itself, and a right key."""

    unfinished: Path
    finished: FinishedBuild
    key: Path

    def forged(self, lie: Lie, target: Path) -> Path:
        """The build of a liar."""
        return forge(lie, self.finished, self.unfinished, target, self.key)

    def checked(self, build: Path, source: Checkpoint | None = None) -> Report:
        """What the checker says of a build, with the key of whoever signed it."""
        public = open_verifier(self.key.with_suffix(".pub.pem"))
        return verify(build, verifier=public, source=source, progress=Progress(shown=False))


def open_workshop(place: Path, *, audited: bool = False) -> Workshop:
    """Build the miniature, and stop right before its evidence is written."""
    make_key_pair(place / "key.pem", place / "key.pub.pem", curve="P-256")
    kept: list[FinishedBuild] = []

    def keep(directory: Path, finished: FinishedBuild, *, signer: Signer | None, progress: Progress) -> None:
        shutil.copytree(directory, place / "unfinished")
        kept.append(finished)
        write(directory, finished, signer=signer, progress=progress)

    loaded, source, output = load_recipe("fp8-dynamic"), open_source("mini"), place / "mini-fp8"
    request = BuildRequest(loaded=loaded, source=source, output=output, audited=audited)
    with patch("weighbridge.evidence.write", keep):
        assert build(request, progress=Progress(shown=False)).holds
    return Workshop(place / "unfinished", kept[0], place / "key.pem")


def errors(report: Report) -> set[str]:
    """The rules of what is wrong."""
    return {finding.rule for finding in report.findings() if finding.severity is Severity.ERROR}
