"""Mutants of a Python file: one small change each, of which a test should notice every one.

Changes are found in the syntax tree and made in the text, so that everything else of the file stays as it is. What
cannot matter is left alone: annotations, decorators, docstrings, assertions (they state what a type checker cannot
see), names of rules, and the text of messages, with what chooses between two of them.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

_Node = TypeVar("_Node", bound=ast.AST)

_COMPARED: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
"""What a comparison becomes: its boundary moved where it has one, and its opposite."""

_COMPUTED: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}

_SAID = frozenset({"Finding", "warn", "warning", "print"})
"""Calls that say something to people; those of exceptions stand under `raise`."""

LIMIT = "limit"
"""The kind of a mutant that changes a number in a table or limit of a module."""


@dataclass(frozen=True)
class Mutant:
    """One change of one file.

    Attributes:
        path: the file, from the root of the repository.
        line: where it is, counted from one.
        begin: first byte that is replaced.
        end: byte after the last.
        kind: what sort of change it is.
        old: what stood there.
        new: what stands there instead.
        digest: the start of the SHA-256 of the file that it is a mutant of.
    """

    path: str
    line: int
    begin: int
    end: int
    kind: str
    old: str
    new: str
    digest: str

    @property
    def key(self) -> str:
        """What names it among the mutants of all files and all their versions."""
        return f"{self.path}@{self.digest}:{self.begin}-{self.end}:{self.new}"

    def __str__(self) -> str:
        old, new = (" ".join(text.split()) for text in (self.old, self.new))
        return f"{self.path}:{self.line} [{self.kind}] `{old}` -> `{new}`"

    def applied(self, content: bytes) -> bytes:
        """The file with this change."""
        return content[: self.begin] + self.new.encode() + content[self.end :]


def mutants_of(root: Path, path: str) -> list[Mutant]:
    """All mutants of a file that are Python, in the order of the file, each once."""
    content = (root / path).read_bytes()
    finder = _Finder(path, content)
    finder.visit(ast.parse(content))
    return [found for found in dict.fromkeys(finder.found) if _is_python(found.applied(content))]


def _is_python(content: bytes) -> bool:
    try:
        ast.parse(content)
    except SyntaxError:
        return False
    return True


class _Finder(ast.NodeVisitor):
    """Collects the mutants of one file."""

    def __init__(self, path: str, content: bytes) -> None:
        self.path, self.content = path, content
        self.digest = hashlib.sha256(content).hexdigest()[:12]
        self.starts = [0]
        for line in content.splitlines(keepends=True):
            self.starts.append(self.starts[-1] + len(line))
        self.found: list[Mutant] = []

    def _add(self, node: ast.expr | ast.stmt, kind: str, new: str) -> None:
        assert node.end_lineno is not None and node.end_col_offset is not None
        begin = self.starts[node.lineno - 1] + node.col_offset
        end = self.starts[node.end_lineno - 1] + node.end_col_offset
        old = self.content[begin:end].decode()
        self.found.append(Mutant(self.path, node.lineno, begin, end, kind, old, new, self.digest))

    def _edited(self, node: _Node, kind: str, edit: Callable[[_Node], None]) -> None:
        """The mutant that an edit of a copy of an expression makes."""
        assert isinstance(node, ast.expr)
        changed = deepcopy(node)
        edit(changed)
        self._add(node, kind, f"({ast.unparse(changed)})")

    def visit_Module(self, node: ast.Module) -> None:
        for statement in node.body:
            self._limits(statement)
            self.visit(statement)

    def _limits(self, statement: ast.stmt) -> None:
        """Numbers in what a module calls by a name in capitals: twice and half of each that is not zero."""
        targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
        value = getattr(statement, "value", None)
        name = targets[0]
        if isinstance(value, ast.expr) and isinstance(name, ast.Name) and name.id.isupper():
            for number, worth in _numbers(value):
                written = ast.unparse(number)
                self._add(number, LIMIT, f"(({written}) * 2)")
                self._add(number, LIMIT, f"(({written}) {'//' if isinstance(worth, int) else '/'} 2)")

    # --- what is left alone

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        for default in (*node.args.defaults, *node.args.kw_defaults):
            if default is not None:
                self.visit(default)
        for statement in node.body:
            self.visit(statement)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        for statement in node.body:
            self.visit(statement)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)

    def visit_Assign(self, node: ast.Assign) -> None:
        if not (isinstance(node.targets[0], ast.Name) and node.targets[0].id == "__all__"):
            self.visit(node.value)

    def visit_Assert(self, node: ast.Assert) -> None:
        pass

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        pass  # Python 3.11 does not say where its parts stand

    # --- statements

    def visit_Raise(self, node: ast.Raise) -> None:
        self._add(node, "raise removed", "pass")

    def visit_If(self, node: ast.If) -> None:
        types_alone = isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        if types_alone or (not node.orelse and all(map(_words_alone, node.body))):
            return
        self._add(node.test, "branch removed", "False")
        self.generic_visit(node)

    # --- expressions

    def visit_Call(self, node: ast.Call) -> None:
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        if name == "zip":  # whose ``strict`` states that lengths are the same, as an assertion does
            for argument in node.args:
                self.visit(argument)
        elif name not in _SAID and not name.endswith("Error"):
            self.generic_visit(node)

    def visit_Subscript(self, node: ast.Subscript) -> None:
        if not (isinstance(node.value, ast.Name) and node.value.id in ("Literal", "Annotated", "Callable", "cast")):
            self.generic_visit(node)

    def visit_Return(self, node: ast.Return) -> None:
        if isinstance(node.value, ast.Tuple):  # as many values as callers take
            self.generic_visit(node.value)
        else:
            self.generic_visit(node)

    def visit_IfExp(self, node: ast.IfExp) -> None:
        if _is_text(node.body) or _is_text(node.orelse):
            return
        self._add(node.test, "condition", "True")
        self._add(node.test, "condition", "False")
        self.generic_visit(node)

    def visit_comprehension(self, node: ast.comprehension) -> None:
        for condition in node.ifs:
            self._add(condition, "condition", "True")
        self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> None:
        for index, operator in enumerate(node.ops):
            for other in _COMPARED[type(operator)]:

                def exchange(changed: ast.Compare, index: int = index, other: type[ast.cmpop] = other) -> None:
                    changed.ops[index] = other()

                self._edited(node, "comparison", exchange)
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        other = _COMPUTED.get(type(node.op))
        if other is not None and not (_is_joined(node.left) or _is_joined(node.right)):

            def exchange(changed: ast.BinOp) -> None:
                changed.op = other()

            self._edited(node, "arithmetic", exchange)
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        def exchange(changed: ast.BoolOp) -> None:
            changed.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()

        self._edited(node, "and/or", exchange)
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        if isinstance(node.op, ast.Not):
            self._add(node, "not", f"({ast.unparse(node.operand)})")
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        value = node.value
        if isinstance(value, bool):
            self._add(node, "boolean", str(not value))
        elif isinstance(value, int | float):
            for new in dict.fromkeys((value + 1, value - 1, value * 2, value * 4)):
                if new != value:
                    self._add(node, "number", repr(new) if new >= 0 else f"({new!r})")

    def visit_Tuple(self, node: ast.Tuple) -> None:
        self._shortened(node)

    def visit_Set(self, node: ast.Set) -> None:
        self._shortened(node)

    def _shortened(self, node: ast.Tuple | ast.Set) -> None:
        """What a tuple or set of data lacks an element of; what holds variables is no list of anything."""
        if isinstance(node.ctx if isinstance(node, ast.Tuple) else ast.Load(), ast.Load):
            if len(node.elts) > 1 and all(map(_is_data, node.elts)):
                for index in range(len(node.elts)):

                    def remove(changed: ast.Tuple | ast.Set, index: int = index) -> None:
                        del changed.elts[index]

                    self._edited(node, "element removed", remove)
            for element in node.elts:
                if isinstance(element, ast.Tuple):  # a row of a table, which has its columns
                    self.generic_visit(element)
                else:
                    self.visit(element)


def _is_text(node: ast.expr) -> bool:
    """Whether an expression is the text of a message."""
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def _words_alone(node: ast.stmt) -> bool:
    """Whether a statement does no more than word a message."""
    return isinstance(node, ast.Assign | ast.AugAssign) and _is_text(node.value)


def _is_joined(node: ast.expr) -> bool:
    """Whether an expression is a text or a list, which know one operator alone: another is no mistake anybody makes."""
    if isinstance(node, ast.IfExp):
        return _is_joined(node.body)
    return _is_text(node) or isinstance(node, ast.List | ast.ListComp | ast.Tuple)


def _is_data(node: ast.expr) -> bool:
    if isinstance(node, ast.Starred):
        return _is_data(node.value)
    if isinstance(node, ast.Tuple):
        return all(map(_is_data, node.elts))
    return isinstance(node, ast.Constant) or (isinstance(node, ast.Name) and node.id.isupper())


def _numbers(node: ast.expr) -> Iterator[tuple[ast.expr, int | float]]:
    """The largest parts of an expression that are numbers, with their values: ``2.0**-13`` is one, and not two.

    Those in a list are a table of codes, and no limits; of zero there is no half.
    """
    worth = _computed(node)
    if worth:
        yield node, worth
    elif worth is None and not isinstance(node, ast.JoinedStr | ast.List):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.expr):
                yield from _numbers(child)


def _computed(node: ast.expr) -> int | float | None:
    """What an expression of numbers alone comes to; None for any other."""
    allowed = (ast.BinOp, ast.UnaryOp, ast.operator, ast.unaryop)
    for part in ast.walk(node):
        if isinstance(part, ast.Constant):
            if isinstance(part.value, bool) or not isinstance(part.value, int | float):
                return None
        elif not isinstance(part, allowed):
            return None
    value = eval(compile(ast.Expression(node), "limit", "eval"))  # numbers and operators, as was just seen
    return value if isinstance(value, int | float) else None
