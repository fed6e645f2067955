"""YAML as recipes and structure locks are written: plain values, no key twice, no anchors, and each with its line."""

from __future__ import annotations

import codecs
import math
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, ClassVar, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from weighbridge.errors import WeighbridgeError

MAX_YAML_BYTES = 4 * 1024 * 1024
MAX_TOKENS = 100_000
MAX_DIGITS = 64
MAX_DEPTH = 32

_PLAIN_WORDS = {
    "model_type": "must be a mapping of keys",
    "model_attributes_type": "must be a mapping of keys",
    "dict_type": "must be a mapping of keys",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
    "string_type": "must be text",
    "int_type": "must be a whole number",
    "bool_type": "must be true or false",
    "string_pattern_mismatch": "has a form that it cannot have",
    "too_short": "must not be empty",
    "string_too_short": "must be longer: say it in a few words",
}
"""pydantic's findings in the words of somebody who writes YAML."""

Path = tuple[str | int, ...]
Model = TypeVar("Model", bound="Strict")
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_TEXT_TAG = "tag:yaml.org,2002:str"
_PLAIN_TAGS = {f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "bool", "null")}


class Strict(BaseModel):
    """A model that takes no key it does not know, converts nothing, and does not change.

    Attributes:
        keys_listed_in: a clause that says where to look up a key, for whoever wrote one that there is not.
    """

    keys_listed_in: ClassVar[str] = "the keys of a recipe are listed in recipes/README.md"

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


@dataclass(frozen=True)
class Origin:
    """From which line on a document's lines stand in another file, and from which line on there (both from 1)."""

    line: int
    where: str
    there: int


