"""Files of every format, changed at random: each is a word or is refused in a sentence, within memory and time.

FUZZ_SECONDS=600 pytest -s -m slow tests/formats/test_fuzz.py
"""

from __future__ import annotations

import functools
import io
import json
import os
import shutil
import struct
import time
import warnings
import zipfile
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

from pseudoword import formats
from pseudoword.concept import Concept
from pseudoword.formats import pictures
from tests.formats.made_up import bundled, entry, hidden, legacy, name, number, outcome, png, safe, text, zipped

CLIP = {"clip_l": np.linspace(-1, 1, 8, dtype=np.float32).reshape(2, 4)}
WORDS = [Concept("<x>", CLIP), Concept("<y>", {**CLIP, "clip_g": CLIP["clip_l"]}, "style", "a/b", 3, {"k": "v"})]
LONGEST = 5
"""Seconds that one small file may take."""


@functools.cache
def files() -> list[bytes]:
    """Return a file of each format and kind."""
    made = [
        formats.to_bytes(word, f"x{ending}", own)
        for own, format_ in formats.FORMATS.items()
        for ending in format_.SUFFIXES
        for word in WORDS
        if not format_.refuses(word)
    ]
    rows = torch.from_numpy(np.array(CLIP["clip_l"]))
    for legacy_too in (True, False):
        out = io.BytesIO()
        values = {"string_to_param": torch.nn.ParameterDict({"*": rows}), "string_to_token": {"*": torch.tensor(265)}}
        torch.save(values, out, _use_new_zipfile_serialization=legacy_too)
        made.append(out.getvalue())
    return [*made, *(picture(json_of(word), "WEBP") for word in WORDS), lora()]


def lora() -> bytes:
    told = {"__metadata__": {"bundle_emb.x": json.dumps({"token": "<x>"}), "y": "<embed>"}}
    shapes = {"bundle_emb.x.clip_l": (1, 4), "bundle_emb.z.string_to_param.*": (4,), "y": (1, 4), "lora_up": (2, 2)}
    places = {called: entry(shape, 16 * i, 16 * i + 16) for i, (called, shape) in enumerate(shapes.items())}
    return safe({**told, **places}, bytes(64))


def json_of(word: Concept) -> bytes:
    rows = {encoder: {pictures.TENSOR: block.tolist()} for encoder, block in word.rows.items()}
    return json.dumps({"string_to_param": rows, "name": word.token, "step": 3}).encode()


def picture(content: bytes, kind: str) -> bytes:
    """Return a picture that hides the content, of which nothing is told in a chunk."""
    out = io.BytesIO()
    Image.open(io.BytesIO(hidden(zlib.compress(content)))).save(out, kind, lossless=True)
    return out.getvalue()


