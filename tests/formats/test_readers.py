"""What we write, read by diffusers itself and by the other tools' rules, written here as small emulators.

The rules are those of A1111's textual_inversion.py, ComfyUI's sd1_clip.load_embed, InvokeAI's textual inversion probe
and loader, and kohya's gen_img at the time of writing; none of these tools is imported.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from diffusers import StableDiffusionPipeline

from pseudoword import formats
from pseudoword.concept import Concept

SUFFIXES = [".safetensors", ".bin", ".pt"]
SD1, SD2 = ("clip_l", 768), ("clip_h", 1024)
XL_WIDTHS = {"clip_l": 768, "clip_g": 1280}


def word(encoder: str, width: int, vectors: int = 2, token: str = "<cat-toy>") -> Concept:
    return Concept(token, {encoder: np.random.default_rng(width).standard_normal((vectors, width))})


def xl(vectors: int = 2) -> Concept:
    blocks = {name: np.random.default_rng(width).standard_normal((vectors, width)) for name, width in XL_WIDTHS.items()}
    return Concept("<cat-toy>", blocks)


def load(path: Path) -> dict[str, Any]:
    """Read a file as these tools do: safetensors by its ending, anything else with torch's safe unpickler."""
    if path.suffix == ".safetensors":
        return safetensors.torch.load_file(path)
    return torch.load(path, map_location="cpu", weights_only=True)


# diffusers: the real loader on a pipeline of the miniature


@pytest.fixture
def pipeline(base: Path) -> StableDiffusionPipeline:
    return StableDiffusionPipeline.from_pretrained(base)


def lent_to(pipeline: StableDiffusionPipeline, concept: Concept) -> np.ndarray:
    """Return the rows that the pipeline has for the concept's tokens."""
    tokenizer: Any = pipeline.tokenizer
    added = tokenizer.get_added_vocab()
    ids = [added[token] for token in concept.tokens]
    return pipeline.text_encoder.get_input_embeddings().weight[ids].detach().numpy()


@pytest.mark.parametrize("present", [["safetensors", "bin"], ["safetensors"], ["bin"]])
@pytest.mark.parametrize("vectors", [1, 3])
def test_diffusers_loads_a_folder_with_no_further_argument(
    pipeline: StableDiffusionPipeline, tmp_path: Path, present: list[str], vectors: int
):
    concept = word("clip_l", 32, vectors)
    concept.save(tmp_path / "word")
    for suffix in {"safetensors", "bin"} - set(present):
        (tmp_path / "word" / f"learned_embeds.{suffix}").unlink()
    pipeline.load_textual_inversion(str(tmp_path / "word"))
    assert np.array_equal(lent_to(pipeline, concept), concept.rows["clip_l"])
    prompt = pipeline.maybe_convert_prompt("a <cat-toy>.", pipeline.tokenizer)
    assert prompt == f"a {' '.join(concept.tokens)}."


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_diffusers_loads_a_single_file(pipeline: StableDiffusionPipeline, tmp_path: Path, suffix: str):
    concept = word("clip_l", 32)
    pipeline.load_textual_inversion(str(concept.save(tmp_path / f"word{suffix}")))
    assert np.array_equal(lent_to(pipeline, concept), concept.rows["clip_l"])


def test_diffusers_loads_a_file_for_the_other_tools_under_a_given_token(
    pipeline: StableDiffusionPipeline, tmp_path: Path
):
    concept = word("clip_l", 32)
    path = formats.write_file(concept, tmp_path / "cat-toy.safetensors", "kohya")
    pipeline.load_textual_inversion(str(path), token="<cat-toy>")
    assert np.array_equal(lent_to(pipeline, concept), concept.rows["clip_l"])


# A1111, Forge


def a1111(path: Path, expected_width: int) -> tuple[str, dict[str, Any]] | None:
    """Return trigger and vectors of a file in the embeddings folder, or None if it is skipped for its width."""
    assert path.suffix.upper() in {".BIN", ".PT", ".SAFETENSORS"}
    data = load(path)
    if "string_to_param" in data:
        [vectors] = data["string_to_param"].values()
        width = vectors.shape[-1]
    elif "clip_g" in data and "clip_l" in data:
        vectors, width = data, data["clip_g"].shape[-1] + data["clip_l"].shape[-1]
    else:
        assert len(data) == 1, "embedding file has multiple terms in it"
        vectors = next(iter(data.values()))
        vectors = vectors if vectors.dim() > 1 else vectors.unsqueeze(0)
        width = vectors.shape[-1]
    return (path.stem, vectors) if width == expected_width else None


# ComfyUI


