"""Files made to do harm: nothing in them is carried out, nothing is written elsewhere, and time and memory have bounds.

`made_up.py` puts them together; `test_costly.py` has those that would take all memory, or for ever.
"""

from __future__ import annotations

import pickle
import re
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pseudoword import converting, formats
from pseudoword.formats import webui
from tests.formats.made_up import (
    a1111,
    archive,
    bundled,
    entry,
    get,
    hidden,
    legacy,
    name,
    named,
    number,
    outcome,
    pickled,
    png,
    put,
    safe,
    tensor,
    text,
    zipped,
)

MEBI = 2**20
PRIME = 2**61 - 1
"""Its multiples all hash to 0."""
DAMAGED = r"is a damaged (PyTorch|safetensors) file \(.*\); download or copy it again"
TOO_MUCH = "is not read, because it has more parts than an embedding can have"
NO_CODE = r"is not read, because it (asks for|uses|calls|puts|refers|names|has keys) .* nothing is carried out; .*"

# What would be carried out

HARM = name("posix", "mkdir")
ATTACKS: dict[str, Callable[[bytes], bytes]] = {
    "GLOBAL, REDUCE": lambda at: HARM + at + b"\x85R",
    "STACK_GLOBAL": lambda at: text("posix") + text("mkdir") + b"\x93" + at + b"\x85R",
    "a dotted STACK_GLOBAL": lambda at: b"\x80\x04" + text("shutil") + text("os.mkdir") + b"\x93" + at + b"\x85R",
    "INST": lambda at: b"(" + at + b"iposix\nmkdir\n",
    "OBJ": lambda at: b"(" + HARM + at + b"o",
    "__setstate__": lambda at: (
        name("types", "SimpleNamespace") + b")\x81" + b"}" + text("__setstate__") + HARM + b"sb" + at + b"b"
    ),
    "an iterator that calls": lambda at: (
        name("collections", "deque") + name("builtins", "map") + HARM + at + b"\x85\x86R\x85R"
    ),
    "torch's own pickle": lambda at: (
        name("pickle", "loads") + b"B" + struct.pack("<I", len(own := pickled(HARM + at + b"\x85R"))) + own + b"\x85R"
    ),
}
"""Pickles that make a folder when they are loaded with trust."""
CONFUSIONS = {
    "NEWOBJ": HARM + b")\x81",
    "NEWOBJ_EX": name("torch", "device") + b")}\x92",
    "EXT1": b"\x82\x01",
    "EXT4": b"\x84\xff\xff\xff\x7f",
    "PERSID": b"Pstorage\n",
    "a persistent text": text("storage") + b"Q",
    "a persistent tuple of others": b"(" + text("module") + HARM + b"NNNtQ",
    "a storage of lists": b"(" + text("storage") + name("torch", "FloatStorage") + b"]]]tQ",
    "a storage of no type": b"(" + text("storage") + HARM + text("0") + text("cpu") + number(8) + b"tQ",
    "a called tensor": tensor() + b")R",
    "a called text": text("os.system") + b")R",
    "arguments that are none": name("collections", "OrderedDict") + b"]R",
    "a global of numbers": number(1) + number(2) + b"\x93",
    "dunders of what is known": name("torch", "Size.__init__.__globals__"),
    "a global that steers a terminal": name("\x1b[31mos", "system\x07"),
    "torch.load again": name("torch.storage", "_load_from_bytes") + b"C\x00\x85R",
    "a type of the machine's": name("pseudoword.formats.machine", "Tensor"),
    "a buffer": b"\x97\x98",
    "a frozen set": b"(\x91",
    "a byte array": b"\x96" + struct.pack("<Q", 0),
    "PUT far away": b"N" + b"p%d\n" % 2**31,
    "GET of nothing": b"g0\n",
    "a list for a key": b"}]Ns",
    "a tuple for a key": b"})Ns",
    "a dict for a list": b"}Na",
    "a state for a list": b"]}b",
}
WRAPPED = {"zip": zipped, "legacy": legacy, "bare": pickled}


@pytest.mark.parametrize("wrapped", WRAPPED)
@pytest.mark.parametrize("attack", ATTACKS)
def test_nothing_is_carried_out(tmp_path: Path, attack: str, wrapped: str):
    harm, path = tmp_path / "harm", tmp_path / "word.bin"
    body = ATTACKS[attack](text(str(harm)))
    path.write_bytes(WRAPPED[wrapped](b"}" + text("x") + body + b"s"))
    assert re.search(NO_CODE, outcome(path, tmp_path / "out"))
    assert sorted(tmp_path.iterdir()) == [path]
    pickle.loads(pickled(body))
    assert harm.is_dir(), "trusted, it does its harm"