def pickle_of(content: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        [called] = [own for own in archive.namelist() if own.endswith("/data.pkl")]
        return archive.read(called)[2:-1]


# Changes

EDGES = [0, 1, 2, 4, 8, 127, 255, 256, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1]
PIECES = [
    *(bytes([code]) for code in b'()]}{0123NuaestbRQhjqrl\x81\x85\x86\x87\x88\x89\x8a\x8b\x93\x94\x95.:,["-'),
    *(struct.pack(kind, edge % 2 ** (8 * struct.calcsize(kind))) for edge in EDGES for kind in ("<I", "<Q", ">I", "B")),
    *map(number, [*EDGES, -1]),
    *map(text, ["", "storage", "0", "cpu", "x", "*", "name", "string_to_param", "_parameters", "clip_l", "\x1b[31m\n"]),
    *(name("torch", kind) for kind in ("FloatStorage", "HalfStorage", "Size", "device", "bfloat16")),
    *(name("torch._utils", kind) for kind in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter")),
    name("collections", "OrderedDict"),
    name("torch.nn.modules.container", "ParameterDict"),
    name("posix", "mkdir"),
    *(b'NaN 1e999 -1 null true {} [] [[]] "x" \\ud800 \\u001b {"TORCHTENSOR":[[1]]} 1.5 ../../x __metadata__').split(),
    *(b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06", b"IDAT", b"IEND", b"F16", b"BF16", b"data_offsets", b"shape"),
]


@st.composite
def changed(draw: st.DrawFn, content: bytes) -> bytes:
    """Return the content after some changes."""
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, len(content)))
        to = min(len(content), at + draw(st.integers(0, 64)))
        piece = draw(st.sampled_from(PIECES) | st.binary(max_size=8))
        match draw(st.sampled_from(["flip", "put", "over", "cut", "end", "copy", "splice"])):
            case "flip" if at < len(content):
                content = content[:at] + bytes([content[at] ^ 1 << draw(st.integers(0, 7))]) + content[at + 1 :]
            case "put":
                content = content[:at] + piece + content[at:]
            case "over":
                content = content[:at] + piece + content[at + len(piece) :]
            case "cut":
                content = content[:at] + content[to:]
            case "end":
                content = content[:at]
            case "copy":
                content = content[:to] + content[at:to] * draw(st.integers(1, 50)) + content[to:]
            case _:
                other = draw(st.sampled_from(files()))
                content = content[:at] + other[min(at, len(other)) :]
    return content


@st.composite
def made(draw: st.DrawFn) -> bytes:
    """Return a file: changed as it is, or changed inside, where its checksums and lengths hold."""
    content = draw(st.sampled_from(files()))
    kind = draw(st.sampled_from(["inside", "inside", "whole", "pieces"]))
    if kind == "pieces":
        body = b"".join(draw(st.lists(st.sampled_from(PIECES), max_size=40)))
        return draw(st.sampled_from([zipped, legacy]))(body)
    if kind == "whole":
        return draw(changed(content))
    if content[:2] == b"PK":
        body, sizes = draw(changed(pickle_of(content))), st.sampled_from([0, 4, 8, 16, 32])
        storages = {key: bytes(draw(sizes)) for key in "01"}
        return draw(st.sampled_from([zipped(body, storages), legacy(body)]))
    if content[8:9] == b"{":
        end = 8 + int.from_bytes(content[:8], "little")
        return safe(draw(changed(content[8:end])), content[end:])
    told = draw(changed(json_of(draw(st.sampled_from(WORDS)))))
    return draw(st.sampled_from([png(told), picture(told, "PNG")]))


# The promise


def fuzz(folder: Path, seed: int, examples: int) -> Counter[str]:
    """Read files made at random; return how often they were words, and how often refused."""
    came: Counter[str] = Counter()
    path, out = folder / "in" / "word.safetensors", folder / "out"
    path.parent.mkdir(exist_ok=True)

    @hypothesis.seed(seed)
    @settings(max_examples=examples, database=None, suppress_health_check=list(HealthCheck), phases=[*Phase][1:5])
    @given(made())
    def keeps_the_promise(content: bytes) -> None:
        path.write_bytes(content)
        out.mkdir(exist_ok=True)
        began = time.monotonic()
        came["word" if outcome(path, out) == "word" else "refused"] += 1
        came["bundled" if bundled(path, out) == "word" else "not bundled"] += 1
        assert time.monotonic() - began < LONGEST
        assert {own.name for own in folder.iterdir()} == {"in", "out"}
        assert list(path.parent.iterdir()) == [path]
        shutil.rmtree(out)

    with warnings.catch_warnings(action="ignore"):
        keeps_the_promise()
    return came


def grown() -> int:
    """Return the most MiB that this process has had."""
    resource: Any = pytest.importorskip("resource")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def test_changed_files_are_words_or_refused(tmp_path: Path):
    came = fuzz(tmp_path, seed=0, examples=700)
    assert came["word"] > 10, "or nothing of what reads words was tried"
    assert came["refused"] > 10


@pytest.mark.slow
def test_changed_files_are_words_or_refused_for_long(tmp_path: Path):
    ends, before = time.monotonic() + float(os.environ.get("FUZZ_SECONDS", "600")), grown()
    came: Counter[str] = Counter()
    seed = time.time_ns()
    while time.monotonic() < ends:
        seed += 1
        came += fuzz(tmp_path, seed, examples=1000)
    print(f"\n{dict(came)}, {grown() - before} MiB more")
    assert grown() - before < 512