def comfyui(folder: Path, prompt: str, embed_key: str, width: int) -> np.ndarray | None:
    """Return the rows that `embedding:NAME` in a prompt stands for, or None where ComfyUI ignores it with a warning."""
    found = re.search(r"(?:^|\s)embedding:([^\s<\[,]+)", prompt)
    assert found, "the name cannot be written in a prompt"
    paths = [folder / f"{found[1]}{suffix}" for suffix in ("", ".safetensors", ".pt", ".bin")]
    [data] = [load(path) for path in paths if path.is_file()][:1]
    if "string_to_param" in data:
        rows = next(iter(data["string_to_param"].values()))
    elif embed_key in data:
        rows = data[embed_key]
    else:
        rows = next(iter(data.values()))
    return rows.numpy() if rows.shape[-1] == width else None


# InvokeAI


def invokeai(path: Path) -> tuple[str, dict[str, np.ndarray]]:
    """Return the base that the import finds, and the rows by the fields they are loaded into."""
    data = load(path)
    if "string_to_token" in data:
        width = next(iter(data["string_to_token"].values())).shape[-1]
    elif "emb_params" in data:
        width = data["emb_params"].shape[-1]
    elif "clip_g" in data:
        width = data["clip_g"].shape[-1]
    else:
        width = next(iter(data.values())).shape[0]
    base = {768: "sd-1", 1024: "sd-2", 1280: "sdxl"}.get(width)
    assert base, f"not a match: width {width}"
    if "emb_params" in data:
        return base, {"embedding": data["emb_params"].numpy()}
    assert "clip_g" in data
    assert "clip_l" in data
    return base, {"embedding": data["clip_g"].numpy(), "embedding_2": data["clip_l"].numpy()}


# kohya's gen_img


def kohya(path: Path) -> tuple[str, list[np.ndarray]]:
    """Return token and rows, one block per text encoder."""
    data = load(path)
    if "string_to_param" in data:
        data = data["string_to_param"]
    if "clip_l" in data:
        return path.stem, [data["clip_l"].numpy(), data["clip_g"].numpy()]
    return path.stem, [next(iter(data.values())).numpy()]


Exported = Callable[[Concept, str], Path]


@pytest.fixture
def export(tmp_path: Path) -> Exported:
    """Write a word as a run leaves it for the other tools."""

    def write(concept: Concept, suffix: str) -> Path:
        return formats.write_file(concept, tmp_path / f"{formats.stem_of(concept.token)}{suffix}", "kohya")

    return write


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(("encoder", "width"), [SD1, SD2])
@pytest.mark.parametrize("vectors", [1, 3])
def test_every_other_tool_reads_the_words_of_sd_1_and_2(
    export: Exported, suffix: str, encoder: str, width: int, vectors: int
):
    concept = word(encoder, width, vectors)
    path, rows = export(concept, suffix), concept.rows[encoder]
    read = a1111(path, width)
    assert read is not None
    assert read[0] == "cat-toy"
    assert np.array_equal(read[1], rows)
    found = comfyui(path.parent, "a embedding:cat-toy, red", "clip_l", width)
    assert found is not None
    assert np.array_equal(found, rows)
    base, fields = invokeai(path)
    assert base == {768: "sd-1", 1024: "sd-2"}[width]
    assert np.array_equal(fields["embedding"], rows)
    token, [block] = kohya(path)
    assert token == "cat-toy"
    assert np.array_equal(block, rows)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_other_tool_reads_words_of_two_encoders(export: Exported, suffix: str):
    concept = xl()
    path = export(concept, suffix)
    assert set(load(path)) == {"clip_l", "clip_g"}
    read = a1111(path, 768 + 1280)
    assert read is not None
    for encoder, width in XL_WIDTHS.items():
        assert np.array_equal(read[1][encoder], concept.rows[encoder])
        found = comfyui(path.parent, "embedding:cat-toy", encoder, width)
        assert found is not None
        assert np.array_equal(found, concept.rows[encoder])
    base, fields = invokeai(path)
    assert base == "sdxl"
    assert np.array_equal(fields["embedding"], concept.rows["clip_g"])
    assert np.array_equal(fields["embedding_2"], concept.rows["clip_l"])
    _, [clip_l, clip_g] = kohya(path)
    assert np.array_equal(clip_l, concept.rows["clip_l"])
    assert np.array_equal(clip_g, concept.rows["clip_g"])


@pytest.mark.parametrize("token", ["<cat-toy>", "<a/b>", "[x]", "*", "my:word", "<日本>", "a,b"])
def test_the_name_of_an_exported_file_can_be_written_in_every_tools_prompt(export: Exported, token: str):
    concept = word(*SD1, token=token)
    path = export(concept, ".safetensors")
    found = comfyui(path.parent, f"a photo of embedding:{path.stem} <lora:x:1>", "clip_l", 768)
    assert found is not None
    assert np.array_equal(found, concept.rows["clip_l"])


def test_other_tools_skip_a_word_for_another_base(export: Exported):
    path = export(word(*SD2), ".safetensors")
    assert a1111(path, 768) is None
    assert comfyui(path.parent, "embedding:cat-toy", "clip_l", 768) is None
