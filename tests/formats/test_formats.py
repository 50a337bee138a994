"""Embedding files: a round trip for every format, files of other tools, and damaged ones refused in one sentence."""

from __future__ import annotations

import os
import pickle
import string
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from pseudoword import formats
from pseudoword.concept import Concept
from pseudoword.errors import FormatError

SUFFIXES = [".safetensors", ".bin", ".pt"]


def rows(vectors: int = 2, width: int = 768, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((vectors, width), dtype=np.float32)


def concept(**changes: Any) -> Concept:
    return Concept(**{"token": "<cat-toy>", "rows": {"clip_l": rows()}, **changes})


def save(values: Any, path: Path, metadata: dict[str, str] | None = None) -> Path:
    """Write a file as other tools do, with torch's own functions."""
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(values, path, metadata)
    else:
        torch.save(values, path)
    return path


def header(text: bytes, data: bytes = b"") -> bytes:
    """Return a safetensors file with this very header."""
    return len(text).to_bytes(8, "little") + text + data


def same_rows(one: Concept, other: Concept) -> bool:
    return one.rows.keys() == other.rows.keys() and all(np.array_equal(v, other.rows[k]) for k, v in one.rows.items())


# What we write, we read


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("name", ["diffusers", "kohya"])
@pytest.mark.parametrize("vectors", [1, 3])
def test_every_format_comes_back_as_it_was_written(tmp_path: Path, name: str, suffix: str, vectors: int):
    word = concept(rows={"clip_h": rows(vectors, 1024)})
    path = formats.write_file(word, tmp_path / f"word{suffix}", name)
    read = formats.read(path)
    assert same_rows(read, word)
    assert formats.identify(formats.open_file(path), path) == name
    knows_token = name == "diffusers" or suffix == ".safetensors"
    assert read.token == ("<cat-toy>" if knows_token else "word")
    assert formats.read(path, token="<other>").token == "<other>"


def test_a_word_of_several_encoders_comes_back_in_the_format_that_has_them(tmp_path: Path):
    word = concept(rows={"clip_l": rows(2, 768), "clip_g": rows(2, 1280)})
    for suffix in SUFFIXES:
        assert same_rows(formats.read(formats.write_file(word, tmp_path / f"word{suffix}", "kohya")), word)
        assert same_rows(formats.read(word.save(tmp_path / f"saved{suffix}")), word)
    with pytest.raises(FormatError, match=r"'<cat-toy>' is for clip_l, clip_g; write it in the format 'kohya'\.$"):
        formats.write_file(word, tmp_path / "learned_embeds.safetensors")
    assert not (tmp_path / "learned_embeds.safetensors").exists()


@pytest.mark.parametrize("widths", [(768, 1280), (32, 40)])
@pytest.mark.parametrize("safetensors", [True, False])
def test_a_folder_has_a_file_for_each_encoder_and_is_read_whole(
    tmp_path: Path, widths: tuple[int, int], safetensors: bool
):
    first, second = widths
    word = concept(rows={"clip_g": rows(2, second), "clip_l": rows(2, first)})
    assert list(word.rows) == ["clip_l", "clip_g"], "in the pipeline's order, whatever order they came in"
    formats.write_folder(word, tmp_path, safetensors=safetensors)
    suffix = ".safetensors" if safetensors else ".bin"
    for read in (formats.read(tmp_path), formats.read(tmp_path / f"learned_embeds{suffix}")):
        assert list(read.rows) == ["clip_l", "clip_g"]
        assert same_rows(read, word)
    names = ["learned_embeds.safetensors", "learned_embeds.bin", "learned_embeds_2.safetensors", "learned_embeds_2.bin"]
    assert formats.files_in(tmp_path) == [name for name in names if safetensors or name.endswith(".bin")]
    formats.write_folder(concept(rows={"clip_l": rows(1, first)}), tmp_path, safetensors=safetensors)
    assert list(formats.read(tmp_path).rows) == ["clip_l"], "the second file of an earlier word is gone"


def test_a_second_file_of_another_word_is_not_taken_for_a_part(tmp_path: Path):
    both = {"clip_l": rows(2, 768), "clip_g": rows(2, 1280)}
    old, new = concept(rows=both, steps=1), concept(rows={e: r + 1 for e, r in both.items()}, steps=5)
    formats.write_folder(old, tmp_path)
    first = tmp_path / "learned_embeds.safetensors"
    assert same_rows(formats.read(new.save(first)), new), "one file that has both"
    alone = concept(rows={"clip_l": both["clip_l"]})
    assert same_rows(formats.read(alone.save(first)), alone), "a word of one encoder"
    formats.write_folder(old, tmp_path)
    [path, _] = (
        formats.write_each(new, tmp_path / "elsewhere" / "learned_embeds.safetensors")
        if (tmp_path / "elsewhere").mkdir() is None
        else []
    )
    first.write_bytes(path.read_bytes())  # as a kill between the two leaves them
    with pytest.raises(FormatError, match=r"are not of one word: their steps differ, as after a run that was killed"):
        formats.read(tmp_path)


@pytest.mark.parametrize("name", ["diffusers", "kohya", "onetrainer"])
def test_safetensors_files_say_everything_about_the_word(tmp_path: Path, name: str):
    word = concept(property="style", base="somebody/model", steps=300, metadata={"initializer": "toy", "recipe": "{}"})
    path = formats.write_file(word, tmp_path / "x.safetensors", name)
    read = formats.read(path)
    for field in ("token", "property", "base", "steps", "metadata"):
        assert getattr(read, field) == getattr(word, field), field
    with safetensors.safe_open(path, "pt") as file:
        told = file.metadata()
    assert told["encoders"] == "clip_l:768"
    assert told["format"] == "pt"  # transformers and others refuse safetensors files without it
    assert told["version"].startswith("pseudoword ")
    assert formats.metadata_of(read) == told


def test_a_folder_has_the_guides_files_and_is_read(tmp_path: Path):
    word = concept(property="style")
    folder = word.save(tmp_path / "a" / "run-1.5")  # a dot in a name makes no file of a folder
    assert sorted(p.name for p in folder.iterdir()) == [
        "learned_embeds.bin",
        "learned_embeds.safetensors",
        "token_identifier.txt",
        "type_of_concept.txt",
    ]
    assert (folder / "token_identifier.txt").read_text() == "<cat-toy>"
    assert (folder / "type_of_concept.txt").read_text() == "style"
    assert same_rows(Concept.load(folder), word)
    (folder / "learned_embeds.safetensors").unlink()
    loaded = Concept.load(folder)  # the .bin cannot say the property, the file beside it can
    assert (loaded.token, loaded.property) == ("<cat-toy>", "style")
    assert same_rows(loaded, word)


def test_a_folder_without_safetensors_has_only_the_bin(tmp_path: Path):
    formats.write_folder(concept(), tmp_path, safetensors=False)
    assert not (tmp_path / "learned_embeds.safetensors").exists()
    assert same_rows(formats.read(tmp_path), concept())


def test_a_file_is_written_into_folders_that_are_not_there_yet(tmp_path: Path):
    path = tmp_path / "a" / "b" / "word.pt"
    assert concept().save(path) == path
    assert same_rows(Concept.load(path), concept())


def test_an_unknown_ending_is_refused(tmp_path: Path):
    with pytest.raises(
        FormatError, match=r"written as \.safetensors or \.bin or \.pt, not as '\.ckpt' \(word\.ckpt\)\.$"
    ):
        formats.write_file(concept(), tmp_path / "word.ckpt")


# What others write


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float32])
def test_files_of_any_float_type_are_read_as_fp32(tmp_path: Path, suffix: str, dtype: torch.dtype):
    values = torch.from_numpy(rows()).to(dtype)
    read = formats.read(save({"<t>": values}, tmp_path / f"word{suffix}"))
    assert read.rows["clip_l"].dtype == np.float32
    assert np.array_equal(read.rows["clip_l"], values.float().numpy())


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_flat_rows_of_the_concepts_library_are_one_vector(tmp_path: Path, suffix: str):
    read = formats.read(save({"<t>": torch.from_numpy(rows()[0])}, tmp_path / f"learned_embeds{suffix}"))
    assert read.token == "<t>"
    assert np.array_equal(read.rows["clip_l"], rows()[:1])


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_emb_params_has_the_name_of_its_file(tmp_path: Path, suffix: str):
    read = formats.read(save({"emb_params": torch.from_numpy(rows(8, 1024))}, tmp_path / f"EasyNegative{suffix}"))
    assert read.token == "EasyNegative"
    assert np.array_equal(read.rows["clip_h"], rows(8, 1024))
    assert (read.property, read.base, read.steps) == ("object", "", 0)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_sdxl_files_have_rows_for_both_encoders(tmp_path: Path, suffix: str):
    blocks = {"clip_g": rows(4, 1280), "clip_l": rows(4, 768)}
    read = formats.read(save({k: torch.from_numpy(v) for k, v in blocks.items()}, tmp_path / f"xl{suffix}"))
    assert read.token == "xl"
    assert same_rows(read, concept(rows=blocks))


