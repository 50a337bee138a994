"""Files made to take all memory, or for ever: each is read in a process of its own that says what it cost."""

from __future__ import annotations

import json
import os
import re
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.formats.made_up import (
    a1111,
    archive,
    entry,
    get,
    hidden,
    legacy,
    name,
    named,
    number,
    png,
    put,
    safe,
    tensor,
    text,
    zipped,
)

ROOT = Path(__file__).parents[2]
MEBI = 2**20
PRIME = 2**61 - 1
"""Its multiples all hash to 0."""
MOST = 512
"""MiB that reading, inspecting and converting one file may take, and 20 seconds."""
WORD = zipped(named({"x": tensor()}))
DAMAGED = r"is a damaged (PyTorch|safetensors) file \(.*\); download or copy it again"
TOO_MUCH = "is not read, because it has more parts than an embedding can have"


def many(count: int, made: Callable[[int], bytes]) -> bytes:
    return b"".join(map(made, range(count)))


def bundles(count: int) -> bytes:
    return safe({f"bundle_emb.{i}.clip_l": entry((1, 1), 4 * i, 4 * i + 4) for i in range(count)}, bytes(4 * count))


def crumbs() -> bytes:
    """Return a picture of millions of chunks, as long as a file may be."""
    whole, crumb = png(), b"\0\0\0\0abCd" + struct.pack(">I", zlib.crc32(b"abCd"))
    return whole[:33] + crumb * (30 * MEBI // len(crumb)) + whole[33:]


def overlapping() -> bytes:
    """Return a legacy file of storages that lie in one another: each is empty too, deeper than values are looked at."""
    long = many(200, lambda i: text(f"{i}") + tensor(f"{i}", 5 * MEBI, (1, 4)) + b"s")
    empty = b"]" * 9 + b"(" + many(200, lambda i: tensor(f"{i}", 0, (0,), (1,))) + b"e" + b"a" * 8
    keys = [f"{i}" for i in range(200)]
    return legacy(b"}" + text("x") + empty + b"s" + long, keys, struct.pack("<Q", 5 * MEBI) * 200 + bytes(20 * MEBI))


def column(rows: int) -> bytes:
    return safe({"x": entry((rows, 1), 0, 4 * rows)}, bytes(4 * rows))


def large(value: bytes) -> bytes:
    """Return a file of A1111's whose told value is a list of references to one value."""
    return zipped(a1111(pseudoword=named({"x": b"](" + value + put(0) + get(0) * 9000 + b"e"})))


PAIRS = b"](" + (text("a") + b"N\x86") * 20_000 + b"e\x85" + put(1)
SHARED = tensor(length=2 * MEBI, shape=(2 * MEBI,), strides=(1,))
COSTLY: dict[str, tuple[Callable[[], bytes], str]] = {
    "as many dicts as bytes": (lambda: zipped(b"}" * (30 * MEBI)), TOO_MUCH),
    "as many dicts as bytes, legacy": (lambda: legacy(b"}" * (30 * MEBI)), TOO_MUCH),
    "a long text of four-byte letters": (lambda: zipped(named({"x": text("😀" + "a" * 30 * MEBI)})), DAMAGED),
    "a long text of four-byte letters, legacy": (lambda: legacy(named({"x": text("😀" + "a" * 30 * MEBI)})), DAMAGED),
    "a long text again and again": (lambda: large(text("a" * MEBI)), TOO_MUCH),
    "a long name again and again": (
        lambda: zipped(named({"a" * MEBI: b"](" + tensor() + put(0) + get(0) * 50_000 + b"e"})),
        TOO_MUCH,
    ),
    "a tensor again and again": (
        lambda: zipped(named({"x": b"](" + SHARED + put(0) + get(0) * 9000 + b"e"}), {"0": bytes(8 * MEBI)}),
        TOO_MUCH,
    ),
    "bytes that become floats": (
        lambda: zipped(
            named({"x": tensor("0", 30 * MEBI, (30 * MEBI,), (1,), kind="ByteStorage")}), {"0": bytes(30 * MEBI)}
        ),
        TOO_MUCH,
    ),
    "a list that calls copy": (
        lambda: zipped(PAIRS + (name("collections", "OrderedDict") + get(1) + b"R0") * 20_000 + b"}"),
        TOO_MUCH,
    ),
    "keys that hash alike": (
        lambda: zipped(b"}(" + many(40_000, lambda i: number(i * PRIME) + b"N") + b"u"),
        "keys that are no names",
    ),
    "a memo that hashes alike": (lambda: zipped(b"N" + many(40_000, lambda i: b"p%d\n" % (i * PRIME))), "uses PUT"),
    "pairs that hash alike": (
        lambda: zipped(
            name("collections", "OrderedDict")
            + b"]("
            + many(20_000, lambda i: number(i * PRIME) + b"N\x86")
            + b"e\x85R"
        ),
        "keys that are no names",
    ),
    "a shape whose product is endless": (
        lambda: zipped(named({"x": tensor(shape=[2**62] * 40_000, strides=[1] * 40_000)})),
        "that cannot be",
    ),
    "legacy storages in one another": (overlapping, "it holds 0, 1, 10, 100, 101"),
    "a zip of a million names": (
        lambda: archive([]).join([WORD[:99] + b"PK\x01\x02".ljust(46, b"\0") * (30 * MEBI // 46), b""]),
        TOO_MUCH,
    ),
    "as many lists as bytes, safetensors": (
        lambda: safe(b'{"x":{"dtype":"F32","shape":[1,1],"data_offsets":[0,4],"y":[' + b"{}," * (5 * MEBI) + b"0]}}"),
        DAMAGED,
    ),
    "too many words": (lambda: bundles(80_000), "holds 80000 tensors; an embedding has few"),
    "a word of as many vectors as fit": (lambda: column(7 * MEBI), "^word$"),
    "halves that become floats": (
        lambda: safe({"x": entry((1, 14 * MEBI), 0, 28 * MEBI, "BF16")}, bytes(28 * MEBI)),
        "has 28 MiB; an embedding has kilobytes",
    ),
    "a picture of as many lists as bytes": (
        lambda: hidden(zlib.compress(b"[" + b"{}," * (5 * MEBI) + b"0]", 9)),
        "unpacks to more than a word can have",
    ),
    "a picture that unpacks without end": (lambda: hidden(zlib.compress(bytes(400 * MEBI), 9)), "unpacks to more"),
    "a picture of millions of chunks": (crumbs, "too large to look for one"),
    "a picture of 64 million pixels": (lambda: png(size=(8000, 8000)), "too large to look for one"),
}
SPECIAL: dict[str, Callable[[Path], None]] = {
    "a FIFO": lambda path: os.mkfifo(path),
    "a link to what has no end": lambda path: path.symlink_to("/dev/zero"),
    "a link to itself": lambda path: path.symlink_to(path),
}
MEASURE = """
import json, os, resource, signal, sys
from pathlib import Path
from PIL import AvifImagePlugin, PngImagePlugin, WebPImagePlugin
from tests.formats.made_up import outcome

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

for path in [folder / "word.bin" for folder in sorted(Path(sys.argv[1]).iterdir())]:
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
        before = peak()
        try:
            said = outcome(path, path.parent / "out")
        except BaseException as error:
            said = repr(error)[:500]
        os.write(write, json.dumps([path.parent.name, said, peak() - before]).encode())
        os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    print(os.read(read, 65536).decode() or json.dumps([path.parent.name, "took all memory, or 20 seconds", 0]))
"""


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, int]]:
    """Return what was said of each file, and how many MiB its reading and converting took, each in its own process."""
    pytest.importorskip("resource", reason="there is no other way to measure it")
    folder = tmp_path_factory.mktemp("costly")
    for case in (*COSTLY, *SPECIAL):
        path = folder / case / "word.bin"
        path.parent.mkdir()
        if case in SPECIAL:
            SPECIAL[case](path)
        else:
            path.write_bytes(COSTLY[case][0]())
    words = [sys.executable, "-c", MEASURE, folder]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return {case: (said, peak) for case, said, peak in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize("costly", COSTLY)
def test_memory_and_time_have_bounds(measured: dict[str, tuple[str, int]], costly: str):
    said, peak = measured[costly]
    assert re.search(COSTLY[costly][1], said)
    assert peak < MOST


@pytest.mark.parametrize("special", SPECIAL)
def test_what_is_no_file_is_not_waited_for(measured: dict[str, tuple[str, int]], special: str):
    assert re.match(r"There is no file '.*word\.bin'\.$", measured[special][0])


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there is no such thing")
def test_what_lies_beside_a_word_is_not_waited_for(tmp_path: Path):
    (tmp_path / "word.bin").write_bytes(WORD)
    os.mkfifo(tmp_path / "type_of_concept.txt")
    code = "import sys; from pseudoword import formats; formats.read_all(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, tmp_path / "word.bin"], timeout=8, check=True)