@dataclass(frozen=True)
class Document:
    """A YAML document: its value, and the line (from 1) on which each key or item of it begins.

    Attributes:
        origins: where its lines come from, in their order; empty where they are those of `where` itself.
    """

    value: dict[str, Any]
    lines: dict[Path, int]
    where: str
    origins: tuple[Origin, ...] = ()

    def line(self, path: Path) -> int:
        """The line of the value at `path`, or of the nearest thing around it that has one."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)

    def place(self, path: Path) -> str:
        """File and line of the value at `path`, e.g. ``recipes/…/fp8-dynamic.yaml:12``."""
        line = self.line(path)
        for origin in reversed(self.origins):
            if origin.line <= line:
                return f"{origin.where}:{origin.there + line - origin.line}"
        return f"{self.where}:{line}"


def parse_yaml(raw: bytes, *, where: str, error: type[WeighbridgeError]) -> Document:
    """Parse one YAML mapping.

    Raises:
        error: (the class given) not YAML, not one mapping, a key twice, an anchor, a tag, too deep or too large.
    """
    if len(raw) > MAX_YAML_BYTES:
        raise error(f"is {len(raw):,} bytes, more than the {MAX_YAML_BYTES:,} allowed", where=where)
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise error("is UTF-16 text", where=where, remedy="save it in the encoding UTF-8")
    try:
        text = raw.decode("utf-8-sig")
        _check_tokens(text, where=where, error=error)
        node = yaml.compose(text, Loader=_Loader)
    except UnicodeDecodeError as problem:
        what = f"is not UTF-8 text (byte {problem.start})"
        raise error(what, where=where, remedy="save it in the encoding UTF-8") from None
    except yaml.YAMLError as problem:
        mark = getattr(problem, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        if mark is not None and _is_tab(text, mark.line):
            raise error("is indented with a tab", where=f"{where}{line}", remedy="YAML indents with spaces") from None
        raise error(f"is not YAML ({getattr(problem, 'problem', None) or problem})", where=f"{where}{line}") from None
    lines: dict[Path, int] = {}
    value = _construct(node, (), lines, where=where, error=error)
    if not isinstance(value, dict):
        raise error("is not a YAML mapping", where=where)
    return Document(value=value, lines=lines, where=where)


def first_problem(error: ValidationError) -> str:
    """The first thing that a model does not take: where it stands, and what is wrong with it."""
    problem = error.errors()[0]
    return f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}"


def validate(document: Document, model: type[Model], *, error: type[WeighbridgeError]) -> Model:
    """Check a document against a pydantic model; the first problem becomes one sentence with file, line and suggestion.

    Raises:
        error: (the class given) what pydantic found first.
    """
    try:
        return model.model_validate(document.value)
    except ValidationError as problem:
        # A misspelt key is also a missing one; the misspelling is what helps.
        first = min(problem.errors(), key=lambda found: found["type"] != "extra_forbidden")
        path = tuple(first["loc"])
        if first["type"] == "unknown_argument":  # of a mapping that a validator reads by itself
            path = (*path, first["ctx"]["key"])
        where = document.place(path)
        raise error(_sentence(first, path), where=where, remedy=_suggestion(first, path, model)) from None


def _sentence(problem: Any, path: Path) -> str:
    name = ".".join(str(part) for part in path if not str(part).startswith("function-"))
    if problem["type"] == "extra_forbidden":
        return f"unknown key {name!r}"
    if problem["type"] == "unknown_argument":
        return f"{name.rpartition('.')[0]}: {problem['msg']}"
    if problem["type"] == "missing":
        return f"the key {name!r} is missing"
    message = _PLAIN_WORDS.get(problem["type"], str(problem["msg"]).removeprefix("Value error, "))
    if problem["type"] == "literal_error":
        known = problem["ctx"]["expected"].replace(" or ", ", ").replace("'", "")
        message = f"{str(problem['input'])[:80]!r} is none of {known}"
    if problem["type"] == "string_pattern_mismatch" and "40" in problem["ctx"]["pattern"]:
        message = "is no commit, which has 40 hex digits"
    joint = " " if message.startswith(("is ", "must ", "has ")) else ": "
    return f"{name}{joint}{message}" if name else message


def _suggestion(problem: Any, path: Path, model: type[Strict]) -> str:
    if problem["type"] != "extra_forbidden":
        return ""
    if path[-1] == "re":
        return "write 're:' without a space after it, so that it is one word with its expression"
    known = _keys(model)
    close = get_close_matches(str(path[-1]), known, n=1)
    return f"did you mean {close[0]!r}?" if close else model.keys_listed_in


def _keys(model: type[BaseModel]) -> list[str]:
    """Every key that stands anywhere in a model: a misspelt one is looked for among all of them."""
    schema = model.model_json_schema()
    parts = [schema, *schema.get("$defs", {}).values()]
    return sorted({key for part in parts for key in part.get("properties", {})})


def _check_tokens(text: str, *, where: str, error: type[WeighbridgeError]) -> None:
    """Refuse nesting that no recipe needs before the recursive composer sees it."""
    depth = 0
    starts = (yaml.BlockSequenceStartToken, yaml.BlockMappingStartToken, yaml.FlowSequenceStartToken)
    ends = (yaml.BlockEndToken, yaml.FlowSequenceEndToken, yaml.FlowMappingEndToken)
    for count, token in enumerate(yaml.scan(text, Loader=_Loader)):
        if count > MAX_TOKENS:
            raise error(f"has more than {MAX_TOKENS:,} parts", where=where)
        if isinstance(token, (*starts, yaml.FlowMappingStartToken)):
            depth += 1
            if depth > MAX_DEPTH:
                raise error("is nested too deeply", where=f"{where}:{token.start_mark.line + 1}")
        elif isinstance(token, ends):
            depth -= 1
        elif isinstance(token, (yaml.AnchorToken, yaml.AliasToken, yaml.TagToken)):
            raise error(
                "anchors, aliases and tags are not read",
                where=f"{where}:{token.start_mark.line + 1}",
                remedy="write out what they stand for, or let one recipe extend another",
            )


def _is_tab(text: str, line: int) -> bool:
    """Whether a line (from 0) has a tab before its first word."""
    lines = text.splitlines()
    indented = lines[line] if line < len(lines) else ""
    return "\t" in indented[: len(indented) - len(indented.lstrip())]


def _construct(node: Any, path: Path, lines: dict[Path, int], *, where: str, error: type[WeighbridgeError]) -> Any:
    if node is None:
        raise error("is empty", where=where, remedy="name another file, or write this one")
    line = node.start_mark.line + 1
    lines.setdefault(path, line)
    if isinstance(node, yaml.MappingNode):
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key_line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                raise error("a key is not plain text", where=f"{where}:{key_line}")
            key = key_node.value
            if key in mapping:
                raise error(f"the key {key!r} stands twice", where=f"{where}:{key_line}", remedy="keep one of the two")
            lines[(*path, key)] = key_line
            mapping[key] = _construct(value_node, (*path, key), lines, where=where, error=error)
        return mapping
    if isinstance(node, yaml.SequenceNode):
        return [
            _construct(item, (*path, index), lines, where=where, error=error) for index, item in enumerate(node.value)
        ]
    if node.tag == _TEXT_TAG or node.tag not in _PLAIN_TAGS:
        return node.value  # a timestamp, say: a revision such as 2024-01-01 is text here
    if len(node.value) > MAX_DIGITS:  # YAML counts in sixties, too: 1:59:59:59 is a number, and a long one takes hours
        raise error(f"{node.value[:40]!r}... is not a valid value", where=f"{where}:{line}")
    try:
        value = yaml.SafeLoader("").construct_object(node)
        # One NaN for all, which is equal to itself in lists.
        return math.nan if isinstance(value, float) and math.isnan(value) else value
    except (ValueError, OverflowError, yaml.YAMLError) as problem:
        raise error(f"{node.value[:40]!r} is not a valid value ({problem})", where=f"{where}:{line}") from None