@pytest.mark.parametrize("confusion", CONFUSIONS)
def test_what_tensors_do_not_need_is_refused(tmp_path: Path, confusion: str):
    path = tmp_path / "word.bin"
    path.write_bytes(zipped(named({"x": tensor(), "y": CONFUSIONS[confusion]})))
    assert re.search(NO_CODE, outcome(path, tmp_path / "out"))


# What is not so

CUT = zipped(named({"x": tensor()}))
SHORT = b"\x8b" + struct.pack("<i", 2**31 - 1)
BIG = b"\x8e" + struct.pack("<Q", 2**62)


def laughing(begin: bytes, filled: Callable[[int], bytes]) -> bytes:
    """Return a value of values that are one and the same, and so on."""
    return b"]" + put(0) + b"".join(b"0" + begin + filled(i) + put(i + 1) for i in range(99))


LIES: dict[str, tuple[bytes, str]] = {
    "an absurd LONG4": (zipped(SHORT), DAMAGED),
    "an absurd BINBYTES8": (zipped(BIG), DAMAGED),
    "an absurd BINUNICODE8": (zipped(b"\x8d" + BIG[1:]), DAMAGED),
    "nested 100,000 deep": (zipped(b"N" + b"\x85" * 100_000), "holds a list, not named tensors"),
    "many laughs": (zipped(named({"x": laughing(b"(", lambda i: get(i) * 9 + b"t")})), TOO_MUCH),
    "laughs in dicts": (
        zipped(laughing(b"}(", lambda i: b"".join(text(k) + get(i) for k in "abcdefgh") + b"u")),
        TOO_MUCH,
    ),
    "more parts than are read": (zipped(named({"x": b"](" + b"N" * 20_000 + b"e"})), TOO_MUCH),
    "a list in itself": (zipped(named({"x": b"]" + put(0) + get(0) + b"a"})), "it holds x"),
    "half a character": (zipped(a1111(sd_checkpoint_name=text("\ud800"))), DAMAGED),
    "a name that steers a terminal": (zipped(named({"\x1b[31m": tensor(), "y": tensor()})), "keys that are no names"),
    "a stride of 0 for a terabyte": (zipped(named({"x": tensor(shape=(2**20, 2**18), strides=(0, 0))})), "larger than"),
    "an offset beyond its storage": (zipped(named({"x": tensor(offset=1)})), "larger than its numbers"),
    "a negative size": (zipped(named({"x": tensor(shape=(-2, -4))})), "describes a tensor that cannot be"),
    "a negative stride": (zipped(named({"x": tensor(strides=(-4, 1))})), "describes a tensor that cannot be"),
    "a negative storage": (zipped(named({"x": tensor(length=-8)})), "is no storage"),
    "no rows of a great width": (zipped(named({"x": tensor(shape=(0, 2**62))})), DAMAGED),
    "a hundred dimensions": (zipped(named({"x": tensor(shape=[1] * 100, strides=[1] * 100)})), "that cannot be"),
    "numbers of a megabyte": (zipped(named({"x": tensor(shape=[2 ** (8 * MEBI), 1])})), "that cannot be"),
    "a storage that is shorter": (zipped(named({"x": tensor(length=9)})), "says of a storage what is not so"),
    "a storage that is longer": (zipped(named({"x": tensor(length=7)})), "says of a storage what is not so"),
    "a storage that is not there": (zipped(named({"x": tensor()}), {}), DAMAGED),
    "a storage elsewhere": (zipped(named({"x": tensor("../../etc/passwd")})), DAMAGED),
    "legacy: no storages": (legacy(named({"x": tensor()}), storages=b""), "says of a storage"),
    "legacy: another length": (legacy(named({"x": tensor(length=9)})), "says of a storage"),
    "legacy: a storage cut off": (legacy(named({"x": tensor()}), storages=struct.pack("<Q", 8)), "says of a storage"),
    "legacy: an absurd length": (legacy(named({"x": tensor(length=2**70)}), storages=b""), DAMAGED),
    "legacy: keys that are none": (pickled(*[number(0x1950A86A20F9469CFC6C), b"}", b"}", b"}", b"N"]), DAMAGED),
    "a compressed zip": (zipped(named({"x": tensor()}), compression=zipfile.ZIP_DEFLATED), "is compressed"),
    "an encrypted zip": (re.sub(b"(PK\x01\x02....)\0", b"\\1\x01", CUT), DAMAGED),
    "half a zip": (CUT[: len(CUT) // 2], DAMAGED),
    "a zip without its end": (CUT[:-22], DAMAGED),
    "a zip of other sizes": (CUT.replace(struct.pack("<II", 32, 32), struct.pack("<II", 2**31, 2**31)), "unpacks to"),
    "two pickles": (archive([(f"{i}/data.pkl", pickled(b"}")) for i in "ab"]), DAMAGED),
    "a pickle twice": (archive([("a/data.pkl", pickled(b"}"))] * 2), DAMAGED),
    "a pickle outside": (archive([("../x/data.pkl", pickled(b"}"))]), DAMAGED),
    "no pickle": (archive([("x/data.txt", b"")]), DAMAGED),
    "safetensors: a header of exabytes": (struct.pack("<Q", 2**62) + b"{}", DAMAGED),
    "safetensors: half a header": (safe({"x": entry()})[:20], DAMAGED),
    "safetensors: no JSON": (safe(b"{x}"), DAMAGED),
    "safetensors: deep JSON": (safe(b'{"x":' * 9999), DAMAGED),
    "safetensors: a number of 5000 digits": (
        safe(b'{"x":{"dtype":"F32","shape":[1,1],"data_offsets":[0,4],"y":1%s}}' % (b"0" * 5000)),
        DAMAGED,
    ),
    "safetensors: lists for dicts": (safe({"x": ["F32", [1, 1], [0, 4]]}), r"\(lists in place of names\)"),
    "safetensors: a dict for a type": (safe({"x": entry(dtype={"F32": None})}), r"as \{'F32': None\}; expected"),
    "safetensors: the end before the beginning": (safe({"x": entry(begin=4, end=0)}), DAMAGED),
    "safetensors: overlapping": (safe({"x": entry(), "y": entry((1, 1), 0, 4)}), DAMAGED),
    "safetensors: a terabyte": (safe({"x": entry((2**20, 2**18), 0, 2**40)}), DAMAGED),
    "safetensors: no rows of a great width": (safe({"x": entry((0, 2**63), 0, 0)}, b""), DAMAGED),
    "safetensors: a hundred dimensions": (safe({"x": entry([1] * 100)}), DAMAGED),
    "safetensors: integers": (safe({"x": entry(dtype="I32")}), "holds 'x' as I32; expected"),
    "safetensors: infinity": (safe({"x": entry()}, np.float32("inf").tobytes()), "hold NaN or infinity"),
    "safetensors: more than fp32 has": (
        safe({"x": entry((1, 1), 0, 8, "F64")}, np.float64(1e99).tobytes()),
        "infinity",
    ),
    "safetensors: names that steer": (safe({"\x1b[2J\n": entry()}), r"a tensor is called '\\x1b\[2J\\n'"),
    "safetensors: a type that steers": (safe({"x": entry(dtype="\x1b[2J\n" + 999 * "x")}), DAMAGED),
    "safetensors: a token that steers": (safe({"__metadata__": {"token": "\x1b[2J"}, "x": entry()}), r"'\\x1b\[2J'"),
    "safetensors: a bundled name that steers": (safe({"bundle_emb.\x1b[2J.clip_l": entry()}), "a tensor is called"),
    "safetensors: metadata of numbers": (safe({"__metadata__": {"steps": 1}, "x": entry()}), DAMAGED),
    "a picture of half a chunk": (png(b"{}" * 999)[:99], "cannot be read"),
    "a picture of no base64": (png("\x1b[31m!"), "cannot be read"),
    "a picture of no JSON": (png(b"\x80\x02}."), "cannot be read"),
    "a picture of deep JSON": (png(b"[" * 99_999), "cannot be read"),
    "a picture of ragged rows": (png(b'{"x":{"TORCHTENSOR":[[1],[1,2]]}}'), "cannot be read"),
    "a picture of texts": (png(b'{"x":{"TORCHTENSOR":["a"]}}'), "cannot be read"),
    "a picture of dicts": (png(b'{"x":{"TORCHTENSOR":[{}]}}'), "cannot be read"),
    "a picture of NaN": (png(b'{"x":{"TORCHTENSOR":[[NaN]]}}'), "hold NaN or infinity"),
    "a picture of names that steer": (png(b'{"\\u001b[31m":1,"x":2}'), "names no tensors"),
    "a picture of half a character": (png(b'{"emb_params":{"TORCHTENSOR":[[1]]},"name":"\\ud800"}'), "cannot be read"),
    "a picture of junk": (hidden(b"junk"), "cannot be read"),
}


@pytest.mark.parametrize("lie", LIES)
def test_what_is_not_so_is_refused_in_one_sentence(tmp_path: Path, lie: str):
    content, message = LIES[lie]
    path = tmp_path / "word.safetensors"  # as a LoRA must be called
    path.write_bytes(content)
    assert re.search(message, outcome(path, tmp_path / "out"))
    assert bundled(path, tmp_path) != "word"
    assert list(tmp_path.iterdir()) == [path]


ODD: dict[str, bytes] = {
    "infinite steps": zipped(a1111(step=b"G" + struct.pack(">d", float("inf")))),
    "steps of a kilobyte": zipped(a1111(step=number(2**8000))),
    "steps of a picture that are infinite": png(
        b'{"string_to_param":{"*":{"TORCHTENSOR":[[1]]}},"name":"x","step":1e999}'
    ),
    "a number for a name": zipped(named({"string_to_param": b"}" + number(0) + tensor() + b"s"})),
    "an attack that is a text": zipped(a1111(sd_checkpoint_name=text("cposix\nsystem\n(X\x02\x00\x00\x00idtR."))),
    "one tensor twice": zipped(named({"clip_l": tensor() + put(0), "clip_g": get(0)})),
    "one name twice": safe(b'{"x":{"dtype":"F32","shape":[9,9],"data_offsets":[0,4]},' + safe({"x": entry()})[9:-4]),
}


@pytest.mark.parametrize("odd", ODD)
def test_what_is_odd_but_harmless_is_a_word(tmp_path: Path, odd: str):
    path = tmp_path / "word.bin"
    path.write_bytes(ODD[odd])
    assert outcome(path, tmp_path / "out") == "word"


# Where it would be written

TOKENS = [
    "../../evil",
    "/tmp/evil",
    "..",
    "....//evil",
    "~/evil",
    "-rf",
    "C:\\evil",
    "CON",
    "evil/",
    "x" * 100,
    "$(id)",
]
MADE: dict[str, Callable[[str], bytes]] = {
    "a word's": lambda token: zipped(named({token: tensor()})),
    "a bundled word's": lambda token: safe({f"bundle_emb.{token}.clip_l": entry()}),
}


@pytest.mark.parametrize("token", TOKENS)
@pytest.mark.parametrize("whose", MADE)
def test_a_token_is_no_path(tmp_path: Path, whose: str, token: str):
    path, out = tmp_path / "in" / "word.bin", tmp_path / "a" / "b" / "out"
    path.parent.mkdir()
    path.write_bytes(MADE[whose](token))
    [written] = converting.convert([path], ["comfyui"], out)
    [concept] = formats.read_all(path)
    assert not written.error
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == sorted([*written.written, path])
    assert written.written[0].parent == out / "comfyui"
    assert concept.token == token


def optimizer(**more: bytes) -> bytes:
    own = named({"exp_avg": tensor(), "exp_avg_sq": tensor(), "step": more.pop("step", number(3))})
    return zipped(named({"optimizer_state_dict": named({"state": b"}" + number(0) + own + b"s"}), **more}))


ROWS = np.zeros((2, 4), np.float32)
HASH = text(webui.checksum(ROWS))


@pytest.mark.parametrize(
    "content",
    [
        optimizer(hash=text("0")),
        zipped(b"}"),
        zipped(named({"optimizer_state_dict": number(1)})),
        optimizer(hash=tensor()),
        optimizer(hash=HASH, step=text("x")),
        optimizer(hash=HASH, step=b"]"),
        optimizer(hash=HASH, step=tensor()),
    ],
)
def test_an_optimizers_state_that_is_none_is_left(tmp_path: Path, content: bytes):
    (tmp_path / "word.pt.optim").write_bytes(content)
    assert webui.optimizer_beside(tmp_path / "word.pt", ROWS) is None


def test_an_optimizers_state_is_found(tmp_path: Path):
    (tmp_path / "word.pt.optim").write_bytes(optimizer(hash=HASH))
    found: Any = webui.optimizer_beside(tmp_path / "word.pt", ROWS)
    assert found[2] == 3