def test_parameters_and_legacy_pickles_are_read(tmp_path: Path):
    values = {"<t>": torch.nn.Parameter(torch.from_numpy(rows()))}
    torch.save(values, tmp_path / "word.pt", _use_new_zipfile_serialization=False)
    assert np.array_equal(formats.read(tmp_path / "word.pt").rows["clip_l"], rows())


def test_what_a_file_is_decides_and_not_its_ending(tmp_path: Path):
    named_bin = save({"<t>": torch.from_numpy(rows())}, tmp_path / "a.safetensors").rename(tmp_path / "a.bin")
    named_safe = save({"<t>": torch.from_numpy(rows())}, tmp_path / "b.bin").rename(tmp_path / "b.safetensors")
    for path in (named_bin, named_safe):
        assert np.array_equal(formats.read(path).rows["clip_l"], rows())


def test_strange_metadata_is_no_obstacle(tmp_path: Path):
    path = save({"<t>": torch.ones(1, 4)}, tmp_path / "a.safetensors", {"steps": "many", "property": "thing", "k": "v"})
    read = formats.read(path)
    assert (read.steps, read.property, dict(read.metadata)) == (0, "object", {"k": "v"})
    nothing = b'{"__metadata__":null,"<t>":{"dtype":"F32","shape":[1,1],"data_offsets":[0,4]}}'
    path.write_bytes(header(nothing, np.float32(1).tobytes()))
    assert formats.read(path).rows["clip_l"].tolist() == [[1.0]]


