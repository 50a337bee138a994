"""What a package says when something goes wrong, read from its source: exceptions, warnings, lines on standard error.

A sentence's variable parts are `…`: whatever is not one and the same text each time. What is put together out of sight,
in another function or object, cannot be read, and is told apart; so is a message that only passes another's on.
"""

from __future__ import annotations

import ast
import builtins
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

GAP = "…"
BUILT_IN = {name for name, kind in vars(builtins).items() if isinstance(kind, type) and issubclass(kind, Exception)}
WARNINGS = ("warning", "error", "exception", "critical", "_warn")
"""Methods that say something; the last by its name, as it passes on what it is given."""
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


def read(sources: Mapping[str, str], parts: Collection[tuple[str, str]] = ()) -> list[Said]:
    """Return what the sources, by the names of their files, can say.

    `parts` are the functions, by file and name, whose returned texts are parts of sentences.
    """
    trees = {file: ast.parse(source, file) for file, source in sources.items()}
    exceptions = BUILT_IN | _own_exceptions(trees.values())
    own = {file: _constants(tree) for file, tree in trees.items()}
    imported = {name: text for constants in own.values() for name, text in constants.items()}
    found: list[Said] = []
    for file, tree in trees.items():
        makers = {name for of, name in parts if of == file}
        reader = _Reader(file, exceptions, _makers(tree, exceptions), makers, {**imported, **own[file]})
        found += reader.below(tree)
    return found


def plain(text: str) -> str:
    """Return a sentence as it is compared: single spaces, and one gap where gaps touch."""
    return re.sub(rf"{GAP}(?: ?{GAP})+", GAP, " ".join(text.split()))


@dataclass(frozen=True)
class _Reader:
    file: str
    exceptions: set[str]
    makers: set[str]
    """The file's functions that return an exception."""
    parts: set[str]
    """Those that return parts of sentences."""
    constants: Mapping[str, str]

    def below(self, node: ast.AST, around: Sequence[Names] = ()) -> Iterator[Said]:
        """Yield what is said under a node; `around` are the functions that it stands in, the innermost last."""
        for child in ast.iter_child_nodes(node):
            inside = (*around, _names(child)) if isinstance(child, Function) else around
            if isinstance(child, ast.Call) and child.args and self._speaks(child):
                yield from self._said(child.args[0], inside, logged=_is_warning(child))
            if isinstance(child, ast.Raise) and child.exc and not self._is_made_in_sight(child.exc, inside):
                yield self._unread(child.exc)
            if isinstance(child, ast.FunctionDef) and child.name in self.parts:
                for text in _returned_texts(child):
                    yield from self._said(text, inside)
            yield from self.below(child, inside)

    def _speaks(self, call: ast.Call) -> bool:
        printed = any(keyword.arg == "file" and "stderr" in ast.unparse(keyword.value) for keyword in call.keywords)
        return printed or _is_warning(call) or self._is_exception(call.func)

    def _is_exception(self, called: ast.expr) -> bool:
        if isinstance(called, ast.IfExp):
            return self._is_exception(called.body) and self._is_exception(called.orelse)
        return ast.unparse(called) in {"type(error)", *self.exceptions}

    def _said(self, message: ast.expr, around: Sequence[Names], *, logged: bool = False) -> Iterator[Said]:
        for text in self._texts(message, around):
            sentence = None if text is None else plain(PERCENT.sub(GAP, text) if logged else text)
            if sentence and re.search(r"\w", sentence):
                yield Said(self.file, message.lineno, ast.unparse(message), sentence)
            else:
                yield self._unread(message)

    def _unread(self, expression: ast.expr) -> Said:
        return Said(self.file, expression.lineno, ast.unparse(expression), None)

    def _is_made_in_sight(self, raised: ast.expr, around: Sequence[Names]) -> bool:
        """Whether what is raised was caught before, or is made where its message is read."""
        match raised:
            case ast.Call(func=func):
                return self._is_exception(func) or ast.unparse(func) in {"SystemExit", *self.makers}
            case ast.Name(id="error" | "KeyboardInterrupt"):
                return True
            case ast.Name(id=name) if around:
                values = around[-1].get(name, [None])
                return all(isinstance(value, ast.Call) and self._is_made_in_sight(value, ()) for value in values)
            case _:
                return False

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


def _returned_texts(function: ast.FunctionDef) -> list[ast.expr]:
    """Return the texts that a function returns, alone or in a tuple."""
    returned = [node.value for node in ast.walk(function) if isinstance(node, ast.Return) and node.value]
    values = [each for value in returned for each in (value.elts if isinstance(value, ast.Tuple) else [value])]
    return [each for each in values if isinstance(each, ast.JoinedStr) or isinstance(getattr(each, "value", None), str)]


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
