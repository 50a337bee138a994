"""Text encoders: what files call them, for which bases a word is said to be, and files that contradict themselves."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from pseudoword import cli, encoders, formats
from pseudoword.algebra import concatenate, difference, merge, prune
from pseudoword.concept import Concept
from pseudoword.converting import convert, differences
from pseudoword.encoders import BY_KEY, CALLED, ENCODERS, FLUX, SD1, SD3
from pseudoword.errors import FormatError, RecipeError, TokenError
from pseudoword.formats.tools import TOOLS
from pseudoword.inspection import inspect
from pseudoword.recipe import ConceptRecipe
from pseudoword.starting import starting_rows
from pseudoword.vocabulary import Vocabulary, lent_words
from tests.formats.test_foreign import block, is_word

KEYS_OF_COMFYUI = {
    ("clip_l", 768): True,
    ("clip_h", 1024): True,
    ("clip_g", 1280): True,
    ("t5xxl", 4096): True,
    ("t5xxl", 1024): True,
    ("llama", 4096): True,
    ("qwen3_06b", 1024): True,
    ("qwen3_4b", 2560): True,
    ("qwen3_8b", 4096): True,
    ("qwen3vl_4b", 2560): True,
    ("qwen3vl_8b", 4096): True,
    ("qwen35_08b", 1024): True,
    ("qwen35_2b", 2048): True,
    ("qwen35_4b", 2560): True,
    ("qwen35_9b", 4096): True,
    ("qwen35_27b", 5120): True,
    ("mistral3_24b", 5120): True,
    ("gpt_oss", 2880): True,
    ("sam3_clip", 1024): True,
    ("gemma2_2b", 2304): False,
    ("gemma3_4b", 2560): False,
    ("gemma3_12b", 3840): False,
    ("qwen25_7b", 3584): False,
    ("qwen25_3b", 2048): False,
    ("qwen3_2b", 2048): False,
    ("umt5xxl", 4096): False,
    ("umt5base", 768): False,
    ("mt5xl", 2048): False,
    ("pile_t5xl", 2048): False,
    ("t5base", 768): False,
    ("t5gemma", 768): False,
    ("byt5_small", 1472): False,
    ("chinese_roberta", 1024): False,
    ("jina_clip_2", 1024): False,
    ("lyrics", 1024): False,
    ("hidream_o1", 4096): False,
    ("gemma4", 2560): False,
}
"""Keys of its tokenizers at 4f874c5, the width of the model's table, and whether the tokenizer is given embeddings."""


def save(folder: Path, metadata: dict[str, str] | None = None, /, **values: torch.Tensor) -> Path:
    path = folder / "cat.safetensors"
    safetensors.torch.save_file(values, path, metadata)
    return path


def says(path: Path, tool: str) -> tuple[bool, str]:
    verdict = TOOLS[tool].verdict(formats.open_file(path), path.name)
    return verdict.loads, verdict.says


@pytest.mark.parametrize(("key", "width"), KEYS_OF_COMFYUI)
def test_every_key_of_comfyui_is_its_text_encoders(tmp_path: Path, key: str, width: int):
    path = save(tmp_path, **{key: block(2, width)})
    concept = formats.read(path)
    assert is_word(concept, "cat", **{CALLED[key]: block(2, width)}), "whatever else is as wide"
    assert inspect(path)[0]["for"], "it is said for which bases"
    assert says(path, "comfyui")[0] == KEYS_OF_COMFYUI[key, width]
    with_clip = save(tmp_path, **{key: block(2, width), "clip_l": block(3)})
    assert formats.read(with_clip).vectors == {"clip_l": 3, CALLED[key]: 2} if key != "clip_l" else True


def test_every_encoder_comes_back_under_the_key_that_each_tool_looks_for(tmp_path: Path):
    for encoder in ENCODERS:
        for width in encoder.bases:
            concept = Concept("<x>", {encoder.key: block(2, width).numpy()})
            for suffix in (".safetensors", ".pt"):
                path = formats.write_file(concept, tmp_path / f"x{suffix}", "kohya")
                alone = encoder.key in encoders.ALONE
                expected = "emb_params" if alone else encoder.readers.get("comfyui", encoder.key)
                assert list(formats.open_file(path).values) == [expected]
                read = formats.read(path)
                assert np.array_equal(read.rows[encoder.key], concept.rows[encoder.key]), f"{encoder.key} {width}"


def test_the_table_calls_no_two_encoders_alike():
    assert len(CALLED) == sum(len(encoder.keys) for encoder in ENCODERS)
    assert (CALLED["t5xxl"], CALLED["t5"], CALLED["gemma"]) == ("t5", "t5", "gemma2_2b")