# Damaged and foreign files


class Harm:
    """A pickle of this makes the folder it names when code from the file runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.folder),)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("with_torch", [True, False])
def test_a_pickle_that_holds_code_is_refused_and_not_run(tmp_path: Path, with_torch: bool):
    path, harm = tmp_path / "word.bin", tmp_path / "harm"
    values = {"<t>": Harm(harm)}
    torch.save(values, path) if with_torch else path.write_bytes(pickle.dumps(values))
    with pytest.raises(
        FormatError,
        match=r"is not read, because it asks for '(posix|nt)\.mkdir'\. Tensors alone are read, .* carried out",
    ):
        formats.read(path)
    assert not harm.exists()
    torch.load(path, weights_only=False) if with_torch else pickle.loads(path.read_bytes())
    assert harm.exists()  # trusted, this file does its harm


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty; an embedding has kilobytes. Download or copy it again"),
        (b"<!DOCTYPE html><html>404</html>", "is no safetensors or PyTorch file, nor a picture that holds a word; .*"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n",
            "is no safetensors or PyTorch file, nor a picture that holds a word; .*",
        ),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 99, "is a picture whose word, if it holds one, cannot be read .*"),
        (header(b"{"), r"is a damaged safetensors file \(.*\); download or copy it again"),
        (b"\xff" * 8 + b"{}", r"is a damaged safetensors file \(.*\); download or copy it again"),
        (header(b"{}"), "is no embedding that can be read here: it holds nothing"),
        (
            header(b'{"t":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}', b"\0" * 4),
            "is no embedding that can be read here: it holds t",
        ),
        (
            header(b'{"t":{"dtype":"I64","shape":[1,1],"data_offsets":[0,8]}}', b"\0" * 8),
            "holds 't' as I64; expected one of F64, F32, F16, BF16, F8_E4M3, F8_E5M2",
        ),
        (
            header(b'{"t":{"dtype":"F32","shape":[0,4],"data_offsets":[0,0]}}'),
            r": Rows of 't' for clip_l must be \[vectors, width\], not \[0, 4\]",
        ),
        (b"PK\x03\x04" + b"\0" * 50, r"is a damaged PyTorch file \(.*\); download or copy it again"),
        (b"\x80\x02}q\x00", r"is a damaged PyTorch file \(.*\); download or copy it again"),
    ],
)
def test_what_is_no_embedding_is_refused_in_one_sentence(tmp_path: Path, content: bytes, message: str):
    path = tmp_path / "word.safetensors"
    path.write_bytes(content)
    with pytest.raises(FormatError, match=rf"word\.safetensors:? ?{message}\.$") as refused:
        formats.read(path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("share", [0.02, 0.5, 0.99])
def test_a_truncated_file_is_refused(tmp_path: Path, suffix: str, share: float):
    path = formats.write_file(concept(), tmp_path / f"word{suffix}")
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(FormatError, match=r"is a damaged (safetensors|PyTorch) file \(.*\); download or copy it again"):
        formats.read(path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"a": 1, "b": "text"}, "is no embedding that can be read here: it holds a, b"),
        ({"a": torch.ones(1, 4), "b": torch.ones(1, 4)}, "it holds a, b"),
        ({"clip_l": torch.ones(1, 768), "other": torch.ones(1, 4)}, "it holds clip_l, other"),
        ({f"k{i}": torch.ones(1) for i in range(9)}, "it holds k0, k1, k2, k3, k4"),
        ({"t": torch.ones(2, 2, 2)}, "it holds t"),
        ({}, "it holds nothing"),
        ([torch.ones(1, 4)], "holds a list, not named tensors"),
        (
            {"t": torch.eye(3).to_sparse()},
            r"it asks for 'torch\._utils\._rebuild_sparse_tensor'\. Tensors alone .* get the word as \.safetensors",
        ),
        (
            {"my cat": torch.ones(1, 4)},
            r"word\.bin: The placeholder token must be one word .* try something like '<cat-toy>'",
        ),
        ({"t": torch.full((1, 4), torch.nan)}, "Rows of 't' for clip_l hold NaN or infinity; the file is damaged"),
    ],
)
def test_a_pickle_of_something_else_is_refused_in_one_sentence(tmp_path: Path, values: Any, message: str):
    path = save(values, tmp_path / "word.bin")
    with pytest.raises(FormatError, match=rf"word\.bin.*{message}\.$".replace(r"word\.bin.*word\.bin", r"word\.bin")):
        formats.read(path)


def test_a_file_that_is_far_too_large_is_not_even_read(tmp_path: Path):
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.truncate(formats.files.LARGEST + 1)  # sparse: takes no room
    with pytest.raises(FormatError, match=r"has 32 MiB; an embedding has kilobytes\. Is it a model\?$"):
        formats.read(path)


def test_what_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(FormatError, match=r"^There is no file '.*nowhere\.bin'\.$"):
        formats.read(tmp_path / "nowhere.bin")
    message = r"^The folder '.*' holds no learned_embeds\.safetensors or learned_embeds\.bin; name the file itself\.$"
    with pytest.raises(FormatError, match=message):
        Concept.load(tmp_path)


# File names


@given(token=st.text(min_size=1) | st.text(string.punctuation + " aé\u2003", min_size=1))
def test_a_stem_can_be_written_in_every_tools_prompt_and_on_every_disk(token: str):
    stem = formats.stem_of(token)
    assert stem
    assert not set(stem) & set("<>[]():,/\\|?*\"' \t\n")
    assert not any(c.isspace() for c in stem)
    assert not stem.startswith((".", "-"))
    assert not stem.endswith((".", "-"))
    assert formats.stem_of(stem) == stem
    assert Path("exports", f"{stem}.safetensors").stem == stem


@pytest.mark.parametrize(
    ("token", "stem"),
    [
        ("<cat-toy>", "cat-toy"),
        ("*", "word"),
        ("<a/b>", "a-b"),
        ("sks_1.5", "sks_1.5"),
        ("<日本>", "日本"),
        ("..", "word"),
    ],
)
def test_a_stem_stays_close_to_its_token(token: str, stem: str):
    assert formats.stem_of(token) == stem
