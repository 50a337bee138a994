"""Pickles of tensors, looked at and never carried out.

A pickle is a program for a small machine with a stack. This one runs it with every call left undone: a global is its
name and no more, and only names that tensors need are known, so there is nothing that a file could start.
"""

from __future__ import annotations

import io
import itertools
import pickletools
from collections.abc import Callable, Iterable, Sequence, Sized
from dataclasses import dataclass, field
from typing import Any

STORAGES = {
    "FloatStorage": "F32",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "DoubleStorage": "F64",
    "LongStorage": "I64",
    "IntStorage": "I32",
    "ShortStorage": "I16",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
    "UntypedStorage": "U8",
}
TYPES = {
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float64": "F64",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "bool": "BOOL",
}
MARK = object()
MOST_STEPS = 200_000
"""Opcodes of a pickle, and parts of what its calls are given; an embedding's has hundreds."""
MOST_DIMENSIONS = 64
"""As many as NumPy has."""


class Refused(ValueError):
    """A pickle that asks for more than tensors."""


@dataclass(frozen=True)
class Global:
    """A name in a module, never looked up."""

    module: str
    name: str


@dataclass(frozen=True)
class Storage:
    """Where a tensor's numbers are in the file."""

    key: str
    dtype: str
    length: int


@dataclass(frozen=True)
class Tensor:
    """A view of a storage, as the file describes it."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str


@dataclass
class Instance:
    """An object of some class, as the state that it was saved with."""

    of: Global
    state: Any = None


@dataclass
class _Machine:
    """The stack, and what was put aside."""

    stack: list[Any] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)
    left: int = MOST_STEPS
    named: set[str] = field(default_factory=set)
    """Every global, as `module.name`."""

    def spend(self, steps: int) -> None:
        """Count steps: an opcode of one byte can make a dict of 64, or have a call copy all that is there."""
        self.left -= steps
        if self.left < 0:
            raise Refused("has more parts than an embedding can have")

    def since_mark(self) -> list[Any]:
        found = list(itertools.takewhile(lambda value: value is not MARK, reversed(self.stack)))
        del self.stack[-len(found) - 1 :]
        return found[::-1]

    def top(self, kind: type) -> Any:
        if not isinstance(self.stack[-1], kind):
            raise Refused(f"puts something into a {type(self.stack[-1]).__name__}")
        return self.stack[-1]


# The opcodes of protocols 0 to 5 that data needs; pickletools reads their arguments.


def _update(machine: _Machine, values: Sequence[Any]) -> None:
    if len(values) % 2:
        raise Refused("has keys that are no names")
    machine.top(dict).update(_named(zip(values[::2], values[1::2], strict=True)))


def _named(pairs: Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
    """Return a dict by names that can be shown, or by numbers."""
    own = list(pairs)
    if not all(_is_name(key) for key, _ in own):
        raise Refused("has keys that are no names")
    return dict(own)


def _is_name(key: Any) -> bool:
    if isinstance(key, int):
        return abs(key) < 2**32  # larger ones can be chosen so that all hash alike, and a dict of them takes hours
    return key.isprintable() if isinstance(key, str) else isinstance(key, float | bytes | None)


def _tuple(count: int) -> Callable[[_Machine, Any], None]:
    def put(machine: _Machine, _: Any) -> None:
        values = tuple(machine.stack[len(machine.stack) - count :])
        if len(values) != count or MARK in values:
            raise Refused("takes from an empty stack")
        machine.stack[len(machine.stack) - count :] = [values]

    return put


def _set_items(machine: _Machine, _: Any) -> None:
    values = machine.since_mark()
    _update(machine, values)


def _set_item(machine: _Machine, _: Any) -> None:
    value, key = machine.stack.pop(), machine.stack.pop()
    _update(machine, [key, value])


def _append(machine: _Machine, _: Any) -> None:
    value = machine.stack.pop()
    machine.top(list).append(value)


def _appends(machine: _Machine, _: Any) -> None:
    values = machine.since_mark()
    machine.top(list).extend(values)


def _dict(machine: _Machine, _: Any) -> None:
    values = machine.since_mark()
    machine.stack.append({})
    _update(machine, values)


def _global(machine: _Machine, argument: Any) -> None:
    if argument is None:  # STACK_GLOBAL
        name, module = machine.stack.pop(), machine.stack.pop()
    else:
        module, _, name = argument.partition(" ")
    if not isinstance(module, str) or not isinstance(name, str):
        raise Refused("names a global by something that is no text")
    known = (module, name) in CALLS or (module, name) in CLASSES or (module == "torch" and name in (*STORAGES, *TYPES))
    if not known and (module, name) != ("torch.storage", "UntypedStorage"):
        raise Refused(f"asks for {f'{module}.{name}'[:60]!a}")
    machine.named.add(f"{module}.{name}")
    machine.stack.append(Global(module, name))


def _call(machine: _Machine, _: Any) -> None:
    arguments, called = machine.stack.pop(), machine.stack.pop()
    if not isinstance(called, Global) or not isinstance(arguments, tuple):
        raise Refused("calls what is no function")
    if (called.module, called.name) in CLASSES:
        machine.stack.append(Instance(called))
    elif (called.module, called.name) in CALLS:
        machine.spend(len(arguments) + sum(len(own) for own in arguments if isinstance(own, Sized)))
        machine.stack.append(CALLS[called.module, called.name](*arguments))
    else:
        raise Refused("calls what is no function")


def _build(machine: _Machine, _: Any) -> None:
    state = machine.stack.pop()
    if isinstance(machine.stack[-1], dict | Tensor):
        return  # attributes of an OrderedDict, or of a tensor
    machine.top(Instance).state = state


def _stored(machine: _Machine, _: Any) -> None:
    match machine.stack.pop():
        case ("storage", Global(_, name), str(key), str(), int(length), *_) if name in STORAGES and length >= 0:
            machine.stack.append(Storage(key, STORAGES[name], length))
        case ("module", Global() as of, str(), str()):  # before 1.6 a class came with its source, to warn of changes
            machine.stack.append(of)
        case _:
            raise Refused("refers to something outside of it that is no storage")


def _constant(value: Any) -> Callable[[_Machine, Any], None]:
    return lambda machine, _: machine.stack.append(value)


def _put_aside(machine: _Machine, index: int | None) -> None:
    machine.memo[len(machine.memo) if index is None else index] = machine.stack[-1]


def _nothing(machine: _Machine, _: Any) -> None: ...


NUMBERS_AND_TEXTS = [
    "INT",
    "BININT",
    "BININT1",
    "BININT2",
    "LONG",
    "LONG1",
    "LONG4",
    "FLOAT",
    "BINFLOAT",
    "UNICODE",
    "SHORT_BINUNICODE",
    "BINUNICODE",
    "BINUNICODE8",
    "STRING",
    "BINSTRING",
    "SHORT_BINSTRING",
    "BINBYTES",
    "SHORT_BINBYTES",
    "BINBYTES8",
]
OPCODES: dict[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(NUMBERS_AND_TEXTS, lambda machine, argument: machine.stack.append(argument)),
    **dict.fromkeys(("PROTO", "FRAME", "STOP"), _nothing),
    "NONE": _constant(None),
    "NEWTRUE": _constant(True),
    "NEWFALSE": _constant(False),
    "MARK": _constant(MARK),
    "EMPTY_DICT": lambda machine, _: machine.stack.append({}),
    "EMPTY_LIST": lambda machine, _: machine.stack.append([]),
    "EMPTY_TUPLE": _constant(()),
    "TUPLE1": _tuple(1),
    "TUPLE2": _tuple(2),
    "TUPLE3": _tuple(3),
    "TUPLE": lambda machine, _: machine.stack.append(tuple(machine.since_mark())),
    "LIST": lambda machine, _: machine.stack.append(machine.since_mark()),
    "DICT": _dict,
    "SETITEM": _set_item,
    "SETITEMS": _set_items,
    "APPEND": _append,
    "APPENDS": _appends,
    "POP": lambda machine, _: machine.stack.pop(),
    "GLOBAL": _global,
    "STACK_GLOBAL": _global,
    "REDUCE": _call,
    "NEWOBJ": _call,
    "BUILD": _build,
    "BINPERSID": _stored,
    "BINPUT": _put_aside,
    "LONG_BINPUT": _put_aside,
    "MEMOIZE": _put_aside,
    "BINGET": lambda machine, index: machine.stack.append(machine.memo[index]),
    "LONG_BINGET": lambda machine, index: machine.stack.append(machine.memo[index]),
}


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> Tensor:
    """A tensor of `torch._utils._rebuild_tensor`, `_v2` or, with a type of its own, `_v3`."""
    numbers = [offset, *shape, *strides]
    fits = len(shape) <= MOST_DIMENSIONS and all(isinstance(n, int) and 0 <= n < 2**63 for n in numbers)
    if not isinstance(storage, Storage) or not fits:
        raise Refused("describes a tensor that cannot be")
    types = [TYPES[own.name] for own in rest if isinstance(own, Global) and own.name in TYPES]
    return Tensor(storage, offset, tuple(shape), tuple(strides), types[0] if types else storage.dtype)


def _parameter(data: Any, *_: Any) -> Any:
    return data


def _plain(values: Any = (), *_: Any) -> Any:
    """An ordered dict, as what it is made of."""
    if isinstance(values, list | tuple) and all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in values):
        return _named(values)
    return values


CALLS: dict[tuple[str, str], Callable[..., Any]] = {
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _parameter,
    ("collections", "OrderedDict"): _plain,
    ("torch", "Size"): lambda values=(): tuple(values),
    ("builtins", "set"): lambda values=(): list(values),
    ("__builtin__", "set"): lambda values=(): list(values),
}
CLASSES = {("torch.nn.modules.container", "ParameterDict"), ("torch", "device")}


def evaluate(file: io.BytesIO, named: set[str] | None = None) -> Any:
    """Return what the next pickle of a file says, every tensor as where it is; Refused says what else it asks for.

    The globals that it names are added to `named`.
    """
    machine = _Machine(named=set() if named is None else named)
    for opcode, argument, _ in pickletools.genops(file):
        machine.spend(1)
        if opcode.name not in OPCODES:
            raise Refused(f"uses {opcode.name}, which tensors do not need")
        OPCODES[opcode.name](machine, argument)
    [result] = machine.stack
    return result
