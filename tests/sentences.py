"""What a package says when something goes wrong, read from its source: exceptions, warnings, lines on standard error.

A sentence's variable parts are `…`: whatever is not one and the same text each time. What is put together out of sight,
in another function or object, cannot be read, and is told apart.
"""

from __future__ import annotations

import ast
import builtins
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

GAP = "…"
BUILT_IN = {name for name, kind in vars(builtins).items() if isinstance(kind, type) and issubclass(kind, Exception)}
WARNINGS = ("warning", "error", "exception", "critical")
PERCENT = re.compile(r"%[-#0 +]*\d*(?:\.\d+)?[a-zA-Z]")
Function = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
Names = Mapping[str, Sequence[ast.expr | None]]
"""What a function's names stand for, one after the other; None is a value from elsewhere."""


@dataclass(frozen=True)
class Said:
    """A sentence, where it is said, and the expression that makes it; the sentence is None if it cannot be read."""

    file: str
    line: int
    code: str
    sentence: str | None

    @property
    def text(self) -> str:
        """The sentence, or the expression that cannot be read."""
        return self.sentence or self.code


def read(sources: Mapping[str, str]) -> list[Said]:
    """Return what the sources, by the names of their files, can say."""
    trees = {file: ast.parse(source, file) for file, source in sources.items()}
    exceptions = BUILT_IN | _own_exceptions(trees.values())
    own = {file: _constants(tree) for file, tree in trees.items()}
    imported = {name: text for constants in own.values() for name, text in constants.items()}
    return [
        said
        for file, tree in trees.items()
        for said in _Reader(file, exceptions, _makers(tree, exceptions), {**imported, **own[file]}).below(tree)
    ]


def plain(text: str) -> str:
    """Return a sentence as it is compared: single spaces, and one gap where gaps touch."""
    return re.sub(rf"{GAP}(?: ?{GAP})+", GAP, " ".join(text.split()))


@dataclass(frozen=True)
class _Reader:
    file: str
    exceptions: set[str]
    makers: set[str]
    """The file's functions that return an exception."""
    constants: Mapping[str, str]

    def below(self, node: ast.AST, around: Sequence[Names] = ()) -> Iterator[Said]:
        """Yield what is said under a node; `around` are the functions that it stands in, the innermost last."""
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Call) and child.args and self._speaks(child):
                yield from self._said(child, around)
            if isinstance(child, ast.Raise) and child.exc and not self._is_made_in_sight(child.exc):
                yield Said(self.file, child.lineno, ast.unparse(child.exc), None)
            yield from self.below(child, (*around, _names(child)) if isinstance(child, Function) else around)

    def _speaks(self, call: ast.Call) -> bool:
        printed = any(keyword.arg == "file" and "stderr" in ast.unparse(keyword.value) for keyword in call.keywords)
        return _is_warning(call) or ast.unparse(call.func) in self.exceptions or printed

    def _said(self, call: ast.Call, around: Sequence[Names]) -> Iterator[Said]:
        message = call.args[0]
        for text in self._texts(message, around):
            if text is not None:
                text = plain(PERCENT.sub(GAP, text) if _is_warning(call) else text)
                if not re.search(r"\w", text):  # no words of its own: it passes on another's
                    continue
            yield Said(self.file, call.lineno, ast.unparse(message), text)

    def _is_made_in_sight(self, raised: ast.expr) -> bool:
        """Whether what is raised was caught before, or is made where its message is read."""
        if isinstance(raised, ast.Call):
            return ast.unparse(raised.func) in {"SystemExit", *self.exceptions, *self.makers}
        return ast.unparse(raised) in {"error", "KeyboardInterrupt"}

    def _texts(self, expression: ast.expr | None, around: Sequence[Names]) -> list[str | None]:
        """Return all texts that an expression can be, None for what cannot be read."""
        match expression:
            case ast.Constant(value=str(text)):
                return [text]
            case ast.JoinedStr(values=parts):
                return ["".join(self._part(part, around) for part in parts)]
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                return [self._part(left, around) + self._part(right, around)]
            case ast.IfExp(body=body, orelse=orelse):
                return [*self._texts(body, around), *self._texts(orelse, around)]
            case ast.Name(id=name):
                return self._of_name(name, around)
            case _:
                return [None]

    def _part(self, part: ast.expr, around: Sequence[Names]) -> str:
        """Return what a part of a sentence always is, or a gap."""
        if isinstance(part, ast.FormattedValue):
            return GAP if part.conversion != -1 or part.format_spec else self._part(part.value, around)
        [text, *others] = self._texts(part, around)
        return GAP if text is None or others else text

    def _of_name(self, name: str, around: Sequence[Names]) -> list[str | None]:
        for depth in reversed(range(len(around))):
            if name in around[depth]:
                here = (*around[: depth + 1], {name: [None]})  # a value may be made of the name's own earlier value
                return [text for value in around[depth][name] for text in self._texts(value, here)]
        return [self.constants.get(name)]


def _is_warning(call: ast.Call) -> bool:
    return isinstance(call.func, ast.Attribute) and call.func.attr in WARNINGS


def _own_exceptions(trees: Iterable[ast.Module]) -> set[str]:
    """Return the names of the classes that have an exception among their ancestors."""
    classes = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    found: set[str] = set()
    while more := {c.name for c in classes if {ast.unparse(base) for base in c.bases} & (BUILT_IN | found)} - found:
        found |= more
    return found


def _makers(tree: ast.Module, exceptions: set[str]) -> set[str]:
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    return {function.name for function in functions if function.returns and ast.unparse(function.returns) in exceptions}


def _constants(tree: ast.Module) -> dict[str, str]:
    """Return a module's texts and numbers by their names."""
    values = {name: value for node in tree.body for name, value in _assigned(node)}
    return {name: str(v.value) for name, v in values.items() if isinstance(v, ast.Constant) and v.value is not None}


def _names(function: Function) -> dict[str, list[ast.expr | None]]:
    """Return what a function's names stand for: its arguments, and all that it binds."""
    nodes = [node for node in ast.walk(function) if node is not function]
    found: dict[str, list[ast.expr | None]] = {node.arg: [None] for node in nodes if isinstance(node, ast.arg)}
    known = [(name, value) for node in nodes for name, value in _assigned(node)]
    for name, value in known:
        found.setdefault(name, []).append(value)
    bound = [node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)]
    for name in set(bound):
        if bound.count(name) != sum(name == own for own, _ in known):  # a loop, a with, an except, unpacking
            found.setdefault(name, []).append(None)
    return found


def _assigned(node: ast.AST) -> list[tuple[str, ast.expr]]:
    """Return the names that a statement or expression gives a value in sight, with that."""
    match node:
        case ast.Assign(targets=[ast.Name(id=name)], value=value):
            return [(name, value)]
        case ast.Assign(targets=[ast.Tuple(elts=names)], value=ast.Tuple(elts=values)):
            pairs = zip(names, values, strict=False)
            return [(name.id, value) for name, value in pairs if isinstance(name, ast.Name)]
        case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
            return [(name, value)]
        case ast.NamedExpr(target=ast.Name(id=name), value=value):
            return [(name, value)]
        case _:
            return []