@pytest.mark.parametrize("name", ["llama", "gemma", "lyrics", "gpt_oss"])
def test_a_lone_tensor_of_clips_width_is_a_word_of_that_name(tmp_path: Path, name: str):
    assert is_word(formats.read(save(tmp_path, **{name: block()})), name, clip_l=block())


# OneTrainer's


def test_numbers_of_vectors_may_differ_by_text_encoder(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = save(tmp_path, clip_l=block(2), t5=block(4, 4096))
    concept = formats.read(path)
    assert is_word(concept, "cat", clip_l=block(2), t5=block(4, 4096))
    assert (concept.num_vectors, concept.vectors) == (4, {"clip_l": 2, "t5": 4})
    [comfyui, onetrainer] = convert([path], ["comfyui", "onetrainer"], tmp_path / "out")
    for outcome in (comfyui, onetrainer):
        assert differences(concept, formats.read(outcome.written[0])) == []
    assert cli.main(["inspect", str(path)]) == 0
    assert "clip_l 2, t5 4" in capsys.readouterr().out
    xl = save(tmp_path, clip_l=block(2), clip_g=block(4, 1280))
    assert says(xl, "a1111") == (False, "expects as many vectors for clip_l as for clip_g")
    assert says(xl, "onetrainer")[0]


class Tokenizer:
    """A tokenizer that knows letters."""

    model_max_length, unk_token, unk_token_id = 12, "?", 0
    bos_token_id, eos_token_id, pad_token_id = 1, 2, 2

    def __len__(self) -> int:
        return 100

    def __call__(self, text: str | list[str], **_: object) -> Any:
        ids = self._ids(text) if isinstance(text, str) else [self._ids(one) for one in text]
        return type("Ids", (), {"input_ids": ids})()

    def _ids(self, text: str) -> list[int]:
        return [ord(c) - 90 for c in text if c.isalpha()]

    def get_added_vocab(self) -> dict[str, int]:
        return {}

    def convert_tokens_to_ids(self, token: str) -> int:
        return 0


def test_a_word_stands_for_as_many_rows_as_each_text_encoder_has():
    tables = {"clip_l": np.ones((100, 4), np.float32), "clip_g": np.ones((100, 6), np.float32)}
    vocabularies = {encoder: Vocabulary(Tokenizer(), table) for encoder, table in tables.items()}
    concept = Concept("<xx>", {"clip_l": np.zeros((1, 4)), "clip_g": np.ones((3, 6))})
    other = Concept("<yy>", {"clip_l": np.full((2, 4), 2.0), "clip_g": np.full((1, 6), 3.0)})
    with lent_words(vocabularies, [concept, other]) as rows:
        assert rows is not None
        ids = {encoder: vocabulary.expand("a <xx> <yy>")[0] for encoder, vocabulary in vocabularies.items()}
        assert ids == {"clip_l": [7, 100, 101, 102], "clip_g": [7, 100, 101, 102, 103]}
        assert [block.shape[0] for block in rows.values()] == [3, 4]
        assert rows["clip_g"][ids["clip_g"][-1] - 100, 0] == 3, "each id means its own word's row"


def test_what_needs_equally_many_vectors_says_so(tmp_path: Path):
    uneven = Concept("<x>", {"clip_l": np.ones((1, 4)), "clip_g": np.ones((3, 6))})
    even = Concept("<y>", {"clip_l": np.ones((3, 4)), "clip_g": np.ones((3, 6))})
    with pytest.raises(TokenError, match=r"'<x>' has 1 \(clip_l\), 3 \(clip_g\) vectors and cannot be pruned; that"):
        prune(uneven, vectors=1)
    for act in (merge, lambda pair: difference(*pair)):
        with pytest.raises(TokenError, match=r"Words of 1 \(clip_l\), 3 \(clip_g\) and of 3 vectors cannot be "):
            act([uneven, even])
    assert concatenate([uneven, even]).vectors == {"clip_l": 4, "clip_g": 6}
    path = uneven.save(tmp_path / "x.safetensors")
    tables = {"clip_l": np.ones((100, 4), np.float32), "clip_g": np.ones((100, 6), np.float32)}
    recipe = ConceptRecipe(token="<new>", pictures="x", initializer=str(path), num_vectors=3)
    with pytest.raises(RecipeError, match=r"has 1 \(clip_l\), 3 \(clip_g\) vector\(s\), but num_vectors is 3; make"):
        starting_rows({name: Vocabulary(Tokenizer(), table) for name, table in tables.items()}, recipe)


@pytest.mark.parametrize(
    ("values", "rows"),
    [
        ({"clip_g": block(), "t5": block(3, 4096)}, {"clip_l": block(), "t5": block(3, 4096)}),
        ({"clip_l": block(2, 1280), "clip_g": block()}, {"clip_l": block(), "clip_g": block(2, 1280)}),
        ({"clip_l": block(2, 1024)}, {"clip_h": block(2, 1024)}),
    ],
)
def test_a_key_that_contradicts_its_width_is_said_and_repaired(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, values: dict[str, torch.Tensor], rows: dict[str, torch.Tensor]
):
    path = save(tmp_path, **values)
    with caplog.at_level(logging.WARNING):
        concept = formats.read(path)
    assert is_word(concept, "cat", **rows)
    [key] = [name for name in values if CALLED[name] not in rows or values[name].shape != rows[CALLED[name]].shape][:1]
    assert f"{path} calls rows of width {values[key].shape[1]} {key}, but they are " in caplog.text
    caplog.clear()
    for outcome in convert([path], ["comfyui", "onetrainer"], tmp_path / "out"):
        assert is_word(formats.read(outcome.written[0]), "cat", **rows)
        assert says(outcome.written[0], outcome.target)[0]
    assert "calls rows" not in caplog.text.replace(str(path), "") or "/out/" not in caplog.text
    assert not any(says(path, tool)[0] for tool in ("onetrainer", "invokeai", "kohya") if len(values) > 1)


def test_keys_that_cannot_both_be_right_are_left_as_they_are(tmp_path: Path):
    path = save(tmp_path, clip_l=block(), clip_g=block(seed=1))
    assert formats.read(path).rows.keys() == {"clip_l", "clip_g"}
    assert inspect(path)[0]["for"] is None
    assert not says(path, "a1111")[0]


# For which base


@pytest.mark.parametrize(
    ("key", "metadata", "expected"),
    [
        ("emb_params", {}, SD1),
        ("<x>", {}, SD1),
        ("clip_l", {}, f"{SD1}, or CLIP alone of {FLUX} or another base of several text encoders"),
        ("clip_l", {"modelspec.architecture": "flux-1-dev/textual-inversion"}, f"{FLUX} (clip_l of it)"),
        ("clip_l", {"modelspec.architecture": "stable-diffusion-v1/textual-inversion"}, SD1),
        ("emb_params", {"ss_base_model_version": "flux1"}, f"{FLUX} (clip_l of it)"),
        ("clip_l", {"base": "black-forest-labs/FLUX.1-dev"}, f"{FLUX} (clip_l of it)"),
        ("emb_params", {"base": "stable-diffusion-v1-5/stable-diffusion-v1-5"}, SD1),
        ("emb_params", {"base": "someone/fluxuous"}, SD1),
        ("clip_l", {"modelspec.architecture": "stable-diffusion-3-medium"}, f"{SD3} (clip_l of it)"),
        ("emb_params", {"base": "black-forest-labs/FLUX.2-dev"}, SD1),
    ],
)
def test_a_word_of_clip_alone_may_be_fluxs(tmp_path: Path, key: str, metadata: dict[str, str], expected: str):
    path = save(tmp_path, metadata or None, **{key: block()})
    assert inspect(path)[0]["for"] == expected


def test_where_the_base_is_open_onetrainer_finds_the_rows_for_either(tmp_path: Path):
    path = save(tmp_path, clip_l=block())
    [outcome] = convert([path], ["onetrainer"], tmp_path / "out")
    values = formats.open_file(outcome.written[0]).values
    assert set(values) == {"clip_l", "emp_params"}
    assert all(np.array_equal(rows, block()) for rows in values.values())
    assert is_word(formats.read(outcome.written[0]), "cat", clip_l=block())
    assert "or CLIP alone of FLUX.1" in inspect(outcome.written[0])[0]["for"]
    known = Concept("<x>", {"clip_l": block().numpy()})
    [outcome] = convert([known.save(tmp_path / "x.safetensors")], ["onetrainer"], tmp_path / "out")
    assert set(formats.open_file(outcome.written[0]).values) == {"emp_params"}


@pytest.mark.parametrize(
    ("widths", "expected"),
    [
        ({"clip_l": 768, "clip_g": 1280}, "Stable Diffusion XL"),
        ({"clip_h": 1024}, "Stable Diffusion 2.x"),
        ({"clip_l": 768, "t5": 4096}, "FLUX.1"),
        ({"clip_l": 768, "clip_g": 1280, "t5": 4096, "llama": 4096}, "HiDream"),
        ({"clip_l": 768, "llama": 4096}, "HunyuanVideo"),
        ({"gemma2_2b": 2304}, "Sana or Lumina 2"),
        ({"t5": 1024}, "Cosmos"),
        ({"clip_g": 1280}, "a part of Stable Diffusion XL, Stable Diffusion 3 or HiDream"),
        ({"mistral3_24b": 3072}, "ERNIE-Image"),
        ({"clip_l": 32}, None),
        ({"clip_h": 768}, None),
    ],
)
def test_a_words_text_encoders_say_for_which_base_it_is(widths: dict[str, int], expected: str | None):
    assert encoders.base_of(widths) == expected


# Several words, and small numbers


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_a_file_of_several_tokens_holds_several_words(tmp_path: Path, suffix: str):
    values = {"<a>": block(3), "<b>": block(1, seed=1)[0], "style-c": block(2, seed=2)}
    path = tmp_path / f"learned{suffix}"
    safetensors.torch.save_file(values, path) if suffix == ".safetensors" else torch.save(values, path)
    words = formats.read_all(path)
    assert [word.token for word in words] == ["<a>", "<b>", "style-c"]
    assert all(np.array_equal(word.rows["clip_l"], np.atleast_2d(values[word.token])) for word in words)
    assert [one["token"] for one in inspect(path)] == ["<a>", "<b>", "style-c"]
    assert is_word(formats.read(path, token="<b>"), "<b>", clip_l=block(1, seed=1))
    with pytest.raises(FormatError, match=r"holds several words \(<a>, <b>, style-c\); say which"):
        formats.read(path)
    assert len([one for one in convert([path], ["comfyui"], tmp_path / "out") if one.written]) == 3
    several = (False, "takes one word a file, and this has several; pseudoword convert writes a file of each")
    assert all(says(path, tool) == several for tool in TOOLS if tool not in ("original", "a1111"))


def test_numbered_tokens_are_the_vectors_of_one_word(tmp_path: Path):
    rows = block(12)
    values = {"<a>" if i == 0 else f"<a>_{i}": rows[i : i + 1].clone() for i in range(12)} | {"<b>": block(1, seed=1)}
    first, second = formats.read_all(save(tmp_path, **values))
    assert is_word(first, "<a>", clip_l=rows)
    assert is_word(second, "<b>", clip_l=block(1, seed=1))
    apart = formats.read_all(save(tmp_path, **{"<a>": block(2), "<a>_2": block(1), "<b>_7": block(1)}))
    assert [word.token for word in apart] == ["<a>", "<a>_2", "<b>_7"], "those of a word of two are named already"


@pytest.mark.parametrize(
    "values",
    [
        {"weight": block(), "bias": block(1)},
        {"<a>": block(), "<b>": block(2, 1024)},
        {"<a>": block(), "layer.bias": block()},
        {"<a>": block(), "clip_l": block()},
        {"<a>": block(76), "<b>": block()},
    ],
)
def test_other_tensors_are_no_words(tmp_path: Path, values: dict[str, torch.Tensor]):
    with pytest.raises(FormatError, match=r"is no embedding that can be read here: it holds "):
        formats.read_all(save(tmp_path, **values))


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_every_number_of_8_bits_is_read_exactly(tmp_path: Path, dtype: torch.dtype, suffix: str):
    every = torch.arange(256, dtype=torch.uint8).view(dtype)
    finite = every[torch.isfinite(every.float())].reshape(1, -1)
    path = tmp_path / f"word{suffix}"
    safetensors.torch.save_file({"<t>": finite}, path) if suffix == ".safetensors" else torch.save(
        {"<t>": finite}, path
    )
    read = formats.read(path)
    assert np.array_equal(read.rows["clip_l"], finite.float().numpy())
    assert np.array_equal(np.signbit(read.rows["clip_l"]), np.signbit(finite.float().numpy())), "the zeros' signs too"
    assert set(formats.open_file(path).dtypes.values()) == {"F8_E4M3" if "e4m3" in str(dtype) else "F8_E5M2"}
    whole = every.reshape(1, -1)
    safetensors.torch.save_file({"<t>": whole}, tmp_path / "bad.safetensors")
    with pytest.raises(FormatError, match=r"Rows of '<t>' for clip_l hold NaN or infinity; the file is damaged\."):
        formats.read(tmp_path / "bad.safetensors")


def test_inspect_says_for_each_encoder_in_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = save(tmp_path, clip_l=block(2), llama=block(4, 4096))
    assert cli.main(["inspect", str(path), "--json"]) == 0
    [word_in_json] = json.loads(capsys.readouterr().out)
    assert word_in_json["vectors_of"] == {"clip_l": 2, "llama": 4}
    assert (word_in_json["vectors"], word_in_json["widths"], word_in_json["for"]) == (
        4,
        {"clip_l": 768, "llama": 4096},
        "HunyuanVideo",
    )
    assert BY_KEY["llama"].readers == {"comfyui": "llama", "onetrainer": "llama"}
