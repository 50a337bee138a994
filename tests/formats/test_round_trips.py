"""Every format × every family that it can hold × numbers of vectors × types of numbers: equal, or the loss is said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from pseudoword import formats
from pseudoword.concept import Concept
from pseudoword.converting import DTYPES, differences
from pseudoword.errors import FormatError
from pseudoword.formats.numbers import stored
from tests.formats.test_readers import KINDS, word

TORCH = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
SAYS_ALL = {".safetensors"}
"""Endings with a place for what a word says of itself; A1111's own files have one too."""


def told(concept: Concept) -> Concept:
    return Concept(concept.token, concept.rows, "style", "somebody/model", 300, {"initializer": "toy"})


def rounded(rows: np.ndarray, dtype: str) -> np.ndarray:
    """Return rows as torch rounds them."""
    return torch.from_numpy(np.array(rows)).to(TORCH[dtype]).float().numpy()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vectors", [1, 2, 8, 75])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [name for name in formats.FORMATS if name != "bundle"])
def test_a_word_comes_back_equal_or_what_is_lost_is_said(
    tmp_path: Path, name: str, kind: str, vectors: int, dtype: str
):
    concept = told(word(kind, vectors))
    if formats.FORMATS[name].refuses(concept):
        with pytest.raises(FormatError, match=rf"The format '{name}' holds rows of one text encoder, but '<cat-toy>'"):
            formats.to_bytes(concept, f"cat-toy{formats.FORMATS[name].SUFFIXES[0]}", name)
        return
    for suffix in formats.FORMATS[name].SUFFIXES:
        path = tmp_path / f"cat-toy{suffix}"
        path.write_bytes(formats.to_bytes(concept, path.name, name, dtype=DTYPES[dtype]))
        read, kept = formats.read(path), "fp32" if suffix == ".png" else dtype  # a picture has decimals
        for encoder, rows in concept.rows.items():
            assert np.array_equal(read.rows[encoder], rounded(rows, kept)), f"{suffix}, {encoder}"
        lost = " ".join(differences(concept, read))
        assert ("exactness" in lost) == (kept != "fp32")
        says_all = suffix in SAYS_ALL or name == "webui"
        assert all(
            (field in lost) != says_all for field in ("property (style)", "base (somebody/model)", "steps (300)")
        )
        assert ("metadata (initializer)" in lost) != says_all
        knows_token = says_all or name == "diffusers"
        assert (read.token == "<cat-toy>") == knows_token
        assert ("token" in lost) != knows_token


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("vectors", [1, 75])
def test_a_word_in_a_lora_comes_back_and_the_lora_is_what_it_was(tmp_path: Path, lora: Path, kind: str, vectors: int):
    concept = told(word(kind, vectors))
    path = formats.bundle_into(lora, [concept], tmp_path / "with-word.safetensors")
    read = formats.read(path)
    assert differences(concept, read) == []
    before, after = safetensors.torch.load_file(lora), safetensors.torch.load_file(path)
    assert all(torch.equal(value, after[name]) and value.dtype == after[name].dtype for name, value in before.items())
    with safetensors.safe_open(path, "pt") as file:
        assert file.metadata()["ss_network_dim"] == "4"
    taken_up = formats.bundle_into(
        path, [concept, told(word(kind, vectors, "<other>"))], tmp_path / "again.safetensors"
    )
    assert [own.token for own in formats.read_all(taken_up)] == ["<cat-toy>", "<other>"]


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
@pytest.mark.parametrize("kind", ["sdxl", "sd3", "flux"])
def test_the_guides_folder_has_a_file_for_each_encoder(tmp_path: Path, kind: str, suffix: str):
    concept = told(word(kind))
    formats.write_folder(concept, tmp_path, safetensors=suffix == ".safetensors")
    for name in formats.files_in(tmp_path):
        if not name.endswith(suffix):
            (tmp_path / name).unlink()
    read = formats.read(tmp_path)
    assert {encoder: rows.shape for encoder, rows in read.rows.items()} == {
        encoder: rows.shape for encoder, rows in concept.rows.items()
    }
    assert all(np.array_equal(rows, concept.rows[encoder]) for encoder, rows in read.rows.items())


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_numbers_are_rounded_as_torch_rounds_them(dtype: str):
    odd = [0.0, -0.0, 1.0, 65504.0, 1e-8, 6e-8, -1.00390625, 1.001953125, 3.1415927, 1e30 if dtype == "bf16" else 1.0]
    values = np.concatenate([np.array(odd, np.float32), np.random.default_rng(0).standard_normal(10_000, np.float32)])
    bits = torch.from_numpy(values).to(TORCH[dtype]).view(torch.int16).numpy()
    assert np.array_equal(stored(values, DTYPES[dtype]).view(np.int16), bits)


def test_what_fp16_cannot_hold_is_refused():
    concept = Concept("<t>", {"clip_l": np.full((1, 768), 70_000.0)})
    with pytest.raises(FormatError, match=r"'<t>' has a number of 70000, which fp16 cannot hold; use bf16 or fp32\.$"):
        formats.to_bytes(concept, "t.safetensors", "kohya", dtype="F16")


def test_equal_words_give_equal_bytes():
    concept = told(word("sd1"))
    for name, format_ in formats.FORMATS.items():
        for suffix in format_.SUFFIXES:
            one, other = (formats.to_bytes(concept, f"cat-toy{suffix}", name) for _ in range(2))
            assert one == other, f"{name}{suffix}"
